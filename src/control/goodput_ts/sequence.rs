//! What is believed of one sequence's drafts.

use crate::control::Outcome;
use crate::control::calibration::{BIN_DECAY, BINS, Before, Calibration, bin};
use crate::control::posterior::{Beta, Level};
use crate::sample::Philox;

/// Tests that a draw of θ rests on at least.
const LEAST_STRENGTH: f64 = 8.0;

/// Tests of a new sequence that tell how new ones do.
const NEW_TESTS: usize = 8;
/// Rounds without a draft after which a sequence is as good as new.
const NEW_AFTER: u32 = 16;

/// What the tokens and rounds of a sequence's pace are multiplied by per round, and rounds that the usual pace counts for.
const PACE_DECAY: f64 = 0.98;
const PACE_PRIOR: f64 = 8.0;

/// What is known about one sequence.
#[derive(Debug, Clone)]
pub struct Sequence {
    /// How its acceptance stood to what is expected of confidences when it drafted last.
    pub level: Level,
    /// What its next draft comes after.
    pub before: Before,
    /// Rounds since the last one that drafted.
    pub undrafted: u32,
    /// Tests since it was new.
    tests: usize,
    /// Tokens and rounds of this sequence, old ones counting for less.
    tokens: f64,
    rounds: f64,
    /// Its draft of the round in progress.
    draft: Option<Draft>,
}

/// A draft in progress, supposing that all of it will be accepted.
#[derive(Debug, Clone)]
pub struct Draft {
    pub level: Level,
    pub before: Before,
    /// Chance that all drafts so far are accepted.
    pub survival: f64,
    pub drafts: usize,
}

/// The chances that further drafts are accepted with all before them, one after the other, as far as can be told
/// before their confidences are known.
#[derive(Debug, Clone)]
pub struct Outlook {
    /// Chances of the draft to come to be in each bin, with all before it accepted.
    bins: [f64; BINS],
    /// Chances to be accepted in each bin.
    chances: [f64; BINS],
}

impl Sequence {
    /// A new one, which trusts the decays that others found right, and is supposed to do as new ones usually do.
    pub fn new(trusted: &Level, usual: &Level) -> Self {
        let (level, before) = (trusted.fresh(hoped_odds(usual)), Before::Correction);
        Self { level, before, undrafted: 0, tests: 0, tokens: 0.0, rounds: 0.0, draft: None }
    }

    /// A round that begins.
    pub fn begin(&self) -> Draft {
        let mut level = self.level.clone();
        level.idle(self.undrafted);
        Draft { level, before: self.before, survival: 1.0, drafts: 0 }
    }

    /// The draft in progress, which has these confidences; none begins a round.
    pub fn draft(&mut self, confidences: &[f32], calibration: &Calibration) -> &Draft {
        let begun = self.draft.take().filter(|_| !confidences.is_empty());
        let mut draft = begun.unwrap_or_else(|| self.begin());
        draft.follow(confidences, calibration);
        self.draft.insert(draft)
    }

    /// The draft that [`draft`](Self::draft) left, if a round is in progress.
    pub fn drafting(&self) -> Option<&Draft> {
        self.draft.as_ref()
    }

    /// Tokens that it makes in a round, where one of which nothing is known makes `usual`.
    pub fn pace(&self, usual: f64) -> f64 {
        (self.tokens + PACE_PRIOR * usual) / (self.rounds + PACE_PRIOR)
    }

    /// Learns from its finished round, and teaches `calibration`, and while it is new `usual`: how new sequences do. The
    /// other tests teach calibration alone, to which `usual` then stands in another way.
    pub fn observe(&mut self, outcome: &Outcome<'_>, calibration: &mut Calibration, usual: &mut Level) {
        self.draft = None;
        let (accepted, refused) = outcome.tested();
        self.tokens = self.tokens * PACE_DECAY + (accepted + 1) as f64;
        self.rounds = self.rounds * PACE_DECAY + 1.0;
        if outcome.confidences.is_empty() {
            self.undrafted = self.undrafted.saturating_add(1);
            if self.undrafted >= NEW_AFTER {
                self.tests = 0;
                self.level.rebase(hoped_odds(usual));
            }
            return;
        }
        self.level.idle(std::mem::take(&mut self.undrafted));
        for (i, &confidence) in outcome.confidences.iter().take(accepted + refused).enumerate() {
            let expected = calibration.rates()[bin(confidence)];
            self.level.observe(expected, i < accepted);
            if self.tests < NEW_TESTS {
                self.tests += 1;
                usual.observe(expected, i < accepted);
            } else {
                usual.fade(BIN_DECAY);
            }
        }
        calibration.observe(self.before, outcome);
        self.before = if refused > 0 { Before::Correction } else { Before::Bonus };
    }
}

