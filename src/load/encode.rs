//! Text to tokens, step by step as `tokenizers` does it, so that what it passes over in silence is an error: a regex that
//! needs more steps than its engine takes simply stops there, and the rest of the text is split otherwise, or not at all.

use super::limits;
use crate::TokenId;
use fancy_regex::Regex;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::split::SplitPattern;
use tokenizers::{
    Model, NormalizedString, Normalizer, NormalizerWrapper, OffsetReferential, OffsetType, PreTokenizedString,
    PreTokenizer, Result, Tokenizer,
};

/// The regex of ByteLevel, and the bytes of a word up to which it takes no more steps than it may: about one for a byte.
const BYTE_LEVEL: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const SURELY_WITHIN_STEPS: usize = 100_000;

/// The regexes of a tokenizer, by its steps.
pub(super) struct Regexes {
    /// How many times as long a text becomes at most.
    growth: usize,
    normalizer: Vec<Option<Regex>>,
    pre_tokenizer: Vec<Option<(Regex, usize)>>,
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
                    SplitPattern::Regex(regex) => Some((Regex::new(regex)?, 0)),
                    SplitPattern::String(_) => None,
                },
                PreTokenizerWrapper::ByteLevel(step) if step.use_regex => {
                    Some((Regex::new(BYTE_LEVEL)?, SURELY_WITHIN_STEPS))
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
        for (step, regex) in pre_tokenizers(inner).into_iter().zip(&self.pre_tokenizer) {
            if let Some((regex, within)) = regex {
                for word in unfinished(&words).filter(|word| word.len() > *within) {
                    check_steps(regex, word)?;
                }
            }
            step.pre_tokenize(&mut words)?;
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
                        check_steps(regex, part.get())?;
                    }
                    step.normalize(&mut part)?;
                }
            }
        }
        Ok(())
    }
}

fn check_steps(regex: &Regex, text: &str) -> Result<()> {
    match regex.find_iter(text).find_map(std::result::Result::err) {
        Some(error) => Err(format!("a regex gives up on a text of {} bytes: {error}", text.len()).into()),
        None => Ok(()),
    }
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
