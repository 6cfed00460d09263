//! `tojson`, which means Python's `json.dumps` in chat templates.

use super::python;
use crate::load::limits;
use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Error, ErrorKind, State, Value};

/// Deeper values are refused: no conversation needs them, and each level takes room on the stack.
const DEEPEST: usize = limits::TEMPLATE_VALUE_DEPTH;

/// The filter: `tojson(ensure_ascii=False, indent=None, separators=None, sort_keys=False)`.
pub(super) fn to_json(
    state: &State<'_, '_>,
    value: &Value,
    positional: minijinja::value::Rest<Value>,
    options: Kwargs,
) -> Result<Value, Error> {
    let options = Options::read(&positional, &options)?;
    let mut json = String::new();
    options.write(state, &mut json, value, 0)?;
    Ok(json.into())
}

struct Options {
    ensure_ascii: bool,
    sort_keys: bool,
    /// What one level is indented by; `None` is all on one line.
    indent: Option<String>,
    comma: String,
    colon: String,
}

impl Options {
    /// # Errors
    /// For an argument that Python's filter does not have, or of another type.
    fn read(positional: &[Value], named: &Kwargs) -> Result<Self, Error> {
        const NAMES: [&str; 4] = ["ensure_ascii", "indent", "separators", "sort_keys"];
        if positional.len() > NAMES.len() {
            return Err(invalid("tojson takes at most four arguments"));
        }
        let argument = |name: &str| -> Result<Option<Value>, Error> {
            let place = NAMES.iter().position(|known| *known == name);
            let given = match place.and_then(|place| positional.get(place)) {
                Some(value) if named.has(name) => return Err(invalid(format!("tojson: {name} given twice ({value})"))),
                Some(value) => Some(value.clone()),
                None => named.get::<Option<Value>>(name)?,
            };
            Ok(given.filter(|value| !value.is_none()))
        };
        let indent = match argument("indent")? {
            Some(width) if width.kind() == ValueKind::String => Some(width.to_string()),
            Some(width) => {
                let spaces = i64::try_from(width).map_err(|_| invalid("tojson: indent is no number and no text"))?;
                if spaces > 64 {
                    return Err(invalid("tojson: indent of more than 64 spaces"));
                }
                Some(" ".repeat(spaces.max(0) as usize))
            }
            None => None,
        };
        let (comma, colon) = match argument("separators")? {
            Some(separators) => pair(&separators)?,
            None => (if indent.is_some() { "," } else { ", " }.into(), ": ".into()),
        };
        let ensure_ascii = argument("ensure_ascii")?.is_some_and(|value| value.is_true());
        let sort_keys = argument("sort_keys")?.is_some_and(|value| value.is_true());
        named.assert_all_used()?;
        Ok(Self { ensure_ascii, sort_keys, indent, comma, colon })
    }

    fn write(&self, state: &State<'_, '_>, json: &mut String, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > DEEPEST {
            return Err(invalid(format!("tojson: more than {DEEPEST} values inside each other")));
        }
        if json.len() > limits::PROMPT_BYTES {
            return Err(invalid("tojson: a text longer than a prompt may be"));
        }
        // Indentation and separators are as long as the template likes, and are paid for as they are written.
        let overhead =
            self.comma.len() + self.colon.len() + self.indent.as_ref().map_or(0, |indent| indent.len() * depth);
        state.consume_fuel(1 + overhead as u64 / 64)?;
        match value.kind() {
            ValueKind::None => json.push_str("null"),
            ValueKind::Bool => json.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => json.push_str(&number(value)),
            ValueKind::String => self.string(json, value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => {
                let items = value.try_iter()?.collect::<Vec<_>>();
                self.enclosed(json, "[]", &items, depth, |options, json, item| {
                    options.write(state, json, item, depth + 1)
                })?;
            }
            ValueKind::Map => {
                let mut entries = Vec::new();
                for key in value.try_iter()? {
                    entries.push((text_of_key(&key)?, value.get_item(&key)?));
                }
                if self.sort_keys {
                    entries.sort_by(|a, b| a.0.cmp(&b.0));
                }
                self.enclosed(json, "{}", &entries, depth, |options, json, (key, value)| {
                    options.string(json, key);
                    json.push_str(&options.colon);
                    options.write(state, json, value, depth + 1)
                })?;
            }
            other => return Err(invalid(format!("tojson: {other} is not JSON"))),
        }
        Ok(())
    }

    /// Items between brackets, with the commas and line ends that the options ask for.
    fn enclosed<T>(
        &self,
        json: &mut String,
        brackets: &str,
        items: &[T],
        depth: usize,
        mut write: impl FnMut(&Self, &mut String, &T) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let new_line = |json: &mut String, indent: &Option<String>, depth: usize| {
            if let Some(indent) = indent {
                json.push('\n');
                json.push_str(&indent.repeat(depth));
            }
        };
        json.push_str(&brackets[..1]);
        for (index, item) in items.iter().enumerate() {
            if index > 0 {
                json.push_str(&self.comma);
            }
            new_line(json, &self.indent, depth + 1);
            write(self, json, item)?;
        }
        if !items.is_empty() {
            new_line(json, &self.indent, depth);
        }
        json.push_str(&brackets[1..]);
        Ok(())
    }

    fn string(&self, json: &mut String, text: &str) {
        json.push('"');
        for character in text.chars() {
            match character {
                '"' => json.push_str("\\\""),
                '\\' => json.push_str("\\\\"),
                '\n' => json.push_str("\\n"),
                '\r' => json.push_str("\\r"),
                '\t' => json.push_str("\\t"),
                '\u{8}' => json.push_str("\\b"),
                '\u{c}' => json.push_str("\\f"),
                plain if plain >= ' ' && (plain < '\u{7f}' || !self.ensure_ascii) => json.push(plain),
                other => {
                    let units = &mut [0; 2];
                    json.extend(other.encode_utf16(units).iter().map(|unit| format!("\\u{unit:04x}")));
                }
            }
        }
        json.push('"');
    }
}

/// As Python writes it: also `NaN` and `Infinity`, which JSON does not have.
fn number(value: &Value) -> String {
    match python::float(value) {
        Some(number) if number.is_nan() => "NaN".into(),
        Some(number) if number.is_infinite() => if number > 0.0 { "Infinity" } else { "-Infinity" }.into(),
        Some(number) => python::repr(number),
        None => value.to_string(),
    }
}

/// A key as JSON has it; Python takes numbers and the like for keys too.
fn text_of_key(key: &Value) -> Result<String, Error> {
    match key.kind() {
        ValueKind::String => Ok(key.to_string()),
        ValueKind::None => Ok("null".into()),
        ValueKind::Bool => Ok(key.is_true().to_string()),
        ValueKind::Number => Ok(number(key)),
        other => Err(invalid(format!("tojson: {other} as a key"))),
    }
}

fn pair(separators: &Value) -> Result<(String, String), Error> {
    let wrong = || invalid("tojson: separators are a pair of texts, such as (',', ':')");
    if !matches!(separators.kind(), ValueKind::Seq | ValueKind::Iterable) {
        return Err(wrong());
    }
    let texts: Vec<Value> = separators.try_iter()?.collect();
    match &texts[..] {
        [comma, colon] => {
            let text = |value: &Value| value.as_str().map(str::to_owned).ok_or_else(wrong);
            Ok((text(comma)?, text(colon)?))
        }
        _ => Err(wrong()),
    }
}

fn invalid(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, message.into())
}
