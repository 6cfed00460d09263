//! `shared`: what followed the last tokens in other texts, which were finished before (as SuffixDecoding does, Oliaro et al.
//! 2024, arXiv 2411.04975).
//!
//! Whoever gets an answer fast can tell that something like it was written before. So texts are shared among requests of
//! one owner, as those of one file are, and not among those of a session unless asked for.

use super::index::TextIndex;
use super::{Proposal, Proposer, Source, Text};
use crate::TokenId;

/// Lengths of the grams that are looked up: among many texts two tokens tell little.
const GRAMS: [usize; 2] = [6, 3];

/// Looks up sequences in what others came to.
#[derive(Debug)]
pub struct Shared {
    index: TextIndex<2>,
}

impl Shared {
    /// Tokens that are kept where nobody says: some 20 MB.
    pub const TOKENS: usize = 200_000;

    /// Keeps the last `most` tokens of texts.
    pub fn new(most: usize) -> Self {
        Self { index: TextIndex::new(GRAMS, most) }
    }

    /// The same, which knows what another one has [kept](Proposer::kept).
    #[must_use]
    pub fn with(mut self, kept: &[TokenId]) -> Self {
        self.index.extend(kept);
        self
    }
}

impl Proposer for Shared {
    fn source(&self) -> Source {
        Source::Shared
    }

    fn propose(&mut self, text: &Text<'_>, most: usize) -> Proposal {
        self.index.propose(text.tokens, None, most)
    }

    fn end(&mut self, text: &Text<'_>, finished: bool) {
        if finished {
            self.index.extend(text.tokens);
            self.index.end_text();
        }
    }

    fn kept(&self) -> Option<Vec<TokenId>> {
        Some(self.index.tokens().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(sequence: u64, tokens: &[TokenId]) -> Text<'_> {
        Text { sequence, tokens, committed: tokens.len(), forced: &[] }
    }

    #[test]
    fn others_tell_once_they_are_finished() {
        let mut shared = Shared::new(100);
        assert_eq!(shared.propose(&text(2, &[2, 3, 4]), 4), Proposal::default());
        shared.end(&text(1, &[1, 2, 3, 4, 5, 6]), true);
        assert_eq!(shared.propose(&text(2, &[2, 3, 4]), 4).tokens, [5, 6], "and not beyond the end of a text");
        shared.end(&text(3, &[2, 3, 4, 9]), false);
        assert_eq!(
            shared.propose(&text(2, &[2, 3, 4]), 4).tokens,
            [5, 6],
            "what was cancelled or failed tells nothing"
        );
    }

    #[test]
    fn most_texts_decide_and_of_equals_the_latest() {
        let mut shared = Shared::new(100);
        shared.end(&text(1, &[1, 2, 3, 7]), true);
        shared.end(&text(2, &[1, 2, 3, 8]), true);
        assert_eq!(shared.propose(&text(9, &[1, 2, 3]), 1).tokens, [8]);
        shared.end(&text(3, &[1, 2, 3, 7]), true);
        let proposal = shared.propose(&text(9, &[1, 2, 3]), 1);
        assert_eq!(proposal.tokens, [7]);
        assert_eq!((proposal.evidence[0].seen, proposal.evidence[0].share), (2, 2.0 / 3.0));
    }

    #[test]
    fn the_oldest_goes_first_and_memory_stays_bounded() {
        let mut shared = Shared::new(40);
        for i in 0..1000 {
            shared.end(&text(0, &[i, i + 1, i + 2, i + 3, i + 4]), true);
            assert!(shared.kept().unwrap().len() <= 40);
        }
        assert_eq!(shared.propose(&text(0, &[998, 999, 1000]), 2).tokens, [1001, 1002]);
        assert_eq!(shared.propose(&text(0, &[2, 3, 4]), 2), Proposal::default());
        assert!(shared.index.places_known() <= 80, "{}", shared.index.places_known());
    }

    #[test]
    fn what_was_kept_is_known_again() {
        let mut shared = Shared::new(100);
        shared.end(&text(1, &[1, 2, 3, 4]), true);
        shared.end(&text(2, &[5, 6, 7, 8]), true);
        let mut again = Shared::new(100).with(&shared.kept().unwrap());
        assert_eq!(again.propose(&text(9, &[1, 2, 3]), 9).tokens, [4]);
        assert_eq!(again.propose(&text(9, &[5, 6, 7]), 9).tokens, [8]);
        let mut less = Shared::new(5).with(&shared.kept().unwrap());
        assert_eq!(less.propose(&text(9, &[1, 2, 3]), 9), Proposal::default());
        assert_eq!(less.propose(&text(9, &[5, 6, 7]), 9).tokens, [8]);
    }
}
