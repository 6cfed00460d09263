//! Tokens to text, one at a time.
//!
//! The decoders of the supported families are all the same three steps: each token is some bytes, the
//! bytes of all tokens joined are UTF-8, and the text may lose a leading space. Done step by step here,
//! the work per token does not depend on what came before, and the pieces add up to the whole by
//! construction.

use super::growth::replacement;
use super::{LoadError, Tokenizer, limits};
use crate::TokenId;
use serde_json::Value;
use std::path::Path;
use std::sync::Arc;

const SUPPORTED: &str = "ByteLevel, Metaspace, Replace, ByteFallback, Fuse, Strip at the start";

/// How a tokenizer spells bytes.
pub(super) enum Detokenizer {
    /// Each character of a token is one byte, in the alphabet of GPT-2.
    ByteLevel,
    /// Each token is a piece of text, as SentencePiece has it.
    Pieces(Pieces),
    /// Each token is a word; words are joined by spaces.
    Words,
}

/// SentencePiece's rules, in the order in which they apply.
#[derive(Default)]
pub(super) struct Pieces {
    /// Texts replaced in every token: `▁` by a space.
    replace: Vec<(String, String)>,
    /// `<0xE2>` is the byte E2.
    byte_fallback: bool,
    /// Left out of the first token: Metaspace's `▁`.
    drop_in_first: Option<char>,
    /// Taken off the text's start: which character, and how many of them at most.
    strip: Option<(char, usize)>,
}

