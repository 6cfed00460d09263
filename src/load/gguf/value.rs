//! Metadata of a GGUF file: typed values by key, which stay in the mapped file until they are asked for.

use super::super::LoadError;
use super::super::error::short;
use super::bytes::Reader;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

/// A value's type, by its number in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    Text,
    Array,
    U64,
    I64,
    F64,
}

const KINDS: [Kind; 13] = [
    Kind::U8,
    Kind::I8,
    Kind::U16,
    Kind::I16,
    Kind::U32,
    Kind::I32,
    Kind::F32,
    Kind::Bool,
    Kind::Text,
    Kind::Array,
    Kind::U64,
    Kind::I64,
    Kind::F64,
];

impl Kind {
    pub fn of(number: u32) -> Result<Self, String> {
        let known = KINDS.get(number as usize);
        known
            .copied()
            .ok_or_else(|| format!("type {number}, of which there is none (expected 0 to {})", KINDS.len() - 1))
    }

    /// Bytes of a value; `None` where they depend on it.
    pub fn size(self) -> Option<usize> {
        match self {
            Self::U8 | Self::I8 | Self::Bool => Some(1),
            Self::U16 | Self::I16 => Some(2),
            Self::U32 | Self::I32 | Self::F32 => Some(4),
            Self::U64 | Self::I64 | Self::F64 => Some(8),
            Self::Text | Self::Array => None,
        }
    }
}

/// Where a value lies.
#[derive(Debug, Clone)]
pub(super) enum Stored {
    One { kind: Kind, range: Range<usize> },
    Many { kind: Kind, count: usize, range: Range<usize> },
}

/// Where each of a file's next values lies, by its key.
///
/// # Errors
/// What is wrong, with the key.
pub(super) fn places(reader: &mut Reader<'_>, count: usize) -> Result<BTreeMap<String, Stored>, String> {
    let mut values = BTreeMap::new();
    for number in 0..count {
        let key = reader.text().map_err(|why| format!("key {number} of {count}: {why}"))?;
        let named = |why: String| format!("`{}`: {why}", short(key));
        let kind = reader.u32().and_then(Kind::of).map_err(named)?;
        let stored = match kind {
            Kind::Array => {
                let kind = reader.u32().and_then(Kind::of).map_err(named)?;
                let least = kind.size().unwrap_or(8);
                let count = reader.count(least, usize::MAX, "values in a list").map_err(named)?;
                Stored::Many { kind, count, range: reader.skip(kind, count).map_err(named)? }
            }
            kind => Stored::One { kind, range: reader.skip(kind, 1).map_err(named)? },
        };
        if values.insert(key.to_owned(), stored).is_some() {
            return Err(format!("`{}` comes twice", short(key)));
        }
    }
    Ok(values)
}

/// The metadata of a file.
#[derive(Clone, Copy)]
pub(in super::super) struct Metadata<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    values: &'a BTreeMap<String, Stored>,
}

/// A whole number, a number, a truth or a text.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(in super::super) enum Scalar<'a> {
    Whole(i128),
    Number(f64),
    Truth(bool),
    Text(&'a str),
}

impl<'a> Metadata<'a> {
    pub(super) fn new(path: &'a Path, bytes: &'a [u8], values: &'a BTreeMap<String, Stored>) -> Self {
        Self { path, bytes, values }
    }

