//! What draft steps and rounds cost, measured as they happen, per batch size.
//!
//! The cost of one more draft is a trimmed mean of recent draft steps. The cost of a round without its
//! draft steps is an affine function of the rows it verifies per sequence, fitted through the trimmed
//! means of recent rounds with each number of rows. Trimmed, because a page fault, a preemption or
//! another program's burst makes single times many times too long.

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
    draft: Recent,
    /// Rounds by rows verified per sequence.
    verify: BTreeMap<usize, Rounds>,
    rounds: usize,
    plain_rounds: usize,
    since_plain: usize,
    /// Seconds of a pass with one row per sequence, and of each row more.
    fit: Option<(f64, f64)>,
}

/// Rounds that verified the same number of rows.
#[derive(Debug, Clone, Default)]
struct Rounds {
    seconds: Recent,
    /// 1 when measured last round, decaying since.
    freshness: f64,
}

/// What [`Rounds::freshness`] is multiplied by per round.
const FRESHNESS_DECAY: f64 = 0.997;
/// Pulls the cost of a row towards 0 as this many rounds one row away from the mean would.
const ROW_PRIOR: f64 = 2.0;
/// Rounds that measure costs and nothing else, at first: a slow first pass must not decide.
const WARM_UP: usize = 5;
/// Drafts of every other one of them.
const WARM_UP_DRAFTS: usize = 3;
/// Plain round `n` is due at round `8n²`: often while little is known, and then ever more rarely.
const PLAIN_SPACING: usize = 8;
/// Most rounds from one plain round to the next.
const PLAIN_EVERY: usize = 500;
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
        // The only round with its number of rows may be far from the others and so turn the whole fit.
        let credible = costs.verify_seconds(rows).filter(|_| costs.rounds >= WARM_UP);
        let seconds = credible.map_or(outcome.verify_seconds, |s| outcome.verify_seconds.clamp(s / 2.0, s * 2.0));
        let rounds = costs.verify.entry(rows).or_default();
        rounds.freshness = 1.0;
        rounds.seconds.extend(&[seconds]);
        costs.rounds += 1;
        costs.plain_rounds += usize::from(rows == 1);
        costs.since_plain = if rows == 1 { 0 } else { costs.since_plain + 1 };
        costs.fit = costs.fit();
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

    /// How many drafts a round in a batch of this size should make for the sake of the costs, if any:
    /// short and plain rounds in turn at first, then plain rounds ever more rarely, so that the cost of
    /// a row stays known however little draft lengths vary.
    pub fn wanted_drafts(&self, batch: usize) -> Option<usize> {
        let (rounds, plain, since_plain) =
            self.batches.get(&batch).map_or((0, 0, 0), |costs| (costs.rounds, costs.plain_rounds, costs.since_plain));
        if rounds < WARM_UP {
            return Some(if rounds % 2 == 0 { WARM_UP_DRAFTS } else { 0 });
        }
        let due = rounds >= PLAIN_SPACING * plain * plain && since_plain > 0 || since_plain >= PLAIN_EVERY;
        due.then_some(0)
    }

    /// The costs of every batch size, for people.
    pub fn all(&self) -> impl Iterator<Item = (usize, RoundCosts)> {
        self.batches.iter().filter_map(|(&batch, costs)| Some((batch, costs.round()?)))
    }
}

impl BatchCosts {
    fn round(&self) -> Option<RoundCosts> {
        let step = self.draft.mean()?;
        let (plain, per_row) = self.fit?;
        Some(RoundCosts { plain, draft: step + per_row })
    }

    fn verify_seconds(&self, rows: usize) -> Option<f64> {
        self.fit.map(|(plain, per_row)| plain + per_row * (rows as f64 - 1.0))
    }

    fn fit(&self) -> Option<(f64, f64)> {
        let points = || {
            let point = |(&rows, rounds): (&usize, &Rounds)| {
                Some((rounds.freshness * rounds.seconds.len() as f64, rows as f64, rounds.seconds.mean()?))
            };
            self.verify.iter().filter_map(point)
        };
        let (mut weight, mut rows, mut seconds) = (0.0, 0.0, 0.0);
        for (w, r, s) in points() {
            weight += w;
            rows += w * r;
            seconds += w * s;
        }
        if weight <= 0.0 {
            return None;
        }
        let (rows, seconds) = (rows / weight, seconds / weight);
        let (mut covariance, mut variance) = (0.0, ROW_PRIOR);
        for (w, r, s) in points() {
            covariance += w * (r - rows) * (s - seconds);
            variance += w * (r - rows) * (r - rows);
        }
        // More rows never cost less, and a plain round never costs nothing.
        let per_row = (covariance / variance).max(0.0);
        let plain = (seconds - per_row * (rows - 1.0)).max(seconds * 0.05);
        Some((plain, per_row))
    }
}

