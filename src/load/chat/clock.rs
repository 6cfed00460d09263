//! `strftime_now`: the date and the time of day, for templates that write them into the system prompt.

use jiff::ZonedDateTime;
use jiff::fmt::strtime::{BrokenDownTime, Config, PosixCustom};

/// Every conversion that C's `strftime` knows in its own locale, and Python's `f`.
const CONVERSIONS: &str = "aAbBcCdDeFgGhHIjklmMnpPrRsStTuUVwWxXyYzZf%";
const FLAGS: [char; 5] = ['_', '-', '0', '^', '#'];

/// Now, in local time, by a format of C's `strftime`.
pub(super) fn now(format: &str) -> String {
    at(&ZonedDateTime::now(), format)
}

/// As Python's `datetime.now().strftime` writes a moment: without a time zone, so that `%z` and `%Z` are empty. What is
/// no directive stays as it is.
fn at(moment: &ZonedDateTime, format: &str) -> String {
    let mut text = String::new();
    let mut rest = format;
    while let Some(start) = rest.find('%') {
        text += &rest[..start];
        let directive = Directive::parse(&rest[start..]);
        let (written, length) = directive.map_or(("%".into(), 1), |found| (found.write(moment), found.length));
        text += &written;
        rest = &rest[start + length..];
    }
    text + rest
}

/// `%`, flags, a least width, a modifier for other calendars (which C's own locale has none of), a conversion.
struct Directive<'a> {
    flags_and_width: &'a str,
    conversion: char,
    /// In bytes, of all of it.
    length: usize,
}

impl<'a> Directive<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let after = text.strip_prefix('%')?;
        let unflagged = after.trim_start_matches(FLAGS);
        let conversion_on = unflagged.trim_start_matches(|c: char| c.is_ascii_digit());
        let flags_and_width = &after[..after.len() - conversion_on.len()];
        let plain = conversion_on.strip_prefix(['E', 'O']).unwrap_or(conversion_on);
        let conversion = plain.chars().next().filter(|&conversion| CONVERSIONS.contains(conversion))?;
        Some(Self { flags_and_width, conversion, length: text.len() - plain.len() + conversion.len_utf8() })
    }

    fn write(&self, moment: &ZonedDateTime) -> String {
        let format = match self.conversion {
            'z' | 'Z' => return String::new(),
            'f' => "%6f".to_owned(),
            conversion => format!("%{}{conversion}", self.flags_and_width),
        };
        let config = Config::new().custom(PosixCustom::new());
        let written = BrokenDownTime::from(moment).to_string_with_config(&config, &format);
        // Such as a width that nobody can mean.
        written.unwrap_or(format)
    }
}

#[cfg(test)]
mod tests {
    use super::at;
    use jiff::civil::date;
    use jiff::tz::{TimeZone, offset};

    fn written(format: &str) -> String {
        let zone = TimeZone::fixed(offset(-5));
        at(&date(2024, 2, 9).at(15, 4, 7, 89_000).to_zoned_datetime(zone).unwrap(), format)
    }

    #[test]
    fn directives_of_c_and_of_python() {
        let expected = [
            ("%a %A %b %B %h", "Fri Friday Feb February Feb"),
            ("%Y-%m-%d %y %C %e %j", "2024-02-09 24 20  9 040"),
            ("%H:%M:%S %I %k %l %p %P", "15:04:07 03 15  3 PM pm"),
            ("%c|%x|%X|%r", "Fri Feb  9 15:04:07 2024|02/09/24|15:04:07|03:04:07 PM"),
            ("%D %F %R %T", "02/09/24 2024-02-09 15:04 15:04:07"),
            ("%G %g %V %U %W %u %w", "2024 24 06 05 06 5 5"),
            ("%s %f", "1707509047 000089"),
            ("%-d %_m %^a %3d %Ey %Od %#p", "9  2 FRI 009 24 09 pm"),
            ("[%z%Z] %n%t%%", "[] \n\t%"),
        ];
        for (format, text) in expected {
            assert_eq!(written(format), text, "{format}");
        }
    }

    #[test]
    fn what_is_no_directive_stays() {
        for text in ["100%", "%Q %!", "%", "%é", "%-", "%E", "ü%5", "%999999999999999999999d", "plain"] {
            assert_eq!(written(text), text);
        }
    }
}
