//! JSON objects that remember where they came from, so that every error can name file and key.

use super::LoadError;
use super::error::short;
use super::source::Source;
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

/// A file whose content is one JSON object.
pub(super) struct Document {
    path: PathBuf,
    map: Map<String, Value>,
}

impl Document {
    pub(super) fn parse(path: PathBuf, bytes: &[u8]) -> Result<Self, LoadError> {
        match serde_json::from_slice(bytes) {
            Ok(Value::Object(map)) => Ok(Self { path, map }),
            Ok(other) => Err(LoadError::malformed(&path, format!("{}, expected a JSON object", found(&other)))),
            Err(error) => Err(LoadError::malformed(&path, format!("not valid JSON: {error}"))),
        }
    }

    /// The file of this name, where there is one.
    pub(super) fn read(source: &Source, file: &str) -> Result<Option<Self>, LoadError> {
        source.read(file)?.map(|bytes| Self::parse(source.path(file), &bytes)).transpose()
    }

    pub(super) fn root(&self) -> Object<'_> {
        Object { path: &self.path, within: String::new(), map: &self.map }
    }
}

/// A JSON object of a [`Document`]. Getters take `null` for absent, as Hugging Face does.
#[derive(Clone)]
pub(super) struct Object<'a> {
    path: &'a Path,
    /// Names of the objects around it, each followed by a dot.
    within: String,
    map: &'a Map<String, Value>,
}

impl<'a> Object<'a> {
    pub(super) fn path(&self) -> &'a Path {
        self.path
    }

    /// Whether the key is written down, be it as `null`.
    pub(super) fn has(&self, key: &str) -> bool {
        self.map.contains_key(key)
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        self.map.keys().map(String::as_str)
    }

    pub(super) fn value(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    pub(super) fn object(&self, key: &str) -> Result<Option<Object<'a>>, LoadError> {
        self.get(key, "an object", |value| self.child(key, value))
    }

    /// A value within this object as an object, if it is one; `name`: how errors call it.
    pub(super) fn child(&self, name: &str, value: &'a Value) -> Option<Object<'a>> {
        value.as_object().map(|map| Object { path: self.path, within: format!("{}{name}.", self.within), map })
    }

    pub(super) fn array(&self, key: &str) -> Result<Option<&'a Vec<Value>>, LoadError> {
        self.get(key, "an array", Value::as_array)
    }

    pub(super) fn text(&self, key: &str) -> Result<Option<&'a str>, LoadError> {
        self.get(key, "a string", Value::as_str)
    }

    pub(super) fn flag(&self, key: &str) -> Result<Option<bool>, LoadError> {
        self.get(key, "true or false", Value::as_bool)
    }

    pub(super) fn number(&self, key: &str) -> Result<Option<f64>, LoadError> {
        self.get(key, "a number", Value::as_f64)
    }

    pub(super) fn unsigned(&self, key: &str) -> Result<Option<usize>, LoadError> {
        self.get(key, "a whole number, not negative", |value| value.as_u64().and_then(|n| n.try_into().ok()))
    }

    /// A number above zero.
    pub(super) fn positive(&self, key: &str) -> Result<Option<f64>, LoadError> {
        self.get(key, "a number above 0", |value| value.as_f64().filter(|&x| x > 0.0 && x.is_finite()))
    }

    /// A whole number in `1..=most`.
    ///
    /// # Errors
    /// [`LoadError::Limit`] for a larger one, [`LoadError::Key`] for anything else.
    pub(super) fn size(&self, key: &str, most: usize) -> Result<Option<usize>, LoadError> {
        if let Some(number) = self.value(key).and_then(Value::as_u64).filter(|number| *number > most as u64) {
            return Err(LoadError::limit(self.path, format!("`{}`", self.name(key)), number, most as u64));
        }
        let in_range =
            |value: &Value| value.as_u64().and_then(|n| n.try_into().ok()).filter(|n| (1..=most).contains(n));
        self.get(key, &format!("a whole number in 1..={most}"), in_range)
    }

    /// The error of a key that is absent or has a value it cannot have.
    pub(super) fn wrong(&self, key: &str, expected: &str) -> LoadError {
        LoadError::Key {
            path: self.path.to_path_buf(),
            key: short(self.name(key)),
            found: self.map.get(key).map_or("missing".into(), found),
            expected: expected.into(),
        }
    }

    /// The file's name without its folder, as notes have it.
    pub(super) fn file(&self) -> String {
        self.path.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// Notes that the value of a key is as good as absent.
    pub(super) fn ignored(&self, key: &str, expected: &str) -> String {
        let found = self.map.get(key).map_or("missing".into(), found);
        format!("{}: `{}` is {found}, expected {expected}: ignored", self.file(), short(self.name(key)))
    }

    /// The key with the names of the objects around it.
    pub(super) fn name(&self, key: &str) -> String {
        format!("{}{key}", self.within)
    }

    fn get<T>(
        &self,
        key: &str,
        expected: &str,
        convert: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, LoadError> {
        self.value(key).map(|value| convert(value).ok_or_else(|| self.wrong(key, expected))).transpose()
    }
}

/// A value as an error message shows it.
pub(super) fn found(value: &Value) -> String {
    match value {
        Value::Array(items) => format!("an array of {}", items.len()),
        Value::Object(_) => "an object".into(),
        other => short(other),
    }
}
