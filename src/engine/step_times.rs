//! Rounds played for nothing but to time them, so that a controller knows what passes of many rows cost before the
//! first request has paid for finding out.

use super::Engine;
use crate::backend::{BackendError, Chunk, Sequence};
use crate::control::RoundTimes;
use crate::kv::{BlockTable, PAGE_TOKENS};
use crate::profile;
use crate::sample::{Sampler, SamplingParams};
use std::time::{Duration, Instant};

/// A round that was played to be timed.
pub(super) struct TimedRound {
    batch: usize,
    draft_steps: Vec<(usize, f64)>,
    rows: usize,
    verify_seconds: f64,
}

/// Tokens before a timed round's drafts: with them they are one page.
const TEXT: usize = 48;
/// Lengths of the drafts that are timed.
const DRAFTS: [usize; 5] = [0, 1, 2, 4, 8];
/// Times that each round is played, the first time to warm up.
const REPETITIONS: usize = 4;
/// No round begins later than this.
const MOST_TIME: Duration = Duration::from_secs(1);

impl Engine {
    /// The batch size from which on more sequences side by side make decoding hardly faster: of those measured, the
    /// smallest within 3 % of the best throughput without drafts. To be asked of an idle engine.
    ///
    /// # Errors
    /// If a pass fails.
    pub fn suggested_batch(&mut self) -> Result<usize, BackendError> {
        self.time_steps()?;
        let mut fastest: Vec<(usize, f64)> = Vec::new();
        for round in self.timed.iter().flatten().filter(|round| round.rows == round.batch) {
            let rate = round.batch as f64 / round.verify_seconds.max(f64::MIN_POSITIVE);
            match fastest.last_mut() {
                Some((batch, best)) if *batch == round.batch => *best = best.max(rate),
                _ => fastest.push((round.batch, rate)),
            }
        }
        fastest.sort_by_key(|&(batch, _)| batch);
        let best = fastest.iter().map(|&(_, rate)| rate).fold(0.0, f64::max);
        Ok(fastest.iter().find(|(_, rate)| *rate >= 0.97 * best).map_or(1, |&(batch, _)| batch))
    }

    /// Times rounds for a controller that wants to know, once, before anything runs.
    pub(super) fn tell_step_times(&mut self) -> Result<(), BackendError> {
        let slots = self.backend.limits().slots;
        let idle = self.running.is_empty() && self.prefilling.is_empty();
        if self.times_told || !idle || slots < 2 || !self.controller.wants_step_times() {
            return Ok(());
        }
        self.times_told = true;
        self.time_steps()?;
        for TimedRound { batch, draft_steps, rows, verify_seconds } in self.timed.iter().flatten() {
            let (batch, rows, verify_seconds) = (*batch, *rows, *verify_seconds);
            self.controller.observe_times(&RoundTimes { batch, draft_steps, rows, verify_seconds });
        }
        Ok(())
    }

    /// Plays the rounds, if that has not been done: batches of 1, 2, 4, ... sequences, each with drafts of several
    /// lengths, shorter ones first, until a further row takes as long as a row of a plain round.
    fn time_steps(&mut self) -> Result<(), BackendError> {
        if self.timed.is_some() {
            return Ok(());
        }
        let _range = profile::range("time steps");
        let begun = Instant::now();
        let limits = self.backend.limits();
        let most_drafts = if self.backend.exit_layer().is_some() { limits.max_draft } else { 0 };
        let mut timed = Vec::new();
        let mut tables: Vec<BlockTable> = Vec::new();
        while tables.len() < limits.slots && limits.context > PAGE_TOKENS {
            let mut table = BlockTable::default();
            if !self.pages.reserve(&mut table, PAGE_TOKENS, 0) {
                break;
            }
            tables.push(table);
        }
        let played = self.play_timed_rounds(&tables, most_drafts, begun, &mut timed);
        tables.iter_mut().for_each(|table| self.pages.release(table));
        played?;
        self.timed = Some(timed);
        Ok(())
    }

    fn play_timed_rounds(
        &mut self,
        tables: &[BlockTable],
        most_drafts: usize,
        begun: Instant,
        timed: &mut Vec<TimedRound>,
    ) -> Result<(), BackendError> {
        let vocab = self.backend.geometry().vocab_size;
        let text: Vec<_> = (0..TEXT).map(|i| (i * 7 % vocab) as u32).collect();
        let chunks: Vec<Chunk<'_>> =
            tables.iter().map(|table| Chunk { pages: table.pages(), start: 0, tokens: &text[..TEXT - 1] }).collect();
        self.backend.prefill(&chunks)?;
        for repetition in 0..REPETITIONS {
            let sizes = std::iter::successors(Some(1), |&batch| (2 * batch <= tables.len()).then_some(2 * batch));
            for batch in sizes.filter(|&batch| batch <= tables.len()) {
                let mut plain = None;
                for drafts in DRAFTS.into_iter().filter(|&drafts| drafts <= most_drafts) {
                    if begun.elapsed() > MOST_TIME {
                        return Ok(());
                    }
                    let round = self.play_timed_round(&tables[..batch], &text, drafts)?;
                    let seconds = round.verify_seconds;
                    if repetition > 0 {
                        timed.push(round);
                    }
                    let plain = *plain.get_or_insert(seconds);
                    if drafts > 0 && seconds - plain >= drafts as f64 * plain {
                        break;
                    }
                }
            }
        }
        Ok(())
    }

    /// One round of as many sequences as there are tables, each with so many drafts.
    fn play_timed_round(
        &mut self,
        tables: &[BlockTable],
        text: &[u32],
        drafts: usize,
    ) -> Result<TimedRound, BackendError> {
        let vocab = self.backend.geometry().vocab_size;
        let greedy = Sampler::new(SamplingParams::default(), vocab).expect("the default sampling parameters are valid");
        let mut tokens = vec![text.to_vec(); tables.len()];
        let mut draft_steps = Vec::with_capacity(drafts);
        for _ in 0..drafts {
            let start = Instant::now();
            let drafted = self.backend.draft(&sequences(tables, &tokens, &greedy))?;
            draft_steps.push((tables.len(), start.elapsed().as_secs_f64()));
            tokens.iter_mut().zip(drafted).for_each(|(tokens, draft)| tokens.push(draft.token));
        }
        let start = Instant::now();
        self.backend.verify(&sequences(tables, &tokens, &greedy))?;
        let verify_seconds = start.elapsed().as_secs_f64();
        Ok(TimedRound { batch: tables.len(), draft_steps, rows: tables.len() * (drafts + 1), verify_seconds })
    }
}

/// Sequences in slots 0, 1, 2, ... with a text of [`TEXT`] tokens and their drafts.
fn sequences<'a>(tables: &'a [BlockTable], tokens: &'a [Vec<u32>], sampler: &'a Sampler) -> Vec<Sequence<'a>> {
    let sequence = |(slot, (table, tokens)): (usize, (&'a BlockTable, &'a Vec<u32>))| Sequence {
        slot,
        pages: table.pages(),
        tokens,
        committed: TEXT,
        prompt: TEXT,
        sampler,
    };
    tables.iter().zip(tokens).enumerate().map(sequence).collect()
}
