//! What logits say of the tokens that follow, in f64.

use eesd::TokenId;
use std::thread;

/// What has been measured, a number for each scored token.
pub struct Scores {
    vocab: usize,
    threads: usize,
    /// Negative log-probabilities under the model, in nats.
    pub model: Vec<f64>,
    /// The same under the reference; empty without one.
    pub reference: Vec<f64>,
    /// Kullback-Leibler divergences of the reference from the model, in nats.
    pub divergences: Vec<f64>,
    /// Tokens where both find the same one most probable.
    pub agreements: usize,
}

/// A mean and its standard error, which one number alone does not have.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Mean {
    /// Arithmetic mean.
    pub mean: f64,
    /// Standard deviation over the root of how many there are.
    pub error: Option<f64>,
}

impl Mean {
    /// Of at least one number.
    pub fn of(numbers: &[f64]) -> Self {
        let n = numbers.len() as f64;
        let mean = numbers.iter().sum::<f64>() / n;
        let squares: f64 = numbers.iter().map(|number| (number - mean).powi(2)).sum();
        Self { mean, error: (numbers.len() > 1).then(|| (squares / (n - 1.0) / n).sqrt()) }
    }

    /// Of so many of so many.
    pub fn of_share(hits: usize, all: usize) -> Self {
        let (mean, n) = (hits as f64 / all as f64, all as f64);
        Self { mean, error: (all > 1).then(|| (mean * (1.0 - mean) / (n - 1.0)).sqrt()) }
    }

    /// Of `exp` of it, to first order.
    pub fn exp(self) -> Self {
        let mean = self.mean.exp();
        Self { mean, error: self.error.map(|error| error * mean) }
    }
}

/// The numbers below which these parts of `numbers` lie, between two of them in proportion.
pub fn quantiles<const N: usize>(numbers: &[f64], parts: [f64; N]) -> [f64; N] {
    let mut sorted = numbers.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    parts.map(|part| {
        let place = part * (sorted.len() - 1) as f64;
        let (below, above) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
        if below == above { below } else { below + (above - below) * place.fract() }
    })
}

impl Scores {
    /// None yet, of models with `vocab` tokens; `threads`: as many as there are cores where nobody says.
    pub fn new(vocab: usize, threads: Option<usize>) -> Self {
        let threads = threads.unwrap_or_else(|| thread::available_parallelism().map_or(1, usize::from));
        Self { vocab, threads, model: Vec::new(), reference: Vec::new(), divergences: Vec::new(), agreements: 0 }
    }

    /// Tokens of the vocabulary.
    pub fn vocab(&self) -> usize {
        self.vocab
    }

    /// Scores `next[i]` after row `i` of logits `[rows, vocab]`.
    pub fn add(&mut self, logits: &[f32], reference: Option<&[f32]>, next: &[TokenId]) {
        let mut rows = vec![Row::default(); next.len()];
        let share = next.len().div_ceil(self.threads);
        let vocab = self.vocab;
        thread::scope(|scope| {
            for (number, rows) in rows.chunks_mut(share).enumerate() {
                scope.spawn(move || {
                    for (row, at) in rows.iter_mut().zip(number * share..) {
                        let of = at * vocab..(at + 1) * vocab;
                        *row = Row::of(&logits[of.clone()], reference.map(|reference| &reference[of]), next[at]);
                    }
                });
            }
        });
        for row in rows {
            self.model.push(row.model);
            if let Some((reference, divergence, agrees)) = row.reference {
                self.reference.push(reference);
                self.divergences.push(divergence);
                self.agreements += usize::from(agrees);
            }
        }
    }
}

/// What one position's logits say.
#[derive(Debug, Clone, Copy, Default)]
struct Row {
    model: f64,
    /// Negative log-probability, divergence, whether the most probable token is the same.
    reference: Option<(f64, f64, bool)>,
}

