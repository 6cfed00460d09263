//! What a training run does: its length, learning rates, losses. Two runs with the same plan and data are the same run.

use super::error::DistillError;
use crate::backend::training::adamw::AdamStep;
use crate::backend::training::loss::LossOptions;
use serde::{Deserialize, Serialize};

/// Settings of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainPlan {
    /// Updates in all.
    pub steps: u64,
    /// Tokens that a text is cut to; positions in each piece begin at 0.
    pub window: usize,
    /// Most tokens of a batch.
    pub batch_tokens: usize,
    /// Batches for one update.
    pub accumulate: usize,
    /// Highest learning rate.
    pub rate: f64,
    /// The last one, as a fraction of the highest.
    pub last_rate: f64,
    /// Updates in which the rate rises to the highest.
    pub warmup: u64,
    /// AdamW's decays.
    pub betas: (f64, f64),
    /// Added to the root of AdamW's mean square.
    pub epsilon: f64,
    /// Weight decay of matrices.
    pub decay: f64,
    /// Largest norm of a gradient.
    pub clip: f64,
    /// Steps of a chain, for recurrent blocks; else 1.
    pub recurrent: usize,
    /// The block's input matrix begins as the ridge regression from the hidden states that it reads to the last ones.
    pub ridge: bool,
    /// The loss.
    pub loss: LossOptions,
    /// Positions to train at after which one counts half as much as the first one of its text, in whichever piece of it;
    /// `None`: all count alike.
    pub half_life: Option<f64>,
    /// Of the data's order.
    pub seed: u64,
}

impl Default for TrainPlan {
    fn default() -> Self {
        Self {
            steps: 1000,
            window: 256,
            batch_tokens: 2048,
            accumulate: 1,
            rate: 2e-3,
            last_rate: 0.05,
            warmup: 50,
            betas: (0.9, 0.99),
            epsilon: 1e-8,
            decay: 0.01,
            clip: 1.0,
            recurrent: 1,
            ridge: false,
            loss: LossOptions::default(),
            half_life: None,
            seed: 0,
        }
    }
}

impl TrainPlan {
    /// Refuses settings without a meaning.
    ///
    /// # Errors
    /// The first one: its name, value and what was expected.
    pub fn check(&self) -> Result<(), DistillError> {
        let positive = |x: f64| x > 0.0 && x.is_finite();
        let fraction = |x: f64| (0.0..=1.0).contains(&x);
        let weight = |x: f64| x >= 0.0 && x.is_finite();
        let LossOptions { soft, temperature, hard, variation } = self.loss;
        let checks: [(&'static str, f64, bool, &str); 13] = [
            ("accumulate", self.accumulate as f64, self.accumulate > 0, "1 or more"),
            ("recurrent", self.recurrent as f64, self.recurrent > 0, "1 step or more"),
            ("rate", self.rate, positive(self.rate), "a number above 0"),
            ("last rate", self.last_rate, fraction(self.last_rate), "0 to 1 of the highest"),
            ("beta 1", self.betas.0, (0.0..1.0).contains(&self.betas.0), "0 to below 1"),
            ("beta 2", self.betas.1, (0.0..1.0).contains(&self.betas.1), "0 to below 1"),
            ("weight decay", self.decay, weight(self.decay), "0 or more"),
            ("clip", self.clip, self.clip > 0.0, "a number above 0"),
            ("soft", soft, weight(soft), "0 or more"),
            ("hard", hard, weight(hard), "0 or more"),
            ("variation", variation, weight(variation), "0 or more"),
            ("temperature", temperature, positive(temperature), "a number above 0"),
            ("half-life", self.half_life.unwrap_or(1.0), positive(self.half_life.unwrap_or(1.0)), "a number above 0"),
        ];
        let wrong = checks
            .into_iter()
            .find(|(_, _, fine, _)| !fine)
            .map(|(option, found, _, expected)| (option, found, expected));
        let no_loss = (soft + hard + variation == 0.0).then_some(("soft", 0.0, "a loss with at least one term"));
        match wrong.or(no_loss) {
            None => Ok(()),
            Some((option, found, expected)) => {
                Err(DistillError::Option { option, found: found.to_string(), expected: expected.into() })
            }
        }
    }

    /// The learning rate of update `number`, from 1: a straight rise, then half a cosine.
    pub fn rate_of(&self, number: u64) -> f64 {
        if number <= self.warmup {
            return self.rate * number as f64 / self.warmup as f64;
        }
        let done = (number - self.warmup) as f64 / self.steps.saturating_sub(self.warmup).max(1) as f64;
        let cosine = (1.0 + (std::f64::consts::PI * done.min(1.0)).cos()) / 2.0;
        self.rate * (self.last_rate + (1.0 - self.last_rate) * cosine)
    }

    /// Update `number`, from 1.
    pub fn update(&self, number: u64) -> AdamStep {
        AdamStep {
            number,
            rate: self.rate_of(number),
            beta1: self.betas.0,
            beta2: self.betas.1,
            epsilon: self.epsilon,
            decay: self.decay,
            clip: self.clip,
        }
    }

    /// How much the `index`-th position of a text that counts, from 0, does.
    pub fn weight_of(&self, index: usize) -> f64 {
        self.half_life.map_or(1.0, |half_life| (-(index as f64) / half_life).exp2())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_rises_and_falls() {
        let plan = TrainPlan { steps: 110, warmup: 10, rate: 2.0, last_rate: 0.1, ..TrainPlan::default() };
        let near = |number, rate: f64| (plan.rate_of(number) - rate).abs() < 1e-12;
        assert!(near(1, 0.2) && near(10, 2.0) && near(60, 1.1) && near(110, 0.2) && near(500, 0.2));
        let cold = TrainPlan { warmup: 0, ..plan };
        assert!(cold.rate_of(1) > 1.9);
    }

    #[test]
    fn later_positions_may_count_less() {
        let plan = TrainPlan { half_life: Some(4.0), ..TrainPlan::default() };
        assert_eq!([plan.weight_of(0), plan.weight_of(4), plan.weight_of(8)], [1.0, 0.5, 0.25]);
        assert_eq!(TrainPlan::default().weight_of(1000), 1.0);
    }

    #[test]
    fn settings_without_a_meaning_are_named() {
        let plan = TrainPlan::default();
        plan.check().unwrap();
        let loss = |change: fn(&mut LossOptions)| {
            let mut loss = LossOptions::default();
            change(&mut loss);
            TrainPlan { loss, ..TrainPlan::default() }
        };
        for (name, wrong) in [
            ("rate", TrainPlan { rate: f64::NAN, ..plan.clone() }),
            ("accumulate", TrainPlan { accumulate: 0, ..plan.clone() }),
            ("beta 2", TrainPlan { betas: (0.9, 1.0), ..plan.clone() }),
            ("half-life", TrainPlan { half_life: Some(0.0), ..plan.clone() }),
            ("temperature", loss(|loss| loss.temperature = 0.0)),
            ("soft", loss(|loss| loss.soft = 0.0)),
            ("hard", loss(|loss| loss.hard = -1.0)),
        ] {
            let error = wrong.check().unwrap_err().to_string();
            assert!(error.starts_with(&format!("{name}: ")) && error.contains("expected"), "{error}");
        }
    }
}