impl Draft {
    /// Takes in the confidences of the drafts made so far.
    fn follow(&mut self, confidences: &[f32], calibration: &Calibration) {
        for &confidence in confidences.iter().skip(self.drafts) {
            let bin = bin(confidence);
            let expected = calibration.rates()[bin];
            self.survival *= self.level.predict(expected);
            self.level.suppose_accepted(expected);
            self.before = Before::Bin(bin);
            self.drafts += 1;
        }
    }

    /// A draw of the next draft's chance to be accepted, or its mean where that is more. Drafting tells whether a chance was
    /// overrated; not drafting tells nothing.
    pub fn hoped_theta(&self, calibration: &Calibration, rng: &mut Philox) -> f64 {
        self.theta(calibration, rng).max(mean(self.before, &self.level, calibration))
    }

    /// A draw of the next draft's chance to be accepted.
    pub fn theta(&self, calibration: &Calibration, rng: &mut Philox) -> f64 {
        theta(self.before, &self.level, calibration, rng)
    }

    /// The chances of the drafts to come, from here on.
    pub fn outlook(&self, calibration: &Calibration) -> Outlook {
        Outlook { bins: *calibration.next(self.before), chances: chances(&self.level, calibration) }
    }
}

impl Outlook {
    /// The same with a draw for the next draft's chance in place of its mean, and times the chance that all of `draft`,
    /// from which it looks on, is kept.
    pub fn sampled(self, draft: &Draft, rng: &mut Philox) -> Self {
        let mean: f64 = self.bins.iter().zip(self.chances).map(|(bin, chance)| bin * chance).sum();
        self.times(draft.survival * sample(mean, &draft.level, rng) / mean.max(f64::MIN_POSITIVE))
    }

    /// All chances to come, times a factor.
    pub fn times(mut self, factor: f64) -> Self {
        self.bins.iter_mut().for_each(|bin| *bin *= factor);
        self
    }

    /// The chance of the next draft.
    pub fn next(&mut self, calibration: &Calibration) -> f64 {
        self.bins.iter_mut().zip(self.chances).for_each(|(bin, chance)| *bin *= chance);
        let survival = self.bins.iter().sum();
        self.bins = calibration.follow(&self.bins);
        survival
    }
}

/// The odds ratio that a new sequence is supposed to be at, of how new ones do lately. That it does worse than is expected of
/// its confidences it has to show itself: after a few unlucky drafts, which stop drafting, nothing else would tell.
fn hoped_odds(usual: &Level) -> f64 {
    usual.odds().max(1.0)
}

/// A draw of the chance that a draft after `before` is accepted; its mean is taken over the bins that may come.
pub fn theta(before: Before, level: &Level, calibration: &Calibration, rng: &mut Philox) -> f64 {
    sample(mean(before, level, calibration), level, rng)
}

fn mean(before: Before, level: &Level, calibration: &Calibration) -> f64 {
    calibration.next(before).iter().zip(chances(level, calibration)).map(|(bin, chance)| bin * chance).sum()
}

fn sample(mean: f64, level: &Level, rng: &mut Philox) -> f64 {
    Beta::with_mean(mean, level.tests() + LEAST_STRENGTH).sample(rng)
}

/// The chance of a draft in each bin to be accepted, at this level.
pub fn chances(level: &Level, calibration: &Calibration) -> [f64; BINS] {
    calibration.rates().map(|rate| level.predict(rate))
}