impl Row {
    fn of(logits: &[f32], reference: Option<&[f32]>, next: TokenId) -> Self {
        let ours = Normalised::of(logits);
        let with = |reference| {
            let theirs = Normalised::of(reference);
            let parts = (0..logits.len()).map(|token| {
                let log = theirs.log(token);
                let p = log.exp();
                // What is impossible there says nothing of what is here.
                if p == 0.0 { 0.0 } else { p * (log - ours.log(token)) }
            });
            // No divergence is negative, but a sum of roundings may be.
            (-theirs.log(next as usize), parts.sum::<f64>().max(0.0), theirs.most == ours.most)
        };
        Self { model: -ours.log(next as usize), reference: reference.map(with) }
    }
}

/// Logits and what turns them into log-probabilities.
struct Normalised<'a> {
    logits: &'a [f32],
    /// Logarithm of the sum of their exponentials.
    log_sum: f64,
    /// The most probable token, the first of several.
    most: usize,
}

impl<'a> Normalised<'a> {
    fn of(logits: &'a [f32]) -> Self {
        let larger = |most: usize, token: usize| if logits[token] > logits[most] { token } else { most };
        let most = (0..logits.len()).fold(0, larger);
        let largest = f64::from(logits[most]);
        let sum: f64 = logits.iter().map(|&logit| (f64::from(logit) - largest).exp()).sum();
        Self { logits, log_sum: largest + sum.ln(), most }
    }

    fn log(&self, token: usize) -> f64 {
        f64::from(self.logits[token]) - self.log_sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(a: f64, b: f64) -> bool {
        (a - b).abs() < 1e-12
    }

    #[test]
    fn rows_are_scored_by_their_probabilities() {
        // Probabilities 1/2, 1/4, 1/4 and 1/4, 1/2, 1/4, whatever is added to all logits.
        let (half, quarter) = (0.5f32.ln(), 0.25f32.ln());
        let ours = [half + 40.0, quarter + 40.0, quarter + 40.0, half, quarter, quarter];
        let theirs = [quarter, half, quarter, half - 7.0, quarter - 7.0, quarter - 7.0];
        let mut scores = Scores::new(3, Some(2));
        scores.add(&ours, Some(&theirs), &[0, 1]);
        let near = |a: f64, b: f64| (a - b).abs() < 1e-5;
        assert!(near(scores.model[0], 2f64.ln()) && near(scores.model[1], 4f64.ln()), "{:?}", scores.model);
        assert!(near(scores.reference[0], 4f64.ln()));
        // 1/4 ln 1/2 + 1/2 ln 2.
        assert!(near(scores.divergences[0], 0.25 * 2f64.ln()), "{:?}", scores.divergences);
        assert!(near(scores.divergences[1], 0.0));
        assert_eq!(scores.agreements, 1);
    }

    #[test]
    fn impossible_tokens_and_large_logits_leave_numbers() {
        let mut scores = Scores::new(3, Some(1));
        scores.add(&[1e30, -1e30, 0.0], Some(&[f32::NEG_INFINITY, 0.0, 0.0]), &[0]);
        assert_eq!(scores.model, [0.0]);
        assert_eq!(scores.reference, [f64::INFINITY]);
        assert!(scores.divergences[0] > 1e29);
    }

    #[test]
    fn means_errors_and_quantiles() {
        let mean = Mean::of(&[1.0, 2.0, 3.0, 4.0]);
        assert!(close(mean.mean, 2.5) && close(mean.error.unwrap(), (5.0f64 / 3.0 / 4.0).sqrt()));
        assert_eq!(Mean::of(&[7.0]), Mean { mean: 7.0, error: None });
        assert_eq!(Mean::of_share(3, 4).error, Some((0.1875f64 / 3.0).sqrt()));
        assert_eq!(quantiles(&[4.0, 1.0, 3.0, 2.0], [0.0, 0.5, 0.9, 1.0]), [1.0, 2.5, 3.7, 4.0]);
        assert_eq!(quantiles(&[5.0], [0.5]), [5.0]);
        assert_eq!(quantiles(&[0.0, f64::INFINITY, f64::INFINITY], [0.9]), [f64::INFINITY]);
    }
}
