//! How long requests took, and how far their drafts went.

use eesd::engine::Stats;
use serde_json::{Value, json};

/// Upper bounds in seconds: of waiting for a place, and of waiting for a first token.
const WAITS: [f64; 14] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0, 600.0];
/// Upper bounds in seconds: of one token.
const TOKENS: [f64; 12] = [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0];
/// Upper bounds in tokens.
const LENGTHS: [f64; 11] = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 10.0, 12.0, 16.0];

/// Of all requests that gave a token.
pub struct Latencies {
    /// From submission to admission.
    pub queue: Times,
    /// From submission to the first token.
    pub first_token: Times,
    /// Decoding, divided by the tokens that it gave.
    pub per_token: Times,
    /// Of each round: the drafts accepted, and the token of the full model after them.
    pub accepted_length: Histogram,
}

impl Default for Latencies {
    fn default() -> Self {
        Self {
            queue: Times::new(&WAITS),
            first_token: Times::new(&WAITS),
            per_token: Times::new(&TOKENS),
            accepted_length: Histogram::new(&LENGTHS),
        }
    }
}

impl Latencies {
    /// Takes in a request that has ended.
    pub fn add(&mut self, stats: &Stats) {
        if stats.generated == 0 {
            return;
        }
        self.queue.add(stats.queued.as_secs_f64());
        self.first_token.add((stats.queued + stats.first_token).as_secs_f64());
        self.per_token.add(stats.decode.as_secs_f64() / stats.generated as f64);
        // Who accepted a draft accepted all before it, so the differences count the rounds that ended there.
        let accepted = std::iter::once(&stats.rounds).chain(&stats.accepted_at);
        let more = stats.accepted_at.iter().chain(std::iter::once(&0));
        for (drafts, (reached, further)) in accepted.zip(more).enumerate() {
            self.accepted_length.add((drafts + 1) as f64, (reached - further) as u64);
        }
    }
}

/// A histogram, and every value of it.
pub struct Times {
    /// For monitoring.
    pub histogram: Histogram,
    values: Vec<f64>,
}

impl Times {
    fn new(bounds: &'static [f64]) -> Self {
        Self { histogram: Histogram::new(bounds), values: Vec::new() }
    }

    fn add(&mut self, seconds: f64) {
        self.histogram.add(seconds, 1);
        self.values.push(seconds);
    }

    /// Mean, quantiles and the largest value; `null` without values.
    pub fn summary(&self) -> Value {
        let mut sorted = self.values.clone();
        sorted.sort_by(f64::total_cmp);
        let Some(&largest) = sorted.last() else { return Value::Null };
        // The smallest value that a share of q is not above.
        let quantile = |q: f64| sorted[((q * sorted.len() as f64).ceil() as usize).saturating_sub(1)];
        json!({
            "mean": sorted.iter().sum::<f64>() / sorted.len() as f64,
            "p50": quantile(0.5),
            "p90": quantile(0.9),
            "p99": quantile(0.99),
            "max": largest,
        })
    }
}

/// How many values lie in which range.
pub struct Histogram {
    bounds: &'static [f64],
    /// Values up to each bound and above the one before, then those above all.
    counts: Vec<u64>,
    sum: f64,
}

impl Histogram {
    fn new(bounds: &'static [f64]) -> Self {
        Self { bounds, counts: vec![0; bounds.len() + 1], sum: 0.0 }
    }

    fn add(&mut self, value: f64, times: u64) {
        self.counts[self.bounds.partition_point(|&bound| bound < value)] += times;
        self.sum += value * times as f64;
    }

    /// Each bound, infinity the last, with the number of values up to it.
    pub fn cumulative(&self) -> impl Iterator<Item = (f64, u64)> {
        let bounds = self.bounds.iter().copied().chain(std::iter::once(f64::INFINITY));
        bounds.zip(self.counts.iter().scan(0, |sum, count| {
            *sum += count;
            Some(*sum)
        }))
    }

    /// All values added up.
    pub fn sum(&self) -> f64 {
        self.sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn accepted_lengths_of_rounds_add_up() {
        let mut latencies = Latencies::default();
        // Ten rounds: four accepted nothing, three one draft, two two, one three.
        let stats = Stats { rounds: 10, accepted_at: vec![6, 3, 1], generated: 20, ..Stats::default() };
        latencies.add(&stats);
        let lengths = &latencies.accepted_length;
        assert_eq!(lengths.cumulative().take(5).map(|(_, count)| count).collect::<Vec<_>>(), [4, 7, 9, 10, 10]);
        assert_eq!(lengths.sum() / 10.0, stats.mean_accepted_length());
        // A round of 17 drafts is beyond all bounds.
        latencies.add(&Stats { rounds: 1, accepted_at: vec![1; 17], generated: 18, ..Stats::default() });
        let (last, all) = lengths_tail(&latencies);
        assert_eq!((last, all), (10, 11));
        assert_eq!(latencies.accepted_length.sum(), 20.0 + 18.0);
    }

    fn lengths_tail(latencies: &Latencies) -> (u64, u64) {
        let counts: Vec<(f64, u64)> = latencies.accepted_length.cumulative().collect();
        assert_eq!(counts[counts.len() - 1].0, f64::INFINITY);
        (counts[counts.len() - 2].1, counts[counts.len() - 1].1)
    }

    #[test]
    fn bounds_belong_to_what_is_below_them() {
        let mut histogram = Histogram::new(&[1.0, 2.0]);
        [0.5, 1.0, 1.5, 2.0, 2.5].into_iter().for_each(|value| histogram.add(value, 1));
        assert_eq!(histogram.cumulative().collect::<Vec<_>>(), [(1.0, 2), (2.0, 4), (f64::INFINITY, 5)]);
    }

    #[test]
    fn times_of_requests_that_gave_a_token() {
        let mut latencies = Latencies::default();
        assert_eq!(latencies.queue.summary(), Value::Null);
        latencies.add(&Stats { queued: Duration::from_secs(9), ..Stats::default() });
        for i in 1..=100 {
            let [queued, first_token, decode] = [i, 10 * i, 4 * i].map(Duration::from_millis);
            latencies.add(&Stats { queued, first_token, decode, generated: 2, rounds: 2, ..Stats::default() });
        }
        let close = |value: &Value, expected: f64| (value.as_f64().unwrap() - expected).abs() < 1e-9;
        let queue = latencies.queue.summary();
        assert!(close(&queue["p50"], 0.05) && close(&queue["p90"], 0.09) && close(&queue["p99"], 0.099), "{queue}");
        assert!(close(&queue["max"], 0.1) && close(&queue["mean"], 0.0505), "{queue}");
        let (first_token, per_token) = (latencies.first_token.summary(), latencies.per_token.summary());
        assert!(close(&first_token["max"], 1.1) && close(&per_token["max"], 0.2), "{first_token} {per_token}");
    }
}
