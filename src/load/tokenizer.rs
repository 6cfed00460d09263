//! Text to tokens and back, over Hugging Face's `tokenizers`.

use super::detokenize::{self, Detokenizer, TextStream};
use super::json::Object;
use super::source::Source;
use super::specials::special_token;
use super::{GenerationDefaults, LoadError};
use crate::TokenId;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

const FILE: &str = "tokenizer.json";

/// Text to tokens and back.
pub struct Tokenizer {
    path: PathBuf,
    inner: tokenizers::Tokenizer,
    detokenizer: Detokenizer,
    /// What the model wants at a text's start: nothing, or the begin-of-text token.
    begin: Vec<TokenId>,
}

impl Tokenizer {
    /// The tokenizer of a folder, if it has one, checked against the model's vocabulary.
    pub(super) fn of_source(
        source: &Source,
        config: Option<&Object<'_>>,
        generation: &GenerationDefaults,
        vocab_size: usize,
    ) -> Result<Option<Self>, LoadError> {
        let Some(bytes) = source.read(FILE)? else { return Ok(None) };
        let path = source.path(FILE);
        // First, since it refuses by an error what makes `tokenizers` panic.
        let detokenizer = Detokenizer::parse(&path, &bytes)?;
        let mut inner = guarded(&path, || tokenizers::Tokenizer::from_bytes(&bytes))?;
        // A prompt is never cut or padded here: both would silently change it.
        inner.with_truncation(None).map_err(|error| LoadError::tokenizer(&path, error))?;
        inner.with_padding(None);
        check_vocabulary(&inner, vocab_size).map_err(|message| LoadError::tokenizer(&path, message))?;

        let mut tokenizer = Self { detokenizer, inner, path, begin: Vec::new() };
        tokenizer.begin = tokenizer.find_begin(config, generation)?;
        Ok(Some(tokenizer))
    }

    /// `add_bos_token` decides where `tokenizer_config.json` has it, else the tokenizer's own post-processor.
    fn find_begin(
        &self,
        config: Option<&Object<'_>>,
        generation: &GenerationDefaults,
    ) -> Result<Vec<TokenId>, LoadError> {
        if let Some(config) = config
            && let Some(add) = config.flag("add_bos_token")?
        {
            if !add {
                return Ok(Vec::new());
            }
            let named =
                special_token(Some(config), None, "bos_token")?.and_then(|token| self.inner.token_to_id(&token));
            let begin = named.or(generation.begin_token);
            return begin
                .map(|id| vec![id])
                .ok_or_else(|| config.wrong("bos_token", "a token of the vocabulary, since add_bos_token is true"));
        }
        const PROBE: &str = "a";
        let (plain, with_specials) = (self.ids(PROBE, false)?, self.ids(PROBE, true)?);
        let before = with_specials.windows(plain.len().max(1)).position(|window| window == plain);
        Ok(with_specials[..before.unwrap_or(0)].to_vec())
    }

    fn ids(&self, text: &str, add_special_tokens: bool) -> Result<Vec<TokenId>, LoadError> {
        let encoding = guarded(&self.path, || self.inner.encode_fast(text, add_special_tokens))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Tokens of `text`. `begin`: with what the model wants at a text's start, unless the text has it
    /// already (not after a chat template, which writes it itself). Special tokens written out in the
    /// text are recognised either way.
    ///
    /// # Errors
    /// If the tokenizer refuses the text.
    pub fn encode(&self, text: &str, begin: bool) -> Result<Vec<TokenId>, LoadError> {
        let mut ids = self.ids(text, false)?;
        if begin && !ids.starts_with(&self.begin) {
            ids.splice(0..0, self.begin.iter().copied());
        }
        Ok(ids)
    }

    /// Text of `tokens`, special tokens left out.
    pub fn decode(&self, tokens: &[TokenId]) -> String {
        let mut state = detokenize::State::new(self, true);
        let mut text: String = tokens.iter().map(|&token| state.push(self, token)).collect();
        text.push_str(&state.finish());
        text
    }

    /// The token's own spelling in the vocabulary, `None` where it has none.
    pub fn token(&self, id: TokenId) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// The token spelled so in the vocabulary.
    pub fn id(&self, token: &str) -> Option<TokenId> {
        self.inner.token_to_id(token)
    }

    /// Whether the token is special: part of no text.
    pub fn is_special(&self, id: TokenId) -> bool {
        self.inner.get_added_vocabulary().simple_id_to_token(id).is_some_and(|token| self.is_special_spelling(&token))
    }

    pub(super) fn is_special_spelling(&self, token: &str) -> bool {
        self.inner.get_added_vocabulary().is_special_token(token)
    }

    pub(super) fn detokenizer(&self) -> &Detokenizer {
        &self.detokenizer
    }

    /// Decodes token by token, from a text's start.
    pub fn stream(self: &Arc<Self>) -> TextStream {
        TextStream::new(self.clone(), true)
    }

    /// Decodes token by token what continues another text: the space that some tokenizers put before
    /// every word, and take away from the first, stays.
    pub fn stream_continuing(self: &Arc<Self>) -> TextStream {
        TextStream::new(self.clone(), false)
    }
}

/// Calls into `tokenizers`, which panics on some damaged files. To the caller that is an error like any
/// other. The panics that are known are prevented ([`Detokenizer::parse`]), because the process's panic
/// hook still speaks: it is one for all threads, so it is not a library's to replace.
fn guarded<T>(path: &Path, call: impl FnOnce() -> tokenizers::Result<T>) -> Result<T, LoadError> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(result) => result.map_err(|error| LoadError::tokenizer(path, error)),
        Err(_) => Err(LoadError::tokenizer(path, "the tokenizer contradicts itself")),
    }
}

fn check_vocabulary(inner: &tokenizers::Tokenizer, vocab_size: usize) -> Result<(), String> {
    let vocabulary = inner.get_vocab(true);
    match vocabulary.iter().max_by_key(|&(_, &id)| id) {
        None => Err("the vocabulary is empty".into()),
        Some((token, &id)) if id as usize >= vocab_size => {
            Err(format!("token {token:?} has id {id}, but vocab_size in config.json is {vocab_size}"))
        }
        Some(_) => Ok(()),
    }
}
