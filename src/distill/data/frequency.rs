//! How often tokens come, so that a small draft vocabulary can be made of the frequent ones.

use super::Document;
use crate::TokenId;
use crate::model::DraftVocab;
use std::cmp::Reverse;

/// Occurrences of each token among those that training is scored at.
///
/// ```
/// use eesd::distill::data::{Document, Frequencies};
/// use eesd::model::DraftVocab;
///
/// let text = Document { tokens: vec![4, 1, 7, 7, 4, 7], prompt: 1 };
/// let frequencies = Frequencies::of(&[text], 10);
/// let ids = frequencies.most_frequent(2);
/// assert_eq!(ids, [1, 7], "4 comes once as 1 does, if its place as context is not counted");
/// assert_eq!(frequencies.share(DraftVocab { size: 2, ids: Some(&ids) }), 0.8);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frequencies {
    /// By token.
    counts: Vec<u64>,
}

impl Frequencies {
    /// Of the tokens that follow the scored positions of these documents, in a vocabulary of `vocab` tokens.
    pub fn of(documents: &[Document], vocab: usize) -> Self {
        let mut counts = vec![0; vocab];
        for document in documents {
            for position in document.scored() {
                if let Some(count) = counts.get_mut(document.tokens[position + 1] as usize) {
                    *count += 1;
                }
            }
        }
        Self { counts }
    }

    /// The `size` most frequent tokens (all where there are fewer), ascending. Ties go to the lower ids, those of tokens
    /// that never come among them.
    pub fn most_frequent(&self, size: usize) -> Vec<TokenId> {
        let mut ids: Vec<TokenId> = (0..self.counts.len() as TokenId).collect();
        ids.sort_by_key(|&id| Reverse(self.count(id)));
        ids.truncate(size);
        ids.sort_unstable();
        ids
    }

    /// How many of the most frequent tokens it takes for this part of all occurrences. At least 1.
    pub fn fewest(&self, part: f64) -> usize {
        let mut counts = self.counts.clone();
        counts.sort_unstable_by_key(|&count| Reverse(count));
        let enough = part * self.counts.iter().sum::<u64>() as f64;
        let mut covered = 0;
        let short = counts.iter().position(|count| {
            covered += count;
            covered as f64 >= enough
        });
        short.map_or(self.counts.len(), |last| last + 1).max(1)
    }

    /// The part of all occurrences that are of these tokens; 1 where there are none at all.
    pub fn share(&self, of: DraftVocab<'_>) -> f64 {
        let covered: u64 = (0..of.size).map(|column| self.count(of.token(column))).sum();
        let all: u64 = self.counts.iter().sum();
        if all == 0 { 1.0 } else { covered as f64 / all as f64 }
    }

    fn count(&self, token: TokenId) -> u64 {
        self.counts.get(token as usize).copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(prompt: usize, tokens: &[TokenId]) -> Document {
        Document { tokens: tokens.to_vec(), prompt }
    }

    #[test]
    fn a_part_is_covered_by_the_fewest_tokens() {
        let frequencies = Frequencies::of(&[document(1, &[6, 3, 3, 3, 3, 3, 5, 5, 5, 0, 2])], 8);
        let fewest = |part| frequencies.fewest(part);
        assert_eq!([0.01, 0.5, 0.51, 0.8, 0.9, 0.91, 1.0].map(fewest), [1, 1, 2, 2, 3, 4, 4]);
        assert_eq!(Frequencies::of(&[], 8).fewest(0.9), 1);
    }

    #[test]
    fn what_is_scored_is_counted() {
        // Context is not; neither is a document of context alone, or a token of no vocabulary.
        let documents = [
            document(2, &[6, 6, 3, 5]),
            document(3, &[6, 6, 6]),
            document(1, &[6]),
            document(0, &[]),
            document(0, &[2, 3]),
            document(1, &[6, 3, 900, 5, 7]),
        ];
        let frequencies = Frequencies::of(&documents, 8);
        assert_eq!(frequencies.counts, [0, 0, 0, 3, 0, 2, 0, 1]);
        assert_eq!(frequencies.most_frequent(2), [3, 5]);
        assert_eq!(frequencies.share(DraftVocab { size: 4, ids: None }), 0.5);
    }

    #[test]
    fn ties_and_what_is_missing_go_to_the_lowest_ids() {
        let frequencies = Frequencies::of(&[document(1, &[0, 7, 4, 7, 2])], 8);
        assert_eq!(frequencies.most_frequent(2), [2, 7]);
        assert_eq!(frequencies.most_frequent(5), [0, 1, 2, 4, 7]);
        assert_eq!(frequencies.most_frequent(99).len(), 8);
        assert_eq!(Frequencies::of(&[], 8).share(DraftVocab { size: 3, ids: Some(&[1, 4, 5]) }), 1.0);
    }
}