/// The last [`Recent::KEPT`] times, and their mean without the lowest and highest quarter.
#[derive(Debug, Clone, Default)]
struct Recent {
    seconds: VecDeque<f64>,
    sorted: Vec<f64>,
}

impl Recent {
    const KEPT: usize = 31;

    fn extend(&mut self, seconds: &[f64]) {
        for &seconds in seconds.iter().filter(|s| s.is_finite() && **s >= 0.0) {
            // Zero or absurd times would make ratios of costs meaningless.
            let seconds = seconds.clamp(1e-9, 1e6);
            if self.seconds.len() == Self::KEPT {
                let oldest = self.seconds.pop_front().unwrap_or_default();
                self.sorted.remove(self.sorted.partition_point(|&s| s < oldest));
            }
            self.seconds.push_back(seconds);
            self.sorted.insert(self.sorted.partition_point(|&s| s < seconds), seconds);
        }
    }

    fn len(&self) -> usize {
        self.seconds.len()
    }

    fn mean(&self) -> Option<f64> {
        // Of two the lower one: what goes wrong with a time makes it longer.
        let high = (self.sorted.len() * 3 / 4).max(1);
        let middle = self.sorted.get(self.sorted.len() / 4..high)?;
        Some(middle.iter().sum::<f64>() / middle.len() as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round(batch: usize, drafts: usize, draft: f64, verify: f64) -> impl FnOnce(&mut Costs) {
        move |costs| {
            costs.observe(&Outcome {
                slot: 0,
                batch,
                rows: batch * (drafts + 1),
                confidences: &vec![0.5; drafts],
                accepted: 0,
                draft_seconds: &vec![draft; drafts],
                verify_seconds: verify,
            });
        }
    }

    #[test]
    fn costs_are_found_through_outliers() {
        let mut costs = Costs::default();
        for i in 0..400 {
            let drafts = i % 5;
            // The very first round, and then every 37th, is far too long.
            let slow = if i % 37 == 0 { 10.0 } else { 1.0 };
            round(1, drafts, 0.2 * slow, (1.0 + 0.1 * drafts as f64) * slow)(&mut costs);
        }
        let found = costs.round(1).unwrap();
        assert!((found.plain - 1.0).abs() < 0.03, "{found:?}");
        assert!((found.draft - 0.3).abs() < 0.01, "{found:?}");
    }

    #[test]
    fn an_unmeasured_batch_size_costs_what_the_nearest_does() {
        let mut costs = Costs::default();
        assert_eq!(costs.round(3), None);
        round(1, 1, 1.0, 1.0)(&mut costs);
        round(8, 1, 4.0, 8.0)(&mut costs);
        assert_eq!(costs.round(3), costs.round(1));
        assert_eq!(costs.round(6), costs.round(8));
        assert_eq!(costs.round(usize::MAX), costs.round(8));
    }

    #[test]
    fn what_is_no_time_is_ignored() {
        let mut costs = Costs::default();
        for seconds in [f64::NAN, f64::INFINITY, -1.0] {
            round(1, 2, seconds, seconds)(&mut costs);
        }
        assert_eq!(costs.round(1), None);
        round(1, 2, 0.0, 0.0)(&mut costs);
        let found = costs.round(1).unwrap();
        assert!(found.plain > 0.0 && found.draft > 0.0, "{found:?}");
    }

    #[test]
    fn plain_rounds_become_rare() {
        let mut costs = Costs::default();
        let mut plain = Vec::new();
        for i in 0..6000 {
            let drafts = costs.wanted_drafts(1).unwrap_or(4);
            plain.extend((drafts == 0).then_some(i));
            round(1, drafts, 0.1, 1.0)(&mut costs);
        }
        assert!(plain.len() < 40, "{plain:?}");
        assert!(plain.windows(2).all(|p| p[1] - p[0] <= PLAIN_EVERY + 1), "{plain:?}");
    }
}
