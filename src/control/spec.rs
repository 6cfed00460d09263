//! What a user types after `--controller`.

use super::{BetaTs, CalibrationTs, Controller, Fixed, GoodputTs, Off, Threshold};
use std::fmt;
use std::str::FromStr;

/// A controller by name and options, `name`, `name:argument` or `name:key=value,key=value`.
///
/// [`Display`](fmt::Display) writes what [`parse`](Self::parse) reads, options at their default left out.
#[derive(Debug, Clone, PartialEq)]
pub enum ControllerSpec {
    /// `off`: plain decoding.
    Off,
    /// `fixed:K`: always `K` drafts.
    Fixed(usize),
    /// `threshold:C`: stop at a confidence below `C`, in `0..=1`.
    Threshold(f32),
    /// `beta-ts:prior=1,decay=1`.
    BetaTs {
        /// Pseudo-counts of success and failure, each; positive.
        prior: f64,
        /// Forgetting per round, in `0..=1`; 1 never forgets.
        decay: f64,
    },
    /// `calibration-ts:weight=0.5,strength=20,decay=1`.
    CalibrationTs {
        /// How much the confidence counts against the sequence's rate, in `0..=1`.
        weight: f64,
        /// Pseudo-counts of the Beta that θ is drawn from; positive.
        strength: f64,
        /// Forgetting per round, in `0..=1`.
        decay: f64,
    },
    /// `goodput-ts`, or `goodput-ts:decay=0.97` to fix the decay instead of learning it.
    GoodputTs {
        /// Forgetting per tested draft, in `0..=1`; `None` weighs several by how well they predict.
        decay: Option<f64>,
    },
}

/// A controller that cannot be understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ControllerError {
    /// No controller has this name.
    #[error("controller {found:?} is unknown: expected one of {}", ControllerSpec::FORMS.join(", "))]
    Unknown {
        /// The name given.
        found: String,
    },
    /// The controller takes nothing after its name.
    #[error("controller {name}: found {found:?} after the name, expected nothing")]
    NoArgument {
        /// The controller.
        name: &'static str,
        /// What followed it.
        found: String,
    },
    /// The controller has no such option, or it is not written `key=value`.
    #[error("controller {name}: option {found:?} is unknown, expected {expected}")]
    Option {
        /// The controller.
        name: &'static str,
        /// What was given.
        found: String,
        /// Its options.
        expected: &'static str,
    },
    /// An argument or option is missing, not a number, or out of range.
    #[error("controller {name}: {key} is {found:?}, expected {expected}")]
    Value {
        /// The controller.
        name: &'static str,
        /// Argument or option.
        key: &'static str,
        /// What was given.
        found: String,
        /// What is allowed.
        expected: &'static str,
    },
}

impl Default for ControllerSpec {
    fn default() -> Self {
        Self::GoodputTs { decay: None }
    }
}

