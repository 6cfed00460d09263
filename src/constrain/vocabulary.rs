//! A model's vocabulary as grammars see it: the bytes of each token, and the tokens of bytes.

use crate::TokenId;
use crate::load::Tokenizer;
use llguidance::toktrie::{TokRxInfo, TokTrie, TokenizerEnv};
use std::sync::Arc;

/// Stands for the end of the answer, one beyond the model's tokens. What the model itself ends answers with is each request's
/// to say, so grammars do not know it.
const END: &[u8] = b"\xff<|end of the answer|>";

/// Texts whose tokens must spell them byte for byte, or the tokenizer's own ways of cutting a text are not known to grammars:
/// some tokenizers put a space before every text.
const PROBES: [&str; 3] = ["{\"name\": \"x\", \"sizes\": [1, 20]}", ", \"a\": ", "\": {\"b\": null"];

/// The trie of a vocabulary.
pub struct Vocabulary {
    tokenizer: Arc<Tokenizer>,
    trie: TokTrie,
    exact: bool,
}

impl Vocabulary {
    /// Of a model of `size` tokens.
    pub fn new(tokenizer: Arc<Tokenizer>, size: usize) -> Self {
        let mut words: Vec<Vec<u8>> = (0..size as TokenId).map(|token| word(&tokenizer, token)).collect();
        words.push(END.to_vec());
        let info = TokRxInfo {
            vocab_size: words.len() as u32,
            tok_eos: size as u32,
            tok_bos: None,
            tok_pad: None,
            tok_unk: None,
            tok_end_of_turn: None,
        };
        let mut vocabulary = Self { tokenizer, trie: TokTrie::from(&info, &words), exact: false };
        vocabulary.exact = PROBES.iter().all(|probe| vocabulary.encode(probe).is_some());
        vocabulary
    }

    /// The token that stands for the end of the answer.
    pub fn end(&self) -> TokenId {
        self.trie.eos_token()
    }

    /// The tokenizer's own tokens of a text, where they spell it byte for byte.
    fn encode(&self, text: &str) -> Option<Vec<TokenId>> {
        let tokens = self.tokenizer.encode(text, false).ok()?;
        let spelled: Vec<u8> = tokens.iter().flat_map(|&token| self.trie.token(token)).copied().collect();
        (spelled == text.as_bytes()).then_some(tokens)
    }
}

impl TokenizerEnv for Vocabulary {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }

    /// Bytes that the tokenizer cannot cut, such as part of a character, have the longest tokens that fit, one after the other.
    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<TokenId> {
        let text = std::str::from_utf8(bytes).ok();
        text.and_then(|text| self.encode(text)).unwrap_or_else(|| self.trie.greedy_tokenize(bytes))
    }

    fn tokenize_is_canonical(&self) -> bool {
        self.exact
    }
}

/// The bytes of a token, none where no grammar can write it. A special token is known by its name behind a byte that no
/// text has.
fn word(tokenizer: &Tokenizer, token: TokenId) -> Vec<u8> {
    const MARKER: u8 = TokTrie::SPECIAL_TOKEN_MARKER;
    match tokenizer.token(token) {
        Some(name) if tokenizer.is_special(token) => [&[MARKER], name.as_bytes()].concat(),
        Some(_) => Some(tokenizer.bytes(token)).filter(|bytes| bytes.first() != Some(&MARKER)).unwrap_or_default(),
        None => Vec::new(),
    }
}
