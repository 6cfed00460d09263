//! Text to tokens and back, over Hugging Face's `tokenizers`.

use super::added::{self, Ids, TokenFiles};
use super::detokenize::{self, Detokenizer, TextStream};
use super::encode::Regexes;
use super::error::spelling;
use super::source::Source;
use super::specials::special_token;
use super::{GenerationDefaults, LoadError, growth, limits};
use crate::TokenId;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

const FILE: &str = "tokenizer.json";

/// Text to tokens and back.
pub struct Tokenizer {
    path: PathBuf,
    inner: tokenizers::Tokenizer,
    regexes: Regexes,
    detokenizer: Detokenizer,
    /// Where `inner` has other ids than the model.
    ids: Ids,
    /// Tokens of the model; some tokenizers have more.
    vocab_size: usize,
    /// What the model wants at a text's start: nothing, or the begin-of-text token.
    begin: Vec<TokenId>,
}

impl Tokenizer {
    /// The tokenizer of a folder, if it has one. Tokens past the model's vocabulary are noted, and refused where a text
    /// has them.
    pub(super) fn of_source(
        source: &Source,
        files: &TokenFiles,
        generation: &GenerationDefaults,
        vocab_size: usize,
        notes: &mut Vec<String>,
    ) -> Result<Option<Self>, LoadError> {
        let Some(bytes) = source.read_up_to(FILE, limits::TOKENIZER_BYTES)? else { return Ok(None) };
        let path = source.path(FILE);
        // First, since they refuse by an error what makes `tokenizers` panic or stall.
        let growth = growth::check(&path, &bytes)?;
        let detokenizer = Detokenizer::parse(&path, &bytes)?;
        let declared = added::declared(&path, &bytes)?;
        let mut inner = guarded(&path, || tokenizers::Tokenizer::from_bytes(&bytes))?;
        // A prompt is never cut or padded here: both would silently change it.
        inner.with_truncation(None).map_err(|error| LoadError::tokenizer(&path, error))?;
        inner.with_padding(None);
        let ids = added::add(&mut inner, &path, declared, files, notes)?;
        let regexes = guarded(&path, || Regexes::of(&inner, growth))?;

        let mut tokenizer = Self { detokenizer, inner, regexes, path, ids, vocab_size, begin: Vec::new() };
        tokenizer.look_past_vocabulary(notes)?;
        tokenizer.begin = tokenizer.find_begin(files, generation, notes)?;
        Ok(Some(tokenizer))
    }

    fn look_past_vocabulary(&self, notes: &mut Vec<String>) -> Result<(), LoadError> {
        let vocabulary = self.inner.get_vocab(true);
        if vocabulary.is_empty() {
            return Err(LoadError::tokenizer(&self.path, "the vocabulary is empty"));
        }
        let of_model = vocabulary.into_iter().map(|(token, id)| (self.ids.to_model(id), token));
        let mut past: Vec<(TokenId, String)> = of_model.filter(|(id, _)| *id as usize >= self.vocab_size).collect();
        past.sort_unstable();
        if let Some((id, token)) = past.first() {
            let (message, others) = (self.past_vocabulary(*id, token), past.len() - 1);
            let others = if others > 0 { format!(", and so have {others} more") } else { String::new() };
            let file = self.path.file_name().unwrap_or_default().to_string_lossy();
            notes.push(format!("{file}: {message}{others}: texts with such a token are refused"));
        }
        Ok(())
    }

    fn past_vocabulary(&self, id: TokenId, token: &str) -> String {
        format!("token {} has id {id}, but the model's vocab_size is {}", spelling(token), self.vocab_size)
    }

    /// `add_bos_token` decides where `tokenizer_config.json` has it, else the tokenizer's own post-processor.
    fn find_begin(
        &self,
        files: &TokenFiles,
        generation: &GenerationDefaults,
        notes: &mut Vec<String>,
    ) -> Result<Vec<TokenId>, LoadError> {
        if let Some(config) = files.config()
            && let Some(add) = config.flag("add_bos_token")?
        {
            if !add {
                return Ok(Vec::new());
            }
            let named = special_token(Some(&config), files.map().as_ref(), "bos_token")?;
            // Written down as `null`, the model has none, whatever its other files say.
            let none = config.has("bos_token") && named.is_none();
            let begin = named.and_then(|token| self.known_id(&token)).or(generation.begin_token.filter(|_| !none));
            if begin.is_none() {
                let file = config.file();
                notes.push(format!("{file}: `add_bos_token` is true, but no file names a begin token: texts get none"));
            }
            return Ok(begin.into_iter().collect());
        }
        const PROBE: &str = "a";
        let probe = |add_special_tokens: bool| {
            let encoding = guarded(&self.path, || self.inner.encode_fast(PROBE, add_special_tokens))?;
            Ok::<_, LoadError>(encoding.get_ids().to_vec())
        };
        // What a post-processor puts in has the model's ids already.
        let (plain, with_specials) = (probe(false)?, probe(true)?);
        let before = with_specials.windows(plain.len().max(1)).position(|window| window == plain);
        Ok(with_specials[..before.unwrap_or(0)].to_vec())
    }

