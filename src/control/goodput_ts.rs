//! `goodput-ts`, the default: draft on while the next draft earns more than its time costs.
//!
//! A round is a renewal: it takes time and gives tokens, and the best policy maximises their ratio R. One more draft
//! gives a token with the chance `S·θ` that it and all drafts before it are accepted, and takes time in which the best
//! policy would have made R tokens a second elsewhere. All of it is measured: times, what a confidence says by
//! [`Calibration`], how this passage of this sequence stands to it by [`Level`]. θ of the next draft, whose confidence
//! nobody knows yet, is drawn from its posterior (Thompson sampling); S is the product of the posterior means of the
//! drafts already made, and R is solved for from the same beliefs, so that it follows a change of the text at once.
//!
//! A sequence that runs alone decides for itself (`alone`), by costs in draft steps. Sequences that share their passes
//! compete for them, so that one decision is made for all (`together`), by a table of step times that rounds played to be
//! timed fill before the first one, or else the first rounds themselves.
//!
//! Drafting can lose. A ledger, in plain rounds, adds up what drafting gained over plain decoding plus a small allowance;
//! while it is in debt no draft is made. A sequence alone has one, and each batch size, to the nearest power of two.
//! Where drafting does not pay a probe now and then finds out whether it does again: of a batch, as many sequences as give
//! the most tests for their time, in turn. Where it does a round of another length now and then keeps costs known.

mod alone;
mod best_set;
mod sequence;
mod together;

use super::calibration::Calibration;
use super::posterior::Level;
use super::{Controller, ControllerSpec, DraftPlan, Outcome, RoundTimes, Step};
use crate::sample::Philox;
use alone::Alone;
use sequence::Sequence;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use together::Together;

/// Forgetting per tested draft that the level tracks side by side: memories from 4 drafts to the whole text.
const DECAYS: [f64; 5] = [0.75, 0.9, 0.96, 0.99, 1.0];

/// Thompson sampling for throughput.
#[derive(Debug, Clone)]
pub struct GoodputTs {
    decay: Option<f64>,
    calibration: Calibration,
    alone: Alone,
    together: Together,
    /// The level as the last observed sequence left it: which decays to trust in the next one.
    trusted: Level,
    /// How new sequences stand to what is expected of confidences, which change more slowly: what the next one starts from.
    usual: Level,
    /// By slot.
    sequences: BTreeMap<usize, Sequence>,
}

impl GoodputTs {
    /// A controller that forgets by `decay` per tested draft, or finds out how fast to forget.
    pub fn new(decay: Option<f64>) -> Self {
        let level = decay.map_or_else(|| Level::new(&DECAYS), |decay| Level::new(&[decay]));
        Self {
            decay,
            calibration: Calibration::default(),
            alone: Alone::default(),
            together: Together::default(),
            trusted: if decay.is_none() { level.clone().and_alike() } else { level.clone() },
            usual: level,
            sequences: BTreeMap::new(),
        }
    }
}

impl Controller for GoodputTs {
    fn spec(&self) -> String {
        ControllerSpec::GoodputTs { decay: self.decay }.to_string()
    }

    fn start(&mut self, slot: usize) {
        self.sequences.insert(slot, Sequence::new(&self.trusted, &self.usual));
    }

    fn proceed(&mut self, step: &Step<'_>, rng: &mut Philox) -> bool {
        if step.confidences.len() >= step.limit {
            return false;
        }
        if step.batch > 1 {
            // Asked about one of several as if no other drafted.
            let rows = step.batch.saturating_add(step.confidences.len());
            return self.proceed_together(&[*step], rows, std::slice::from_mut(rng)) == [true];
        }
        let sequence = self.sequences.entry(step.slot).or_insert_with(|| Sequence::new(&self.trusted, &self.usual));
        self.alone.proceed(sequence, step, &self.calibration, rng)
    }

    fn proceed_together(&mut self, steps: &[Step<'_>], rows: usize, draws: &mut [Philox]) -> Vec<bool> {
        if let ([step], [rng]) = (steps, &mut *draws)
            && step.batch <= 1
        {
            return vec![self.proceed(step, rng)];
        }
        if steps.is_empty() {
            return Vec::new();
        }
        for step in steps {
            self.sequences.entry(step.slot).or_insert_with(|| Sequence::new(&self.trusted, &self.usual));
        }
        self.together.proceed(steps, rows, &mut self.sequences, &self.calibration, draws)
    }

    fn wants_step_times(&self) -> bool {
        self.together.knows_nothing()
    }

    fn observe_times(&mut self, times: &RoundTimes<'_>) {
        self.alone.observe_steps(times.draft_steps);
        self.together.observe_times(times);
    }

    fn observe_pace(&mut self, tokens: f64) {
        self.alone.observe_pace(tokens);
        self.together.observe_pace(tokens);
    }

    fn plan(&mut self, step: &Step<'_>, draws: &dyn Fn(usize) -> Philox) -> Option<DraftPlan> {
        if step.batch > 1 {
            return None;
        }
        let sequence = self.sequences.entry(step.slot).or_insert_with(|| Sequence::new(&self.trusted, &self.usual));
        Some(self.alone.plan(sequence, step, &self.calibration, draws))
    }

    fn observe(&mut self, outcome: &Outcome<'_>) {
        let sequence = self.sequences.entry(outcome.slot).or_insert_with(|| Sequence::new(&self.trusted, &self.usual));
        sequence.observe(outcome, &mut self.calibration, &mut self.usual);
        if !outcome.confidences.is_empty() {
            self.trusted.clone_from(&sequence.level);
        }
        if outcome.batch > 1 {
            self.together.observe(outcome);
        } else {
            self.alone.observe(outcome);
        }
    }

    fn state(&self) -> Value {
        let level = |level: &Level| -> Vec<Value> {
            level
                .experts()
                .map(|(decay, weight, odds)| json!({ "decay": decay, "weight": weight, "odds": odds }))
                .collect()
        };
        let sequence = |(slot, s): (&usize, &Sequence)| {
            (slot.to_string(), json!({ "level": level(&s.level), "undrafted": s.undrafted }))
        };
        json!({
            "alone": self.alone.state(),
            "together": self.together.state(),
            "usual": level(&self.usual),
            "calibration": self.calibration.state(),
            "slots": self.sequences.iter().map(sequence).collect::<serde_json::Map<_, _>>(),
        })
    }
}
