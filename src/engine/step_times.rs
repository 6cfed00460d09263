//! Rounds played for nothing but to time them, so that a controller, and the choice among sources, know what passes of many
//! rows cost before the first request has paid for finding out, and a job how many requests are worth running side by side.
//!
//! They are rounds of texts of a token or two, which need no prompt to be taken in first: on a large model that alone would
//! take longer than all that is worth knowing. Each begins only where it is expected to end in time, by what half of it
//! took, so that the first answer waits for about as long as [`MOST_TIME`] says, whatever the model's size.

use super::{Clock, Engine};
use crate::TokenId;
use crate::backend::{Backend, BackendError, Sequence};
use crate::control::{DraftStep, RoundTimes};
use crate::kv::BlockTable;
use crate::profile;
use crate::sample::{Sampler, SamplingParams};
use std::time::Duration;

/// The token that texts consist of.
const TEXT: TokenId = 0;
/// Tokens of the longest: where drafts continue a round before them, that has to have been played.
const LONGEST_TEXT: usize = 2;
/// Lengths of the drafts that are timed: each twice the one before.
const DRAFTS: [usize; 4] = [1, 2, 4, 8];
/// Times that each round is played if there is time, the first time to warm up.
const REPETITIONS: usize = 4;
/// What rounds without drafts may take, and again what those with drafts may.
const MOST_TIME: Duration = Duration::from_millis(500);
/// Rounds with drafts take no longer than this many without any: small models have better things to do.
const MOST_ROUNDS: u32 = 32;
/// A batch is worth its size if it is faster than all smaller ones by this factor.
const WORTH: f64 = 1.03;

/// What each sequence of a round has drafted for it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Drafts {
    /// By the exit block.
    Sampled(usize),
    /// Without a pass.
    Proposed(usize),
}

const NONE: Drafts = Drafts::Sampled(0);

/// A round that was played to be timed.
struct TimedRound {
    batch: usize,
    drafts: Drafts,
    draft_steps: Vec<DraftStep>,
    verify_seconds: f64,
}

/// All of them, in order.
#[derive(Default)]
pub(super) struct Timed {
    rounds: Vec<TimedRound>,
    /// Batches of all sizes that may be worth it were played without drafts.
    every_batch: bool,
    /// Rounds were played with drafts of these kinds, and so long.
    kinds: Vec<Drafts>,
}

/// Plays rounds.
struct Player<'a> {
    backend: &'a mut dyn Backend,
    clock: &'a Clock,
    tables: &'a [BlockTable],
    /// As many as there is room for, of each kind that there may be.
    longest: Vec<Drafts>,
    timed: &'a mut Timed,
}

impl Engine {
    /// The batch size from which on more sequences side by side make decoding hardly faster: of 1, 2, 4, … up to the
    /// backend's slots, the smallest within 3 % of the best throughput without drafts. Sizes are tried until two in a
    /// row bring nothing, however long that takes. To be asked of an idle engine.
    ///
    /// # Errors
    /// If a pass fails.
    pub fn suggested_batch(&mut self) -> Result<usize, BackendError> {
        if !std::mem::replace(&mut self.timed.every_batch, true) {
            self.play(|player| player.every_batch())?;
        }
        let batches = || self.timed.rounds.iter().filter(|round| round.drafts == NONE);
        let rate = |round: &TimedRound| round.batch as f64 / round.verify_seconds.max(f64::MIN_POSITIVE);
        let best = batches().map(rate).fold(0.0, f64::max);
        Ok(batches().filter(|round| WORTH * rate(round) >= best).map(|round| round.batch).min().unwrap_or(1))
    }

    /// Times rounds for those who want to know, once, before anything runs.
    pub(super) fn tell_step_times(&mut self) -> Result<(), BackendError> {
        let idle = self.running.is_empty() && self.prefilling.is_empty();
        let (drafting, proposing) = (self.controller.wants_step_times(), self.proposing.wants_step_times());
        if self.times_told || !idle || self.backend.limits().slots < 2 || !(drafting || proposing) {
            return Ok(());
        }
        self.times_told = true;
        self.play(|player| player.steps())?;
        for (i, round) in self.timed.rounds.iter().enumerate() {
            let alike = |other: &TimedRound| other.batch == round.batch && other.drafts == round.drafts;
            let first = !self.timed.rounds[..i].iter().any(alike);
            // It was to warm up, but better than nothing.
            if !first || !self.timed.rounds[i + 1..].iter().any(alike) {
                if drafting {
                    self.controller.observe_times(&round.times());
                }
                if proposing {
                    self.proposing.choice.observe_times(&round.times());
                }
            }
        }
        Ok(())
    }

