//! A request that is being worked on.

use super::output::Output;
use super::request::{Completion, Finish, Request, Stats};
use crate::TokenId;
use crate::backend::{Draft, Limits, Sequence};
use crate::kv::BlockTable;
use crate::sample::{Philox, Purpose, Sampler, Verdict};
use std::time::{Duration, Instant};

/// One admitted request: its tokens, its pages, the round in progress, and what it has said.
pub(super) struct Running {
    /// The caller's name for it.
    pub id: usize,
    /// Where backend and controller keep its state.
    pub slot: usize,
    /// May draft at all.
    pub speculate: bool,
    pub sampler: Sampler,
    pub table: BlockTable,
    /// Committed tokens, the last one pending, then this round's drafts.
    tokens: Vec<TokenId>,
    committed: usize,
    prompt: usize,
    /// Confidence of each of this round's drafts.
    pub confidences: Vec<f32>,
    /// Seconds of each draft step of this round that it took part in.
    pub draft_seconds: Vec<f64>,
    pub output: Output,
    pub stats: Stats,
    admitted: Instant,
    prefilled: Instant,
}

impl Running {
    /// A request that was just admitted to `slot` with its pages.
    pub fn new(id: usize, slot: usize, request: Request, sampler: Sampler, table: BlockTable, output: Output) -> Self {
        let now = Instant::now();
        let prompt = request.prompt.len();
        Self {
            id,
            slot,
            speculate: request.speculate,
            sampler,
            table,
            tokens: request.prompt,
            committed: prompt,
            prompt,
            confidences: Vec::new(),
            draft_seconds: Vec::new(),
            output,
            stats: Stats { prompt_tokens: prompt, ..Stats::default() },
            admitted: now,
            prefilled: now,
        }
    }

    /// What the backend needs to know of it.
    pub fn as_sequence(&self) -> Sequence<'_> {
        Sequence {
            slot: self.slot,
            pages: self.table.pages(),
            tokens: &self.tokens,
            committed: self.committed,
            prompt: self.prompt,
            sampler: &self.sampler,
        }
    }

    /// The prompt's tokens that go through the model before the first round: all but the last.
    pub fn prompt_to_fill(&self) -> &[TokenId] {
        &self.tokens[..self.prompt - 1]
    }

    /// The prompt is in the cache.
    pub fn prefilled(&mut self, took: Duration) {
        self.table.set_len(self.prompt - 1);
        self.stats.prefill = took;
        self.prefilled = Instant::now();
    }

    /// Tokens committed, the pending one included.
    pub fn committed(&self) -> usize {
        self.committed
    }

    /// Drafts made so far in this round.
    pub fn drafted(&self) -> usize {
        self.tokens.len() - self.committed
    }

    /// Position of the token that comes next.
    pub fn position(&self) -> usize {
        self.tokens.len()
    }

    /// Most drafts that this round may make. It emits them and one token more, so one token of room is never
    /// drafted for.
    pub fn most_drafts(&self, limits: &Limits) -> usize {
        limits.max_draft.min(self.output.room() - 1)
    }

    /// The controller's random stream for its decision about the token at `position`.
    pub fn draws(&self, position: usize) -> Philox {
        // No two rounds begin with the same number of committed tokens, so that tells them apart.
        Philox::new(self.sampler.seed(), position, Purpose::Controller, self.committed as u32)
    }

    /// More drafts would be for nothing: the last one ends the answer.
    pub fn drafted_an_end(&self) -> bool {
        self.drafted() > 0 && self.output.is_end(self.tokens[self.tokens.len() - 1])
    }

    /// Takes in one draft.
    pub fn push_draft(&mut self, draft: Draft, seconds: f64) {
        self.tokens.push(draft.token);
        self.confidences.push(draft.confidence);
        self.draft_seconds.push(seconds);
    }

    /// Commits what was accepted and the token after it, and rolls the rest of the draft back.
    /// Everything the committed tokens but the last need is in the cache already.
    pub fn commit(&mut self, verdict: &Verdict) {
        self.tokens.truncate(self.committed + verdict.accepted);
        self.tokens.push(verdict.next);
        self.committed = self.tokens.len();
        self.table.set_len(self.committed - 1);
    }

    /// The last `n` committed tokens.
    pub fn last(&self, n: usize) -> &[TokenId] {
        &self.tokens[self.committed - n..self.committed]
    }

    /// The answer ended `surplus` tokens before the end of what was committed: forgets those.
    pub fn drop_last(&mut self, surplus: usize) {
        self.tokens.truncate(self.committed - surplus);
        self.committed = self.tokens.len();
    }

    /// Counts a round that tested `tested` drafts and accepted `accepted`, and emitted `emitted` tokens.
    pub fn count_round(&mut self, tested: usize, accepted: usize, emitted: usize, round: Duration) {
        let draft = Duration::from_secs_f64(self.draft_seconds.iter().sum());
        let stats = &mut self.stats;
        let positions = stats.drafted_at.len().max(tested);
        stats.drafted_at.resize(positions, 0);
        stats.accepted_at.resize(positions, 0);
        stats.drafted_at[..tested].iter_mut().for_each(|n| *n += 1);
        stats.accepted_at[..accepted].iter_mut().for_each(|n| *n += 1);
        let length = self.confidences.len();
        stats.lengths.resize(stats.lengths.len().max(length + 1), 0);
        stats.lengths[length] += 1;
        stats.rounds += 1;
        stats.generated += emitted;
        stats.draft += draft;
        stats.verify += round.saturating_sub(draft);
        self.confidences.clear();
        self.draft_seconds.clear();
    }

    /// Stops the clocks that run from admission.
    pub fn clock(&mut self) {
        if self.stats.first_token.is_zero() {
            self.stats.first_token = self.admitted.elapsed();
        }
        self.stats.decode = self.prefilled.elapsed();
    }

    /// The finished answer. Its pages must have been given back.
    pub fn into_completion(self) -> Completion {
        Completion {
            tokens: self.tokens[self.prompt..].to_vec(),
            text: self.output.text,
            logprobs: self.output.logprobs,
            finish: self.output.finish.unwrap_or(Finish::Cancelled),
            seed: self.sampler.seed(),
            stats: self.stats,
        }
    }
}
