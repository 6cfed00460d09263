//! The tokens of a GGUF file, and the tokenizer.json that they make.

use super::super::error::{short, spelling};
use super::super::{LoadError, limits};
use super::documents::Begin;
use super::pieces;
use super::split::Rule;
use super::value::{Metadata, Scalar};
use serde_json::{Map, Value, json};
use std::collections::HashMap;

pub(super) const MODEL: &str = "tokenizer.ggml.model";
pub(super) const TOKENS: &str = "tokenizer.ggml.tokens";
const PRE: &str = "tokenizer.ggml.pre";
const TYPES: &str = "tokenizer.ggml.token_type";
const MERGES: &str = "tokenizer.ggml.merges";
const SPACE_PREFIX: &str = "tokenizer.ggml.add_space_prefix";

/// What a token is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Normal,
    Unknown,
    /// Part of no text.
    Control,
    /// Found in a text before all else.
    UserDefined,
    Unused,
    Byte,
}

/// By their numbers in the file, from 1 on.
const KINDS: [Kind; 6] = [Kind::Normal, Kind::Unknown, Kind::Control, Kind::UserDefined, Kind::Unused, Kind::Byte];

/// How texts become tokens.
pub(super) enum Model {
    /// Byte-pair merges of words, by bytes (`gpt2`).
    Words(&'static Rule),
    /// Pieces with scores, SentencePiece's way (`llama`).
    Pieces,
}

impl Model {
    /// The file's tokenizer; `None` where it has none.
    ///
    /// # Errors
    /// If there is no such tokenizer here, by its name.
    pub fn of(metadata: &Metadata<'_>) -> Result<Option<Self>, LoadError> {
        const MODELS: &str = "gpt2, llama";
        let unsupported = |key: &str, name: &str, supported| {
            Err(LoadError::unsupported(metadata.path(), format!("`{key}` `{name}`"), supported))
        };
        match metadata.text(MODEL)? {
            None | Some("none" | "no_vocab") => Ok(None),
            Some("llama") => Ok(Some(Self::Pieces)),
            Some("gpt2") => {
                let name = metadata.text(PRE)?.unwrap_or("default");
                match Rule::of(name) {
                    Some(rule) => Ok(Some(Self::Words(rule))),
                    None => unsupported(PRE, name, "rules of splitting texts such as gpt-2, llama-bpe, qwen2, smollm"),
                }
            }
            Some(other) => unsupported(MODEL, other, MODELS),
        }
    }

    /// What begins texts where the file does not say.
    pub fn begin(&self) -> Begin {
        match self {
            Self::Words(rule) => Begin { token: None, wanted: rule.begin },
            Self::Pieces => Begin { token: Some(1), wanted: true },
        }
    }
}

/// The tokens of a file.
pub(super) struct Vocabulary<'a> {
    pub metadata: Metadata<'a>,
    pub tokens: Vec<&'a str>,
    pub kinds: Vec<Kind>,
    /// By spelling; a token without one has no place here.
    pub ids: HashMap<&'a str, usize>,
}

impl<'a> Vocabulary<'a> {
    /// # Errors
    /// If a token is too long, comes twice, or the lists are not of one length.
    pub fn read(metadata: Metadata<'a>) -> Result<Self, LoadError> {
        let text = |scalar| match scalar {
            Scalar::Text(text) => Some(text),
            _ => None,
        };
        let tokens = metadata.list(TOKENS, limits::VOCABULARY, "texts", text)?;
        let tokens = tokens.ok_or_else(|| metadata.wrong(TOKENS, "a list of texts"))?;
        let kind = |scalar| match scalar {
            Scalar::Whole(number) => KINDS.get(usize::try_from(number).ok()?.checked_sub(1)?).copied(),
            _ => None,
        };
        let kinds = metadata.list(TYPES, limits::VOCABULARY, "types of tokens, from 1 to 6", kind)?;
        let kinds = kinds.unwrap_or_else(|| vec![Kind::Normal; tokens.len()]);
        if kinds.len() != tokens.len() {
            return Err(metadata.wrong(TYPES, &format!("a list of {}, one for each token", tokens.len())));
        }
        if tokens.iter().all(|token| token.is_empty()) {
            return Err(metadata.wrong(TOKENS, "a list of texts, not all of them empty"));
        }
        let mut ids = HashMap::with_capacity(tokens.len());
        for (id, token) in tokens.iter().enumerate().filter(|(_, token)| !token.is_empty()) {
            if token.len() > limits::TOKEN_BYTES {
                let what = format!("bytes of `{TOKENS}[{id}]`");
                return Err(LoadError::limit(metadata.path(), what, token.len(), limits::TOKEN_BYTES as u64));
            }
            if let Some(first) = ids.insert(*token, id) {
                let expected = format!("another text than that of token {first}");
                return Err(metadata.wrong_at(TOKENS, id, spelling(token), &expected));
            }
        }
        Ok(Self { metadata, tokens, kinds, ids })
    }

