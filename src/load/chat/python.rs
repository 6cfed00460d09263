//! Where Jinja2, which is Python, does otherwise than minijinja.

use minijinja::value::ValueKind;
use minijinja::{Environment, Value};

/// Makes tests and filters of `environment` answer as Jinja2's.
pub(super) fn imitate(environment: &mut Environment<'_>) {
    environment.add_test("iterable", is_iterable);
}

/// What Python's `iter` takes: not none, but an undefined value, which is as an empty list.
fn is_iterable(value: &Value) -> bool {
    !value.is_none() && (value.is_undefined() || value.try_iter().is_ok())
}

/// The value of a floating-point number; `None` for whole ones and all else.
pub(super) fn float(value: &Value) -> Option<f64> {
    (value.kind() == ValueKind::Number && !value.is_integer()).then(|| f64::try_from(value.clone()).ok()).flatten()
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
