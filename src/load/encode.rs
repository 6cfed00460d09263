//! Text to tokens, step by step as `tokenizers` does it, so that what it passes over in silence is an error: a regex that
//! needs more steps than its engine takes simply stops there, and the rest of the text is split otherwise, or not at all.

use super::limits;
use crate::TokenId;
use fancy_regex::Regex;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::split::SplitPattern;
use tokenizers::{
    Model, NormalizedString, Normalizer, NormalizerWrapper, OffsetReferential, OffsetType, PreTokenizedString,
    PreTokenizer, Result, SplitDelimiterBehavior, Tokenizer,
};

/// The regex of ByteLevel.
const BYTE_LEVEL: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

/// A regex by which words are split.
struct Splitter {
    regex: Regex,
    pieces: Pieces,
}

/// What becomes of the pieces of a word.
#[derive(Clone, Copy, PartialEq)]
enum Pieces {
    Kept,
    /// Those that match, or those that do not, are dropped.
    Dropped,
    /// A character for each byte, and before them perhaps a space.
    Bytes {
        prefix: bool,
    },
}

/// The regexes of a tokenizer, by its steps.
pub(super) struct Regexes {
    /// How many times as long a text becomes at most.
    growth: usize,
    normalizer: Vec<Option<Regex>>,
    pre_tokenizer: Vec<Option<Splitter>>,
}

impl Regexes {
    /// `growth`: how many times as long the file makes a text at most.
    ///
    /// # Errors
    /// If one does not parse.
    pub(super) fn of(inner: &Tokenizer, growth: usize) -> Result<Self> {
        // Unicode's normal forms make it longer than that.
        const NORMAL_FORMS: usize = 11;
        let mut found =
            Self { growth: growth.saturating_mul(NORMAL_FORMS), normalizer: Vec::new(), pre_tokenizer: Vec::new() };
        for step in normalizers(inner) {
            found.normalizer.push(match step {
                NormalizerWrapper::Replace(replace) => {
                    // The pattern is only to be had as it is written.
                    let written = serde_json::to_value(replace)?;
                    written["pattern"]["Regex"].as_str().map(Regex::new).transpose()?
                }
                _ => None,
            });
        }
        for step in pre_tokenizers(inner) {
            found.pre_tokenizer.push(match step {
                PreTokenizerWrapper::Split(split) => match &split.pattern {
                    SplitPattern::Regex(regex) => {
                        let drops = matches!(split.behavior, SplitDelimiterBehavior::Removed);
                        let pieces = if drops { Pieces::Dropped } else { Pieces::Kept };
                        Some(Splitter { regex: Regex::new(regex)?, pieces })
                    }
                    SplitPattern::String(_) => None,
                },
                PreTokenizerWrapper::ByteLevel(step) if step.use_regex => {
                    let pieces = Pieces::Bytes { prefix: step.add_prefix_space };
                    Some(Splitter { regex: Regex::new(BYTE_LEVEL)?, pieces })
                }
                _ => None,
            });
        }
        Ok(found)
    }

    /// The tokens of a text, those that the text has written out among them.
    ///
    /// # Errors
    /// If the tokenizer refuses it, a regex gives up on it, or it becomes too long.
    pub(super) fn encode(&self, inner: &Tokenizer, text: &str) -> Result<Vec<TokenId>> {
        self.check_normalizer(inner, text)?;
        let mut words = inner.get_added_vocabulary().extract_and_normalize(inner.get_normalizer(), text);
        for (step, splitter) in pre_tokenizers(inner).into_iter().zip(&self.pre_tokenizer) {
            match splitter {
                Some(splitter) => splitter.split(step, &mut words)?,
                None => step.pre_tokenize(&mut words)?,
            }
        }
        words.tokenize(|word| inner.get_model().tokenize(word.get()))?;
        let encoding = words.into_encoding(None, 0, OffsetType::None)?;
        Ok(inner.post_process(encoding, None, false)?.get_ids().to_vec())
    }

    /// Refuses a text that the normalizer makes too long, looking at a little of it at a time.
    ///
    /// # Errors
    /// With the bytes that it would have.
    pub(super) fn check_length(&self, inner: &Tokenizer, text: &str) -> std::result::Result<(), usize> {
        const AT_ONCE: usize = 4096;
        if text.len().saturating_mul(self.growth) <= limits::NORMALIZED_BYTES {
            return Ok(());
        }
        let steps = normalizers(inner);
        let mut length = 0;
        let mut rest = text;
        while !rest.is_empty() {
            let end = (0..=AT_ONCE.min(rest.len())).rev().find(|&at| rest.is_char_boundary(at)).unwrap_or(rest.len());
            let (part, after) = rest.split_at(end);
            let mut part = NormalizedString::from(part);
            // Where a step fails, it leaves the text as it is.
            let _ = steps.iter().try_for_each(|step| step.normalize(&mut part));
            length += part.get().len();
            rest = after;
        }
        if length > limits::NORMALIZED_BYTES { Err(length) } else { Ok(()) }
    }

