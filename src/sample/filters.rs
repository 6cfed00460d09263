//! Which tokens may be drawn: temperature, top-k, top-p, min-p, in this order.
//!
//! Each filter sees what the one before it kept: top-p's probabilities are those of the top-k tokens
//! alone. A NaN logit counts as `-inf`, `+inf` as the largest finite number. `-inf` is never kept; where
//! nothing is left, token 0 is certain.

use super::SamplingParams;
use super::softmax::largest;
use crate::TokenId;
use std::cmp::Ordering;

/// A token that may be drawn, with its score: `(logit - largest logit) / temperature`, at most 0.
pub type Candidate = (TokenId, f64);

/// The candidates that the filters of `params` (temperature > 0) leave of `logits` `[vocab]`, in
/// ascending order of ids.
pub fn candidates(logits: &[f32], params: &SamplingParams) -> Vec<Candidate> {
    let max = largest(logits).min(f32::MAX);
    if max == f32::NEG_INFINITY {
        return vec![(0, 0.0)];
    }
    let candidate = |token: usize| {
        let logit = logits[token];
        // Subtracting first keeps this a number at any temperature; adding zero turns -0 into 0.
        let score = (f64::from(logit.min(max)) - f64::from(max)) / params.temperature + 0.0;
        (logit > f32::NEG_INFINITY).then_some((token as TokenId, score))
    };
    let mut kept: Vec<Candidate> = if (1..logits.len()).contains(&params.top_k) {
        let mut tokens: Vec<usize> =
            most_probable(logits, params.top_k).iter().map(|rank| rank.token() as usize).collect();
        tokens.sort_unstable();
        tokens.into_iter().filter_map(candidate).collect()
    } else {
        (0..logits.len()).filter_map(candidate).collect()
    };
    if params.top_p < 1.0 {
        keep_top_p(&mut kept, params.top_p);
    }
    if params.min_p > 0.0 {
        // A score of 0 belongs to the most probable token, whose unnormalised probability is 1.
        kept.retain(|&(_, score)| score.exp() >= params.min_p);
    }
    kept
}

/// A token's place among others: the most probable is the smallest, ties go to the lowest id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rank(u64);

impl Rank {
    fn new(token: TokenId, logit: f32) -> Self {
        let logit = if logit.is_nan() { f32::NEG_INFINITY } else { logit.min(f32::MAX) };
        // The bits of a float order like an integer once negative numbers are mirrored; adding zero
        // makes -0 equal to 0.
        let bits = (logit + 0.0).to_bits();
        let ascending = if bits >> 31 == 1 { !bits } else { bits | 1 << 31 };
        Self(u64::from(!ascending) << 32 | u64::from(token))
    }

    /// The token.
    pub fn token(self) -> TokenId {
        self.0 as TokenId
    }
}

/// The `k` most probable tokens (all where there are fewer), in no particular order.
pub fn most_probable(logits: &[f32], k: usize) -> Vec<Rank> {
    if k == 0 {
        return Vec::new();
    }
    // Collect whatever beats the k-th best so far; whenever that doubles, throw half of it away.
    let mut best: Vec<Rank> = Vec::new();
    let mut bar = Rank(u64::MAX);
    for (token, &logit) in logits.iter().enumerate() {
        let rank = Rank::new(token as TokenId, logit);
        if rank < bar {
            best.push(rank);
            if best.len() == k.saturating_mul(2) {
                bar = *best.select_nth_unstable(k - 1).1;
                best.truncate(k);
            }
        }
    }
    if best.len() > k {
        best.select_nth_unstable(k - 1);
        best.truncate(k);
    }
    best
}

/// Keeps the shortest run of most probable candidates that holds `top_p` of all their probability.
fn keep_top_p(kept: &mut Vec<Candidate>, top_p: f64) {
    let goal = top_p * kept.iter().map(|&(_, score)| score.exp()).sum::<f64>();
    let mut mass = 0.0;
    let (mut sorted, mut step) = (0, 64);
    // Sort only as far as the run goes, in growing steps.
    while mass < goal && sorted < kept.len() {
        let rest = &mut kept[sorted..];
        let run = step.min(rest.len());
        if run < rest.len() {
            rest.select_nth_unstable_by(run, most_probable_first);
        }
        rest[..run].sort_unstable_by(most_probable_first);
        let reached = rest[..run].iter().position(|&(_, score)| {
            mass += score.exp();
            mass >= goal
        });
        sorted += reached.map_or(run, |last| last + 1);
        step *= 4;
    }
    kept.truncate(sorted);
    kept.sort_unstable_by_key(|&(token, _)| token);
}

