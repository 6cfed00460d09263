//! Byte-pair merges that do what SentencePiece does with pieces and their scores.
//!
//! SentencePiece joins, again and again, the two neighbours whose joint piece has the best score, the first of them where
//! several have it. A list of merges says the same: each way to cut a piece in two pieces is a merge, in the order of the
//! scores of what they make.

use super::super::{LoadError, limits};
use super::value::Scalar;
use super::vocabulary::{Kind, TOKENS, Vocabulary};
use serde_json::{Value, json};

const SCORES: &str = "tokenizer.ggml.scores";

/// The merges of a vocabulary of pieces, best first. They may have `most` bytes together.
pub(super) fn merges(vocabulary: &Vocabulary<'_>, most: u64) -> Result<Vec<Value>, LoadError> {
    let Vocabulary { metadata, tokens, kinds, ids } = vocabulary;
    let number = |scalar| match scalar {
        Scalar::Number(number) => Some(number).filter(|number| number.is_finite()),
        Scalar::Whole(number) => Some(number as f64),
        _ => None,
    };
    let scores = metadata.list(SCORES, limits::VOCABULARY, "finite numbers", number)?;
    let scores = scores.ok_or_else(|| metadata.wrong(SCORES, "a list of numbers"))?;
    if scores.len() != tokens.len() {
        return Err(metadata.wrong(SCORES, &format!("a list of {}, one for each token", tokens.len())));
    }
    // What is found in a text before all else, and what stands for something else than itself, is made of no pieces.
    let normal = |id: usize| kinds[id] == Kind::Normal;
    let piece = |text: &str| ids.get(text).copied().filter(|&id| normal(id));
    let (mut merges, mut bytes) = (Vec::new(), 0);
    for (id, token) in tokens.iter().enumerate().filter(|(id, _)| normal(*id)) {
        if token.len() > limits::PIECE_BYTES {
            let what = format!("bytes of the piece `{TOKENS}[{id}]`");
            return Err(LoadError::limit(metadata.path(), what, token.len(), limits::PIECE_BYTES as u64));
        }
        for (at, _) in token.char_indices().skip(1) {
            if let (Some(left), Some(right)) = (piece(&token[..at]), piece(&token[at..])) {
                // Two texts in quotation marks, in brackets.
                bytes += token.len() + 8;
                merges.push((id, left, right));
            }
        }
        vocabulary.check_bytes(bytes, most)?;
    }
    // Stable: pieces of one score stay in the order of the vocabulary.
    merges.sort_by(|(one, ..), (other, ..)| scores[*other].total_cmp(&scores[*one]));
    // As the ways to cut one piece do in the tokenizers that were made from SentencePiece's.
    for ways in merges.chunk_by_mut(|(one, ..), (other, ..)| one == other) {
        ways.sort_unstable();
    }
    Ok(merges.into_iter().map(|(_, left, right)| json!([tokens[left], tokens[right]])).collect())
}
