//! Parsers of single flag values; what they refuse is a usage error that names the flag.

use eesd::TokenId;
use eesd::control::ControllerSpec;
use eesd::draft::{SourceError, Sources};
use std::fmt;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;

/// How many requests are answered side by side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BatchSize {
    /// As many as make answers faster on this machine.
    Auto,
    /// So many.
    Fixed(usize),
}

impl BatchSize {
    /// Most requests side by side. Where the machine decides: far more than make a processor faster, and enough for rows
    /// that a GPU multiplies at the price of one.
    pub fn most(self) -> usize {
        match self {
            Self::Auto => 32,
            Self::Fixed(size) => size,
        }
    }
}

impl FromStr for BatchSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "auto" { Ok(BatchSize::Auto) } else { up_to_1024(text).map(BatchSize::Fixed) }
            .map_err(|expected| format!("{expected}, or auto"))
    }
}

/// Which exit block: a file, or the number of an `exit-N.safetensors` beside the model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExitChoice {
    /// `exit-N.safetensors` beside the model.
    Layer(usize),
    /// This file.
    File(PathBuf),
}

impl FromStr for ExitChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err("expected a number or a file".into());
        }
        Ok(text.parse().map_or_else(|_| ExitChoice::File(text.into()), ExitChoice::Layer))
    }
}

impl fmt::Display for ExitChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ExitChoice::Layer(n) => write!(f, "{n}"),
            ExitChoice::File(path) => write!(f, "{}", path.display()),
        }
    }
}

/// Which tokens an exit block drafts, of those in its training data.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum DraftVocab {
    /// So many of the most frequent.
    Tokens(usize),
    /// As many as come to this part of all.
    Coverage(f64),
}

impl FromStr for DraftVocab {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected =
            || "expected a whole number, 1 or more, or a percentage above 0 and up to 100, as in 99.5%".into();
        match text.strip_suffix('%') {
            Some(percent) => {
                let percent = percent.parse().ok().filter(|&percent: &f64| percent > 0.0 && percent <= 100.0);
                percent.map(|percent| Self::Coverage(percent / 100.0)).ok_or_else(expected)
            }
            None => count(text).map(Self::Tokens).map_err(|_| expected()),
        }
    }
}

/// Who drafts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drafters {
    /// Whoever can, and may know of the texts.
    Auto,
    /// These.
    Only(Sources),
}

impl FromStr for Drafters {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let only = || text.parse().map(Self::Only).map_err(|error: SourceError| format!("{error}, or auto"));
        if text == "auto" { Ok(Self::Auto) } else { only() }
    }
}

/// A controller's name and argument, and a chance to say which names there are.
pub fn controller(text: &str) -> Result<ControllerSpec, String> {
    text.parse().map_err(|e| crate::failure::with_causes(&e))
}

/// A token by its id.
pub fn token(text: &str) -> Result<TokenId, String> {
    text.parse().map_err(|_| "expected a token's id: a whole number, 0 or more".into())
}

/// A value for a chat template: `KEY=JSON`.
pub fn template_arg(text: &str) -> Result<(String, serde_json::Value), String> {
    let (key, json) = text.split_once('=').ok_or("expected KEY=JSON, such as enable_thinking=false")?;
    if key.is_empty() {
        return Err("expected a key before the =".into());
    }
    let quoted = || format!("{json:?} is not JSON (expected a value such as false, 7 or \"text\", with its quotes)");
    Ok((key.to_owned(), serde_json::from_str(json).map_err(|_| quoted())?))
}

/// Controllers separated by commas; `key=value` after a comma belongs to the controller before it.
#[derive(Debug, Clone)]
pub struct ControllerList(pub Vec<ControllerSpec>);

impl FromStr for ControllerList {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut specs: Vec<String> = Vec::new();
        for part in text.split(',') {
            match specs.last_mut() {
                Some(spec) if part.contains('=') && !part.contains(':') => *spec = format!("{spec},{part}"),
                _ => specs.push(part.to_owned()),
            }
        }
        specs.iter().map(|spec| controller(spec)).collect::<Result<_, _>>().map(ControllerList)
    }
}

