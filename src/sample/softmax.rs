//! Passes over a whole row of logits: argmax, totals, confidence, log-probabilities.

use super::exp::{exp_f32, exp_f64};
use super::filters::most_probable;
use super::sampler::TokenLogprobs;
use crate::TokenId;
use std::ops::Add;

/// Independent partial results that the compiler can hold in vector registers.
const LANES: usize = 16;

/// The largest logit; NaN counts as `-inf`.
pub fn largest(logits: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let (chunks, rest) = logits.as_chunks::<LANES>();
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for chunk in chunks {
        lanes.iter_mut().zip(chunk).for_each(|(lane, &logit)| *lane = larger(*lane, logit));
    }
    lanes.iter().chain(rest).copied().fold(f32::NEG_INFINITY, larger)
}

/// The token of the largest logit, ties to the lowest id; 0 where every token is forbidden.
pub fn argmax(logits: &[f32]) -> TokenId {
    let max = largest(logits);
    if max == f32::NEG_INFINITY {
        return 0;
    }
    logits.iter().position(|&logit| logit == max).unwrap_or(0) as TokenId
}

/// The sum of `term` over `values`, in an order that depends on their number only.
pub fn total<T: Copy, S: Copy + Default + Add<Output = S>>(values: &[T], term: impl Fn(T) -> S) -> S {
    let (chunks, rest) = values.as_chunks::<LANES>();
    let mut lanes = [S::default(); LANES];
    for chunk in chunks {
        lanes.iter_mut().zip(chunk).for_each(|(lane, &value)| *lane = *lane + term(value));
    }
    rest.iter().map(|&value| term(value)).chain(lanes).fold(S::default(), S::add)
}

/// The largest softmax probability of `logits` at temperature 1, to about 1 in 10⁵; 1 where every
/// token is forbidden, as the choice is then certain.
pub fn confidence(logits: &[f32]) -> f32 {
    let max = largest(logits).min(f32::MAX);
    if max == f32::NEG_INFINITY {
        return 1.0;
    }
    // The maximum itself contributes exp(0) = 1 exactly, so this is at most 1.
    1.0 / total(logits, |logit| exp_f32(logit - max))
}

/// Log-softmax of `logits` at `token`, and its `n` largest entries (fewer where fewer are possible).
pub fn logprobs(logits: &[f32], token: TokenId, n: usize) -> TokenLogprobs {
    let max = f64::from(largest(logits).min(f32::MAX));
    let below_max = |token: TokenId| match logits.get(token as usize) {
        Some(&logit) if logit > f32::NEG_INFINITY => f64::from(logit).min(max) - max,
        _ => f64::NEG_INFINITY,
    };
    let log_total = total(logits, |logit| exp_f64(f64::from(logit) - max)).ln();
    // Adding zero turns -0 into 0. A row without any possible token has no finite log-probability.
    let logprob = |token| match below_max(token) {
        f64::NEG_INFINITY => f32::NEG_INFINITY,
        below => (below - log_total) as f32 + 0.0,
    };
    let mut ranked = most_probable(logits, n);
    ranked.sort_unstable();
    let top = ranked.into_iter().map(|rank| rank.token());
    TokenLogprobs {
        logprob: logprob(token),
        top: top.map(|token| (token, logprob(token))).filter(|(_, l)| l.is_finite()).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FORBIDDEN: f32 = f32::NEG_INFINITY;

    #[test]
    fn argmax_takes_the_lowest_of_equals_and_skips_nan() {
        assert_eq!(argmax(&[1.0, 3.0, 3.0, 2.0]), 1);
        assert_eq!(argmax(&[f32::NAN, 0.0, -0.0, 0.0]), 1);
        assert_eq!(argmax(&[f32::NAN, FORBIDDEN, -5.0]), 2);
        assert_eq!(argmax(&[f32::NAN, FORBIDDEN]), 0);
        assert_eq!(argmax(&[]), 0);
        let long: Vec<f32> = (0..100).map(|i| -((i as f32 - 61.4).abs())).collect();
        assert_eq!(argmax(&long), 61);
    }

    #[test]
    fn confidence_is_the_largest_probability() {
        for size in [1, 2, 15, 16, 17, 1000] {
            let logits: Vec<f32> = (0..size).map(|i| (i * 37 % 101) as f32 / 10.0 - 3.0).collect();
            let max = logits.iter().copied().fold(f32::MIN, f32::max);
            let exact = 1.0 / logits.iter().map(|&l| f64::from(l - max).exp()).sum::<f64>();
            assert!((f64::from(confidence(&logits)) - exact).abs() < 1e-5 * exact);
        }
        assert_eq!(confidence(&[FORBIDDEN, f32::NAN]), 1.0);
        assert_eq!(confidence(&[f32::INFINITY, 0.0]), 1.0);
    }

    #[test]
    fn logprobs_are_the_log_softmax() {
        let logits = [0.0, 2f32.ln(), FORBIDDEN, 2f32.ln(), f32::NAN];
        let found = logprobs(&logits, 0, 5);
        assert!((found.logprob - 0.2f32.ln()).abs() < 1e-6);
        assert_eq!(found.top.iter().map(|t| t.0).collect::<Vec<_>>(), [1, 3, 0]);
        assert!((found.top[0].1 - 0.4f32.ln()).abs() < 1e-6);
        assert!(logprobs(&logits, 3, 0).top.is_empty());
    }

    #[test]
    fn certain_and_impossible_tokens_have_clean_logprobs() {
        let certain = logprobs(&[FORBIDDEN, 7.5], 1, 2);
        assert_eq!(certain.logprob.to_bits(), 0f32.to_bits());
        assert_eq!(certain.top, [(1, 0.0)]);
        let nothing = logprobs(&[FORBIDDEN, f32::NAN], 0, 1);
        assert_eq!((nothing.logprob, nothing.top.len()), (FORBIDDEN, 0));
    }
}
