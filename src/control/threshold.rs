//! `threshold:C`: stop at the first draft that is less sure than `C` (the rule of Kangaroo, Liu et
//! al., NeurIPS 2024, arXiv 2404.18911).

use super::{Controller, DraftPlan, Outcome, Rule, Step};
use crate::sample::Philox;
use serde_json::{Value, json};

/// Drafts on while every draft's confidence is at least the threshold; the first is always made.
#[derive(Debug, Clone, Copy)]
pub struct Threshold {
    /// Least confidence to go on, in `0..=1`.
    pub confidence: f32,
}

impl Controller for Threshold {
    fn spec(&self) -> String {
        format!("threshold:{}", self.confidence)
    }

    fn start(&mut self, _slot: usize) {}

    fn proceed(&mut self, step: &Step<'_>, _rng: &mut Philox) -> bool {
        step.confidences.len() < step.limit && step.confidences.last().is_none_or(|&c| c >= self.confidence)
    }

    fn plan(&mut self, step: &Step<'_>, _draws: &dyn Fn(usize) -> Philox) -> Option<DraftPlan> {
        let rules = [Rule::STOP, Rule::GO].repeat(step.limit.saturating_sub(1));
        Some(DraftPlan { edges: vec![self.confidence], rules, ..DraftPlan::of_length(step.limit) })
    }

    fn observe(&mut self, _outcome: &Outcome<'_>) {}

    fn state(&self) -> Value {
        json!({ "threshold": self.confidence })
    }
}
