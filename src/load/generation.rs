//! `generation_config.json`, and what `config.json` and the tokenizer's files say in its place.

use super::error::{short, spelling};
use super::json::Object;
use super::{LoadError, unhonoured};
use crate::TokenId;
use crate::sample::SamplingParams;
use serde_json::Value;

/// Defaults for generation; `None` or empty: the folder does not say. A value that is no such setting's is left out,
/// with a note.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GenerationDefaults {
    /// `bos_token_id`: begins every text.
    pub begin_token: Option<TokenId>,
    /// `eos_token_id`: tokens that end an answer, as listed; then those that only the tokenizer's files name.
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
    /// `stop_strings`: texts that end an answer, none of them empty.
    pub stop_strings: Vec<String>,
    /// `suppress_tokens`: tokens that are never generated.
    pub suppress_tokens: Vec<TokenId>,
    /// `bad_words_ids`: runs of tokens that are never completed, none of them empty.
    pub bad_words: Vec<Vec<TokenId>>,
    /// `max_new_tokens`: most tokens of an answer, at least 1.
    pub max_new_tokens: Option<usize>,
    /// `min_new_tokens`: tokens before which no answer ends.
    pub min_new_tokens: Option<usize>,
}

impl GenerationDefaults {
    /// `generation`: root of `generation_config.json`, where there is one. `config`: of `config.json`, likewise. `vocab`: the
    /// model's tokens. `positions`: the longest text that the model takes.
    pub(super) fn parse(
        generation: Option<&Object<'_>>,
        config: Option<&Object<'_>>,
        (vocab, positions): (usize, usize),
        notes: &mut Vec<String>,
    ) -> Result<Self, LoadError> {
        let mut defaults = match generation {
            Some(object) => Reader { object, vocab, notes }.defaults()?,
            None => Self::default(),
        };
        // A key with no token of the vocabulary counts as absent: some converters write -1 where they know none.
        if let Some(object) = config {
            let mut config = Reader { object, vocab, notes };
            if defaults.begin_token.is_none() {
                defaults.begin_token = config.tokens("bos_token_id")?.first().copied();
            }
            if defaults.end_tokens.is_empty() {
                defaults.end_tokens = config.tokens("eos_token_id")?;
            }
        }
        notes.extend(generation.and_then(|generation| unhonoured::note(generation, positions)));
        Ok(defaults)
    }

    /// Adds what the tokenizer's files call the token that ends a text: the file, the token's spelling and its id. Models
    /// whose own files name another one end their answers by this one all the same, chat models most of all.
    pub(super) fn add_end_tokens(&mut self, ends: Vec<(String, String, TokenId)>, notes: &mut Vec<String>) {
        let nobody_else = self.end_tokens.is_empty();
        for (file, token, id) in ends {
            if self.end_tokens.contains(&id) {
                continue;
            }
            if !nobody_else {
                let listed: Vec<String> = self.end_tokens.iter().map(TokenId::to_string).collect();
                let (token, listed) = (spelling(&token), short(listed.join(", ")));
                notes.push(format!(
                    "{file}: `eos_token` is {token}, token {id}, but the model's `eos_token_id` is {listed}: answers end at either"
                ));
            }
            self.end_tokens.push(id);
        }
    }