/// `TOKEN_ID(+|-)BIAS` as in llama.cpp, or `TOKEN_ID=BIAS`.
pub fn logit_bias(text: &str) -> Result<(TokenId, f32), String> {
    let expected = || "expected TOKEN_ID+BIAS, TOKEN_ID-BIAS or TOKEN_ID=BIAS, as in 15043+1 or 15043=-inf".to_string();
    let at = text.find(['+', '-', '=']).ok_or_else(expected)?;
    let token = text[..at].parse().map_err(|_| expected())?;
    let bias = if text[at..].starts_with('=') { &text[at + 1..] } else { &text[at..] };
    let bias: f32 = bias.parse().map_err(|_| expected())?;
    if bias.is_nan() || bias == f32::INFINITY { Err(expected()) } else { Ok((token, bias)) }
}

/// A stop string in which `\n`, `\t`, `\r`, `\0` and `\\` are written out.
pub fn stop(text: &str) -> Result<String, String> {
    let mut stop = String::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        stop.push(match c {
            '\\' => match chars.next() {
                Some('n') => '\n',
                Some('t') => '\t',
                Some('r') => '\r',
                Some('0') => '\0',
                Some('\\') => '\\',
                Some(other) => return Err(format!("unknown escape \\{other}: expected \\n, \\t, \\r, \\0 or \\\\")),
                None => return Err("ends in a lone backslash: write \\\\ for one".into()),
            },
            c => c,
        });
    }
    if stop.is_empty() { Err("a stop string has at least one character".into()) } else { Ok(stop) }
}

/// A number at least 0.
pub fn not_negative(text: &str) -> Result<f64, String> {
    number(text, 0.0..=f64::MAX, "a number that is 0 or more")
}

/// A number above 0.
pub fn positive(text: &str) -> Result<f64, String> {
    number(text, f64::MIN_POSITIVE..=f64::MAX, "a number above 0")
}

/// A fraction, both ends included.
pub fn fraction(text: &str) -> Result<f64, String> {
    number(text, 0.0..=1.0, "a number from 0 to 1")
}

/// A fraction above 0: the smallest set of probability 0 would be empty.
pub fn positive_fraction(text: &str) -> Result<f64, String> {
    number(text, f64::MIN_POSITIVE..=1.0, "a number above 0 and at most 1")
}

/// A finite number of either sign.
pub fn finite(text: &str) -> Result<f64, String> {
    number(text, f64::MIN..=f64::MAX, "a finite number")
}

fn number(text: &str, range: RangeInclusive<f64>, expected: &str) -> Result<f64, String> {
    text.parse().ok().filter(|x| range.contains(x)).ok_or_else(|| format!("expected {expected}"))
}

/// A whole number from 0 up.
pub fn whole(text: &str) -> Result<usize, String> {
    text.parse().map_err(|_| "expected a whole number, 0 or more".into())
}

/// A seed: any 64 bits.
pub fn seed(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("expected a whole number from 0 to {}", u64::MAX))
}

/// A count from 1 up.
pub fn count(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|&n| n > 0).ok_or_else(|| "expected a whole number, 1 or more".into())
}

/// Answers that wait: no queue is longer than a million.
pub fn waiting(text: &str) -> Result<usize, String> {
    let expected = || "expected a whole number from 0 to 1000000".to_owned();
    text.parse().ok().filter(|&n| n <= 1_000_000).ok_or_else(expected)
}

/// Seconds of patience, a day at most.
pub fn seconds(text: &str) -> Result<u64, String> {
    let expected = || "expected whole seconds, from 0 to 86400".to_owned();
    text.parse().ok().filter(|&n| n <= 86_400).ok_or_else(expected)
}

/// Tokens of a window: the fewest have one in the first half and one to score in the second; no model goes past 16 million.
pub fn window(text: &str) -> Result<usize, String> {
    let expected = || format!("expected a whole number from 4 to {}", 1usize << 24);
    text.parse().ok().filter(|n| (4..=1usize << 24).contains(n)).ok_or_else(expected)
}

