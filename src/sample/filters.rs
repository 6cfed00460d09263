//! Which tokens may be drawn: temperature, top-k, top-p, min-p, in this order.
//!
//! Each filter sees what the one before it kept: top-p's probabilities are those of the top-k tokens
//! alone. A NaN logit counts as `-inf`, `+inf` as the largest finite number. A logit of `-inf` is never
//! drawn; where there is no other, token 0 is certain.

use super::SamplingParams;
use super::exp::exp_f64;
use super::softmax::{largest, total};
use crate::TokenId;
use crate::model::DraftVocab;
use std::cmp::Ordering;

/// Tokens that may be drawn, in ascending order.
#[derive(Debug, Clone, PartialEq)]
pub struct Candidates {
    /// The tokens.
    pub tokens: Vec<TokenId>,
    /// By candidate: `(logit - largest logit) / temperature`, at most 0; `-inf` where the token is
    /// impossible after all. One is 0.
    pub scores: Vec<f64>,
}

impl Candidates {
    /// What the filters of `params` (temperature > 0) leave of `logits` `[vocab]`.
    pub fn new(logits: &[f32], params: &SamplingParams) -> Self {
        let max = largest(logits).min(f32::MAX);
        if max == f32::NEG_INFINITY {
            return Self { tokens: vec![0], scores: vec![0.0] };
        }
        let score = |logit: f32| {
            let logit = if logit > f32::NEG_INFINITY { logit.min(max) } else { f32::NEG_INFINITY };
            // Subtracting first keeps this a number at any temperature; adding zero turns -0 into 0.
            (f64::from(logit) - f64::from(max)) / params.temperature + 0.0
        };
        let mut kept = if (1..logits.len()).contains(&params.top_k) {
            let mut tokens: Vec<_> = most_probable(logits, params.top_k).into_iter().map(Rank::token).collect();
            tokens.sort_unstable();
            let scores = tokens.iter().map(|&token| score(logits[token as usize])).collect();
            Self { tokens, scores }
        } else {
            Self {
                tokens: (0..logits.len() as TokenId).collect(),
                scores: logits.iter().map(|&logit| score(logit)).collect(),
            }
        };
        if params.top_p < 1.0 {
            kept.keep_top_p(params.top_p);
        }
        if params.min_p > 0.0 {
            // A score of 0 belongs to the most probable token, whose unnormalised probability is 1.
            kept.retain(|(_, score)| exp_f64(score) >= params.min_p);
        }
        kept
    }

    /// Of logits of this vocabulary: the same candidates by their tokens.
    pub fn of(mut self, vocab: DraftVocab<'_>) -> Self {
        if vocab.ids.is_some() {
            self.tokens.iter_mut().for_each(|token| *token = vocab.token(*token as usize));
        }
        self
    }

    /// Keeps the shortest run of most probable tokens that holds `top_p` of all their probability.
    fn keep_top_p(&mut self, top_p: f64) {
        let total = total(&self.scores, exp_f64);
        // n tokens that are each less probable than (1 - top_p) / n hold less than 1 - top_p together,
        // so the run ends before them. Half of that leaves room for rounding.
        let floor = (0.5 * (1.0 - top_p) * total / self.scores.len() as f64).ln();
        let pairs = self.tokens.iter().copied().zip(self.scores.iter().copied());
        let mut likely: Vec<_> = pairs.filter(|&(_, score)| score >= floor).collect();

        // Sort only as far as the run goes, in growing steps.
        let mut mass = 0.0;
        let (mut sorted, mut step) = (0, 64);
        while sorted < likely.len() {
            let rest = &mut likely[sorted..];
            let run = step.min(rest.len());
            if run < rest.len() {
                rest.select_nth_unstable_by(run, most_probable_first);
            }
            rest[..run].sort_unstable_by(most_probable_first);
            for last in &rest[..run] {
                mass += exp_f64(last.1);
                if mass >= top_p * total {
                    let last = *last;
                    return self.retain(|candidate| most_probable_first(&candidate, &last).is_le());
                }
            }
            sorted += run;
            step *= 4;
        }
    }

    fn retain(&mut self, keep: impl Fn((TokenId, f64)) -> bool) {
        let mut kept = 0;
        for at in 0..self.tokens.len() {
            let (token, score) = (self.tokens[at], self.scores[at]);
            (self.tokens[kept], self.scores[kept]) = (token, score);
            kept += usize::from(keep((token, score)));
        }
        self.tokens.truncate(kept);
        self.scores.truncate(kept);
    }
}

fn most_probable_first(a: &(TokenId, f64), b: &(TokenId, f64)) -> Ordering {
    b.1.total_cmp(&a.1).then(a.0.cmp(&b.0))
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

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(logits: &[f32], params: &SamplingParams) -> Vec<TokenId> {
        Candidates::new(logits, params).tokens
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
        let nothing = Candidates { tokens: vec![0], scores: vec![0.0] };
        for params in [warm(), all_on] {
            assert_eq!(Candidates::new(&[nan, none, nan], &params), nothing);
            assert_eq!(Candidates::new(&[], &params), nothing);
            for (logits, best) in [([nan, none, -3.0], 2), ([0.0, f32::INFINITY, none], 1)] {
                let found = Candidates::new(&logits, &params);
                let at = found.tokens.iter().position(|&token| token == best).unwrap();
                assert!(found.scores.iter().enumerate().all(|(i, &score)| if i == at {
                    score == 0.0
                } else {
                    score < -1e30
                }));
            }
        }
    }

    #[test]
    fn extreme_temperatures_stay_finite_or_impossible() {
        for temperature in [f64::MIN_POSITIVE, 1e300] {
            let found = Candidates::new(&[1.0, f32::MAX, f32::MIN], &SamplingParams { temperature, ..warm() });
            assert!(found.scores.iter().all(|&score| score <= 0.0));
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
