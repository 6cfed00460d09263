//! `lookup`: what followed the last tokens where they stood before in the same text, prompt or answer.

use super::index::TextIndex;
use super::{Proposal, Proposer, Source, Text};
use std::collections::HashMap;

/// Lengths of the grams that are looked up. Nothing is too short: how much a single token tells is learned.
const GRAMS: [usize; 2] = [3, 1];

/// Looks up each sequence's text in itself.
#[derive(Debug, Default)]
pub struct Lookup {
    /// By sequence: of its committed tokens, as far as anybody has asked.
    indexes: HashMap<u64, TextIndex<2>>,
}

impl Proposer for Lookup {
    fn source(&self) -> Source {
        Source::Lookup
    }

    fn propose(&mut self, text: &Text<'_>, most: usize) -> Proposal {
        let index = self.indexes.entry(text.sequence).or_insert_with(|| TextIndex::new(GRAMS, usize::MAX));
        index.extend(text.tokens.get(index.end()..text.committed).unwrap_or_default());
        index.propose(text.tokens, text.tokens.get(index.end()..), most)
    }

    fn end(&mut self, text: &Text<'_>, _finished: bool) {
        self.indexes.remove(&text.sequence);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::TokenId;

    fn propose(tokens: &[TokenId], most: usize) -> Proposal {
        Lookup::default().propose(&Text { sequence: 0, tokens, committed: tokens.len(), forced: &[] }, most)
    }

    #[test]
    fn a_text_goes_on_as_it_did_before() {
        let proposal = propose(&[1, 2, 3, 4, 5, 9, 1, 2, 3], 3);
        assert_eq!(proposal.tokens, [4, 5, 9]);
        let matched: Vec<usize> = proposal.evidence.iter().map(|evidence| evidence.matched).collect();
        assert_eq!(matched, [3, 4, 5]);
    }

    #[test]
    fn what_is_proposed_may_repeat_what_is_proposed() {
        assert_eq!(propose(&[7, 1, 2, 1, 2], 5).tokens, [1, 2, 1, 2, 1]);
        assert_eq!(propose(&[5, 5], 4).tokens, [5; 4]);
    }

    #[test]
    fn a_text_that_repeats_nothing_is_not_continued() {
        assert_eq!(propose(&[1, 2, 3, 4], 8), Proposal::default());
        assert_eq!(propose(&[1], 8), Proposal::default());
        assert_eq!(propose(&[1, 1], 0), Proposal::default());
    }

    /// Drafts are no part of the text yet, but what follows them may be looked up in it.
    #[test]
    fn drafts_are_looked_up_and_not_kept() {
        let mut lookup = Lookup::default();
        let mut propose = |tokens: &[TokenId], committed| {
            lookup.propose(&Text { sequence: 3, tokens, committed, forced: &[] }, 2).tokens
        };
        assert_eq!(propose(&[1, 2, 3, 4, 8, 1], 5), [2, 3]);
        assert_eq!(propose(&[1, 2, 3, 4, 8, 4], 6), [8, 4]);
        assert_eq!(propose(&[1, 2, 3, 4, 8, 4, 1], 7), [2, 3]);
    }

    #[test]
    fn each_sequence_has_a_text_of_its_own_until_it_ends() {
        let mut lookup = Lookup::default();
        let (one, other) = ([1, 2, 3, 1], [1, 5, 6, 1]);
        for _ in 0..2 {
            assert_eq!(lookup.propose(&Text { sequence: 1, tokens: &one, committed: 4, forced: &[] }, 1).tokens, [2]);
            assert_eq!(lookup.propose(&Text { sequence: 2, tokens: &other, committed: 4, forced: &[] }, 1).tokens, [5]);
        }
        lookup.end(&Text { sequence: 1, tokens: &one, committed: 4, forced: &[] }, true);
        assert_eq!(lookup.propose(&Text { sequence: 1, tokens: &other, committed: 4, forced: &[] }, 1).tokens, [5]);
        assert_eq!(lookup.indexes.len(), 2);
    }
}
