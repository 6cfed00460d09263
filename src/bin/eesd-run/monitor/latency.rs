//! How long requests took, and how far their drafts went.

use crate::failure::{Failure, Outcome};
use eesd::engine::Stats;
use prometheus::{Histogram, HistogramOpts};
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
    accepted_length: Histogram,
}

impl Latencies {
    /// Of no requests yet. Without a summary in the end, single values need not be kept.
    ///
    /// # Errors
    /// If the bounds of a histogram do not grow, which would be a mistake here.
    pub fn new(summary: bool) -> Outcome<Self> {
        let of_times = |name, help, bounds| {
            let values = summary.then(Vec::new);
            Ok::<_, Failure>(Times { histogram: histogram(name, help, bounds)?, values })
        };
        Ok(Self {
            queue: of_times("queue_time_seconds", "From a request's submission to its admission.", &WAITS)?,
            first_token: of_times(
                "time_to_first_token_seconds",
                "From a request's submission to its first token.",
                &WAITS,
            )?,
            per_token: of_times(
                "time_per_output_token_seconds",
                "A request's time of decoding, divided by the tokens that it gave.",
                &TOKENS,
            )?,
            accepted_length: histogram(
                "accepted_length_tokens",
                "Of each round of each request: drafts accepted, and the token of the full model after them.",
                &LENGTHS,
            )?,
        })
    }

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
            (*further..*reached).for_each(|_| self.accepted_length.observe((drafts + 1) as f64));
        }
    }

    /// For monitoring.
    pub fn histograms(&self) -> [&Histogram; 4] {
        [&self.queue.histogram, &self.first_token.histogram, &self.per_token.histogram, &self.accepted_length]
    }
}

fn histogram(name: &str, help: &str, bounds: &[f64]) -> Outcome<Histogram> {
    let help = format!("{help} Of requests that have ended.");
    Ok(Histogram::with_opts(HistogramOpts::new(name, help).buckets(bounds.to_vec()))?)
}

/// A histogram, and every value of it where they are kept.
pub struct Times {
    histogram: Histogram,
    values: Option<Vec<f64>>,
}

impl Times {
    fn add(&mut self, seconds: f64) {
        self.histogram.observe(seconds);
        self.values.iter_mut().for_each(|values| values.push(seconds));
    }

    /// Mean, quantiles and the largest value; `null` without values.
    pub fn summary(&self) -> Value {
        let mut sorted = self.values.clone().unwrap_or_default();
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

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus::core::Collector;
    use std::time::Duration;

    /// Values up to each bound.
    fn counts(histogram: &Histogram) -> Vec<u64> {
        let families = histogram.collect();
        families[0].get_metric()[0]
            .get_histogram()
            .get_bucket()
            .iter()
            .map(|bucket| bucket.cumulative_count())
            .collect()
    }

    #[test]
    fn accepted_lengths_of_rounds_add_up() {
        let mut latencies = Latencies::new(false).unwrap();
        // Ten rounds: four accepted nothing, three one draft, two two, one three.
        let stats = Stats { rounds: 10, accepted_at: vec![6, 3, 1], generated: 20, ..Stats::default() };
        latencies.add(&stats);
        assert_eq!(counts(&latencies.accepted_length)[..5], [4, 7, 9, 10, 10]);
        assert_eq!(latencies.accepted_length.get_sample_sum() / 10.0, stats.mean_accepted_length());
        // A round of 17 drafts is beyond all bounds.
        latencies.add(&Stats { rounds: 1, accepted_at: vec![1; 17], generated: 18, ..Stats::default() });
        assert_eq!(counts(&latencies.accepted_length)[LENGTHS.len() - 1], 10);
        assert_eq!(latencies.accepted_length.get_sample_count(), 11);
        assert_eq!(latencies.accepted_length.get_sample_sum(), 20.0 + 18.0);
    }

    #[test]
    fn times_of_requests_that_gave_a_token() {
        let mut latencies = Latencies::new(true).unwrap();
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