    /// The tokenizer.json of these tokens; of `most` bytes at most.
    pub fn tokenizer(&self, model: &Model, most: u64) -> Result<Vec<u8>, LoadError> {
        // Before any work on them.
        self.check_bytes(self.tokens.iter().map(|token| token.len()).sum(), most)?;
        let added = |id: usize| {
            json!({"id": id, "content": self.tokens[id], "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": self.kinds[id] != Kind::UserDefined})
        };
        let is_added = |&id: &usize| {
            let kind = self.kinds[id];
            !self.tokens[id].is_empty() && matches!(kind, Kind::Unknown | Kind::Control | Kind::UserDefined)
        };
        let added: Vec<Value> = (0..self.tokens.len()).filter(is_added).map(added).collect();
        let mut file = match model {
            Model::Words(rule) => self.words(rule)?,
            Model::Pieces => self.pieces(most)?,
        };
        file["added_tokens"] = added.into();
        let json = serde_json::to_vec(&file).map_err(|error| LoadError::malformed(self.metadata.path(), error))?;
        self.check_bytes(json.len(), most)?;
        Ok(json)
    }

    pub fn check_bytes(&self, bytes: usize, most: u64) -> Result<(), LoadError> {
        let what = format!("bytes of a tokenizer.json of `{TOKENS}`");
        if bytes as u64 > most { Err(LoadError::limit(self.metadata.path(), what, bytes, most)) } else { Ok(()) }
    }

    fn words(&self, rule: &Rule) -> Result<Value, LoadError> {
        // No merge makes more than one token, and published tokenizers have one for most of them.
        let merges = self.metadata.list(MERGES, limits::VOCABULARY, "texts", |scalar| match scalar {
            Scalar::Text(text) => Some(text),
            _ => None,
        })?;
        let merges = merges.ok_or_else(|| self.metadata.wrong(MERGES, "a list of texts"))?;
        let pair = |(at, merge): (usize, &&str)| {
            // The first part is never empty, so a space that begins it is part of it.
            let space = merge.char_indices().skip(1).find(|(_, character)| *character == ' ').map(|(at, _)| at);
            let pair = space.map(|at| (&merge[..at], &merge[at + 1..]));
            let known = |(left, right): &(&str, &str)| {
                let both = format!("{left}{right}");
                [*left, *right, both.as_str()].iter().all(|token| self.ids.contains_key(token))
            };
            let (left, right) = pair.filter(known).ok_or_else(|| {
                let expected = format!("two tokens of `{TOKENS}` with a space between, and together a third");
                self.metadata.wrong_at(MERGES, at, short(format!("{merge:?}")), &expected)
            })?;
            Ok(json!([left, right]))
        };
        let merges = merges.iter().enumerate().map(pair).collect::<Result<Vec<Value>, LoadError>>()?;
        Ok(json!({
            "version": "1.0", "truncation": null, "padding": null,
            "normalizer": rule.normalizer(),
            "pre_tokenizer": rule.pre_tokenizer(),
            "post_processor": null,
            "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
            "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
                "ignore_merges": rule.whole_words, "vocab": self.vocab(), "merges": merges},
        }))
    }

    /// Each text that follows a token written out, or nothing, gets a space before it: so does llama.cpp, and so do the
    /// tokenizers of Hugging Face that were made from SentencePiece's.
    fn pieces(&self, most: u64) -> Result<Value, LoadError> {
        let prefix = self.metadata.truth(SPACE_PREFIX)?.unwrap_or(true);
        let spaces = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
        let prepend = prefix.then(|| json!({"type": "Prepend", "prepend": "▁"}));
        let normalizers: Vec<Value> = prepend.into_iter().chain([spaces]).collect();
        let strip = prefix.then(|| json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
        let decoders = [
            json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}),
            json!({"type": "ByteFallback"}),
            json!({"type": "Fuse"}),
        ];
        let unknown = self.kinds.iter().position(|kind| *kind == Kind::Unknown).map(|id| self.tokens[id]);
        Ok(json!({
            "version": "1.0", "truncation": null, "padding": null,
            "normalizer": {"type": "Sequence", "normalizers": normalizers},
            "pre_tokenizer": null,
            "post_processor": null,
            "decoder": {"type": "Sequence", "decoders": decoders.into_iter().chain(strip).collect::<Vec<_>>()},
            "model": {"type": "BPE", "dropout": null, "unk_token": unknown.filter(|token| !token.is_empty()),
                "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true,
                "ignore_merges": false, "vocab": self.vocab(), "merges": pieces::merges(self, most)?},
        }))
    }

    fn vocab(&self) -> Map<String, Value> {
        let spelled = self.tokens.iter().enumerate().filter(|(_, token)| !token.is_empty());
        spelled.map(|(id, token)| ((*token).to_owned(), id.into())).collect()
    }
}
