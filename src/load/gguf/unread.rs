//! What a GGUF file says and this engine does not do: one sentence each, with the key.

use super::super::LoadError;
use super::super::error::short;
use super::config::Keys;
use super::documents::{SAMPLING, SAMPLING_KEYS};

const ADD_END: &str = "tokenizer.ggml.add_eos_token";
const MODEL: &str = "tokenizer.ggml.model";
const PRE: &str = "tokenizer.ggml.pre";

/// The notes; `known` are the keys of the architecture that are read, or that change no logits.
pub(super) fn notes(keys: &Keys<'_>, known: impl Fn(&str) -> bool) -> Result<Vec<String>, LoadError> {
    let metadata = keys.metadata;
    let file = metadata.path().file_name().unwrap_or_default().to_string_lossy();
    let listed = |keys: Vec<String>| (!keys.is_empty()).then(|| short(keys.join("`, `")));
    let mut notes = Vec::new();

    let prefix = keys.name("");
    let of_architecture = metadata.keys().filter_map(|key| key.strip_prefix(&prefix));
    let strangers = of_architecture.filter(|key| !known(key)).map(|key| keys.name(key)).collect();
    if let Some(strangers) = listed(strangers) {
        notes.push(format!("{file}: `{strangers}` not known to this version: ignored"));
    }

    let of_sampling = metadata.keys().filter(|key| key.strip_prefix(SAMPLING).is_some_and(|key| !is_read(key)));
    let at_work =
        of_sampling.filter(|key| metadata.number(key).ok().flatten() != Some(0.0)).map(str::to_owned).collect();
    if let Some(at_work) = listed(at_work) {
        notes.push(format!("{file}: `{at_work}`: no such sampling here: ignored"));
    }

    if metadata.truth(ADD_END)? == Some(true) {
        notes.push(format!("{file}: `{ADD_END}` is true: ignored, since texts are continued"));
    }
    if metadata.text(MODEL)? == Some("gpt2") && !metadata.has(PRE) {
        notes.push(format!(
            "{file}: `{PRE}` is missing: texts are split by llama.cpp's default rule, perhaps not the model's"
        ));
    }
    Ok(notes)
}

fn is_read(key: &str) -> bool {
    SAMPLING_KEYS.iter().any(|(read, _)| *read == key)
}
