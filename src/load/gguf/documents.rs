//! What the small files of a Hugging Face folder say, made from the metadata of a GGUF file.

use super::super::{LoadError, limits};
use super::parts::Gguf;
use super::value::{Metadata, Scalar};
use super::vocabulary::{Kind, Model, Vocabulary};
use serde_json::{Map, Value, json};
use std::collections::HashSet;

const TOKENIZER: &str = "tokenizer.json";
const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
const GENERATION_CONFIG: &str = "generation_config.json";

const TEMPLATE: &str = "tokenizer.chat_template";
const TEMPLATES: &str = "tokenizer.chat_templates";
const ADD_BEGIN: &str = "tokenizer.ggml.add_bos_token";
const BEGIN: &str = "tokenizer.ggml.bos_token_id";
const END: &str = "tokenizer.ggml.eos_token_id";
/// The ends of a turn and of a message that is no answer yet.
const OTHER_ENDS: [&str; 2] = ["tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"];
/// Control tokens that end a turn in models whose files name none: they would write on as their user.
const ENDS: [&str; 5] = ["<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>"];

/// Sampling that the model's authors recommend, and what generation_config.json calls it.
pub(super) const SAMPLING: &str = "general.sampling.";
pub(super) const SAMPLING_KEYS: [(&str, &str); 5] = [
    ("temp", "temperature"),
    ("top_k", "top_k"),
    ("top_p", "top_p"),
    ("min_p", "min_p"),
    ("penalty_repeat", "repetition_penalty"),
];
const SUPPRESSED: &str = "tokenizer.ggml.suppress_tokens";

/// What begins texts.
pub(super) struct Begin {
    /// The token where the file names none.
    pub token: Option<usize>,
    /// Whether texts begin with it where the file does not say.
    pub wanted: bool,
}

impl Gguf {
    /// Whether the metadata stand for a file of this name.
    pub fn stands_for(file: &str) -> bool {
        [TOKENIZER, TOKENIZER_CONFIG, GENERATION_CONFIG].contains(&file)
    }

    /// The content of a file that the metadata stand for, of at most so many bytes; `None` where they say nothing of it.
    ///
    /// # Errors
    /// If a key has not the value that it should, by the key.
    pub fn document(&self, file: &str, most: u64) -> Result<Option<Vec<u8>>, LoadError> {
        let metadata = self.metadata();
        match (file, Model::of(&metadata)?) {
            (TOKENIZER, Some(model)) => Vocabulary::read(metadata)?.tokenizer(&model, most).map(Some),
            (TOKENIZER_CONFIG, Some(model)) => tokenizer_config(&metadata, &model).map(Some),
            (GENERATION_CONFIG, model) => generation_config(&metadata, model.as_ref()).map(Some),
            _ => Ok(None),
        }
    }
}

fn tokenizer_config(metadata: &Metadata<'_>, model: &Model) -> Result<Vec<u8>, LoadError> {
    let vocabulary = Vocabulary::read(*metadata)?;
    let begin = model.begin();
    let mut config = Map::new();
    config.insert("add_bos_token".into(), metadata.truth(ADD_BEGIN)?.unwrap_or(begin.wanted).into());
    for (name, key, default) in [
        ("bos_token", BEGIN, begin.token),
        ("eos_token", END, begin.token.map(|begin| begin + 1)),
        ("unk_token", "tokenizer.ggml.unknown_token_id", None),
        ("pad_token", "tokenizer.ggml.padding_token_id", None),
        ("sep_token", "tokenizer.ggml.seperator_token_id", None),
        ("mask_token", "tokenizer.ggml.mask_token_id", None),
    ] {
        let id = token(metadata, key)?.or(default);
        let spelled = id.and_then(|id| vocabulary.tokens.get(id)).filter(|spelled| !spelled.is_empty());
        if let Some(spelled) = spelled {
            config.insert(name.into(), (*spelled).into());
        }
    }
    if let Some(templates) = templates(metadata)? {
        config.insert("chat_template".into(), templates);
    }
    Ok(Value::Object(config).to_string().into_bytes())
}

/// The chat templates by their names, or the only one.
fn templates(metadata: &Metadata<'_>) -> Result<Option<Value>, LoadError> {
    const MOST: usize = 64;
    let default = metadata.text(TEMPLATE)?;
    let names = metadata.list(TEMPLATES, MOST, "texts", |scalar| match scalar {
        Scalar::Text(text) => Some(text),
        _ => None,
    })?;
    let mut templates: Vec<Value> =
        default.iter().map(|template| json!({"name": "default", "template": template})).collect();
    for name in names.unwrap_or_default().into_iter().filter(|name| *name != "default") {
        if let Some(template) = metadata.text(&format!("{TEMPLATE}.{name}"))? {
            templates.push(json!({"name": name, "template": template}));
        }
    }
    Ok(match (&templates[..], default) {
        ([], _) => None,
        ([_], Some(only)) => Some(only.into()),
        _ => Some(templates.into()),
    })
}

fn generation_config(metadata: &Metadata<'_>, model: Option<&Model>) -> Result<Vec<u8>, LoadError> {
    let mut config = Map::new();
    for (key, name) in SAMPLING_KEYS {
        if let Some(number) = metadata.number(&format!("{SAMPLING}{key}"))? {
            config.insert(name.into(), number.into());
        }
    }
    // The files do not say whether to sample: who recommends a temperature does.
    if config.get("temperature").and_then(Value::as_f64).is_some_and(|temperature| temperature > 0.0) {
        config.insert("do_sample".into(), true.into());
    }
    let id = |scalar| match scalar {
        Scalar::Whole(number) => u32::try_from(number).ok(),
        _ => None,
    };
    if let Some(suppressed) = metadata.list(SUPPRESSED, limits::VOCABULARY, "tokens", id)? {
        config.insert("suppress_tokens".into(), suppressed.into());
    }
    if let Some(model) = model {
        let begin = model.begin().token;
        if let Some(id) = token(metadata, BEGIN)?.or(begin) {
            config.insert("bos_token_id".into(), id.into());
        }
        config.insert("eos_token_id".into(), ends(metadata, begin)?.into());
    }
    Ok(Value::Object(config).to_string().into_bytes())
}

/// The tokens that end an answer, each once.
fn ends(metadata: &Metadata<'_>, begin: Option<usize>) -> Result<Vec<usize>, LoadError> {
    let mut ends: Vec<usize> = token(metadata, END)?.or(begin.map(|begin| begin + 1)).into_iter().collect();
    for key in OTHER_ENDS {
        ends.extend(token(metadata, key)?);
    }
    let vocabulary = Vocabulary::read(*metadata)?;
    let known = ENDS.iter().filter_map(|end| vocabulary.ids.get(end).copied());
    ends.extend(known.filter(|&id| vocabulary.kinds[id] == Kind::Control));
    let mut seen = HashSet::new();
    ends.retain(|id| seen.insert(*id));
    Ok(ends)
}

/// A token's id; whether the model has such a token is for others to say, since some converters write what stands for none.
fn token(metadata: &Metadata<'_>, key: &str) -> Result<Option<usize>, LoadError> {
    const NONE: usize = u32::MAX as usize;
    Ok(metadata.whole(key, 0..NONE + 1)?.filter(|&id| id != NONE && id < limits::VOCABULARY))
}
