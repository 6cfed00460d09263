//! A text in a slot, and the round that is drafted for it.

use crate::support::table;
use eesd::TokenId;
use eesd::backend::{Backend, Chunk, Draft, Sequence};
use eesd::control::Way;
use eesd::kv::BlockTable;
use eesd::sample::{Sampler, SamplingParams, Verdict};

/// Positions that a text has pages for.
const POSITIONS: usize = 128;

pub struct Text {
    pub slot: usize,
    pub pages: BlockTable,
    pub tokens: Vec<TokenId>,
    pub committed: usize,
    pub recurrent: usize,
    pub proposed: usize,
    pub sampler: Sampler,
}

/// Leaves a text with one token, if there is any.
pub fn forcing(vocab: usize, token: Option<TokenId>) -> Sampler {
    let logit_bias = token.into_iter().map(|token| (token, 90.0)).collect();
    Sampler::new(SamplingParams { logit_bias, ..SamplingParams::default() }, vocab).unwrap()
}

impl Text {
    /// All but its last token are taken in.
    pub fn new(backend: &mut dyn Backend, slot: usize, text: &[TokenId], forced: Option<TokenId>) -> Self {
        let pages = table(2 * slot, POSITIONS);
        let sampler = forcing(backend.geometry().vocab_size, forced);
        backend.prefill(&[Chunk { pages: pages.pages(), start: 0, tokens: &text[..text.len() - 1] }]).unwrap();
        Self { slot, pages, tokens: text.to_vec(), committed: text.len(), recurrent: 0, proposed: 0, sampler }
    }

    pub fn sequence(&self) -> Sequence<'_> {
        let Self { slot, committed, recurrent, proposed, .. } = *self;
        let (pages, tokens, sampler) = (self.pages.pages(), &self.tokens, &self.sampler);
        Sequence { slot, pages, tokens, committed, prompt: 1, proposed, recurrent, sampler }
    }

    /// Goes on with drafts that were made this way.
    pub fn keep(&mut self, way: Way, drafts: &[Draft]) {
        for draft in drafts {
            self.recurrent = self.sequence().recurrent_after(way);
            self.tokens.push(draft.token);
        }
    }

    /// Ends the round.
    pub fn accept(&mut self, verdict: &Verdict) {
        self.tokens.truncate(self.committed + verdict.accepted);
        self.tokens.push(verdict.next);
        (self.committed, self.recurrent, self.proposed) = (self.tokens.len(), 0, 0);
    }
}
