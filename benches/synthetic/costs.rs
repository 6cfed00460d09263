//! What a round should cost, from plain rounds and rounds that are timed apart from those that are predicted.

use eesd::control::Way;
use eesd::model::cost::DraftCosts;
use std::collections::BTreeMap;

/// What one round of one sequence did and took.
#[derive(Debug, Clone)]
pub struct Round {
    /// Drafts; verification has one row more.
    pub drafts: usize,
    /// Seconds of each draft step.
    pub draft_seconds: Vec<f64>,
    /// Seconds of verification and acceptance.
    pub verify_seconds: f64,
}

impl Round {
    /// Seconds of its passes.
    pub fn seconds(&self) -> f64 {
        self.draft_seconds.iter().sum::<f64>() + self.verify_seconds
    }
}

/// How often drafts of a round are accepted, the first, the second, …, where all before are: as the last one told where more
/// are made than are told.
fn tokens(acceptance: &[f64], drafts: usize) -> f64 {
    let of = |draft: usize| acceptance.get(draft).or(acceptance.last()).copied().unwrap_or(0.0);
    let survivals = (0..drafts).scan(1.0, |survival, draft| {
        *survival *= of(draft);
        Some(*survival)
    });
    1.0 + survivals.sum::<f64>()
}

/// Median seconds of draft steps, and of a verification by the drafts it verifies.
#[derive(Debug, Clone)]
pub struct Costs {
    /// Of the draft steps of a round.
    pub drafts: DraftCosts,
    verify: BTreeMap<usize, f64>,
}

impl Costs {
    /// The costs of these rounds, whose drafts after the first one were made so.
    pub fn of(rounds: &[&Round], later: Way) -> Self {
        let steps = |range: fn(&[f64]) -> &[f64]| -> Vec<f64> {
            rounds.iter().flat_map(|round| range(&round.draft_seconds).iter().copied()).collect()
        };
        let drafts = match later {
            Way::FirstLayers => DraftCosts::from(median(&steps(|all| all))),
            Way::Continued | Way::Recurrent => DraftCosts {
                first: median(&steps(|all| &all[..all.len().min(1)])),
                later: median(&steps(|all| &all[all.len().min(1)..])),
            },
        };
        let mut by_drafts: BTreeMap<usize, Vec<f64>> = BTreeMap::new();
        for round in rounds {
            by_drafts.entry(round.drafts).or_default().push(round.verify_seconds);
        }
        let verify = by_drafts.iter().map(|(&drafts, seconds)| (drafts, median(seconds))).collect();
        Self { drafts, verify }
    }

    /// Seconds of verifying so many drafts: as measured, on the line between its neighbours, or as
    /// the nearest one.
    pub fn verify(&self, drafts: usize) -> f64 {
        let below = self.verify.range(..=drafts).next_back();
        let above = self.verify.range(drafts..).next();
        match (below, above) {
            (Some((&d0, &s0)), Some((&d1, &s1))) if d1 > d0 => s0 + (s1 - s0) * (drafts - d0) as f64 / (d1 - d0) as f64,
            (Some((_, &seconds)), _) | (None, Some((_, &seconds))) => seconds,
            (None, None) => 0.0,
        }
    }

    /// Seconds of a round with so many drafts.
    pub fn round(&self, drafts: usize) -> f64 {
        self.drafts.sum(drafts) + self.verify(drafts)
    }

    /// Speed against plain decoding of rounds that all make `drafts` drafts, where the first, the second, … is accepted
    /// so often.
    pub fn speed_up(&self, acceptance: &[f64], drafts: usize) -> f64 {
        tokens(acceptance, drafts) * self.round(0) / self.round(drafts)
    }

    /// The number of drafts, up to `most`, with the greatest such speed-up.
    pub fn best_drafts(&self, acceptance: &[f64], most: usize) -> usize {
        let speed_up = |drafts: &usize| self.speed_up(acceptance, *drafts);
        (0..=most).max_by(|a, b| speed_up(a).total_cmp(&speed_up(b))).unwrap_or(0)
    }
}

/// The middle value; 0 of nothing.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(0.0)
}