    /// What a normalizer's own errors are, `tokenizers` does not tell.
    fn check_normalizer(&self, inner: &Tokenizer, text: &str) -> Result<()> {
        if self.normalizer.iter().any(Option::is_some) {
            let parts = inner.get_added_vocabulary().extract_and_normalize(None::<&NormalizerWrapper>, text);
            for part in unfinished(&parts) {
                let mut part = NormalizedString::from(part);
                for (step, regex) in normalizers(inner).into_iter().zip(&self.normalizer) {
                    if let Some(regex) = regex {
                        check_steps(regex, part.get(), 0)?;
                    }
                    step.normalize(&mut part)?;
                }
            }
        }
        Ok(())
    }
}

impl Splitter {
    /// Splits the words.
    ///
    /// # Errors
    /// If the regex gives up on one of them.
    fn split(&self, step: &PreTokenizerWrapper, words: &mut PreTokenizedString) -> Result<()> {
        if self.pieces == Pieces::Dropped {
            unfinished(words).try_for_each(|word| check_steps(&self.regex, word, 0))?;
            return step.pre_tokenize(words);
        }
        let prefix = |word: &str| self.pieces == (Pieces::Bytes { prefix: true }) && !word.starts_with(' ');
        let before = unfinished(words).map(|word| if prefix(word) { format!(" {word}") } else { word.to_owned() });
        let before: Vec<String> = before.collect();
        step.pre_tokenize(words)?;
        // Where a regex has given up, the rest of the word is one piece, the last one.
        let bytes = |piece: &str| if self.pieces == Pieces::Kept { piece.len() } else { piece.chars().count() };
        let mut pieces = unfinished(words);
        for word in before {
            let (mut last, mut end) = (0, 0);
            while end < word.len() {
                last = end;
                end += pieces.next().map_or(word.len(), bytes);
            }
            check_steps(&self.regex, &word, last)?;
        }
        Ok(())
    }
}

/// Looks for a regex in what follows a place of a text.
///
/// # Errors
/// If it gives up.
fn check_steps(regex: &Regex, text: &str, mut at: usize) -> Result<()> {
    let gives_up = |error| format!("a regex gives up on a text of {} bytes: {error}", text.len());
    while let Some(found) = regex.find_from_pos(text, at).map_err(gives_up)? {
        // As `tokenizers` does it, an empty match is followed by the next character.
        let next = text[found.end()..].chars().next().filter(|_| found.start() == found.end());
        at = found.end() + next.map_or(0, char::len_utf8);
        if at >= text.len() {
            break;
        }
    }
    Ok(())
}

/// The parts of a text that are no tokens yet.
fn unfinished(words: &PreTokenizedString) -> impl Iterator<Item = &str> {
    let splits = words.get_splits(OffsetReferential::Normalized, OffsetType::None);
    splits.into_iter().filter(|(_, _, tokens)| tokens.is_none()).map(|(word, ..)| word)
}

/// The steps of a normalizer, in order.
fn normalizers(inner: &Tokenizer) -> Vec<&NormalizerWrapper> {
    fn add<'a>(step: &'a NormalizerWrapper, steps: &mut Vec<&'a NormalizerWrapper>) {
        match step {
            NormalizerWrapper::Sequence(sequence) => sequence.as_ref().iter().for_each(|step| add(step, steps)),
            step => steps.push(step),
        }
    }
    let mut steps = Vec::new();
    inner.get_normalizer().into_iter().for_each(|step| add(step, &mut steps));
    steps
}

/// The steps of a pre-tokenizer, in order.
fn pre_tokenizers(inner: &Tokenizer) -> Vec<&PreTokenizerWrapper> {
    fn add<'a>(step: &'a PreTokenizerWrapper, steps: &mut Vec<&'a PreTokenizerWrapper>) {
        match step {
            PreTokenizerWrapper::Sequence(sequence) => sequence.as_ref().iter().for_each(|step| add(step, steps)),
            step => steps.push(step),
        }
    }
    let mut steps = Vec::new();
    inner.get_pre_tokenizer().into_iter().for_each(|step| add(step, &mut steps));
    steps
}
