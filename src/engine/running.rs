//! A request that is being worked on.

use super::EngineError;
use super::clock::Clock;
use super::output::Output;
use super::propose::Offered;
use super::request::{Completion, Finish, Request, SourceStats, Stats};
use crate::TokenId;
use crate::backend::{Backend, BackendError, Draft, Limits, Sequence};
use crate::constrain::Standing;
use crate::control::Way;
use crate::draft::{Proposal, Source, Sources};
use crate::kv::{BlockTable, PAGE_TOKENS};
use crate::sample::{Philox, Purpose, Sampler, Verdict};
use std::time::Duration;

/// One admitted request: its tokens, its pages, the round in progress, and what it has said.
pub(super) struct Running {
    /// The caller's name for it.
    pub id: usize,
    /// Its number among all requests submitted.
    pub arrival: u64,
    /// Where backend and controller keep its state.
    pub slot: usize,
    /// Who may draft.
    pub sources: Sources,
    /// Most drafts in one round.
    draft_max: usize,
    pub sampler: Sampler,
    pub table: BlockTable,
    /// Pages kept for other prompts, from the first one on.
    pub kept: usize,
    /// Committed tokens, the last one pending, then this round's drafts.
    pub tokens: Vec<TokenId>,
    committed: usize,
    prompt: usize,
    /// What was proposed for this round.
    pub offered: Offered,
    /// How many of this round's drafts, the last ones, were proposed.
    proposed: usize,
    /// How many of the drafts before those, the last ones, were made recurrently.
    recurrent: usize,
    /// Its last pass was a verification, in its slot, from which it goes on.
    pub continues: bool,
    /// Confidence of each of this round's drafts.
    pub confidences: Vec<f32>,
    /// Seconds of each draft step of this round that it took part in.
    pub draft_seconds: Vec<f64>,
    pub output: Output,
    pub stats: Stats,
    clock: Clock,
    admitted: Duration,
    prefilled: Duration,
    /// Positions that were complete when it was swapped out.
    saved: usize,
    /// The first of its positions whose keys or values are not finite numbers.
    pub non_finite: Option<usize>,
    /// Why its answer cannot follow its constraint any further.
    stuck: Option<EngineError>,
}

/// A sequence that cannot go on, and why.
pub(super) type Broken = (Running, EngineError);

/// Parts with the sequences that cannot go on; who has come to an end need not.
pub(super) fn take_broken(sequences: &mut Vec<Running>) -> Vec<Broken> {
    let cannot_go_on = |sequence: &Running| sequence.stuck.is_some() || sequence.non_finite.is_some();
    let is_broken = |sequence: &mut Running| sequence.output.finish.is_none() && cannot_go_on(sequence);
    sequences.extract_if(.., is_broken).filter_map(Running::broken).collect()
}

impl Running {
    /// A request, by its name and its number among all submitted, that was just admitted to `slot` with its pages.
    pub fn new(
        (id, arrival): (usize, u64),
        slot: usize,
        request: Request,
        sampler: Sampler,
        table: BlockTable,
        output: Output,
        clock: Clock,
    ) -> Self {
        let now = clock.now();
        let prompt = request.prompt.len();
        Self {
            id,
            arrival,
            slot,
            sources: request.sources,
            draft_max: request.draft_max.unwrap_or(usize::MAX),
            sampler,
            kept: table.len() / PAGE_TOKENS,
            table,
            tokens: request.prompt,
            committed: prompt,
            prompt,
            offered: Offered::default(),
            proposed: 0,
            recurrent: 0,
            continues: false,
            confidences: Vec::new(),
            draft_seconds: Vec::new(),
            output,
            stats: Stats { prompt_tokens: prompt, ..Stats::default() },
            clock,
            admitted: now,
            prefilled: now,
            saved: 0,
            non_finite: None,
            stuck: None,
        }
    }

    /// The sequence with why it cannot go on, if it cannot: its constraint, or its first position that is not finite.
    pub fn broken(mut self) -> Option<Broken> {
        let stuck = self.stuck.take();
        let error = stuck.or_else(|| Some(BackendError::NonFinite { position: self.non_finite? }.into()))?;
        Some((self, error))
    }

