//! Beliefs about acceptance: decaying Beta counts, and a level tracked at several decays at once.

use crate::sample::Philox;
use rand_distr::Distribution;

/// A Beta distribution by its two parameters, both positive.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Beta {
    /// Successes, prior pseudo-counts included.
    pub successes: f64,
    /// Failures, prior pseudo-counts included.
    pub failures: f64,
}

impl Beta {
    /// The Beta of the given mean and strength (sum of both parameters).
    pub fn with_mean(mean: f64, strength: f64) -> Self {
        Self { successes: mean * strength, failures: (1.0 - mean) * strength }
    }

    /// Its mean.
    pub fn mean(&self) -> f64 {
        self.successes / (self.successes + self.failures)
    }

    /// A draw; the mean where the parameters are too extreme for one.
    pub fn sample(&self, rng: &mut Philox) -> f64 {
        // Below this both shapes put all mass on 0 and 1, and the sampler's powers underflow.
        let floor = 1e-3;
        rand_distr::Beta::new(self.successes.max(floor), self.failures.max(floor))
            .map(|beta| beta.sample(rng))
            .ok()
            .filter(|theta| theta.is_finite())
            .unwrap_or_else(|| self.mean())
    }
}

/// Decaying counts of successes and failures.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Counts {
    /// Decayed number of successes.
    pub successes: f64,
    /// Decayed number of failures.
    pub failures: f64,
}

impl Counts {
    /// Forgets: multiplies both counts by `decay`.
    pub fn decay(&mut self, decay: f64) {
        self.successes *= decay;
        self.failures *= decay;
    }

    /// Adds observations.
    pub fn add(&mut self, successes: f64, failures: f64) {
        self.successes += successes;
        self.failures += failures;
    }

    /// Decayed number of observations.
    pub fn total(&self) -> f64 {
        self.successes + self.failures
    }

    /// The posterior under a `Beta(successes, failures)` prior.
    pub fn posterior(&self, successes: f64, failures: f64) -> Beta {
        Beta { successes: self.successes + successes, failures: self.failures + failures }
    }
}

/// How a sequence's acceptance stands to what is expected of its confidences.
///
/// Whatever a draft's expected acceptance `p` is, a sequence (or a passage of it) may do better or
/// worse. Each *expert* tracks that as an odds ratio ω, from decayed counts of successes observed
/// and of successes expected, with its own decay; the expert's prediction is the `p'` whose odds are
/// ω times those of `p`. The experts are weighted by how well each predicted (dynamic model averaging,
/// Raftery et al., Technometrics 2010), so the data choose how fast to forget.
#[derive(Debug, Clone, PartialEq)]
pub struct Level {
    /// The odds ratio that all experts start from.
    base: f64,
    experts: Vec<Expert>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Expert {
    decay: f64,
    /// Tests that the odds ratio's prior, ω = 1, counts for.
    prior: f64,
    tests: f64,
    successes: f64,
    expected: f64,
    /// ω.
    odds: f64,
    /// Share of the mixture; all sum to 1.
    weight: f64,
}

/// Tests that the odds ratio's prior counts for.
const PRIOR_TESTS: f64 = 2.0;
/// The same for an expert that takes all sequences for alike.
const ALIKE_TESTS: f64 = 64.0;
/// What is known counts for at most this much less after a round with nothing tested. It may be wrong, and the reason that
/// nothing is.
const IDLE_DECAY: f64 = 0.995;
/// Share of all trust that is dealt out evenly after each test, so that an expert can come back (the
/// fixed share of Herbster and Warmuth, Machine Learning 1998).
const SHARED_TRUST: f64 = 0.001;

impl Level {
    /// Experts with the given decays per test, all equally trusted.
    pub fn new(decays: &[f64]) -> Self {
        let weight = 1.0 / decays.len() as f64;
        let (prior, odds) = (PRIOR_TESTS, 1.0);
        let expert = |&decay| Expert { decay, prior, tests: 0.0, successes: 0.0, expected: 0.0, odds, weight };
        Self { base: 1.0, experts: decays.iter().map(expert).collect() }
    }

    /// One more expert, which forgets nothing and hardly believes that a sequence is any different from what is expected.
    pub fn and_alike(mut self) -> Self {
        let weight = 1.0 / (self.experts.len() + 1) as f64;
        self.experts.extend(self.experts.first().copied().map(|e| Expert { decay: 1.0, prior: ALIKE_TESTS, ..e }));
        self.experts.iter_mut().for_each(|e| e.weight = weight);
        self
    }

