//! The special tokens that a folder names: `bos_token` and the like.

use super::LoadError;
use super::json::Object;
use serde_json::Value;
use std::collections::BTreeMap;

/// Where the tokens stand that `tokenizer_config.json` does not mention.
pub(super) const FILE: &str = "special_tokens_map.json";

/// The tokens by the names that chat templates know them by.
pub(super) type Specials = BTreeMap<String, String>;

/// The names that chat templates know them by.
pub(super) const NAMES: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// The token that `tokenizer_config.json` has under `key`, where the key is written down there, be it as `null`; else
/// the one of `special_tokens_map.json`.
///
/// # Errors
/// If it is neither a string nor an object with a `content`.
pub(super) fn special_token(
    config: Option<&Object<'_>>,
    map: Option<&Object<'_>>,
    key: &str,
) -> Result<Option<String>, LoadError> {
    match config.filter(|config| config.has(key)).or(map) {
        Some(object) => token(object, key),
        None => Ok(None),
    }
}

/// All of the tokens that the two files name.
///
/// # Errors
/// As [`special_token`].
pub(super) fn special_tokens(config: Option<&Object<'_>>, map: Option<&Object<'_>>) -> Result<Specials, LoadError> {
    let mut specials = Specials::new();
    for key in NAMES {
        if let Some(token) = special_token(config, map, key)? {
            specials.insert(key.to_owned(), token);
        }
    }
    Ok(specials)
}

fn token(object: &Object<'_>, key: &str) -> Result<Option<String>, LoadError> {
    let text = match object.value(key) {
        Some(Value::Object(_)) => match object.object(key)? {
            Some(token) => token.text("content")?,
            None => None,
        },
        _ => object.text(key)?,
    };
    Ok(text.map(str::to_owned))
}