    /// Has rounds played, with as many sequences as there are slots, or pages.
    fn play(&mut self, rounds: impl FnOnce(&mut Player<'_>) -> Result<(), BackendError>) -> Result<(), BackendError> {
        let _range = profile::range("time steps");
        let limits = self.backend.limits();
        let room = limits.max_draft.min(limits.context.saturating_sub(LONGEST_TEXT));
        let samples = self.backend.exit_layer().is_some() && self.controller.wants_step_times();
        let sampled = samples.then_some(Drafts::Sampled(room));
        let proposed = self.proposing.wants_step_times().then_some(Drafts::Proposed(room));
        let most_drafts = if sampled.or(proposed).is_some() { room } else { 0 };
        let longest = sampled.into_iter().chain(proposed).collect();
        let mut tables: Vec<BlockTable> = Vec::new();
        while tables.len() < limits.slots {
            let mut table = BlockTable::default();
            if !self.pages.reserve(&mut table, LONGEST_TEXT + most_drafts.min(DRAFTS[DRAFTS.len() - 1]), 0) {
                break;
            }
            tables.push(table);
        }
        let (backend, clock) = (&mut *self.backend, &self.clock);
        let played = rounds(&mut Player { backend, clock, tables: &tables, longest, timed: &mut self.timed });
        tables.iter_mut().for_each(|table| self.pages.release(table));
        played
    }
}

impl Drafts {
    fn length(self) -> usize {
        match self {
            Self::Sampled(length) | Self::Proposed(length) => length,
        }
    }

    /// As many of the same kind; none are none of either.
    fn of_length(self, length: usize) -> Self {
        match self {
            Self::Proposed(_) if length > 0 => Self::Proposed(length),
            _ => Self::Sampled(length),
        }
    }
}

impl TimedRound {
    fn times(&self) -> RoundTimes<'_> {
        let Self { batch, drafts, ref draft_steps, verify_seconds } = *self;
        let proposed = if let Drafts::Proposed(length) = drafts { batch * length } else { 0 };
        let recurrent = batch * draft_steps.iter().filter(|step| step.way.is_recurrent()).count();
        RoundTimes { batch, proposed, recurrent, draft_steps, rows: batch * (drafts.length() + 1), verify_seconds }
    }

    fn seconds(&self) -> f64 {
        self.draft_steps.iter().map(|step| step.seconds).sum::<f64>() + self.verify_seconds
    }
}

