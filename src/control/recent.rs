//! The mean of recent times, proof against single ones that are many times too long.

use std::collections::VecDeque;

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
