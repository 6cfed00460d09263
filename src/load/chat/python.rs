//! Tests, filters and numbers where Jinja2, which is Python, does otherwise than minijinja.

use super::methods;
use crate::load::limits;
use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Environment, Error, ErrorKind, Output, State, Value, escape_formatter, filters};
use std::fmt::{self, Write};

/// The filter that loops are put through.
pub(super) const LOOPED: &str = "looped";

/// Makes `environment` answer as Jinja2 does.
pub(super) fn imitate(environment: &mut Environment<'_>) {
    for filter in ["bool", "chain", "lines", "split", "zip"] {
        environment.remove_filter(filter);
    }
    for test in ["startingwith", "endingwith"] {
        environment.remove_test(test);
    }
    environment.remove_global("debug");
    environment.add_test("iterable", |value: &Value| is_iterable(value));
    environment.add_test("sequence", |value: &Value| is_sequence(value));
    environment.add_test("callable", |value: &Value| value.kind() == ValueKind::Plain);
    environment.add_filter("int", int);
    environment.add_filter("float", to_float);
    environment.add_filter("string", string);
    environment.add_filter(LOOPED, looped);
    environment.set_unknown_method_callback(methods::call);
    environment.set_formatter(write_out);
}

/// What Python's `iter` takes: not none, but an undefined value, which is as an empty list.
fn is_iterable(value: &Value) -> bool {
    !value.is_none() && (value.is_undefined() || value.try_iter().is_ok())
}

/// What has a length and items: texts and mappings too.
fn is_sequence(value: &Value) -> bool {
    use ValueKind::{Bytes, Iterable, Map, Seq, String, Undefined};
    matches!(value.kind(), Bytes | Iterable | Map | Seq | String | Undefined)
}

/// Anything but none, which minijinja would take for an empty list.
fn looped(value: Value) -> Result<Value, Error> {
    if value.is_none() { Err(Error::new(ErrorKind::InvalidOperation, "none is not iterable")) } else { Ok(value) }
}

/// What is no number is 0, not an error.
fn int(state: &State, value: &Value, default: Option<Value>, base: Option<u32>, named: Kwargs) -> Result<Value, Error> {
    let default = default.or(named.get("default")?).unwrap_or(Value::from(0));
    filters::int(state, value, Some(default), base, named)
}

fn to_float(state: &State, value: &Value, default: Option<Value>, named: Kwargs) -> Result<Value, Error> {
    let default = default.or(named.get("default")?).unwrap_or(Value::from(0.0));
    filters::float(state, value, Some(default), named)
}

/// Writes what stands between `{{` and `}}`.
fn write_out(output: &mut Output<'_>, state: &mut State<'_, '_>, value: &Value) -> Result<(), Error> {
    match (float(value), value.kind()) {
        (Some(number), _) => Ok(output.write_str(&repr(number))?),
        (None, ValueKind::Seq | ValueKind::Map | ValueKind::Iterable) => Ok(output.write_str(&printed(value)?)?),
        _ => escape_formatter(output, state, value),
    }
}

fn string(value: &Value) -> Result<Value, Error> {
    printed(value).map(Value::from)
}

/// A value as text. Lists of lists can be written in few words and take no end of room when they are printed: not more
/// than a prompt may have.
fn printed(value: &Value) -> Result<String, Error> {
    struct Limited(String);
    impl fmt::Write for Limited {
        fn write_str(&mut self, text: &str) -> fmt::Result {
            self.0.push_str(text);
            if self.0.len() > limits::PROMPT_BYTES { Err(fmt::Error) } else { Ok(()) }
        }
    }
    let mut text = Limited(String::new());
    match write!(text, "{value}") {
        Ok(()) => Ok(text.0),
        Err(_) => Err(Error::new(ErrorKind::InvalidOperation, "a value is too large to be printed")),
    }
}

/// The value of a floating-point number; `None` for whole ones and all else.
pub(super) fn float(value: &Value) -> Option<f64> {
    let is_float = value.kind() == ValueKind::Number && !value.is_integer();
    is_float.then(|| f64::try_from(value.clone()).ok()).flatten()
}

/// A floating-point number as Python writes it: as short as it can be read back, with an exponent from 1e16 up and
/// below 1e-4.
pub(super) fn repr(number: f64) -> String {
    let size = number.abs();
    if number.is_nan() {
        return "nan".into();
    }
    if number.is_infinite() || size == 0.0 || (1e-4..1e16).contains(&size) {
        return format!("{number:?}");
    }
    let scientific = format!("{number:e}");
    match scientific.split_once('e') {
        Some((digits, exponent)) => {
            let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |exponent| ('-', exponent));
            format!("{digits}e{sign}{exponent:0>2}")
        }
        None => scientific,
    }
}

#[cfg(test)]
mod tests {
    use super::repr;

    #[test]
    fn floats_as_python_writes_them() {
        let written = [
            (1.0, "1.0"),
            (-0.0, "-0.0"),
            (0.1, "0.1"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.5e300, "1.5e+300"),
            (0.0001, "0.0001"),
            (0.00001234, "1.234e-05"),
            (5e-324, "5e-324"),
            (f64::NEG_INFINITY, "-inf"),
            (f64::NAN, "nan"),
        ];
        for (number, text) in written {
            assert_eq!(repr(number), text);
        }
    }
}