impl Player<'_> {
    /// Batch sizes.
    fn sizes(&self) -> impl Iterator<Item = usize> + use<> {
        let most = self.tables.len();
        std::iter::successors(Some(1), |&batch| Some(2 * batch)).take_while(move |&batch| batch <= most)
    }

    /// Rounds without drafts: each size once, until two in a row bring nothing, then again while there is time.
    fn every_batch(&mut self) -> Result<(), BackendError> {
        let end = self.clock.now() + MOST_TIME;
        let (mut best, mut useless) = (0.0, 0);
        for batch in self.sizes() {
            let rate = batch as f64 / self.round(batch, NONE)?.max(f64::MIN_POSITIVE);
            useless = if rate >= WORTH * best { 0 } else { useless + 1 };
            best = f64::max(best, rate);
            if useless == 2 {
                break;
            }
        }
        let sizes: Vec<usize> = self.sizes().filter(|&batch| self.shortest(batch, NONE).is_some()).collect();
        for _ in 1..REPETITIONS {
            sizes.iter().try_for_each(|&batch| self.round_in_time(batch, NONE, end))?;
        }
        Ok(())
    }

    /// What a controller wants to know: rounds without drafts, then with longer and longer ones.
    fn steps(&mut self) -> Result<(), BackendError> {
        let sizes: Vec<usize> = self.sizes().collect();
        if self.timed.rounds.is_empty() {
            let end = self.clock.now() + MOST_TIME;
            for _ in 0..REPETITIONS {
                sizes.iter().try_for_each(|&batch| self.round_in_time(batch, NONE, end))?;
            }
        }
        let longest = sizes.iter().filter_map(|&batch| self.shortest(batch, NONE)).fold(0.0, f64::max);
        let end = self.clock.now() + MOST_TIME.min(Duration::from_secs_f64(longest) * MOST_ROUNDS);
        let new: Vec<Drafts> = self.longest.drain(..).filter(|kind| !self.timed.kinds.contains(kind)).collect();
        self.timed.kinds.extend(&new);
        let room = new.into_iter().flat_map(|longest| DRAFTS.map(|length| (length, longest)));
        let mut drafts: Vec<(usize, Drafts)> = room.filter(|(length, longest)| *length <= longest.length()).collect();
        drafts.sort_by_key(|&(length, _)| length);
        for _ in 0..REPETITIONS {
            for drafts in drafts.iter().map(|&(length, longest)| longest.of_length(length)) {
                let half = drafts.of_length(drafts.length() / 2);
                for &batch in sizes.iter().filter(|&&batch| self.may_pay(batch, half)).collect::<Vec<_>>() {
                    self.round_in_time(batch, drafts, end)?;
                }
            }
        }
        Ok(())
    }

    /// Whether rounds of more drafts than these may ever pay: a row more takes less than a row of a plain round.
    fn may_pay(&self, batch: usize, drafts: Drafts) -> bool {
        let (Some(plain), Some(with)) = (self.shortest(batch, NONE), self.shortest(batch, drafts)) else {
            return false;
        };
        drafts == NONE || with - plain < drafts.length() as f64 * plain
    }

    /// Plays a round if it can be expected to end in time.
    fn round_in_time(&mut self, batch: usize, drafts: Drafts, end: Duration) -> Result<(), BackendError> {
        // Twice the rows take at most twice as long.
        let length = drafts.length();
        let half = if length > 0 {
            self.shortest(batch, drafts.of_length(length / 2))
        } else {
            self.shortest(batch / 2, NONE)
        };
        let expected = self.shortest(batch, drafts).or(half.map(|half| 2.0 * half));
        let first = self.timed.rounds.is_empty();
        let left = end.saturating_sub(self.clock.now()).as_secs_f64();
        if first || expected.is_some_and(|seconds| seconds <= left) {
            self.round(batch, drafts)?;
        }
        Ok(())
    }

    /// Seconds of the shortest such round so far.
    fn shortest(&self, batch: usize, drafts: Drafts) -> Option<f64> {
        let alike = self.timed.rounds.iter().filter(|round| round.batch == batch && round.drafts == drafts);
        alike.map(TimedRound::seconds).min_by(f64::total_cmp)
    }

    /// Plays a round of so many sequences, each with these drafts; returns its seconds.
    fn round(&mut self, batch: usize, drafts: Drafts) -> Result<f64, BackendError> {
        let vocab = self.backend.geometry().vocab_size;
        let greedy = Sampler::new(SamplingParams::default(), vocab).expect("the default sampling parameters are valid");
        let tables = &self.tables[..batch];
        let mut tokens = vec![vec![TEXT]; batch];
        let continues = self.backend.continues() && matches!(drafts, Drafts::Sampled(1..));
        if continues {
            self.backend.verify(&sequences(tables, &tokens, 1, (0, 0), &greedy))?;
            tokens.iter_mut().for_each(|tokens| tokens.push(TEXT));
        }
        let committed = tokens[0].len();
        let mut draft_steps = Vec::new();
        let (mut proposed, mut recurrent) = (0, 0);
        match drafts {
            Drafts::Sampled(length) => {
                for drafted in 0..length {
                    let way = self.backend.way_of_next(drafted, continues);
                    let sequences = sequences(tables, &tokens, committed, (0, recurrent), &greedy);
                    let start = self.clock.now();
                    let drafted = self.backend.draft_by(way, &sequences)?;
                    let seconds = self.clock.since(start).as_secs_f64();
                    draft_steps.push(DraftStep { way, sequences: batch, seconds });
                    recurrent = sequences[0].recurrent_after(way);
                    tokens.iter_mut().zip(drafted).for_each(|(tokens, draft)| tokens.push(draft.token));
                }
            }
            Drafts::Proposed(length) => {
                proposed = length;
                tokens.iter_mut().for_each(|tokens| tokens.resize(committed + length, TEXT));
            }
        }
        let start = self.clock.now();
        self.backend.verify(&sequences(tables, &tokens, committed, (proposed, recurrent), &greedy))?;
        let verify_seconds = self.clock.since(start).as_secs_f64();
        let round = TimedRound { batch, drafts, draft_steps, verify_seconds };
        let seconds = round.seconds();
        self.timed.rounds.push(round);
        Ok(seconds)
    }
}

/// Sequences in slots 0, 1, 2, ... with their texts of so many tokens and their drafts, of which so many are proposed or were
/// made recurrently.
fn sequences<'a>(
    tables: &'a [BlockTable],
    tokens: &'a [Vec<TokenId>],
    committed: usize,
    (proposed, recurrent): (usize, usize),
    sampler: &'a Sampler,
) -> Vec<Sequence<'a>> {
    let sequence = |(slot, (table, tokens)): (usize, (&'a BlockTable, &'a Vec<TokenId>))| Sequence {
        slot,
        pages: table.pages(),
        tokens,
        committed,
        prompt: committed,
        proposed,
        recurrent,
        sampler,
    };
    tables.iter().zip(tokens).enumerate().map(sequence).collect()
}