    /// A fresh level for a new sequence, which is supposed to be at this odds ratio: the same trust in the experts, no
    /// counts.
    pub fn fresh(&self, odds: f64) -> Self {
        let expert = |e: &Expert| Expert { tests: 0.0, successes: 0.0, expected: 0.0, odds: 1.0, ..*e };
        Self { base: odds, experts: self.experts.iter().map(expert).collect() }
    }

    /// Starts from another odds ratio; what was learned stands to it as to the old one.
    pub fn rebase(&mut self, odds: f64) {
        self.base = odds;
    }

    /// The odds ratio that drafts are predicted at, as far as one number tells.
    pub fn odds(&self) -> f64 {
        let even = self.predict(0.5);
        even / (1.0 - even)
    }

    /// The chance that a draft is accepted of which `p` is expected.
    pub fn predict(&self, p: f64) -> f64 {
        let p = tilt(self.base, p);
        self.experts.iter().map(|e| e.weight * e.predict(p)).sum()
    }

    /// Tests behind the prediction: the mixture's mean memory.
    pub fn tests(&self) -> f64 {
        self.experts.iter().map(|e| e.weight * (e.tests + e.prior - PRIOR_TESTS)).sum()
    }

    /// Learns from a draft of which `p` was expected.
    pub fn observe(&mut self, p: f64, accepted: bool) {
        self.update(p, accepted);
        let even = SHARED_TRUST / self.experts.len() as f64;
        self.experts.iter_mut().for_each(|e| e.weight = even + (1.0 - SHARED_TRUST) * e.weight);
    }

    /// Supposes that a draft was accepted, to look further down the same draft.
    pub fn suppose_accepted(&mut self, p: f64) {
        self.update(p, true);
    }

    /// Bayes' rule over the experts, each of which learns too.
    fn update(&mut self, p: f64, accepted: bool) {
        let p = tilt(self.base, p);
        let mut total = f64::MIN_POSITIVE;
        for e in &mut self.experts {
            let predicted = e.predict(p);
            e.weight *= if accepted { predicted } else { 1.0 - predicted };
            total += e.weight;
            e.observe(p, accepted);
        }
        self.experts.iter_mut().for_each(|e| e.weight /= total);
    }

    /// Rounds passed with nothing tested: what was known grows old.
    pub fn idle(&mut self, rounds: u32) {
        self.experts
            .iter_mut()
            .filter(|_| rounds > 0)
            .for_each(|e| e.fade(e.decay.min(IDLE_DECAY).powf(f64::from(rounds))));
    }

    /// What was known counts for this much less.
    pub fn fade(&mut self, factor: f64) {
        self.experts.iter_mut().for_each(|e| e.fade(factor));
    }

    /// `(decay, weight, odds ratio)` of every expert.
    pub fn experts(&self) -> impl Iterator<Item = (f64, f64, f64)> {
        self.experts.iter().map(|e| (e.decay, e.weight, e.odds))
    }
}

/// The chance whose odds are `odds` times those of `p`.
fn tilt(odds: f64, p: f64) -> f64 {
    odds * p / (odds * p + 1.0 - p)
}

impl Expert {
    fn predict(&self, p: f64) -> f64 {
        tilt(self.odds, p)
    }

    fn observe(&mut self, p: f64, accepted: bool) {
        self.tests = self.tests * self.decay + 1.0;
        self.successes = self.successes * self.decay + f64::from(u8::from(accepted));
        self.expected = self.expected * self.decay + p;
        self.update_odds();
    }

    fn fade(&mut self, factor: f64) {
        self.tests *= factor;
        self.successes *= factor;
        self.expected *= factor;
        self.update_odds();
    }