fn most_probable_first(a: &Candidate, b: &Candidate) -> Ordering {
    b.1.total_cmp(&a.1).then(a.0.cmp(&b.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(logits: &[f32], params: &SamplingParams) -> Vec<TokenId> {
        candidates(logits, params).into_iter().map(|(token, _)| token).collect()
    }

    /// Logits of tokens with the given probabilities.
    fn logs(probabilities: &[f32]) -> Vec<f32> {
        probabilities.iter().map(|p| p.ln()).collect()
    }

    fn warm() -> SamplingParams {
        SamplingParams { temperature: 1.0, ..Default::default() }
    }

    #[test]
    fn each_filter_keeps_its_set() {
        let logits = logs(&[0.1, 0.4, 0.2, 0.3]);
        assert_eq!(kept(&logits, &warm()), [0, 1, 2, 3]);
        assert_eq!(kept(&logits, &SamplingParams { top_k: 2, ..warm() }), [1, 3]);
        assert_eq!(kept(&logits, &SamplingParams { top_p: 0.65, ..warm() }), [1, 3]);
        assert_eq!(kept(&logits, &SamplingParams { top_p: 0.75, ..warm() }), [1, 2, 3]);
        assert_eq!(kept(&logits, &SamplingParams { min_p: 0.4, ..warm() }), [1, 2, 3]);
        assert_eq!(kept(&logits, &SamplingParams { top_p: 1e-9, ..warm() }), [1]);
    }

    #[test]
    fn top_p_sees_what_top_k_left() {
        // Alone, 0.4 + 0.3 reaches 0.7; of the top two it is already 0.4 / 0.7 that exceeds 0.55.
        let logits = logs(&[0.1, 0.4, 0.2, 0.3]);
        assert_eq!(kept(&logits, &SamplingParams { top_p: 0.55, ..warm() }), [1, 3]);
        assert_eq!(kept(&logits, &SamplingParams { top_k: 2, top_p: 0.55, ..warm() }), [1]);
    }

    #[test]
    fn ties_go_to_the_lowest_ids() {
        let mut logits = vec![0.0; 500];
        logits[7] = -0.0;
        assert_eq!(kept(&logits, &SamplingParams { top_k: 9, ..warm() }), (0..9).collect::<Vec<_>>());
        assert_eq!(kept(&logits, &SamplingParams { top_p: 0.25, ..warm() }), (0..125).collect::<Vec<_>>());
        assert_eq!(kept(&logits, &SamplingParams { min_p: 1.0, ..warm() }).len(), 500);
    }

    #[test]
    fn impossible_logits_leave_something() {
        let (nan, none) = (f32::NAN, f32::NEG_INFINITY);
        let all_on = SamplingParams { temperature: 0.7, top_k: 2, top_p: 0.9, min_p: 0.1, ..warm() };
        for params in [warm(), all_on] {
            assert_eq!(candidates(&[nan, none, nan], &params), [(0, 0.0)]);
            assert_eq!(candidates(&[], &params), [(0, 0.0)]);
            assert_eq!(candidates(&[nan, none, -3.0], &params), [(2, 0.0)]);
            assert_eq!(candidates(&[0.0, f32::INFINITY, none], &params).last(), Some(&(1, 0.0)));
        }
    }

    #[test]
    fn extreme_temperatures_stay_finite_or_impossible() {
        for temperature in [f64::MIN_POSITIVE, 1e300] {
            let found = candidates(&[1.0, f32::MAX, f32::MIN], &SamplingParams { temperature, ..warm() });
            assert!(found.iter().all(|&(_, score)| score <= 0.0));
        }
    }

    #[test]
    fn ranks_order_like_logits_then_ids() {
        let logits = [f32::INFINITY, 3.0, 3.0, 0.5, 0.0, -0.0, -0.5, f32::MIN, f32::NEG_INFINITY, f32::NAN];
        let ranks: Vec<_> = logits.iter().enumerate().map(|(i, &l)| Rank::new(i as TokenId, l)).collect();
        assert!(ranks.is_sorted());
        assert!(ranks.iter().zip(0..).all(|(rank, token)| rank.token() == token));
    }
}
