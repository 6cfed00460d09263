//! The worst controller that the rules allow.

use eesd::control::{Controller, Outcome, Step};
use eesd::sample::Philox;

/// Goes on or stops by the confidences it sees and by chance, as unhelpfully as it may.
pub struct Adversary;

impl Controller for Adversary {
    fn spec(&self) -> String {
        "adversary".into()
    }

    fn start(&mut self, _slot: usize) {}

    fn proceed(&mut self, step: &Step<'_>, rng: &mut Philox) -> bool {
        assert!(step.confidences.len() < step.limit);
        match step.confidences.last() {
            Some(&c) => (c.to_bits() % 7 < 4) ^ (rng.uniform() < 0.2),
            None => rng.uniform() < 0.8,
        }
    }

    fn observe(&mut self, outcome: &Outcome<'_>) {
        assert!(outcome.accepted <= outcome.confidences.len());
        assert_eq!(outcome.draft_seconds.len(), outcome.confidences.len());
    }

    fn state(&self) -> serde_json::Value {
        serde_json::Value::Null
    }
}