    /// How the model asks to be sampled where the user says nothing: greedily unless it says `do_sample`, and with its
    /// repetition penalty and its forbidden tokens in any case.
    pub fn sampling(&self) -> SamplingParams {
        let off = SamplingParams::default();
        let penalized = SamplingParams {
            repetition_penalty: self.repetition_penalty.unwrap_or(off.repetition_penalty),
            suppress_tokens: self.suppress_tokens.clone(),
            bad_words: self.bad_words.clone(),
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

/// Reads settings of one file: a value of the wrong type is an error, one out of range is noted and left out.
struct Reader<'a> {
    object: &'a Object<'a>,
    vocab: usize,
    notes: &'a mut Vec<String>,
}

impl Reader<'_> {
    fn defaults(&mut self) -> Result<GenerationDefaults, LoadError> {
        let off = SamplingParams::default;
        let end_tokens = self.tokens("eos_token_id")?;
        Ok(GenerationDefaults {
            begin_token: self.tokens("bos_token_id")?.first().copied(),
            sample: self.object.flag("do_sample")?,
            temperature: self.number("temperature", |temperature| SamplingParams { temperature, ..off() })?,
            top_k: self.count("top_k", 0)?,
            top_p: self.number("top_p", |top_p| SamplingParams { top_p, ..off() })?,
            min_p: self.number("min_p", |min_p| SamplingParams { min_p, ..off() })?,
            repetition_penalty: self
                .number("repetition_penalty", |repetition_penalty| SamplingParams { repetition_penalty, ..off() })?,
            stop_strings: self.texts("stop_strings")?,
            suppress_tokens: self.tokens("suppress_tokens")?,
            bad_words: self.runs("bad_words_ids", &end_tokens)?,
            max_new_tokens: self.count("max_new_tokens", 1)?,
            min_new_tokens: self.count("min_new_tokens", 0)?,
            end_tokens,
        })
    }

    /// A number that the sampler takes; `as_params`: parameters with it.
    fn number(
        &mut self,
        key: &'static str,
        as_params: impl Fn(f64) -> SamplingParams,
    ) -> Result<Option<f64>, LoadError> {
        let Some(number) = self.object.number(key)? else { return Ok(None) };
        match as_params(number).check(self.vocab) {
            Ok(()) => Ok(Some(number)),
            Err(error) => {
                self.notes.push(self.object.ignored(key, error.expected));
                Ok(None)
            }
        }
    }

    fn count(&mut self, key: &str, least: usize) -> Result<Option<usize>, LoadError> {
        let expected = format!("a whole number, at least {least}");
        let Some(value) = self.object.value(key) else { return Ok(None) };
        let number = whole(value).ok_or_else(|| self.object.wrong(key, &expected))?;
        let count = usize::try_from(number).ok().filter(|&count| count >= least);
        if count.is_none() {
            self.notes.push(self.object.ignored(key, &expected));
        }
        Ok(count)
    }

    /// One token or a list of them, those of the vocabulary.
    fn tokens(&mut self, key: &str) -> Result<Vec<TokenId>, LoadError> {
        let values = match self.object.value(key) {
            None => return Ok(Vec::new()),
            Some(Value::Array(values)) => values.as_slice(),
            Some(value) => std::slice::from_ref(value),
        };
        let expected = format!("a token below vocab_size, {}, or a list of them", self.vocab);
        let (tokens, others) = self.split(values).ok_or_else(|| self.object.wrong(key, &expected))?;
        self.note_strangers(key, &others);
        Ok(tokens)
    }

    /// Runs of tokens. Left out are those that no text completes, since a token of theirs does not exist, and as
    /// transformers does, those that would keep an answer from ending.
    fn runs(&mut self, key: &str, end_tokens: &[TokenId]) -> Result<Vec<Vec<TokenId>>, LoadError> {
        let mut runs = Vec::new();
        for value in self.object.array(key)?.into_iter().flatten() {
            let split = value.as_array().and_then(|values| self.split(values));
            let (run, others) = split.ok_or_else(|| self.object.wrong(key, "a list of lists of tokens"))?;
            self.note_strangers(key, &others);
            match run[..] {
                _ if !others.is_empty() => {}
                [] => self.notes.push(format!("{}: `{key}` has an empty run of tokens: ignored", self.object.file())),
                [end] if end_tokens.contains(&end) => self.notes.push(format!(
                    "{}: `{key}` has the end token {end}, without which no answer ends: ignored",
                    self.object.file()
                )),
                _ => runs.push(run),
            }
        }
        Ok(runs)
    }

    /// Tokens of the vocabulary, and whole numbers that are none; `None`: something else is among them.
    fn split(&self, values: &[Value]) -> Option<(Vec<TokenId>, Vec<i128>)> {
        let (mut tokens, mut others) = (Vec::new(), Vec::new());
        for value in values {
            let number = whole(value)?;
            match TokenId::try_from(number).ok().filter(|&token| (token as usize) < self.vocab) {
                Some(token) => tokens.push(token),
                None => others.push(number),
            }
        }
        Some((tokens, others))
    }

    fn note_strangers(&mut self, key: &str, others: &[i128]) {
        let Some(first) = others.first() else { return };
        let more = if others.len() > 1 { format!(" and {} more", others.len() - 1) } else { String::new() };
        let (file, vocab) = (self.object.file(), self.vocab);
        self.notes
            .push(format!("{file}: `{key}` has {first}{more}, expected tokens below vocab_size, {vocab}: ignored"));
    }

    /// One text or a list of them, none of them empty.
    fn texts(&mut self, key: &str) -> Result<Vec<String>, LoadError> {
        let values = match self.object.value(key) {
            None => return Ok(Vec::new()),
            Some(Value::Array(values)) => values.as_slice(),
            Some(value) => std::slice::from_ref(value),
        };
        let texts: Option<Vec<&str>> = values.iter().map(Value::as_str).collect();
        let mut texts = texts.ok_or_else(|| self.object.wrong(key, "a string or a list of strings"))?;
        if texts.contains(&"") {
            self.notes.push(format!("{}: `{key}` has an empty string: ignored", self.object.file()));
            texts.retain(|text| !text.is_empty());
        }
        Ok(texts.into_iter().map(str::to_owned).collect())
    }
}

/// A whole number, also one that is written as `2.0`; far ones saturate.
fn whole(value: &Value) -> Option<i128> {
    let integer = value.as_i64().map(i128::from).or_else(|| value.as_u64().map(i128::from));
    integer.or_else(|| value.as_f64().filter(|number| number.fract() == 0.0).map(|number| number as i128))
}
