//! Distributions over the kept tokens: `(token, probability)` in ascending order of tokens, all
//! arithmetic in f64, every total summed in that order.

use super::exp::exp_f64;
use super::filters::Candidates;
use super::softmax::total;
use crate::TokenId;

/// Softmax of the candidates' scores; tokens whose probability is 0 in f64 are left out.
pub fn softmax(candidates: Candidates) -> Vec<(TokenId, f64)> {
    let Candidates { tokens, scores: mut weights } = candidates;
    weights.iter_mut().for_each(|weight| *weight = exp_f64(*weight));
    let total = total(&weights, |weight| weight);
    let mut distribution = Vec::with_capacity(tokens.len());
    let possible = tokens.into_iter().zip(weights).filter(|&(_, weight)| weight > 0.0);
    distribution.extend(possible.map(|(token, weight)| (token, weight / total)));
    distribution
}

/// The probability of `token`.
pub fn probability(distribution: &[(TokenId, f64)], token: TokenId) -> f64 {
    distribution.binary_search_by_key(&token, |&(t, _)| t).map_or(0.0, |at| distribution[at].1)
}

/// The token at which the running sum of `weights` reaches the fraction `uniform` (in (0, 1)) of
/// their `total`; always one of positive weight. `None` where there is none.
pub fn pick(weights: &[(TokenId, f64)], total: f64, uniform: f64) -> Option<TokenId> {
    let goal = uniform * total;
    let mut sum = 0.0;
    let reached = weights.iter().find(|&&(_, weight)| {
        sum += weight;
        sum >= goal && weight > 0.0
    });
    // Rounding may leave the sum just short of a total that was summed in another order.
    reached.or_else(|| weights.iter().rfind(|&&(_, weight)| weight > 0.0)).map(|&(token, _)| token)
}

/// What the target has beyond the draft, `max(p - q, 0)`, not normalised.
pub fn residual(p: &[(TokenId, f64)], q: &[(TokenId, f64)]) -> Vec<(TokenId, f64)> {
    let mut q = q.iter().peekable();
    let beyond = p.iter().map(|&(token, p)| {
        while q.next_if(|&&(t, _)| t < token).is_some() {}
        let q = q.next_if(|&&(t, _)| t == token).map_or(0.0, |&(_, q)| q);
        (token, (p - q).max(0.0))
    });
    beyond.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn softmax_is_normalised_and_positive() {
        let scores = vec![0.0, -(2f64.ln()), -800.0, f64::NEG_INFINITY];
        let p = softmax(Candidates { tokens: vec![1, 4, 5, 9], scores });
        assert_eq!(p.len(), 2);
        assert!((probability(&p, 1) - 2.0 / 3.0).abs() < 1e-15);
        assert!((probability(&p, 4) - 1.0 / 3.0).abs() < 1e-15);
        assert_eq!((probability(&p, 5), probability(&p, 0)), (0.0, 0.0));
    }

    #[test]
    fn pick_follows_the_running_total() {
        let weights = [(2, 0.0), (3, 1.0), (5, 0.0), (8, 3.0), (9, 0.0)];
        let found = [1e-10, 0.2, 0.25, 0.26, 1.0 - 1e-16].map(|u| pick(&weights, 4.0, u));
        assert_eq!(found, [Some(3), Some(3), Some(3), Some(8), Some(8)]);
        assert_eq!(pick(&weights, 4.1, 0.99), Some(8));
        assert_eq!(pick(&[(1, 0.0), (2, 0.0)], 0.0, 0.5), None);
        assert_eq!(pick(&[], 0.0, 0.5), None);
    }

    #[test]
    fn residual_is_the_positive_part_of_the_difference() {
        let p = [(1, 0.5), (2, 0.25), (6, 0.25)];
        let q = [(0, 0.25), (2, 0.5), (4, 0.125), (6, 0.125)];
        assert_eq!(residual(&p, &q), [(1, 0.5), (2, 0.0), (6, 0.125)]);
        assert_eq!(pick(&residual(&p, &p), 0.0, 0.5), None);
    }
}
