//! What the host remembers of each slot between passes.

use crate::TokenId;
use crate::backend::Sequence;
use crate::backend::kept::Kept;
use crate::control::Way;
use crate::sample::Verdict;

/// One slot's round, and which tokens the device has counted for it.
#[derive(Default)]
pub struct Slot {
    /// What the device drafted in this round; it keeps their distributions. Proposed tokens are told to each pass anew.
    pub drafted: Vec<TokenId>,
    /// What it has kept of the round beside them.
    pub kept: Kept,
    /// Rows of the last verification's logits: the first, and how many.
    pub logits: Option<(usize, usize)>,
    /// The tokens in the device's row of counts, and how many of them are the prompt.
    counted: Option<(Vec<TokenId>, usize)>,
}

/// What has to be done for a row of counts to agree with a sequence.
#[derive(Debug, PartialEq, Eq)]
pub struct Recount {
    /// The row has to be zero first.
    pub from_zero: bool,
    /// The sequence's tokens from here on have to be counted.
    pub from: usize,
    /// So many of those are the prompt.
    pub prompt: usize,
}

impl Slot {
    /// The device has made these drafts, one after the other.
    pub fn draft(&mut self, sequence: &Sequence<'_>, way: Way, drafts: impl IntoIterator<Item = TokenId>) {
        let before = self.drafted.len();
        self.drafted.extend(drafts);
        self.kept.drafted(sequence, way, self.drafted.len() - before);
    }

    /// What is missing from the row of counts for the sequence's committed tokens, which count as counted from
    /// here on.
    pub fn recount(&mut self, sequence: &Sequence<'_>) -> Option<Recount> {
        let tokens = &sequence.tokens[..sequence.committed];
        let known = match &self.counted {
            Some((counted, prompt)) if *prompt == sequence.prompt && tokens.starts_with(counted) => Some(counted.len()),
            _ => None,
        };
        if known == Some(tokens.len()) {
            return None;
        }
        self.counted = Some((tokens.to_vec(), sequence.prompt));
        let from = known.unwrap_or(0);
        let prompt = sequence.prompt.saturating_sub(from).min(tokens.len() - from);
        Some(Recount { from_zero: known.is_none(), from, prompt })
    }

    /// Verification has counted what it emitted.
    pub fn count(&mut self, sequence: &Sequence<'_>, verdict: &Verdict) {
        if let Some((counted, _)) = &mut self.counted {
            counted.extend(&sequence.tokens[sequence.committed..][..verdict.accepted]);
            counted.push(verdict.next);
        }
    }

    /// The row of counts is not looked after any more.
    pub fn forget_counts(&mut self) {
        self.counted = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::{Sampler, SamplingParams};

    fn recount(slot: &mut Slot, tokens: &[TokenId], committed: usize) -> Option<Recount> {
        let sampler = Sampler::new(SamplingParams::default(), 10).unwrap();
        slot.recount(&Sequence {
            slot: 0,
            pages: &[],
            tokens,
            committed,
            prompt: 2,
            proposed: 0,
            recurrent: 0,
            sampler: &sampler,
        })
    }

    #[test]
    fn only_what_is_new_is_counted() {
        let mut slot = Slot::default();
        let all = Some(Recount { from_zero: true, from: 0, prompt: 2 });
        assert_eq!(recount(&mut slot, &[1, 2, 7], 2), all);
        assert_eq!(recount(&mut slot, &[1, 2, 7, 8], 2), None);
        // What verification emits is counted by it.
        let sampler = Sampler::new(SamplingParams::default(), 10).unwrap();
        let round = Sequence {
            slot: 0,
            pages: &[],
            tokens: &[1, 2, 7, 8],
            committed: 2,
            prompt: 2,
            proposed: 0,
            recurrent: 0,
            sampler: &sampler,
        };
        slot.count(&round, &Verdict { accepted: 1, next: 5, logprobs: vec![] });
        assert_eq!(recount(&mut slot, &[1, 2, 7, 5], 4), None);
        // Tokens that came without it are counted by themselves.
        assert_eq!(recount(&mut slot, &[1, 2, 7, 5, 6], 5), Some(Recount { from_zero: false, from: 4, prompt: 0 }));
        // A verdict that was not committed, another text: from the beginning.
        slot.count(&round, &Verdict { accepted: 0, next: 5, logprobs: vec![] });
        assert_eq!(recount(&mut slot, &[1, 2, 7, 5, 6], 5), all);
        assert_eq!(recount(&mut slot, &[1, 3, 7, 5, 6], 5), all);
        slot.forget_counts();
        assert_eq!(recount(&mut slot, &[1, 3, 7, 5, 6], 5), all);
    }
}