/// Something that there can be at most 1024 of: threads, drafts in a round, sequences side by side.
pub fn up_to_1024(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|n| (1..=1024).contains(n)).ok_or_else(|| "expected a whole number from 1 to 1024".into())
}

/// A length in tokens; 0 has a meaning of its own, and no model goes past 16 million.
pub fn context(text: &str) -> Result<usize, String> {
    let expected = || format!("expected a whole number from 0 to {}", 1usize << 24);
    text.parse().ok().filter(|&n| n <= 1usize << 24).ok_or_else(expected)
}

/// Steps of a chain, of which the first is not recurrent.
pub fn steps(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|n| (2..=16).contains(n)).ok_or_else(|| "expected a whole number from 2 to 16".into())
}

/// Bytes, as a whole number with or without a K, M, G or T (powers of 1024) behind it.
pub fn bytes(text: &str) -> Result<u64, String> {
    let unit = text.chars().last().and_then(|unit| "KMGT".find(unit.to_ascii_uppercase()));
    let digits = if unit.is_some() { &text[..text.len() - 1] } else { text };
    let number = digits.parse::<u64>().ok();
    let bytes = number.and_then(|number| number.checked_mul(1 << (10 * unit.map_or(0, |power| power + 1))));
    bytes.ok_or_else(|| "expected bytes, as in 500M or 8G; 0 keeps none".into())
}

/// Two whole numbers, `A..B`, of which the second is not the smaller one.
pub fn span(text: &str) -> Result<(usize, usize), String> {
    let numbers = text.split_once("..").map(|(first, last)| (first.parse(), last.parse()));
    match numbers {
        Some((Ok(first), Ok(last))) if first <= last && first > 0 => Ok((first, last)),
        _ => Err("expected A..B, whole numbers with A from 1 to B, as in 1..8".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logit_biases_in_each_spelling() {
        assert_eq!(logit_bias("15043+1"), Ok((15043, 1.0)));
        assert_eq!(logit_bias("7-0.5"), Ok((7, -0.5)));
        assert_eq!(logit_bias("7=-inf"), Ok((7, f32::NEG_INFINITY)));
        assert_eq!(logit_bias("7=2"), Ok((7, 2.0)));
        for wrong in ["", "7", "+1", "7+", "7=nan", "7=inf", "-7+1", "x+1"] {
            assert!(logit_bias(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn sizes_and_parts() {
        assert_eq!([bytes("0"), bytes("17"), bytes("3k"), bytes("8G")], [Ok(0), Ok(17), Ok(3 << 10), Ok(8 << 30)]);
        for wrong in ["", "G", "-1", "1.5G", "8GB", "99999999999T"] {
            assert!(bytes(wrong).is_err(), "{wrong}");
        }
        assert_eq!("512".parse(), Ok(DraftVocab::Tokens(512)));
        assert_eq!("99.5%".parse(), Ok(DraftVocab::Coverage(0.995)));
        for wrong in ["0", "0%", "101%", "%", "-3", "x%", "1.5"] {
            assert!(wrong.parse::<DraftVocab>().unwrap_err().contains("99.5%"), "{wrong}");
        }
    }

    #[test]
    fn stop_escapes() {
        assert_eq!(stop(r"a\n\t\\b"), Ok("a\n\t\\b".to_string()));
        assert!(stop(r"\q").is_err() && stop("\\").is_err() && stop("").is_err());
    }

    #[test]
    fn options_stay_with_their_controller() {
        let list: ControllerList = "off,beta-ts:prior=2,decay=0.9,fixed:4".parse().unwrap();
        let names: Vec<String> = list.0.iter().map(ToString::to_string).collect();
        assert_eq!(names, ["off", "beta-ts:prior=2,decay=0.9", "fixed:4"]);
        assert!("off,,fixed:1".parse::<ControllerList>().is_err());
    }
}