    /// The tokens that the tokenizer's files name as `eos_token`, of those that the model can write: file, spelling, id.
    pub(super) fn ends(&self, files: &TokenFiles) -> Result<Vec<(String, String, TokenId)>, LoadError> {
        let mut ends = Vec::new();
        for object in [files.config(), files.map()].into_iter().flatten() {
            let Some(token) = special_token(Some(&object), None, "eos_token")? else { continue };
            if let Some(id) = self.known_id(&token).filter(|&id| (id as usize) < self.vocab_size) {
                ends.push((object.file(), token, id));
            }
        }
        Ok(ends)
    }

    /// The id that a file gives a token.
    fn known_id(&self, token: &str) -> Option<TokenId> {
        self.id(token).filter(|_| !self.ids.is_made_up(token))
    }

    /// Tokens of `text`. `begin`: with what the model wants at a text's start, unless the text has it
    /// already (not after a chat template, which writes it itself). Special tokens written out in the
    /// text are recognised either way.
    ///
    /// # Errors
    /// If the tokenizer refuses the text, one of its regexes gives up on it, the text is too long, or it has a token that
    /// the model's vocabulary lacks.
    pub fn encode(&self, text: &str, begin: bool) -> Result<Vec<TokenId>, LoadError> {
        let mut ids = guarded(&self.path, || {
            Ok(match self.regexes.check_length(&self.inner, text) {
                Ok(()) => Ok(self.regexes.encode(&self.inner, text)?),
                Err(bytes) => Err(bytes),
            })
        })?
        .map_err(|bytes| {
            LoadError::limit(&self.path, "bytes of a normalized text", bytes, limits::NORMALIZED_BYTES as u64)
        })?;
        ids.iter_mut().for_each(|id| *id = self.ids.to_model(*id));
        if begin && !ids.starts_with(&self.begin) {
            ids.splice(0..0, self.begin.iter().copied());
        }
        if let Some(&id) = ids.iter().find(|&&id| id as usize >= self.vocab_size) {
            let token = self.token(id).unwrap_or_default();
            return Err(LoadError::tokenizer(&self.path, self.past_vocabulary(id, &token)));
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

    /// The bytes that the token adds to a text that has begun: part of a character, perhaps. None for special and unknown
    /// tokens.
    pub fn bytes(&self, id: TokenId) -> Vec<u8> {
        let mut bytes = Vec::new();
        if let Some(spelling) = self.token(id).filter(|spelling| !self.is_special_spelling(spelling)) {
            self.detokenizer.append(&spelling, false, &mut bytes);
        }
        bytes
    }

    /// The token's own spelling in the vocabulary, `None` where it has none.
    pub fn token(&self, id: TokenId) -> Option<String> {
        self.inner.id_to_token(self.ids.to_tokenizers(id)?)
    }

    /// The token spelled so in the vocabulary.
    pub fn id(&self, token: &str) -> Option<TokenId> {
        self.inner.token_to_id(token).map(|id| self.ids.to_model(id))
    }

    /// Whether the token is special: part of no text.
    pub fn is_special(&self, id: TokenId) -> bool {
        self.token(id).is_some_and(|token| self.is_special_spelling(&token))
    }

    /// Whether the token stands beside the vocabulary: it is found in texts before all else.
    pub(super) fn is_added(&self, id: TokenId) -> bool {
        let added = self.inner.get_added_vocabulary().get_added_tokens_decoder();
        self.ids.to_tokenizers(id).is_some_and(|id| added.contains_key(&id))
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
pub(super) fn guarded<T>(path: &Path, call: impl FnOnce() -> tokenizers::Result<T>) -> Result<T, LoadError> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(result) => result.map_err(|error| LoadError::tokenizer(path, error)),
        Err(_) => Err(LoadError::tokenizer(path, "the tokenizer contradicts itself")),
    }
}
