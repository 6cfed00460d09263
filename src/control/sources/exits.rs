//! What the exit block's drafts are worth, as rounds show it: what a proposal has to be worth more than.

use crate::sample::Philox;
use rand_distr::Distribution;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// What the rounds of a sequence are multiplied by for each further one.
const DECAY: f64 = 0.95;
/// Rounds that the usual worth counts for in a sequence's own.
const PRIOR: f64 = 4.0;
/// How much a round counts for the usual worth.
const RATE: f64 = 1.0 / 64.0;
/// How far the worth of single rounds lies apart, in tokens.
const SPREAD: f64 = 1.0;

/// By slot, and over all sequences, what drafted rounds gained over plain ones, in tokens.
#[derive(Debug, Clone, Default)]
pub struct Exits {
    usual: f64,
    /// Sums of rounds and of what they gained.
    sequences: BTreeMap<usize, (f64, f64)>,
}

impl Exits {
    /// A new sequence takes `slot`.
    pub fn start(&mut self, slot: usize) {
        self.sequences.remove(&slot);
    }

    /// A drafted round gained so much.
    pub fn observe(&mut self, slot: usize, gain: f64) {
        self.usual += RATE * (gain - self.usual);
        let (rounds, sum) = self.sequences.entry(slot).or_default();
        (*rounds, *sum) = (*rounds * DECAY + 1.0, *sum * DECAY + gain);
    }

    /// A draw of what the next one gains. Not less than nothing: how far is drafted, if at all, is another's choice.
    pub fn worth(&self, slot: usize, rng: &mut Philox) -> f64 {
        let (rounds, sum) = self.sequences.get(&slot).copied().unwrap_or_default();
        let strength = rounds + PRIOR;
        let mean = (sum + PRIOR * self.usual) / strength;
        let normal = rand_distr::Normal::new(mean, SPREAD / strength.sqrt());
        normal.map_or(mean, |normal| normal.sample(rng)).max(0.0)
    }

    /// For people.
    pub fn state(&self) -> Value {
        json!(self.usual)
    }
}