impl Detokenizer {
    /// Reads the `decoder` of a `tokenizer.json`, and refuses what `tokenizers` does not survive: a
    /// decoder that is not JSON, and merges shorter than the prefix to be cut from them.
    pub(super) fn parse(path: &Path, json: &[u8]) -> Result<Self, LoadError> {
        #[derive(serde::Deserialize)]
        struct File {
            decoder: Option<Value>,
            model: Option<Model>,
        }
        #[derive(serde::Deserialize)]
        struct Model {
            r#type: Option<String>,
            continuing_subword_prefix: Option<String>,
        }
        let file: File = serde_json::from_slice(json).map_err(|error| LoadError::tokenizer(path, error))?;
        let refuse = |what: &str| LoadError::unsupported(path, format!("decoder {what}"), SUPPORTED);

        if let Some(Model { r#type: kind, continuing_subword_prefix: Some(prefix) }) = file.model
            && kind.as_deref() != Some("WordPiece")
            && !prefix.is_empty()
        {
            let what = format!("continuing_subword_prefix {prefix:?}");
            return Err(LoadError::unsupported(path, what, "byte-pair merges without a prefix"));
        }
        let Some(decoder) = file.decoder else { return Ok(Self::Words) };
        let steps = match kind(&decoder) {
            "Sequence" => decoder["decoders"].as_array().map_or(&[][..], Vec::as_slice),
            _ => std::slice::from_ref(&decoder),
        };
        if let [only] = steps
            && kind(only) == "ByteLevel"
        {
            return Ok(Self::ByteLevel);
        }
        let mut pieces = Pieces::default();
        let (mut fused, mut growth) = (false, 1_usize);
        for step in steps {
            match (kind(step), fused) {
                ("Replace", false) => {
                    let pattern = step["pattern"]["String"].as_str().ok_or_else(|| refuse("Replace by a regex"))?;
                    let content = step["content"].as_str().unwrap_or_default();
                    growth = growth.saturating_mul(replacement(Some(pattern), content));
                    if growth > limits::GROWTH {
                        let what = "growth of a token by `decoder`";
                        return Err(LoadError::limit(path, what, growth, limits::GROWTH as u64));
                    }
                    pieces.replace.push((pattern.into(), content.into()));
                }
                ("ByteFallback", false) => pieces.byte_fallback = true,
                ("Metaspace", false) => pieces.metaspace(step),
                ("Fuse", _) => fused = true,
                ("Strip", true) if step["stop"].as_u64() == Some(0) && pieces.strip.is_none() => {
                    let content = step["content"].as_str().and_then(|text| text.chars().next()).unwrap_or(' ');
                    pieces.strip = Some((content, step["start"].as_u64().unwrap_or(0) as usize));
                }
                (other, _) => return Err(refuse(&format!("`{other}`, or its place in the sequence,"))),
            }
        }
        Ok(Self::Pieces(pieces))
    }

    /// Appends the bytes of a token spelled `token`; `first`: it is the first of its text.
    pub(super) fn append(&self, token: &str, first: bool, bytes: &mut Vec<u8>) {
        match self {
            Self::ByteLevel => {
                let start = bytes.len();
                for character in token.chars() {
                    let Some(byte) = byte_of(character) else {
                        // An added token with characters of its own: plain text.
                        bytes.truncate(start);
                        bytes.extend_from_slice(token.as_bytes());
                        break;
                    };
                    bytes.push(byte);
                }
            }
            Self::Pieces(pieces) => pieces.append(token, first, bytes),
            Self::Words => {
                if !first {
                    bytes.push(b' ');
                }
                bytes.extend_from_slice(token.as_bytes());
            }
        }
    }

    /// What is taken off a text's start.
    fn strip(&self) -> Option<(char, usize)> {
        match self {
            Self::Pieces(pieces) => pieces.strip,
            Self::ByteLevel | Self::Words => None,
        }
    }
}

impl Pieces {
    fn metaspace(&mut self, step: &Value) {
        let replacement = step["replacement"].as_str().and_then(|text| text.chars().next()).unwrap_or('▁');
        self.replace.push((replacement.into(), " ".into()));
        if step["prepend_scheme"] != "never" && step["add_prefix_space"] != false {
            self.drop_in_first = Some(replacement);
        }
    }

    fn append(&self, token: &str, first: bool, bytes: &mut Vec<u8>) {
        if self.byte_fallback
            && let Some(byte) = fallback_byte(token)
        {
            bytes.push(byte);
            return;
        }
        let mut text = match self.drop_in_first {
            Some(dropped) if first => token.replace(dropped, ""),
            _ => token.to_owned(),
        };
        for (pattern, content) in &self.replace {
            text = text.replace(pattern, content);
        }
        bytes.extend_from_slice(text.as_bytes());
    }
}

/// Turns tokens into text as they come: whole characters only, the same text in the end as
/// [`Tokenizer::decode`] of all of them.
pub struct TextStream {
    tokenizer: Arc<Tokenizer>,
    state: State,
}

impl TextStream {
    pub(super) fn new(tokenizer: Arc<Tokenizer>, from_start: bool) -> Self {
        let state = State::new(&tokenizer, from_start);
        Self { tokenizer, state }
    }

    /// With these special tokens spelled as their vocabulary spells them.
    pub fn spelling(mut self, tokens: &[TokenId]) -> Self {
        self.state.spelled = tokens.to_vec();
        self
    }

    /// The text that became certain with `token`; nothing for unknown tokens, nor for special ones that are not spelled.
    pub fn push(&mut self, token: TokenId) -> String {
        self.state.push(&self.tokenizer, token)
    }

    /// What is left at the end: an unfinished character as U+FFFD.
    pub fn finish(&mut self) -> String {
        self.state.finish()
    }
}

/// Where a text stands between two tokens.
pub(super) struct State {
    /// No token yet that is part of the text.
    first: bool,
    /// What may still come off the text's start.
    strip: Option<(char, usize)>,
    /// The bytes of a character that is not whole yet.
    pending: Vec<u8>,
    /// Special tokens that are part of the text.
    spelled: Vec<TokenId>,
}

impl State {
    pub(super) fn new(tokenizer: &Tokenizer, from_start: bool) -> Self {
        let strip = tokenizer.detokenizer().strip().filter(|_| from_start);
        Self { first: from_start, strip, pending: Vec::new(), spelled: Vec::new() }
    }

    pub(super) fn push(&mut self, tokenizer: &Tokenizer, token: TokenId) -> String {
        let Some(spelling) = tokenizer.token(token) else { return String::new() };
        if tokenizer.is_special_spelling(&spelling) && !self.spelled.contains(&token) {
            return String::new();
        }
        tokenizer.detokenizer().append(&spelling, self.first, &mut self.pending);
        self.first = false;
        let text = take_whole_characters(&mut self.pending);
        self.without_stripped(text)
    }

    pub(super) fn finish(&mut self) -> String {
        let text = String::from_utf8_lossy(&std::mem::take(&mut self.pending)).into_owned();
        self.without_stripped(text)
    }

    fn without_stripped(&mut self, text: String) -> String {
        let mut rest = text.as_str();
        while let Some((character, left)) = self.strip.filter(|_| !rest.is_empty()) {
            match rest.strip_prefix(character).filter(|_| left > 0) {
                Some(shorter) => {
                    rest = shorter;
                    self.strip = Some((character, left - 1));
                }
                None => self.strip = None,
            }
        }
        rest.to_owned()
    }
}

/// Takes from `bytes` all but a last character that may still be completed; bytes that are no
/// UTF-8 become U+FFFD, in the same places as [`String::from_utf8_lossy`] of the whole has them.
fn take_whole_characters(bytes: &mut Vec<u8>) -> String {
    let unfinished = bytes.utf8_chunks().last().map_or(0, |chunk| {
        let invalid = chunk.invalid();
        let incomplete = std::str::from_utf8(invalid).is_err_and(|error| error.error_len().is_none());
        if incomplete { invalid.len() } else { 0 }
    });
    let rest = bytes.split_off(bytes.len() - unfinished);
    let whole = std::mem::replace(bytes, rest);
    String::from_utf8_lossy(&whole).into_owned()
}

fn kind(decoder: &Value) -> &str {
    decoder["type"].as_str().unwrap_or("without a type")
}

/// The byte of a token like `<0xE2>`.
fn fallback_byte(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() == 2 { u8::from_str_radix(digits, 16).ok() } else { None }
}

/// The byte that a character stands for in GPT-2's alphabet: printable Latin-1 stands for itself, and
/// the 68 other bytes, in order, have the characters from U+0100 on.
fn byte_of(character: char) -> Option<u8> {
    match u32::from(character) {
        code @ (0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF) => Some(code as u8),
        code @ 0x100..=0x120 => Some((code - 0x100) as u8),
        code @ 0x121..=0x142 => Some((code - 0x121 + 0x7F) as u8),
        0x143 => Some(0xAD),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_byte_has_one_character() {
        let mut bytes: Vec<u8> = (0..=0x200).filter_map(char::from_u32).filter_map(byte_of).collect();
        bytes.sort_unstable();
        assert_eq!(bytes, (0..=255).collect::<Vec<u8>>());
    }

    #[test]
    fn whole_characters_come_out_as_they_complete() {
        let mut pending = Vec::new();
        let mut text = String::new();
        let bytes = "a\u{e9}\u{20ac}\u{1f600}".as_bytes().iter().chain(&[0xff, 0xe2, 0x82, b'x', 0xf0, 0x9f]);
        for &byte in bytes.clone() {
            pending.push(byte);
            text += &take_whole_characters(&mut pending);
            assert!(pending.len() < 4);
        }
        assert_eq!(pending, [0xf0, 0x9f]);
        text += &String::from_utf8_lossy(&pending);
        assert_eq!(text, String::from_utf8_lossy(&bytes.copied().collect::<Vec<u8>>()));
    }
}