impl ControllerSpec {
    /// Every form a user may type, in the order of documentation.
    pub const FORMS: [&'static str; 6] = ["off", "fixed:K", "threshold:C", "beta-ts", "calibration-ts", "goodput-ts"];

    /// Reads `name`, `name:argument` or `name:key=value,key=value`.
    ///
    /// # Errors
    /// If the name or an option is unknown, or a value is out of range.
    pub fn parse(text: &str) -> Result<Self, ControllerError> {
        let (name, argument) = match text.split_once(':') {
            Some((name, argument)) => (name, Some(argument)),
            None => (text, None),
        };
        match name {
            "off" => match argument {
                None => Ok(Self::Off),
                Some(found) => Err(ControllerError::NoArgument { name: "off", found: found.into() }),
            },
            "fixed" => {
                value("fixed", "K", argument.unwrap_or(""), "a whole number, as in fixed:4", |_| true).map(Self::Fixed)
            }
            "threshold" => {
                let expected = "a confidence from 0 to 1, as in threshold:0.6";
                value("threshold", "C", argument.unwrap_or(""), expected, |c| (0.0..=1.0).contains(c))
                    .map(Self::Threshold)
            }
            "beta-ts" => {
                let (mut prior, mut decay) = (1.0, 1.0);
                for option in options(argument) {
                    match option {
                        ("prior", v) => prior = positive("beta-ts", "prior", v)?,
                        ("decay", v) => decay = fraction("beta-ts", "decay", v)?,
                        (key, v) => return Err(unknown("beta-ts", key, v, "prior=NUMBER or decay=NUMBER")),
                    }
                }
                Ok(Self::BetaTs { prior, decay })
            }
            "calibration-ts" => {
                let (mut weight, mut strength, mut decay) = (0.5, 20.0, 1.0);
                for option in options(argument) {
                    match option {
                        ("weight", v) => weight = fraction("calibration-ts", "weight", v)?,
                        ("strength", v) => strength = positive("calibration-ts", "strength", v)?,
                        ("decay", v) => decay = fraction("calibration-ts", "decay", v)?,
                        (key, v) => {
                            let expected = "weight=NUMBER, strength=NUMBER or decay=NUMBER";
                            return Err(unknown("calibration-ts", key, v, expected));
                        }
                    }
                }
                Ok(Self::CalibrationTs { weight, strength, decay })
            }
            "goodput-ts" => {
                let mut decay = None;
                for option in options(argument) {
                    match option {
                        ("decay", v) => decay = Some(fraction("goodput-ts", "decay", v)?),
                        (key, v) => return Err(unknown("goodput-ts", key, v, "decay=NUMBER")),
                    }
                }
                Ok(Self::GoodputTs { decay })
            }
            _ => Err(ControllerError::Unknown { found: text.into() }),
        }
    }

    /// The controller, knowing nothing yet.
    pub fn build(&self) -> Box<dyn Controller> {
        match *self {
            Self::Off => Box::new(Off),
            Self::Fixed(length) => Box::new(Fixed { length }),
            Self::Threshold(confidence) => Box::new(Threshold { confidence }),
            Self::BetaTs { prior, decay } => Box::new(BetaTs::new(prior, decay)),
            Self::CalibrationTs { weight, strength, decay } => Box::new(CalibrationTs::new(weight, strength, decay)),
            Self::GoodputTs { decay } => Box::new(GoodputTs::new(decay)),
        }
    }
}

/// `key=value` pairs; one without `=` comes as `(pair, "")`.
fn options(argument: Option<&str>) -> impl Iterator<Item = (&str, &str)> {
    argument.into_iter().flat_map(|all| all.split(',')).map(|pair| pair.split_once('=').unwrap_or((pair, "")))
}

fn unknown(name: &'static str, key: &str, value: &str, expected: &'static str) -> ControllerError {
    let found = if value.is_empty() { key.into() } else { format!("{key}={value}") };
    ControllerError::Option { name, found, expected }
}

fn positive(name: &'static str, key: &'static str, found: &str) -> Result<f64, ControllerError> {
    value(name, key, found, "a number above 0, at most 1000000", |v| *v > 0.0 && *v <= 1e6)
}

fn fraction(name: &'static str, key: &'static str, found: &str) -> Result<f64, ControllerError> {
    value(name, key, found, "a number from 0 to 1", |v| (0.0..=1.0).contains(v))
}

fn value<T: FromStr>(
    name: &'static str,
    key: &'static str,
    found: &str,
    expected: &'static str,
    valid: impl Fn(&T) -> bool,
) -> Result<T, ControllerError> {
    let error = || ControllerError::Value { name, key, found: found.into(), expected };
    found.parse().ok().filter(valid).ok_or_else(error)
}

impl FromStr for ControllerSpec {
    type Err = ControllerError;

    fn from_str(text: &str) -> Result<Self, ControllerError> {
        Self::parse(text)
    }
}

impl fmt::Display for ControllerSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, options) = match *self {
            Self::Off => return f.write_str("off"),
            Self::Fixed(length) => return write!(f, "fixed:{length}"),
            Self::Threshold(confidence) => return write!(f, "threshold:{confidence}"),
            Self::BetaTs { prior, decay } => ("beta-ts", vec![("prior", prior, 1.0), ("decay", decay, 1.0)]),
            Self::CalibrationTs { weight, strength, decay } => {
                ("calibration-ts", vec![("weight", weight, 0.5), ("strength", strength, 20.0), ("decay", decay, 1.0)])
            }
            // A fixed decay has no default: NaN differs from every value.
            Self::GoodputTs { decay } => ("goodput-ts", decay.map(|d| ("decay", d, f64::NAN)).into_iter().collect()),
        };
        f.write_str(name)?;
        let given = options.iter().filter(|(_, value, default)| value != default);
        for (i, (key, value, _)) in given.enumerate() {
            write!(f, "{}{key}={value}", if i == 0 { ':' } else { ',' })?;
        }
        Ok(())
    }
}
