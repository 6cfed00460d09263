//! What rounds are worth that are left to the exit block, drafted or not: what a proposal has to be worth more than.

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
/// How far the worth of single rounds is thought to lie apart at first, in tokens.
const SPREAD: f64 = 1.0;

/// By slot, and over all sequences, what rounds without proposals gained over plain ones, in tokens.
#[derive(Debug, Clone, Default)]
pub struct Exits {
    usual: f64,
    sequences: BTreeMap<usize, Rounds>,
}

/// Sums of rounds, of what they gained, and of its squares.
#[derive(Debug, Clone, Copy, Default)]
struct Rounds {
    count: f64,
    gain: f64,
    square: f64,
}

impl Exits {
    /// A new sequence takes `slot`.
    pub fn start(&mut self, slot: usize) {
        self.sequences.remove(&slot);
    }

    /// A round without proposals gained so much: nothing, where nothing was drafted.
    pub fn observe(&mut self, slot: usize, gain: f64) {
        self.usual += RATE * (gain - self.usual);
        let Rounds { count, gain: sum, square } = self.sequences.entry(slot).or_default();
        (*count, *sum, *square) = (*count * DECAY + 1.0, *sum * DECAY + gain, *square * DECAY + gain * gain);
    }

    /// A draw of what the next one gains. Not less than nothing: how far is drafted, if at all, is another's choice.
    pub fn worth(&self, slot: usize, rng: &mut Philox) -> f64 {
        let Rounds { count, gain, square } = self.sequences.get(&slot).copied().unwrap_or_default();
        let strength = count + PRIOR;
        let mean = (gain + PRIOR * self.usual) / strength;
        let usual_square = SPREAD * SPREAD + self.usual * self.usual;
        let variance = (square + PRIOR * usual_square) / strength - mean * mean;
        let normal = rand_distr::Normal::new(mean, (variance.max(0.0) / strength).sqrt());
        normal.map_or(mean, |normal| normal.sample(rng)).max(0.0)
    }

    /// For people.
    pub fn state(&self) -> Value {
        json!(self.usual)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::Purpose;

    fn mean_worth(exits: &Exits, slot: usize) -> f64 {
        let draw = |round| exits.worth(slot, &mut Philox::new(7, round, Purpose::Controller, 0));
        (0..1000).map(draw).sum::<f64>() / 1000.0
    }

    /// A controller that drafts no more, because that does not pay, is no reason to refuse a proposal.
    #[test]
    fn rounds_that_are_not_drafted_are_worth_little() {
        let mut exits = Exits::default();
        (0..10).for_each(|_| exits.observe(0, -0.2));
        (0..60).for_each(|_| exits.observe(0, 0.0));
        assert!(mean_worth(&exits, 0) < 0.05, "{}", mean_worth(&exits, 0));
    }

    #[test]
    fn drafts_that_gain_are_worth_what_they_gain_and_a_new_sequence_is_uncertain() {
        let mut exits = Exits::default();
        (0..200).for_each(|round| exits.observe(0, if round % 2 == 0 { 2.0 } else { 0.0 }));
        assert!((mean_worth(&exits, 0) - 1.0).abs() < 0.1, "{}", mean_worth(&exits, 0));
        exits.start(0);
        let draws = (0..100).map(|round| exits.worth(0, &mut Philox::new(7, round, Purpose::Controller, 0)));
        assert!(draws.filter(|&worth| worth < 0.5).count() > 5, "what others gained is not certain of this one");
    }
}
