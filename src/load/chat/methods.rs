//! Methods of Python's texts, lists and mappings: minijinja's own set of them, and those it lacks or takes otherwise.

use minijinja::value::{Kwargs, Tuple, ValueKind, from_args};
use minijinja::{Error, ErrorKind, State, Value};
use minijinja_contrib::pycompat::unknown_method_callback;

/// Calls a method by its name.
pub(super) fn call(state: &mut State<'_, '_>, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    let known = match (value.kind(), value.as_str()) {
        (_, Some(text)) => of_text(state, text, method, args)?,
        (ValueKind::Seq, _) => of_list(value, method, args)?,
        (ValueKind::Map, _) if method == "copy" => {
            let () = from_args(args)?;
            Some(value.clone())
        }
        _ => None,
    };
    known.map_or_else(|| unknown_method_callback(state, value, method, args), Ok)
}

fn of_text(state: &State<'_, '_>, text: &str, method: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    Ok(Some(match method {
        "split" | "rsplit" => split(text, args, method == "rsplit")?,
        "partition" | "rpartition" => {
            let (separator,): (&str,) = from_args(args)?;
            let from_right = method == "rpartition";
            let halves = if from_right { text.rsplit_once(separator) } else { text.split_once(separator) };
            let parts = match halves {
                _ if separator.is_empty() => return Err(invalid("empty separator")),
                Some((before, after)) => [before, separator, after],
                None if from_right => ["", "", text],
                None => [text, "", ""],
            };
            Value::from(Tuple::from(parts.map(Value::from).to_vec()))
        }
        "removeprefix" => {
            let (prefix,): (&str,) = from_args(args)?;
            text.strip_prefix(prefix).unwrap_or(text).into()
        }
        "removesuffix" => {
            let (suffix,): (&str,) = from_args(args)?;
            text.strip_suffix(suffix).unwrap_or(text).into()
        }
        "index" | "rindex" => {
            let (part,): (&str,) = from_args(args)?;
            let at = if method == "index" { text.find(part) } else { text.rfind(part) };
            text[..at.ok_or_else(|| invalid("substring not found"))?].chars().count().into()
        }
        "ljust" | "rjust" | "center" => {
            let (width, fill): (usize, Option<char>) = from_args(args)?;
            let missing = padding(state, text, width)?;
            // As Python: of an odd padding, the larger half goes right, unless the width is odd.
            let left = match method {
                "ljust" => 0,
                "rjust" => missing,
                _ => missing / 2 + (missing & width & 1),
            };
            let fill = |count: usize| String::from_iter(std::iter::repeat_n(fill.unwrap_or(' '), count));
            Value::from(fill(left) + text + &fill(missing - left))
        }
        "zfill" => {
            let (width,): (usize,) = from_args(args)?;
            let zeros = "0".repeat(padding(state, text, width)?);
            let digits = text.trim_start_matches(['+', '-']);
            let sign = if text.len() - digits.len() == 1 { &text[..1] } else { "" };
            Value::from([sign, &zeros, &text[sign.len()..]].concat())
        }
        // Padding to a width that nobody can mean would take all memory.
        "format" if text.split(|c: char| !c.is_ascii_digit()).any(|digits| digits.len() > 4) => {
            return Err(invalid("a width of more than four digits"));
        }
        "title" => {
            let () = from_args(args)?;
            title(text).into()
        }
        "swapcase" => {
            let () = from_args(args)?;
            let swapped = text.chars().map(|c| match c.is_uppercase() {
                true => c.to_lowercase().to_string(),
                false => c.to_uppercase().to_string(),
            });
            Value::from(swapped.collect::<String>())
        }
        _ => return Ok(None),
    }))
}

fn of_list(list: &Value, method: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    match method {
        "index" => {
            let (item,): (&Value,) = from_args(args)?;
            let at = list.try_iter()?.position(|other| other == *item);
            at.map(|at| Some(at.into())).ok_or_else(|| invalid("the value is not in the list"))
        }
        "copy" => {
            let () = from_args(args)?;
            Ok(Some(list.clone()))
        }
        _ => Ok(None),
    }
}

/// `split(sep=None, maxsplit=-1)`, or the same from the right.
fn split(text: &str, args: &[Value], from_right: bool) -> Result<Value, Error> {
    let (separator, most, named): (Option<Value>, Option<i64>, Kwargs) = from_args(args)?;
    let separator = separator.or(named.get("sep")?).filter(|separator| !separator.is_none());
    let most = most.or(named.get("maxsplit")?).and_then(|most| usize::try_from(most).ok());
    named.assert_all_used()?;
    let pieces = most.map_or(usize::MAX, |most| most.saturating_add(1));
    let mut parts: Vec<&str> = match &separator {
        Some(separator) => {
            let separator = separator.as_str().ok_or_else(|| invalid("the separator is no text"))?;
            match separator.is_empty() {
                true => return Err(invalid("empty separator")),
                false if from_right => text.rsplitn(pieces, separator).collect(),
                false => text.splitn(pieces, separator).collect(),
            }
        }
        None => words(text, pieces, from_right),
    };
    if from_right {
        parts.reverse();
    }
    Ok(parts.into_iter().map(Value::from).collect())
}

/// What white space separates, at most so many pieces; the last of them holds the rest. From the right, last first.
fn words(text: &str, pieces: usize, from_right: bool) -> Vec<&str> {
    let mut words = Vec::new();
    let mut rest = text.trim();
    while !rest.is_empty() {
        let cut = if from_right { rest.rfind(char::is_whitespace) } else { rest.find(char::is_whitespace) };
        match cut {
            Some(at) if words.len() + 1 < pieces => {
                let (word, after) = match from_right {
                    true => (rest[at..].trim_start(), rest[..at].trim_end()),
                    false => (&rest[..at], rest[at..].trim_start()),
                };
                words.push(word);
                rest = after;
            }
            _ => {
                words.push(rest);
                break;
            }
        }
    }
    words
}

/// Every letter after anything but a letter is a capital, the others are small.
fn title(text: &str) -> String {
    let mut after_letter = false;
    let mut written = String::with_capacity(text.len());
    for character in text.chars() {
        match after_letter {
            true => written.extend(character.to_lowercase()),
            false => written.extend(character.to_uppercase()),
        }
        after_letter = character.is_alphabetic();
    }
    written
}

/// How many characters `text` lacks to `width`; paid for before they are made.
fn padding(state: &State<'_, '_>, text: &str, width: usize) -> Result<usize, Error> {
    let missing = width.saturating_sub(text.chars().count());
    state.consume_fuel(missing as u64 / 16)?;
    Ok(missing)
}

fn invalid(message: &'static str) -> Error {
    Error::new(ErrorKind::InvalidOperation, message)
}
