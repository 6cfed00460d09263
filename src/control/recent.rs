//! The mean of recent times, proof against single ones that are many times too long.

use std::collections::VecDeque;

/// How far off the mean, either way, a time is that may be one of several that tell of a change.
const FAR: f64 = 1.25;

/// The last `KEPT` times, and their mean without the lowest and highest quarter.
#[derive(Debug, Clone, Default)]
pub struct Recent<const KEPT: usize> {
    seconds: VecDeque<f64>,
    sorted: Vec<f64>,
}

impl<const KEPT: usize> Recent<KEPT> {
    /// Adds times; what is no time is left out.
    pub fn extend(&mut self, seconds: &[f64]) {
        for &seconds in seconds.iter().filter(|s| s.is_finite() && **s >= 0.0) {
            // Zero or absurd times would make ratios of costs meaningless.
            let seconds = seconds.clamp(1e-9, 1e6);
            if self.seconds.len() == KEPT {
                let oldest = self.seconds.pop_front().unwrap_or_default();
                self.sorted.remove(self.sorted.partition_point(|&s| s < oldest));
            }
            self.seconds.push_back(seconds);
            self.sorted.insert(self.sorted.partition_point(|&s| s < seconds), seconds);
        }
    }

    /// Adds a time. If by now the latest `run` times all lie far from the mean before, on the same side of it, what is
    /// measured has changed, and all times before them are dropped. Tells whether they were.
    pub fn follow(&mut self, seconds: f64, run: usize) -> bool {
        let before = self.mean().filter(|_| self.len() >= run);
        self.extend(&[seconds]);
        let Some(mean) = before else { return false };
        let latest = || self.seconds.iter().rev().take(run);
        let moved = latest().all(|&s| s > FAR * mean) || latest().all(|&s| FAR * s < mean);
        if moved {
            self.keep_latest(run);
        }
        moved
    }

    /// Drops all but the latest `count`.
    pub fn keep_latest(&mut self, count: usize) {
        if self.seconds.len() > count {
            self.seconds.drain(..self.seconds.len() - count);
            self.sorted = self.seconds.iter().copied().collect();
            self.sorted.sort_by(f64::total_cmp);
        }
    }

    /// Number of times kept.
    pub fn len(&self) -> usize {
        self.seconds.len()
    }

    /// Their mean; `None` before the first.
    pub fn mean(&self) -> Option<f64> {
        // Of two the lower one: what goes wrong with a time makes it longer.
        let high = (self.sorted.len() * 3 / 4).max(1);
        let middle = self.sorted.get(self.sorted.len() / 4..high)?;
        Some(middle.iter().sum::<f64>() / middle.len() as f64)
    }
}

/// The middle one; of two in the middle the lower.
pub fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len().saturating_sub(1) / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_followed_and_single_long_times_are_not() {
        const RUN: usize = 4;
        let mut recent = Recent::<63>::default();
        (0..298).for_each(|i| assert!(!recent.follow(if i % 10 > 7 { 5.0 } else { 1.0 }, RUN), "{i}"));
        for (seconds, before) in [(2.0, 1.0), (1.0, 2.0)] {
            (1..RUN).for_each(|_| assert!(!recent.follow(seconds, RUN)));
            assert!(recent.mean().is_some_and(|mean| (mean - before).abs() < 0.5), "{:?}", recent.mean());
            assert!(recent.follow(seconds, RUN));
            assert_eq!((recent.mean(), recent.len()), (Some(seconds), RUN));
            (0..63).for_each(|_| assert!(!recent.follow(seconds, RUN)));
        }
    }
}