    /// How its answer stands with the tokens up to `end`, by its constraint; what breaks it is kept as the reason why it
    /// cannot go on.
    pub fn judge(&mut self, end: usize) -> Standing {
        let Some(mut guide) = self.sampler.guide() else { return Standing::Open };
        let standing = guide.judge(&self.tokens[self.prompt..end]);
        drop(guide);
        if let Standing::Broken(why) = &standing {
            self.stuck = Some(EngineError::Constraint(why.clone()));
        }
        standing
    }

    /// What the backend needs to know of it.
    pub fn as_sequence(&self) -> Sequence<'_> {
        Sequence {
            slot: self.slot,
            pages: self.table.pages(),
            tokens: &self.tokens,
            committed: self.committed,
            prompt: self.prompt,
            proposed: self.proposed,
            recurrent: self.recurrent,
            sampler: &self.sampler,
        }
    }

    /// Positions of the prompt that have to be complete before the first round: all but the last.
    pub fn to_prefill(&self) -> usize {
        self.prompt - 1
    }

    /// They are.
    pub fn is_prefilled(&self) -> bool {
        self.table.len() >= self.to_prefill()
    }

    /// The first round is next.
    pub fn prefilled(&mut self) {
        self.prefilled = self.clock.now();
    }

    /// Positions of the prompt were found in pages kept.
    pub fn count_reused(&mut self, positions: usize) {
        self.stats.reused_tokens += positions;
        self.kept = self.kept.max(self.table.len() / PAGE_TOKENS);
    }

    /// Its pages, of which `complete` positions were complete, are somewhere else now.
    pub fn swapped_out(&mut self, complete: usize) {
        self.saved = complete;
        self.kept = 0;
        self.continues = false;
        self.stats.preemptions += 1;
    }

    /// It has pages again, with what the old ones held.
    pub fn swapped_in(&mut self) {
        self.table.set_len(self.saved);
    }

    /// Tokens committed, the pending one included.
    pub fn committed(&self) -> usize {
        self.committed
    }

    /// Proposed tokens that this round's draft has.
    pub fn proposed(&self) -> usize {
        self.proposed
    }

    /// Whether the exit block may draft for its round: nothing was proposed, after which it could not.
    pub fn may_sample(&self) -> bool {
        self.sources.has(Source::Exit) && self.proposed == 0
    }

    /// Whether there is what the exit block begins from: on some devices what the round before left.
    pub fn can_begin(&self, backend: &dyn Backend) -> bool {
        self.continues || !backend.continues()
    }

    /// Who wrote this round's draft.
    pub fn drafter(&self) -> Source {
        self.offered.taken.unwrap_or(Source::Exit)
    }

    /// Who wrote the token after so many of this round's, of which `accepted` drafts were kept.
    pub fn author(&self, emitted: usize, accepted: usize) -> Option<Source> {
        (emitted < accepted).then_some(self.drafter())
    }

    /// Drafts made so far in this round.
    pub fn drafted(&self) -> usize {
        self.tokens.len() - self.committed
    }

    /// Position of the token that comes next.
    pub fn position(&self) -> usize {
        self.tokens.len()
    }

    /// Most drafts that a round may make, if there are pages for them. It emits them and one token more, so one token
    /// of room is never drafted for.
    pub fn most_drafts(&self, limits: &Limits) -> usize {
        if self.sources.is_off() { 0 } else { limits.max_draft.min(self.draft_max).min(self.output.room() - 1) }
    }

    /// Most drafts of this round, for which there are pages.
    pub fn drafts_with_room(&self, limits: &Limits) -> usize {
        self.most_drafts(limits).min(self.table.capacity() - self.committed)
    }

    /// The controller's random stream for its decision about the token at `position`.
    pub fn draws(&self, position: usize) -> Philox {
        // No two rounds begin with the same number of committed tokens, so that tells them apart.
        Philox::new(self.sampler.key(), position, Purpose::Controller, self.committed as u32)
    }

    /// The same, for the choice among sources.
    pub fn draws_among_sources(&self) -> Philox {
        Philox::new(self.sampler.key(), self.committed, Purpose::Sources, 0)
    }

    /// More drafts would be for nothing: the last one ends the answer, or its constraint refuses it.
    pub fn drafted_an_end(&self) -> bool {
        self.drafted() > 0
            && (self.output.is_end(self.tokens[self.tokens.len() - 1])
                || self.sampler.guide().is_some_and(|mut guide| guide.is_over(&self.tokens[self.prompt..])))
    }

    /// Leaves of a proposal what its constraint lets follow.
    pub fn cut_proposal(&self, proposal: &mut Proposal) {
        proposal.cut_after(|&token| self.output.is_end(token));
        if let Some(mut guide) = self.sampler.guide() {
            proposal.truncate(guide.accepts(&self.tokens[self.prompt..], &proposal.tokens));
        }
    }

    /// Tokens that come next by its constraint alone, as far as that is known.
    pub fn forced(&self) -> Vec<TokenId> {
        self.sampler.guide().map_or(Vec::new(), |mut guide| guide.forced(&self.tokens[self.prompt..]))
    }

    /// Takes in one draft.
    pub fn push_draft(&mut self, draft: Draft, way: Way, seconds: f64) {
        self.recurrent = self.as_sequence().recurrent_after(way);
        self.tokens.push(draft.token);
        self.confidences.push(draft.confidence);
        self.draft_seconds.push(seconds);
    }

    /// Takes in the first tokens of what was proposed.
    pub fn take_offer(&mut self, offer: usize, tokens: usize) {
        let before = self.tokens.len();
        self.tokens.extend_from_slice(self.offered.take(offer, tokens));
        self.proposed = self.tokens.len() - before;
    }

    /// Commits what was accepted and the token after it, and rolls the rest of the draft back.
    /// Everything the committed tokens but the last need is in the cache already.
    pub fn commit(&mut self, verdict: &Verdict) {
        self.tokens.truncate(self.committed + verdict.accepted);
        self.tokens.push(verdict.next);
        self.committed = self.tokens.len();
        self.table.set_len(self.committed - 1);
        self.continues = true;
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

    /// Counts a round that tested `tested` drafts and accepted `accepted`, and emitted `emitted` tokens. Returns what its
    /// source did, where it drafted.
    pub fn count_round(
        &mut self,
        tested: usize,
        accepted: usize,
        emitted: usize,
        round: Duration,
    ) -> Option<(Source, SourceStats)> {
        let draft = Duration::from_secs_f64(self.draft_seconds.iter().sum());
        let drafter = self.drafter();
        let stats = &mut self.stats;
        let positions = stats.drafted_at.len().max(tested);
        stats.drafted_at.resize(positions, 0);
        stats.accepted_at.resize(positions, 0);
        stats.drafted_at[..tested].iter_mut().for_each(|n| *n += 1);
        stats.accepted_at[..accepted].iter_mut().for_each(|n| *n += 1);
        let length = self.confidences.len() + self.proposed;
        let counts = (length > 0).then_some(SourceStats { rounds: 1, drafted: tested, accepted });
        counts.iter().for_each(|&counts| stats.by_source[drafter as usize].add(counts));
        stats.lengths.resize(stats.lengths.len().max(length + 1), 0);
        stats.lengths[length] += 1;
        stats.rounds += 1;
        stats.generated += emitted;
        stats.draft += draft;
        stats.verify += round.saturating_sub(draft);
        self.confidences.clear();
        self.draft_seconds.clear();
        (self.proposed, self.recurrent) = (0, 0);
        self.offered = Offered::default();
        counts.map(|counts| (drafter, counts))
    }

    /// Stops the times that run from admission.
    pub fn take_times(&mut self) {
        if self.stats.first_token.is_zero() {
            self.stats.first_token = self.clock.since(self.admitted);
        }
        self.stats.decode = self.clock.since(self.prefilled);
    }

    /// The same, ended where it is unless its answer has its end already.
    pub fn ended(mut self) -> Self {
        if self.output.finish.is_none() {
            self.output.cancel();
        }
        self
    }

    /// Its answer has come to its own end.
    pub fn has_finished(&self) -> bool {
        self.output.finish.as_ref().is_some_and(|finish| *finish != Finish::Cancelled)
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
