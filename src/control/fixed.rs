//! The two controllers that learn nothing: plain decoding, and always the same length.

use super::{Controller, DraftPlan, Outcome, Step};
use crate::sample::Philox;
use serde_json::{Value, json};

/// `off`: never draft. The baseline of every comparison.
#[derive(Debug, Clone, Copy)]
pub struct Off;

impl Controller for Off {
    fn spec(&self) -> String {
        "off".into()
    }

    fn start(&mut self, _slot: usize) {}

    fn is_off(&self) -> bool {
        true
    }

    fn proceed(&mut self, _step: &Step<'_>, _rng: &mut Philox) -> bool {
        false
    }

    fn plan(&mut self, _step: &Step<'_>, _draws: &dyn Fn(usize) -> Philox) -> Option<DraftPlan> {
        Some(DraftPlan::of_length(0))
    }

    fn observe(&mut self, _outcome: &Outcome<'_>) {}

    fn state(&self) -> Value {
        json!({})
    }
}

/// `fixed:K`: always draft `K` tokens, or as many as the round may.
#[derive(Debug, Clone, Copy)]
pub struct Fixed {
    /// Drafts per round.
    pub length: usize,
}

impl Controller for Fixed {
    fn spec(&self) -> String {
        format!("fixed:{}", self.length)
    }

    fn start(&mut self, _slot: usize) {}

    fn proceed(&mut self, step: &Step<'_>, _rng: &mut Philox) -> bool {
        step.confidences.len() < self.length.min(step.limit)
    }

    fn plan(&mut self, step: &Step<'_>, _draws: &dyn Fn(usize) -> Philox) -> Option<DraftPlan> {
        Some(DraftPlan::of_length(self.length.min(step.limit)))
    }

    fn observe(&mut self, _outcome: &Outcome<'_>) {}

    fn state(&self) -> Value {
        json!({ "length": self.length })
    }
}
