//! `calibration-ts`: EESD's second variant, which listens to the draft's own confidence.
//!
//! The paper's formula is not at hand; this is ours: the expected acceptance of a draft mixes its
//! calibrated confidence with the sequence's acceptance rate,
//! `μ = w·σ(s·logit(c) + b) + (1 - w)·α/(α + β)`, θ is drawn from `Beta(κμ, κ(1 - μ))`, and a coin
//! with chance θ decides. `s` and `b` are learned by online logistic regression on tested positions.

use super::posterior::{Beta, Counts};
use super::{Controller, ControllerSpec, Outcome, Step};
use crate::sample::Philox;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Step of the logistic regression; it follows a changed calibration within some hundred positions.
const LEARNING_RATE: f64 = 0.02;

/// A calibration shared by all sequences, and one Beta posterior per sequence.
#[derive(Debug, Clone)]
pub struct CalibrationTs {
    /// `w`: how much the confidence counts against the sequence's rate, `0..=1`.
    weight: f64,
    /// `κ`: pseudo-counts of the Beta that θ is drawn from.
    strength: f64,
    /// What the sequence's counts are multiplied by after each round.
    decay: f64,
    scale: f64,
    bias: f64,
    slots: BTreeMap<usize, Counts>,
}

impl CalibrationTs {
    /// A controller that trusts confidences as they are until it has learned otherwise.
    pub fn new(weight: f64, strength: f64, decay: f64) -> Self {
        Self { weight, strength, decay, scale: 1.0, bias: 0.0, slots: BTreeMap::new() }
    }

    fn calibrated(&self, confidence: f32) -> f64 {
        1.0 / (1.0 + (-(self.scale * logit(confidence) + self.bias)).exp())
    }

    fn learn(&mut self, confidence: f32, accepted: bool) {
        let step = LEARNING_RATE * (f64::from(accepted) - self.calibrated(confidence));
        self.scale = (self.scale + step * logit(confidence)).clamp(0.0, 4.0);
        self.bias = (self.bias + step).clamp(-8.0, 8.0);
    }
}

/// Log-odds of a confidence, kept finite; NaN counts as no confidence at all.
fn logit(confidence: f32) -> f64 {
    let c = f64::from(confidence.max(0.0)).clamp(1e-3, 1.0 - 1e-3);
    (c / (1.0 - c)).ln()
}

impl Controller for CalibrationTs {
    fn spec(&self) -> String {
        let Self { weight, strength, decay, .. } = *self;
        ControllerSpec::CalibrationTs { weight, strength, decay }.to_string()
    }

    fn start(&mut self, slot: usize) {
        self.slots.remove(&slot);
    }

    fn proceed(&mut self, step: &Step<'_>, rng: &mut Philox) -> bool {
        if step.confidences.len() >= step.limit {
            return false;
        }
        let Some(&confidence) = step.confidences.last() else { return true };
        let rate = self.slots.get(&step.slot).copied().unwrap_or_default().posterior(1.0, 1.0).mean();
        let mean = self.weight * self.calibrated(confidence) + (1.0 - self.weight) * rate;
        let theta = Beta::with_mean(mean, self.strength).sample(rng);
        rng.uniform() < theta
    }

    fn observe(&mut self, outcome: &Outcome<'_>) {
        let (accepted, refused) = outcome.tested();
        for (i, &confidence) in outcome.confidences.iter().take(accepted + refused).enumerate() {
            self.learn(confidence, i < accepted);
        }
        if accepted + refused > 0 {
            let counts = self.slots.entry(outcome.slot).or_default();
            counts.decay(self.decay);
            counts.add(accepted as f64, refused as f64);
        }
    }

    fn state(&self) -> Value {
        let slot = |(slot, counts): (&usize, &Counts)| (slot.to_string(), json!(counts.posterior(1.0, 1.0).mean()));
        json!({
            "scale": self.scale,
            "bias": self.bias,
            "rate": self.slots.iter().map(slot).collect::<serde_json::Map<_, _>>(),
        })
    }
}
