//! Rounds played for nothing but to time them, so that a controller knows what passes of many rows cost before the
//! first request has paid for finding out, and a job how many requests are worth running side by side.
//!
//! They are rounds of texts of one token, which need no prompt to be taken in first: on a large model that alone would
//! take longer than all that is worth knowing. Each begins only where it is expected to end in time, by what half of it
//! took, so that the first answer waits for about as long as [`MOST_TIME`] says, whatever the model's size.

use super::round::way_of_next;
use super::{Clock, Engine};
use crate::TokenId;
use crate::backend::{Backend, BackendError, Sequence};
use crate::control::{DraftStep, RoundTimes, Way};
use crate::kv::BlockTable;
use crate::profile;
use crate::sample::{Sampler, SamplingParams};
use std::time::Duration;

/// The text of every sequence.
const TEXT: [TokenId; 1] = [0];
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

/// A round that was played to be timed.
struct TimedRound {
    batch: usize,
    draft_steps: Vec<DraftStep>,
    verify_seconds: f64,
}

/// All of them, in order.
#[derive(Default)]
pub(super) struct Timed {
    rounds: Vec<TimedRound>,
    /// Batches of all sizes that may be worth it were played without drafts.
    every_batch: bool,
    /// Rounds were played for a controller.
    steps: bool,
}

/// Plays rounds.
struct Player<'a> {
    backend: &'a mut dyn Backend,
    clock: &'a Clock,
    tables: &'a [BlockTable],
    most_drafts: usize,
    rounds: &'a mut Vec<TimedRound>,
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
        let batches = || self.timed.rounds.iter().filter(|round| round.draft_steps.is_empty());
        let rate = |round: &TimedRound| round.batch as f64 / round.verify_seconds.max(f64::MIN_POSITIVE);
        let best = batches().map(rate).fold(0.0, f64::max);
        Ok(batches().filter(|round| WORTH * rate(round) >= best).map(|round| round.batch).min().unwrap_or(1))
    }

    /// Times rounds for a controller that wants to know, once, before anything runs.
    pub(super) fn tell_step_times(&mut self) -> Result<(), BackendError> {
        let idle = self.running.is_empty() && self.prefilling.is_empty();
        if self.times_told || !idle || self.backend.limits().slots < 2 || !self.controller.wants_step_times() {
            return Ok(());
        }
        self.times_told = true;
        if !std::mem::replace(&mut self.timed.steps, true) {
            self.play(|player| player.steps())?;
        }
        for (i, round) in self.timed.rounds.iter().enumerate() {
            let alike = |other: &TimedRound| other.batch == round.batch && other.drafts() == round.drafts();
            let first = !self.timed.rounds[..i].iter().any(alike);
            // It was to warm up, but better than nothing.
            if !first || !self.timed.rounds[i + 1..].iter().any(alike) {
                let TimedRound { batch, draft_steps, verify_seconds } = round;
                let (batch, rows, verify_seconds) = (*batch, round.rows(), *verify_seconds);
                let recurrent = draft_steps.iter().filter(|step| step.way == Way::Recurrent).count() * batch;
                let times = RoundTimes { batch, proposed: 0, recurrent, draft_steps, rows, verify_seconds };
                self.controller.observe_times(&times);
                self.proposing.choice.observe_times(&times);
            }
        }
        Ok(())
    }

    /// Has rounds played, with as many sequences as there are slots, or pages.
    fn play(&mut self, rounds: impl FnOnce(&mut Player<'_>) -> Result<(), BackendError>) -> Result<(), BackendError> {
        let _range = profile::range("time steps");
        let limits = self.backend.limits();
        let room = limits.max_draft.min(limits.context.saturating_sub(TEXT.len()));
        let most_drafts = if self.backend.exit_layer().is_some() { room } else { 0 };
        let mut tables: Vec<BlockTable> = Vec::new();
        while tables.len() < limits.slots {
            let mut table = BlockTable::default();
            if !self.pages.reserve(&mut table, TEXT.len() + most_drafts.min(DRAFTS[DRAFTS.len() - 1]), 0) {
                break;
            }
            tables.push(table);
        }
        let (backend, clock) = (&mut *self.backend, &self.clock);
        let rounds_played = &mut self.timed.rounds;
        let played = rounds(&mut Player { backend, clock, tables: &tables, most_drafts, rounds: rounds_played });
        tables.iter_mut().for_each(|table| self.pages.release(table));
        played
    }
}

impl TimedRound {
    fn drafts(&self) -> usize {
        self.draft_steps.len()
    }

