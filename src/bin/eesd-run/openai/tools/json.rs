//! JSON at the beginning of a text that may go on, and calls in it.

use super::Call;
use serde_json::value::RawValue;
use std::collections::BTreeMap;

/// What a text begins with.
pub enum Json<'a> {
    /// A value, which ends at this byte.
    Whole(&'a RawValue, usize),
    /// A value that may be whole once more is there.
    Cut,
    /// No JSON.
    Broken,
}

/// What `text` begins with, white space aside.
pub fn json(text: &str) -> Json<'_> {
    let mut values = serde_json::Deserializer::from_str(text).into_iter::<&RawValue>();
    match values.next() {
        Some(Ok(value)) => Json::Whole(value, values.byte_offset()),
        Some(Err(error)) if !error.is_eof() => Json::Broken,
        Some(Err(_)) | None => Json::Cut,
    }
}

/// The call that an object is, with the arguments under one of these names; `None` where it is none.
pub fn call(value: &RawValue, names: &[&str]) -> Option<Call> {
    let keys: BTreeMap<String, Box<RawValue>> = serde_json::from_str(value.get()).ok()?;
    let name: String = serde_json::from_str(keys.get("name")?.get()).ok()?;
    let given = names.iter().find_map(|name| keys.get(*name));
    let arguments = given.map_or(Some("{}".into()), |given| object(given))?;
    (!name.is_empty()).then_some(Call { name, arguments })
}

/// The text of an object, which may be in a text of its own.
pub fn object(value: &RawValue) -> Option<String> {
    let text: String = match value.get().starts_with('"') {
        true => serde_json::from_str(value.get()).ok()?,
        false => value.get().into(),
    };
    let is_object = serde_json::from_str::<BTreeMap<String, &RawValue>>(&text).is_ok();
    is_object.then(|| text.trim().to_owned())
}

/// Bytes at the end of `text` that may be the beginning of a mark.
pub fn begun(text: &str, mark: &str) -> usize {
    (1..mark.len()).rev().find(|&length| mark.is_char_boundary(length) && text.ends_with(&mark[..length])).unwrap_or(0)
}
