//! What an answer must be like, by the keys of its request: JSON of a schema, or a text of a grammar.

use super::Request;
use crate::constrain::{Constraint, Grammar, GrammarError, Grammars};
use crate::load::Keys;
use serde_json::{Value, json};
use std::sync::Arc;

/// The forms of `response_format`.
const FORMATS: &str = "{\"type\": \"text\"}, {\"type\": \"json_object\"} or {\"type\": \"json_schema\", \"json_schema\": \
                       {\"schema\": ...}}";

/// Sets a request's constraint by its keys `json_schema`, `grammar` and `response_format`, where it has one of them.
///
/// # Errors
/// Which key is wrong, and how.
pub fn take(keys: &mut Keys, request: &mut Request, grammars: &Grammars) -> Result<(), String> {
    let given: Vec<&str> =
        ["json_schema", "grammar", "response_format"].into_iter().filter(|key| keys.raw(key).is_some()).collect();
    if let [first, second, ..] = given[..] {
        return Err(format!("both \"{first}\" and \"{second}\": one of them is enough"));
    }
    let compiled = |key: &str, compiled: Result<Arc<Grammar>, GrammarError>| {
        compiled.map(some).map_err(|error| format!("\"{key}\": {error}"))
    };
    if let Some(schema) = keys.take::<Value>("json_schema")? {
        request.constraint = compiled("json_schema", grammars.json_schema(&schema))?;
    }
    if let Some(grammar) = keys.take::<String>("grammar")? {
        request.constraint = compiled("grammar", grammars.lark(&grammar))?;
    }
    if let Some(format) = keys.take_object("response_format")? {
        let schema = schema_of(format).map_err(|error| format!("\"response_format\": {error}"))?;
        request.constraint = match schema {
            Some(schema) => compiled("response_format", grammars.json_schema(&schema))?,
            None => None,
        };
    }
    Ok(())
}

/// The schema that a `response_format` asks for; `None`: any text will do.
fn schema_of(mut format: Keys) -> Result<Option<Value>, String> {
    let kind = format.take::<String>("type")?;
    let schema = match kind.as_deref() {
        Some("text") => None,
        Some("json_object") => Some(json!({"type": "object"})),
        Some("json_schema") => {
            let missing = || format!("\"json_schema\" is missing (expected {FORMATS})");
            let mut named = format.take_object("json_schema")?.ok_or_else(missing)?;
            // Every schema is followed to the letter.
            ["name", "description", "strict"].iter().for_each(|key| named.forget(key));
            let schema = named.take::<Value>("schema")?.ok_or("\"schema\" is missing in \"json_schema\"")?;
            named.finish("name, description, strict and schema")?;
            Some(schema)
        }
        found => {
            let found = found.map_or("missing".into(), |found| format!("{found:?}"));
            return Err(format!("\"type\" is {found} (expected {FORMATS})"));
        }
    };
    format.finish("type and, with \"type\": \"json_schema\", json_schema")?;
    Ok(schema)
}

fn some(grammar: Arc<Grammar>) -> Option<Arc<dyn Constraint>> {
    Some(grammar)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_format_asks_for_its_schema_and_what_is_none_is_told() {
        let read = |text: &str| schema_of(Keys::parse(text.as_bytes()));
        assert_eq!(read(r#"{"type": "text"}"#), Ok(None));
        assert_eq!(read(r#"{"type": "json_object"}"#), Ok(Some(json!({"type": "object"}))));
        let named =
            r#"{"type": "json_schema", "json_schema": {"name": "n", "strict": true, "schema": {"type": "null"}}}"#;
        assert_eq!(read(named), Ok(Some(json!({"type": "null"}))));
        for (text, told) in [
            (r#"{"type": "xml"}"#, "\"type\" is \"xml\" (expected"),
            ("{}", "\"type\" is missing"),
            (r#"{"type": "text", "schema": {}}"#, "unknown key \"schema\""),
            (r#"{"type": "json_schema"}"#, "\"json_schema\" is missing"),
            (r#"{"type": "json_schema", "json_schema": {"name": "n"}}"#, "\"schema\" is missing"),
            (r#"{"type": "json_schema", "json_schema": {"schema": {}, "strickt": 1}}"#, "\"strickt\""),
            (r#"{"type": 3}"#, "\"type\""),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(told), "{text}: {error}");
        }
    }

    #[test]
    fn one_constraint_is_enough() {
        let both = br#"{"grammar": "start: \"a\"", "response_format": {"type": "text"}}"#;
        let grammars = Grammars::new(None, 10);
        let told = take(&mut Keys::parse(both), &mut Request::new(vec![1], 1), &grammars).unwrap_err();
        assert_eq!(told, "both \"grammar\" and \"response_format\": one of them is enough");
    }
}