    fn rows(&self) -> usize {
        self.batch * (self.drafts() + 1)
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
            let rate = batch as f64 / self.round(batch, 0)?.max(f64::MIN_POSITIVE);
            useless = if rate >= WORTH * best { 0 } else { useless + 1 };
            best = f64::max(best, rate);
            if useless == 2 {
                break;
            }
        }
        let sizes: Vec<usize> = self.sizes().filter(|&batch| self.shortest(batch, 0).is_some()).collect();
        for _ in 1..REPETITIONS {
            sizes.iter().try_for_each(|&batch| self.round_in_time(batch, 0, end))?;
        }
        Ok(())
    }

    /// What a controller wants to know: rounds without drafts, then with longer and longer ones.
    fn steps(&mut self) -> Result<(), BackendError> {
        let sizes: Vec<usize> = self.sizes().collect();
        if self.rounds.is_empty() {
            let end = self.clock.now() + MOST_TIME;
            for _ in 0..REPETITIONS {
                sizes.iter().try_for_each(|&batch| self.round_in_time(batch, 0, end))?;
            }
        }
        let longest = sizes.iter().filter_map(|&batch| self.shortest(batch, 0)).fold(0.0, f64::max);
        let end = self.clock.now() + MOST_TIME.min(Duration::from_secs_f64(longest) * MOST_ROUNDS);
        let most = self.most_drafts;
        for _ in 0..REPETITIONS {
            for drafts in DRAFTS.into_iter().filter(|&drafts| drafts <= most) {
                for &batch in sizes.iter().filter(|&&batch| self.may_pay(batch, drafts / 2)).collect::<Vec<_>>() {
                    self.round_in_time(batch, drafts, end)?;
                }
            }
        }
        Ok(())
    }

    /// Whether rounds of more drafts than these may ever pay: a row more takes less than a row of a plain round.
    fn may_pay(&self, batch: usize, drafts: usize) -> bool {
        let (Some(plain), Some(with)) = (self.shortest(batch, 0), self.shortest(batch, drafts)) else { return false };
        drafts == 0 || with - plain < drafts as f64 * plain
    }

    /// Plays a round if it can be expected to end in time.
    fn round_in_time(&mut self, batch: usize, drafts: usize, end: Duration) -> Result<(), BackendError> {
        // Twice the rows take at most twice as long.
        let half = if drafts > 0 { self.shortest(batch, drafts / 2) } else { self.shortest(batch / 2, 0) };
        let expected = self.shortest(batch, drafts).or(half.map(|half| 2.0 * half));
        let first = self.rounds.is_empty();
        let left = end.saturating_sub(self.clock.now()).as_secs_f64();
        if first || expected.is_some_and(|seconds| seconds <= left) {
            self.round(batch, drafts)?;
        }
        Ok(())
    }

    /// Seconds of the shortest such round so far.
    fn shortest(&self, batch: usize, drafts: usize) -> Option<f64> {
        let alike = self.rounds.iter().filter(|round| round.batch == batch && round.drafts() == drafts);
        alike.map(TimedRound::seconds).min_by(f64::total_cmp)
    }

    /// Plays a round of so many sequences, each with so many drafts; returns its seconds.
    fn round(&mut self, batch: usize, drafts: usize) -> Result<f64, BackendError> {
        let vocab = self.backend.geometry().vocab_size;
        let greedy = Sampler::new(SamplingParams::default(), vocab).expect("the default sampling parameters are valid");
        let tables = &self.tables[..batch];
        let mut tokens = vec![TEXT.to_vec(); batch];
        let mut draft_steps = Vec::with_capacity(drafts);
        let mut recurrent = 0;
        for drafted in 0..drafts {
            let way = way_of_next(self.backend, drafted);
            let sequences = sequences(tables, &tokens, recurrent, &greedy);
            let start = self.clock.now();
            let drafted = self.backend.draft_by(way, &sequences)?;
            draft_steps.push(DraftStep { way, sequences: batch, seconds: self.clock.since(start).as_secs_f64() });
            recurrent = sequences[0].recurrent_after(way);
            tokens.iter_mut().zip(drafted).for_each(|(tokens, draft)| tokens.push(draft.token));
        }
        let start = self.clock.now();
        self.backend.verify(&sequences(tables, &tokens, recurrent, &greedy))?;
        let verify_seconds = self.clock.since(start).as_secs_f64();
        let round = TimedRound { batch, draft_steps, verify_seconds };
        let seconds = round.seconds();
        self.rounds.push(round);
        Ok(seconds)
    }
}

/// Sequences in slots 0, 1, 2, ... with their texts and drafts.
fn sequences<'a>(
    tables: &'a [BlockTable],
    tokens: &'a [Vec<TokenId>],
    recurrent: usize,
    sampler: &'a Sampler,
) -> Vec<Sequence<'a>> {
    let sequence = |(slot, (table, tokens)): (usize, (&'a BlockTable, &'a Vec<TokenId>))| Sequence {
        slot,
        pages: table.pages(),
        tokens,
        committed: TEXT.len(),
        prompt: TEXT.len(),
        proposed: 0,
        recurrent,
        sampler,
    };
    tables.iter().zip(tokens).enumerate().map(sequence).collect()
}
