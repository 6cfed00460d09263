//! A set of tokens, a bit for each.

use crate::TokenId;
use crate::model::DraftVocab;

const BITS: usize = u32::BITS as usize;

/// A set of tokens.
///
/// ```
/// use eesd::constrain::TokenSet;
///
/// let mut set = TokenSet::of(&[1, 40]);
/// set.insert(2);
/// set.remove(40);
/// assert!(set.has(1) && set.has(2) && !set.has(40) && !set.has(1000));
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TokenSet {
    /// Token `32 i + b` is bit `b` of word `i`; tokens beyond the last word are not in the set.
    words: Vec<u32>,
}

impl TokenSet {
    /// These tokens.
    pub fn of(tokens: &[TokenId]) -> Self {
        let mut set = Self::default();
        tokens.iter().for_each(|&token| set.insert(token));
        set
    }

    /// The tokens whose bits are set: token `32 i + b` is bit `b` of word `i`.
    pub fn from_words(words: Vec<u32>) -> Self {
        Self { words }
    }

    /// The words that [`from_words`](Self::from_words) takes.
    pub fn words(&self) -> &[u32] {
        &self.words
    }

    /// Whether a token is in the set.
    pub fn has(&self, token: TokenId) -> bool {
        self.words.get(token as usize / BITS).is_some_and(|word| word >> (token as usize % BITS) & 1 == 1)
    }

    /// There is none.
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|&word| word == 0)
    }

    /// Takes a token in.
    pub fn insert(&mut self, token: TokenId) {
        let word = token as usize / BITS;
        if word >= self.words.len() {
            self.words.resize(word + 1, 0);
        }
        self.words[word] |= 1 << (token as usize % BITS);
    }

    /// Takes a token out.
    pub fn remove(&mut self, token: TokenId) {
        if let Some(word) = self.words.get_mut(token as usize / BITS) {
            *word &= !(1 << (token as usize % BITS));
        }
    }

    /// Writes the set into words of another number: tokens beyond the last one are left out.
    pub fn write_to(&self, words: &mut [u32]) {
        let known = self.words.len().min(words.len());
        words[..known].copy_from_slice(&self.words[..known]);
        words[known..].fill(0);
    }

    /// A row of logits with `-inf` for all tokens that are not in the set.
    pub fn mask(&self, logits: &[f32], vocab: DraftVocab<'_>) -> Vec<f32> {
        let mut masked = vec![f32::NEG_INFINITY; logits.len()];
        if vocab.ids.is_some() {
            for (column, logit) in logits.iter().enumerate().filter(|&(column, _)| self.has(vocab.token(column))) {
                masked[column] = *logit;
            }
            return masked;
        }
        let chunks = masked.chunks_mut(BITS).zip(logits.chunks(BITS)).zip(&self.words);
        for ((masked, logits), &word) in chunks.filter(|(_, word)| **word != 0) {
            for (bit, (masked, logit)) in masked.iter_mut().zip(logits).enumerate() {
                if word >> bit & 1 == 1 {
                    *masked = *logit;
                }
            }
        }
        masked
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mask_leaves_what_is_in_the_set_and_nothing_else() {
        let logits: Vec<f32> = (0..100).map(|i| i as f32).collect();
        let set = TokenSet::of(&[0, 31, 32, 63, 64, 99, 200]);
        let kept = |masked: &[f32]| -> Vec<usize> {
            let kept: Vec<usize> = (0..masked.len()).filter(|&i| masked[i] > f32::NEG_INFINITY).collect();
            kept.iter().for_each(|&i| assert_eq!(masked[i], logits[i]));
            kept
        };
        assert_eq!(kept(&set.mask(&logits, DraftVocab { size: 100, ids: None })), [0, 31, 32, 63, 64, 99]);
        let ids = [3, 31, 64, 200];
        assert_eq!(kept(&set.mask(&logits[..4], DraftVocab { size: 4, ids: Some(&ids) })), [1, 2, 3]);
        let few = TokenSet::of(&[2]);
        assert_eq!(
            kept(&few.mask(&logits, DraftVocab { size: 100, ids: None })),
            [2],
            "words may be fewer than logits"
        );
    }

    #[test]
    fn written_into_more_words_and_fewer_it_is_the_same_set() {
        let set = TokenSet::of(&[0, 33, 64]);
        for count in 0..5 {
            let mut words = vec![u32::MAX; count];
            set.write_to(&mut words);
            assert_eq!(words, [1, 2, 1, 0, 0][..count]);
        }
    }

    #[test]
    fn tokens_come_and_go() {
        let mut set = TokenSet::default();
        assert!(set.is_empty());
        set.insert(70);
        assert!(set.has(70) && !set.has(69) && !set.is_empty());
        set.remove(70);
        set.remove(7000);
        assert!(set.is_empty());
    }
}
