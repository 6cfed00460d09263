//! What a draft's confidence says: how likely it is accepted, and what confidence comes next.
//!
//! Confidences fall into bins. Per bin a decaying Beta posterior of acceptance is kept, shrunk towards
//! the rate over all bins, and a table of which bin follows which along an accepted draft. Both are
//! shared by all sequences: they are properties of the model, and the prior of every new sequence.

use super::Outcome;
use super::posterior::Counts;
use serde_json::{Value, json};

/// Number of confidence bins.
pub const BINS: usize = 8;
/// Upper edges of all bins but the last; finer where the confidences of a trained exit block crowd.
pub const EDGES: [f32; BINS - 1] = [0.2, 0.4, 0.6, 0.75, 0.87, 0.95, 0.99];
/// What a bin's counts are multiplied by per test in it: memory of 500 tests.
pub const BIN_DECAY: f64 = 0.998;
/// The same for the rate over all bins.
const POOLED_DECAY: f64 = 0.999;
/// Tests that the rate over all bins counts for in each bin.
const BIN_PRIOR: f64 = 6.0;
/// Before anything is known most drafts are expected to be accepted, so that drafting is tried.
const POOLED_PRIOR: (f64, f64) = (3.5, 1.5);
/// Transitions that the overall frequencies of bins count for in each row of the table.
const ROW_PRIOR: f64 = 8.0;

/// The bin of a confidence; NaN and anything below 0 is no confidence.
pub fn bin(confidence: f32) -> usize {
    EDGES.iter().take_while(|&&edge| confidence >= edge).count()
}

/// What comes before a draft, and so tells which confidence to expect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Before {
    /// The last round's correction: the draft begins where the last one failed.
    Correction,
    /// The last round's bonus token: the draft before was accepted whole.
    Bonus,
    /// A draft with a confidence in this bin.
    Bin(usize),
}

impl Before {
    const COUNT: usize = BINS + 2;

    fn row(self) -> usize {
        match self {
            Before::Correction => BINS,
            Before::Bonus => BINS + 1,
            Before::Bin(bin) => bin,
        }
    }
}

/// Acceptance by confidence, and confidence by what came before.
#[derive(Debug, Clone)]
pub struct Calibration {
    pooled: Counts,
    bins: [Counts; BINS],
    rates: [f64; BINS],
    next: [[f64; BINS]; Before::COUNT],
    transitions: [[f64; BINS]; Before::COUNT],
}

impl Default for Calibration {
    fn default() -> Self {
        let mut new = Self {
            pooled: Counts { successes: POOLED_PRIOR.0, failures: POOLED_PRIOR.1 },
            bins: [Counts::default(); BINS],
            rates: [0.0; BINS],
            next: [[1.0 / BINS as f64; BINS]; Before::COUNT],
            transitions: [[0.0; BINS]; Before::COUNT],
        };
        new.update_rates();
        new
    }
}

impl Calibration {
    /// Expected acceptance in each bin.
    pub fn rates(&self) -> &[f64; BINS] {
        &self.rates
    }

    /// Chance of each bin for the draft after `before`, given that all before it are accepted.
    pub fn next(&self, before: Before) -> &[f64; BINS] {
        &self.next[before.row()]
    }

    /// From the chances of an accepted draft to be in each bin, those of the draft after it.
    pub fn follow(&self, bins: &[f64; BINS]) -> [f64; BINS] {
        let mut following = [0.0; BINS];
        for (bin, chance) in bins.iter().enumerate() {
            following.iter_mut().zip(self.next(Before::Bin(bin))).for_each(|(to, share)| *to += chance * share);
        }
        following
    }

    /// Learns from a finished round whose draft began after `before`.
    pub fn observe(&mut self, before: Before, outcome: &Outcome<'_>) {
        let (accepted, refused) = outcome.tested();
        let mut before = before;
        for (i, &confidence) in outcome.confidences.iter().take(accepted + refused).enumerate() {
            let bin = bin(confidence);
            let success = f64::from(u8::from(i < accepted));
            for (counts, decay) in [(&mut self.bins[bin], BIN_DECAY), (&mut self.pooled, POOLED_DECAY)] {
                counts.decay(decay);
                counts.add(success, 1.0 - success);
            }
            self.observe_transition(before, bin);
            before = Before::Bin(bin);
        }
        if accepted + refused > 0 {
            self.update_rates();
        }
    }

    fn observe_transition(&mut self, before: Before, bin: usize) {
        let row = &mut self.transitions[before.row()];
        row.iter_mut().for_each(|count| *count *= BIN_DECAY);
        row[bin] += 1.0;
        let marginal = |bin: usize| self.bins[bin].total() + 1.0;
        let all: f64 = (0..BINS).map(marginal).sum();
        let row = &self.transitions[before.row()];
        let total: f64 = row.iter().sum::<f64>() + ROW_PRIOR;
        self.next[before.row()] = std::array::from_fn(|b| (row[b] + ROW_PRIOR * marginal(b) / all) / total);
    }

    fn update_rates(&mut self) {
        let pooled = self.pooled.posterior(0.5, 0.5).mean();
        for (rate, counts) in self.rates.iter_mut().zip(&self.bins) {
            *rate = counts.posterior(BIN_PRIOR * pooled, BIN_PRIOR * (1.0 - pooled)).mean();
        }
    }

    /// For people: rate and tests by bin, and the bins' upper edges.
    pub fn state(&self) -> Value {
        json!({
            "edges": EDGES,
            "rates": self.rates,
            "tests": self.bins.map(|counts| counts.total()),
            "pooled": self.pooled.posterior(0.5, 0.5).mean(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(confidences: &[f32], accepted: usize) -> Outcome<'_> {
        let (slot, batch, rows) = (0, 1, confidences.len() + 1);
        Outcome { slot, batch, rows, confidences, accepted, draft_seconds: &[], verify_seconds: 1.0 }
    }

    #[test]
    fn bins_cover_every_float() {
        assert_eq!([f32::NAN, f32::NEG_INFINITY, -1.0, 0.0, 0.19].map(bin), [0; 5]);
        assert_eq!([0.2, 0.5, 0.7, 0.8, 0.9, 0.98, 1.0, f32::INFINITY].map(bin), [1, 2, 3, 4, 5, 6, 7, 7]);
    }

    #[test]
    fn drafts_after_a_refused_one_are_not_observed() {
        let mut calibration = Calibration::default();
        calibration.observe(Before::Correction, &outcome(&[0.1, 0.3, 0.5, 0.7], 1));
        let tests: Vec<f64> = calibration.bins.iter().map(Counts::total).collect();
        assert_eq!(tests, [1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
        assert_eq!(calibration.bins[0].successes, 1.0);
        assert_eq!(calibration.bins[1].failures, 1.0);
    }

    #[test]
    fn rates_and_transitions_are_learned() {
        let mut calibration = Calibration::default();
        for _ in 0..2000 {
            calibration.observe(Before::Bonus, &outcome(&[0.999, 0.1], 1));
        }
        assert!(calibration.rates()[7] > 0.95 && calibration.rates()[0] < 0.05, "{:?}", calibration.rates());
        assert!(calibration.next(Before::Bonus)[7] > 0.95);
        assert!(calibration.next(Before::Bin(7))[0] > 0.95);
        let sum: f64 = calibration.next(Before::Bin(7)).iter().sum();
        assert!((sum - 1.0).abs() < 1e-12);
    }
}
