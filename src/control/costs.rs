//! What draft steps and rounds cost, measured as they happen, per batch size.
//!
//! The cost of one more draft is a median of recent draft steps. The cost of a round without its
//! draft steps is an affine function of the rows it verifies per sequence, fitted through the medians
//! of recent rounds with each number of rows. Medians, because a page fault, a preemption or another
//! program's burst makes single times many times too long.

use super::Outcome;
use std::collections::{BTreeMap, VecDeque};

/// Measured costs, by the number of sequences in the batch.
#[derive(Debug, Clone, Default)]
pub struct Costs {
    batches: BTreeMap<usize, BatchCosts>,
}

/// What one sequence's round costs in a batch of a certain size, in seconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RoundCosts {
    /// A round that drafts nothing.
    pub plain: f64,
    /// Each draft: one draft step and one more row per sequence to verify.
    pub draft: f64,
}

impl RoundCosts {
    /// Seconds of a round with `drafts` drafts.
    pub fn round(&self, drafts: usize) -> f64 {
        self.plain + self.draft * drafts as f64
    }
}

#[derive(Debug, Clone, Default)]
struct BatchCosts {
    draft: Recent<31>,
    /// Rounds by rows verified per sequence.
    verify: BTreeMap<usize, Rounds>,
}

/// Rounds that verified the same number of rows.
#[derive(Debug, Clone, Default)]
struct Rounds {
    seconds: Recent<15>,
    /// 1 when measured last round, decaying since.
    freshness: f64,
}

/// What [`Rounds::freshness`] is multiplied by per round.
const FRESHNESS_DECAY: f64 = 0.997;
/// Kept numbers of rows per sequence; longer drafts count as this long.
const MAX_ROWS: usize = 64;

impl Costs {
    /// Learns from a finished round's times; times that are no times are ignored.
    pub fn observe(&mut self, outcome: &Outcome<'_>) {
        let batch = outcome.batch.max(1);
        let rows = (outcome.rows as f64 / batch as f64).round().clamp(1.0, MAX_ROWS as f64) as usize;
        let costs = self.batches.entry(batch).or_default();
        costs.draft.extend(outcome.draft_seconds);
        costs.verify.values_mut().for_each(|rounds| rounds.freshness *= FRESHNESS_DECAY);
        let rounds = costs.verify.entry(rows).or_default();
        rounds.freshness = 1.0;
        rounds.seconds.extend(&[outcome.verify_seconds]);
    }

    /// Costs in a batch of this size, or of the nearest size measured; `None` before a draft step and
    /// a verification have been measured.
    pub fn round(&self, batch: usize) -> Option<RoundCosts> {
        let known = |(&size, costs): (&usize, &BatchCosts)| costs.round().map(|round| (size, round));
        let below = self.batches.range(..=batch).rev().find_map(known);
        let above = self.batches.range(batch.saturating_add(1)..).find_map(known);
        let nearest = match (below, above) {
            (Some(b), Some(a)) => Some(if batch - b.0 <= a.0 - batch { b } else { a }),
            (b, a) => b.or(a),
        };
        nearest.map(|(_, costs)| costs)
    }

    /// How recently a plain round was measured in a batch of this size: 1 is just now, 0 never.
    pub fn plain_freshness(&self, batch: usize) -> f64 {
        self.batches.get(&batch).and_then(|costs| costs.verify.get(&1)).map_or(0.0, |rounds| rounds.freshness)
    }

    /// The costs of every batch size, for people.
    pub fn all(&self) -> impl Iterator<Item = (usize, RoundCosts)> {
        self.batches.iter().filter_map(|(&batch, costs)| Some((batch, costs.round()?)))
    }
}

impl BatchCosts {
    fn round(&self) -> Option<RoundCosts> {
        let step = self.draft.median()?;
        let (mut weight, mut rows, mut seconds) = (0.0, 0.0, 0.0);
        let points = || self.verify.iter().filter_map(|(&r, v)| Some((v.freshness, r as f64, v.seconds.median()?)));
        for (w, r, s) in points() {
            weight += w;
            rows += w * r;
            seconds += w * s;
        }
        if weight <= 0.0 {
            return None;
        }
        let (rows, seconds) = (rows / weight, seconds / weight);
        let (mut covariance, mut variance) = (0.0, 0.0);
        for (w, r, s) in points() {
            covariance += w * (r - rows) * (s - seconds);
            variance += w * (r - rows) * (r - rows);
        }
        // More rows never cost less, and a plain round never costs nothing.
        let per_row = if variance > 0.0 { (covariance / variance).max(0.0) } else { 0.0 };
        let plain = (seconds - per_row * (rows - 1.0)).max(seconds * 0.05);
        Some(RoundCosts { plain, draft: step + per_row })
    }
}

/// The median of the last `N` times.
#[derive(Debug, Clone, Default)]
struct Recent<const N: usize> {
    seconds: VecDeque<f64>,
    median: Option<f64>,
}

impl<const N: usize> Recent<N> {
    fn extend(&mut self, seconds: &[f64]) {
        // Zero or absurd times would make ratios of costs meaningless.
        let valid = seconds.iter().filter(|s| s.is_finite() && **s >= 0.0).map(|s| s.clamp(1e-9, 1e6));
        let before = self.seconds.len();
        self.seconds.extend(valid);
        if self.seconds.len() == before {
            return;
        }
        self.seconds.drain(..self.seconds.len().saturating_sub(N));
        let mut sorted = [0.0; N];
        let sorted = &mut sorted[..self.seconds.len()];
        sorted.iter_mut().zip(&self.seconds).for_each(|(to, &from)| *to = from);
        let middle = sorted.len() / 2;
        self.median = Some(*sorted.select_nth_unstable_by(middle, f64::total_cmp).1);
    }

    fn median(&self) -> Option<f64> {
        self.median
    }
}
