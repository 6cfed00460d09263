//! What answers must be like, by flags: JSON of a schema, or a text of a grammar. (By keys of a request: `eesd::engine::settings`.)

use crate::failure::{Failure, Outcome};
use eesd::constrain::{Constraint, Grammars, MOST_GRAMMAR_BYTES};
use eesd::load::encoding;
use serde_json::Value;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

/// The constraint of `--json-schema` or `--grammar`.
///
/// # Errors
/// If a file cannot be read, or holds none that this model can follow.
pub fn of_flags(
    json_schema: Option<&Path>,
    grammar: Option<&Path>,
    grammars: &Grammars,
) -> Outcome<Option<Arc<dyn Constraint>>> {
    let (flag, path) = match (json_schema, grammar) {
        (Some(path), _) => ("--json-schema", path),
        (None, Some(path)) => ("--grammar", path),
        (None, None) => return Ok(None),
    };
    let failed = |error: &dyn std::fmt::Display| Failure::failed(format!("{flag}: {}: {error}", path.display()));
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(MOST_GRAMMAR_BYTES as u64 + 1).read_to_end(&mut bytes));
    read.map_err(|error| failed(&format!("could not be read: {error}")))?;
    if bytes.len() > MOST_GRAMMAR_BYTES {
        return Err(failed(&format!("more than {MOST_GRAMMAR_BYTES} bytes (expected at most that)")));
    }
    let text = encoding::text(bytes).map_err(|error| failed(&error))?;
    let compiled = match json_schema {
        Some(_) => {
            let schema: Value = serde_json::from_str(&text).map_err(|error| failed(&error))?;
            grammars.json_schema(&schema)
        }
        None => grammars.lark(&text),
    };
    compiled.map(|grammar| Some(grammar as Arc<dyn Constraint>)).map_err(|error| failed(&error))
}
