//! How configurations name modules: by name, or by a regular expression that the name begins with.

use super::super::json::Object;
use super::super::{LoadError, limits};
use fancy_regex::{Regex, RegexBuilder};
use serde_json::Value;
use std::path::PathBuf;

/// Steps back that a regular expression may take on a name: names are short, and honest ones take a few.
const BACKTRACKS: usize = 1000;
/// Bytes of a compiled expression.
const COMPILED: usize = 1 << 18;

/// A name or a regular expression.
pub(super) struct Pattern {
    /// As it is written.
    pub(super) text: String,
    regex: Option<Regex>,
    path: PathBuf,
    key: String,
}

impl Pattern {
    /// An entry of a list: a name, or an expression after `re:`.
    pub(super) fn entry(text: &str, object: &Object<'_>, key: &str) -> Result<Self, LoadError> {
        match text.strip_prefix("re:") {
            Some(expression) => Self::regex(expression, text, object, key),
            None => Ok(Self { text: text.into(), regex: None, path: object.path().into(), key: object.name(key) }),
        }
    }

    /// A regular expression, written as `text`.
    pub(super) fn regex(expression: &str, text: &str, object: &Object<'_>, key: &str) -> Result<Self, LoadError> {
        let compile = |expression: &str| {
            let mut builder = RegexBuilder::new(expression);
            builder.backtrack_limit(BACKTRACKS).delegate_size_limit(COMPILED).delegate_dfa_size_limit(COMPILED);
            builder.build().ok()
        };
        if expression.len() > limits::MODULE_PATTERN_BYTES {
            let what = format!("bytes of an expression in `{}`", object.name(key));
            return Err(LoadError::limit(object.path(), what, expression.len(), limits::MODULE_PATTERN_BYTES as u64));
        }
        // By itself first: in brackets, one with a bracket too many could mean something else.
        let compiled = compile(expression).and_then(|_| compile(&format!("^(?:{expression})")));
        let regex = compiled.ok_or_else(|| LoadError::Key {
            path: object.path().into(),
            key: object.name(key),
            found: super::super::error::spelling(text),
            expected: "a regular expression that this engine can run".into(),
        })?;
        Ok(Self { text: text.into(), regex: Some(regex), path: object.path().into(), key: object.name(key) })
    }

    /// A list of names and expressions; `null` and a missing list are empty.
    pub(super) fn list(object: &Object<'_>, key: &str) -> Result<Vec<Self>, LoadError> {
        let Some(entries) = object.array(key)? else { return Ok(Vec::new()) };
        check_count(entries.len(), object, key)?;
        let entry = |value: &Value| match value.as_str() {
            Some(text) => Self::entry(text, object, key),
            None => Err(object.wrong(key, "an array of strings")),
        };
        entries.iter().map(entry).collect()
    }

    /// Whether it is a regular expression.
    pub(super) fn is_regex(&self) -> bool {
        self.regex.is_some()
    }

    /// Whether it means the module of this name.
    ///
    /// # Errors
    /// If the expression takes too long.
    pub(super) fn names(&self, module: &str) -> Result<bool, LoadError> {
        let Some(regex) = &self.regex else { return Ok(self.text == module) };
        regex.is_match(module).map_err(|_| LoadError::Key {
            path: self.path.clone(),
            key: self.key.clone(),
            found: super::super::error::spelling(&self.text),
            expected: "a regular expression that ends on every module's name".into(),
        })
    }
}

/// Refuses more patterns than any honest configuration has.
pub(super) fn check_count(count: usize, object: &Object<'_>, key: &str) -> Result<(), LoadError> {
    if count <= limits::MODULE_PATTERNS {
        return Ok(());
    }
    let what = format!("entries of `{}`", object.name(key));
    Err(LoadError::limit(object.path(), what, count, limits::MODULE_PATTERNS as u64))
}