    /// The file.
    pub fn path(&self) -> &'a Path {
        self.path
    }

    pub fn has(&self, key: &str) -> bool {
        self.values.contains_key(key)
    }

    /// The length of a list, where it is there.
    pub fn length(&self, key: &str) -> Option<usize> {
        match self.values.get(key)? {
            Stored::Many { count, .. } => Some(*count),
            Stored::One { .. } => None,
        }
    }

    pub fn keys(&self) -> impl Iterator<Item = &'a str> {
        self.values.keys().map(String::as_str)
    }

    /// The text of a key, where it is there.
    pub fn text(&self, key: &str) -> Result<Option<&'a str>, LoadError> {
        self.get(key, "a text", |scalar| match scalar {
            Scalar::Text(text) => Some(text),
            _ => None,
        })
    }

    /// The whole number of a key in a range, where it is there, of whatever width.
    pub fn whole(&self, key: &str, range: Range<usize>) -> Result<Option<usize>, LoadError> {
        let expected = format!("a whole number from {} to {}", range.start, range.end - 1);
        self.get(key, &expected, |scalar| match scalar {
            Scalar::Whole(number) => usize::try_from(number).ok().filter(|number| range.contains(number)),
            _ => None,
        })
    }

    /// The finite number of a key, where it is there.
    pub fn number(&self, key: &str) -> Result<Option<f64>, LoadError> {
        self.get(key, "a finite number", |scalar| match scalar {
            Scalar::Whole(number) => Some(number as f64),
            Scalar::Number(number) => Some(number).filter(|number| number.is_finite()),
            _ => None,
        })
    }

    /// The truth of a key, where it is there.
    pub fn truth(&self, key: &str) -> Result<Option<bool>, LoadError> {
        self.get(key, "true or false", |scalar| match scalar {
            Scalar::Truth(truth) => Some(truth),
            _ => None,
        })
    }

    /// The values of a list, where it is there, each checked by `convert`; no more than `most` of them.
    pub fn list<T>(
        &self,
        key: &str,
        most: usize,
        expected: &str,
        convert: impl Fn(Scalar<'a>) -> Option<T>,
    ) -> Result<Option<Vec<T>>, LoadError> {
        let Some(stored) = self.values.get(key) else { return Ok(None) };
        let Stored::Many { kind, count, range } = stored else {
            return Err(self.wrong(key, &format!("a list of {expected}")));
        };
        if *count > most {
            return Err(LoadError::limit(self.path, format!("values of `{key}`"), count, most as u64));
        }
        let mut reader = Reader::new(&self.bytes[range.clone()]);
        let mut values = Vec::new();
        for index in 0..*count {
            let value = reader.scalar(*kind).map_err(|why| self.wrong_at(key, index, why, expected))?;
            let found = || self.wrong_at(key, index, show(value), expected);
            values.push(convert(value).ok_or_else(found)?);
        }
        Ok(Some(values))
    }

    /// The error of a key that is absent or has a value that it cannot have.
    pub fn wrong(&self, key: &str, expected: &str) -> LoadError {
        let found = match self.values.get(key) {
            None => "missing".into(),
            Some(Stored::Many { count, .. }) => format!("a list of {count}"),
            Some(Stored::One { kind, range }) => {
                let value = Reader::new(&self.bytes[range.clone()]).scalar(*kind);
                value.map_or_else(|why| why, show)
            }
        };
        let expected = expected.into();
        LoadError::Key { path: self.path.to_path_buf(), key: short(key), found: short(found), expected }
    }

    /// The error of a list's value that cannot be.
    pub fn wrong_at(&self, key: &str, index: usize, found: String, expected: &str) -> LoadError {
        let expected = expected.into();
        LoadError::Key {
            path: self.path.to_path_buf(),
            key: short(format!("{key}[{index}]")),
            found: short(found),
            expected,
        }
    }

    fn get<T>(
        &self,
        key: &str,
        expected: &str,
        convert: impl FnOnce(Scalar<'a>) -> Option<T>,
    ) -> Result<Option<T>, LoadError> {
        let value = match self.values.get(key) {
            None => return Ok(None),
            Some(Stored::Many { .. }) => None,
            Some(Stored::One { kind, range }) => Reader::new(&self.bytes[range.clone()]).scalar(*kind).ok(),
        };
        value.and_then(convert).map(Some).ok_or_else(|| self.wrong(key, expected))
    }
}

/// A value as an error shows it.
fn show(scalar: Scalar<'_>) -> String {
    match scalar {
        Scalar::Whole(number) => number.to_string(),
        Scalar::Number(number) => number.to_string(),
        Scalar::Truth(truth) => truth.to_string(),
        Scalar::Text(text) => format!("{text:?}"),
    }
}
