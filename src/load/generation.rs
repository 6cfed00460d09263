//! `generation_config.json`, and what `config.json` says in its place.

use super::LoadError;
use super::json::Object;
use crate::TokenId;
use crate::sample::SamplingParams;
use serde_json::Value;

/// Defaults for generation; `None`: the folder does not say. Ranges are the sampler's to check.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GenerationDefaults {
    /// `bos_token_id`: begins every text.
    pub begin_token: Option<TokenId>,
    /// `eos_token_id`: tokens that end an answer, as listed.
    pub end_tokens: Vec<TokenId>,
    /// `do_sample`.
    pub sample: Option<bool>,
    /// `temperature`.
    pub temperature: Option<f64>,
    /// `top_k`; 0 switches the filter off.
    pub top_k: Option<usize>,
    /// `top_p`.
    pub top_p: Option<f64>,
    /// `min_p`.
    pub min_p: Option<f64>,
    /// `repetition_penalty`.
    pub repetition_penalty: Option<f64>,
    /// `stop_strings`.
    pub stop_strings: Vec<String>,
    /// `suppress_tokens`.
    pub suppress_tokens: Vec<TokenId>,
    /// `bad_words_ids`.
    pub bad_words: Vec<Vec<TokenId>>,
    /// `max_new_tokens`.
    pub max_new_tokens: Option<usize>,
    /// `min_new_tokens`.
    pub min_new_tokens: Option<usize>,
}

impl GenerationDefaults {
    /// `generation`: root of `generation_config.json`, where there is one. `config`: of `config.json`.
    pub(super) fn parse(generation: Option<&Object<'_>>, config: &Object<'_>) -> Result<Self, LoadError> {
        let vocab = config.unsigned("vocab_size")?.unwrap_or(0);
        let tokens = |key: &str| {
            let object = generation.filter(|object| object.value(key).is_some()).unwrap_or(config);
            token_ids(object, key, vocab)
        };
        let defaults = Self {
            begin_token: tokens("bos_token_id")?.first().copied(),
            end_tokens: tokens("eos_token_id")?,
            ..Self::default()
        };
        let Some(generation) = generation else { return Ok(defaults) };
        Ok(Self {
            sample: generation.flag("do_sample")?,
            temperature: generation.number("temperature")?,
            top_k: generation.unsigned("top_k")?,
            top_p: generation.number("top_p")?,
            min_p: generation.number("min_p")?,
            repetition_penalty: generation.number("repetition_penalty")?,
            ..defaults
        })
    }
}

impl GenerationDefaults {
    /// How the model asks to be sampled where the user says nothing: greedily unless it says `do_sample`, and with its
    /// repetition penalty in any case.
    pub fn sampling(&self) -> SamplingParams {
        let off = SamplingParams::default();
        let penalized = SamplingParams {
            repetition_penalty: self.repetition_penalty.unwrap_or(off.repetition_penalty),
            ..off.clone()
        };
        if self.sample != Some(true) {
            return penalized;
        }
        SamplingParams {
            temperature: self.temperature.unwrap_or(1.0),
            top_k: self.top_k.unwrap_or(off.top_k),
            top_p: self.top_p.unwrap_or(off.top_p),
            min_p: self.min_p.unwrap_or(off.min_p),
            ..penalized
        }
    }
}

/// One token or a list of them.
fn token_ids(object: &Object<'_>, key: &str, vocab: usize) -> Result<Vec<TokenId>, LoadError> {
    let values = match object.value(key) {
        None => return Ok(Vec::new()),
        Some(Value::Array(values)) => values.as_slice(),
        Some(value) => std::slice::from_ref(value),
    };
    let id = |value: &Value| value.as_u64().filter(|&id| id < vocab as u64)?.try_into().ok();
    let ids: Option<Vec<TokenId>> = values.iter().map(id).collect();
    ids.ok_or_else(|| object.wrong(key, &format!("a token below vocab_size, {vocab}, or a list of them")))
}
