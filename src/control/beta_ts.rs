//! `beta-ts`: the Thompson-sampling coin of EESD (Liu et al., Findings of ACL 2024, arXiv 2406.03853).
//!
//! Per draft token θ is drawn from a Beta posterior of the acceptance rate and a coin that shows heads
//! with chance θ is flipped; tails ends the draft. The first token is always drafted.

use super::posterior::Counts;
use super::{Controller, ControllerSpec, DraftPlan, Outcome, Step};
use crate::sample::Philox;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// One Beta posterior per sequence.
#[derive(Debug, Clone)]
pub struct BetaTs {
    /// Pseudo-counts of success and of failure at a sequence's start, each.
    prior: f64,
    /// What the counts are multiplied by after each round; 1 never forgets.
    decay: f64,
    slots: BTreeMap<usize, Counts>,
}

impl BetaTs {
    /// A controller with `prior > 0` pseudo-counts of each kind and `decay` in `0..=1` per round.
    pub fn new(prior: f64, decay: f64) -> Self {
        Self { prior, decay, slots: BTreeMap::new() }
    }

    fn counts(&self, slot: usize) -> Counts {
        self.slots.get(&slot).copied().unwrap_or_default()
    }

    /// Flips one coin.
    fn heads(&self, slot: usize, rng: &mut Philox) -> bool {
        let theta = self.counts(slot).posterior(self.prior, self.prior).sample(rng);
        rng.uniform() < theta
    }
}

impl Controller for BetaTs {
    fn spec(&self) -> String {
        ControllerSpec::BetaTs { prior: self.prior, decay: self.decay }.to_string()
    }

    fn start(&mut self, slot: usize) {
        self.slots.remove(&slot);
    }

    fn proceed(&mut self, step: &Step<'_>, rng: &mut Philox) -> bool {
        if step.confidences.is_empty() || step.confidences.len() >= step.limit {
            return step.confidences.len() < step.limit;
        }
        self.heads(step.slot, rng)
    }

    /// The coins look at no confidence, so all may be flipped beforehand.
    fn plan(&mut self, step: &Step<'_>, draws: &dyn Fn(usize) -> Philox) -> Option<DraftPlan> {
        let heads = (1..step.limit).take_while(|&drafts| self.heads(step.slot, &mut draws(drafts))).count();
        Some(DraftPlan::of_length(step.limit.min(1 + heads)))
    }

    fn observe(&mut self, outcome: &Outcome<'_>) {
        let (accepted, refused) = outcome.tested();
        if accepted + refused > 0 {
            let counts = self.slots.entry(outcome.slot).or_default();
            counts.decay(self.decay);
            counts.add(accepted as f64, refused as f64);
        }
    }

    fn state(&self) -> Value {
        let slot = |(slot, counts): (&usize, &Counts)| {
            let posterior = counts.posterior(self.prior, self.prior);
            (
                slot.to_string(),
                json!({ "alpha": posterior.successes, "beta": posterior.failures, "mean": posterior.mean() }),
            )
        };
        json!({ "slots": self.slots.iter().map(slot).collect::<serde_json::Map<_, _>>() })
    }
}
