//! What a round should cost, from rounds timed apart from those that are predicted.

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

/// Median seconds of a draft step, and of a verification by the drafts it verifies.
#[derive(Debug, Clone)]
pub struct Costs {
    /// A draft step.
    pub draft: f64,
    verify: BTreeMap<usize, f64>,
}

impl Costs {
    /// The costs of these rounds.
    pub fn of(rounds: &[Round]) -> Self {
        let steps: Vec<f64> = rounds.iter().flat_map(|round| round.draft_seconds.iter().copied()).collect();
        let mut by_drafts: BTreeMap<usize, Vec<f64>> = BTreeMap::new();
        for round in rounds {
            by_drafts.entry(round.drafts).or_default().push(round.verify_seconds);
        }
        let verify = by_drafts.iter().map(|(&drafts, seconds)| (drafts, median(seconds))).collect();
        Self { draft: median(&steps), verify }
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
        self.draft * drafts as f64 + self.verify(drafts)
    }

    /// Speed against plain decoding of rounds that all make `drafts` drafts, where each is accepted
    /// with the same chance.
    pub fn speed_up(&self, acceptance: f64, drafts: usize) -> f64 {
        let tokens: f64 = (0..=drafts).map(|accepted| acceptance.powi(accepted as i32)).sum();
        tokens * self.round(0) / self.round(drafts)
    }

    /// The number of drafts, up to `most`, with the greatest such speed-up.
    pub fn best_drafts(&self, acceptance: f64, most: usize) -> usize {
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