    fn update_odds(&mut self) {
        let prior = self.prior / 2.0;
        let seen = (self.successes + prior) / (self.tests - self.successes + prior);
        let expected = (self.expected + prior) / (self.tests - self.expected + prior);
        self.odds = seen / expected;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::Purpose;

    #[test]
    fn counts_decay_and_add() {
        let mut counts = Counts::default();
        counts.add(3.0, 1.0);
        counts.decay(0.5);
        counts.add(1.0, 0.0);
        assert_eq!(counts, Counts { successes: 2.5, failures: 0.5 });
        assert_eq!(counts.posterior(1.0, 1.0), Beta { successes: 3.5, failures: 1.5 });
    }

    #[test]
    fn draws_have_the_mean_and_variance_of_the_beta() {
        let beta = Beta::with_mean(0.7, 10.0);
        let draw = |i| beta.sample(&mut Philox::new(1, i, Purpose::Controller, 0));
        let draws: Vec<f64> = (0..20_000).map(draw).collect();
        let mean = draws.iter().sum::<f64>() / draws.len() as f64;
        let variance = draws.iter().map(|d| (d - mean).powi(2)).sum::<f64>() / draws.len() as f64;
        assert!((mean - 0.7).abs() < 0.005, "{mean}");
        assert!((variance - 0.7 * 0.3 / 11.0).abs() < 0.001, "{variance}");
    }

    #[test]
    fn extreme_betas_still_draw_chances() {
        for (mean, strength) in [(0.0, 5.0), (1.0, 5.0), (0.5, 0.0), (0.5, 1e300), (f64::NAN, 1.0), (1e-12, 1e6)] {
            let theta = Beta::with_mean(mean, strength).sample(&mut Philox::new(2, 0, Purpose::Controller, 0));
            assert!(mean.is_nan() || (0.0..=1.0).contains(&theta), "{mean} {strength}: {theta}");
        }
    }

    /// A level that halves the odds is found, and then expected of other confidences too.
    #[test]
    fn level_finds_the_odds_ratio() {
        let mut level = Level::new(&[0.9, 1.0]);
        for i in 0..3000 {
            level.observe(0.8, i % 3 != 0);
        }
        assert!((level.predict(0.8) - 2.0 / 3.0).abs() < 0.05, "{}", level.predict(0.8));
        assert!((level.predict(0.5) - 1.0 / 3.0).abs() < 0.05, "{}", level.predict(0.5));
    }

    #[test]
    fn level_trusts_short_memories_after_a_jump_and_long_ones_in_peace() {
        let weight = |level: &Level, decay| level.experts().find(|e| e.0 == decay).map(|e| e.1).unwrap();
        let mut level = Level::new(&[0.75, 1.0]);
        let mut random = Philox::new(3, 0, Purpose::Controller, 0);
        (0..1000).for_each(|_| level.observe(0.8, random.uniform() < 0.8));
        assert!(weight(&level, 1.0) > 0.75, "{level:?}");
        (0..20).for_each(|_| level.observe(0.8, false));
        assert!(weight(&level, 0.75) > 0.75, "{level:?}");
    }

    #[test]
    fn a_fresh_level_starts_from_its_odds_and_learns_as_any() {
        let half = Level::new(&[0.9, 1.0]).fresh(0.5);
        assert!((half.odds() - 0.5).abs() < 1e-12 && (half.predict(0.8) - 2.0 / 3.0).abs() < 1e-12, "{half:?}");
        let mut level = half;
        (0..3000).for_each(|i| level.observe(0.8, i % 5 != 0));
        assert!((level.predict(0.8) - 0.8).abs() < 0.05, "{}", level.predict(0.8));
        level.rebase(1.0);
        assert!(level.predict(0.8) > 0.85, "what it learned stands to the new odds: {}", level.predict(0.8));
    }

    /// Of sequences that are alike a few unlucky drafts tell nothing; of sequences that differ they tell much.
    #[test]
    fn whether_sequences_are_alike_is_learned() {
        let after_bad_luck = |chance: fn(usize) -> f64| {
            let mut level = Level::new(&[0.9, 1.0]).and_alike();
            let mut random = Philox::new(4, 0, Purpose::Controller, 0);
            for sequence in 0..200 {
                level = level.fresh(1.0);
                (0..40).for_each(|_| level.observe(0.5, random.uniform() < chance(sequence)));
            }
            level = level.fresh(1.0);
            (0..4).for_each(|_| level.observe(0.5, false));
            level.predict(0.5)
        };
        let (alike, different) = (after_bad_luck(|_| 0.5), after_bad_luck(|sequence| [0.1, 0.9][sequence % 2]));
        assert!(alike > 0.4 && different < 0.3, "{alike} {different}");
    }

    /// What says that drafting does not pay has to grow old where nothing is drafted for it.
    #[test]
    fn no_memory_lasts_for_ever_without_tests() {
        let mut level = Level::new(&[1.0]).and_alike();
        (0..5000).for_each(|_| level.observe(0.8, false));
        assert!(level.predict(0.8) < 0.05, "{}", level.predict(0.8));
        level.idle(3000);
        assert!((level.predict(0.8) - 0.8).abs() < 0.05, "{}", level.predict(0.8));
    }
}
