//! Sampling as an argmax: `argmax(score + g)` with independent standard Gumbel noise `g` is a draw
//! from the softmax of the scores. Draft and target that use the same noise agree wherever their
//! scores nearly do, and the target's draw does not depend on the draft at all.

use super::filters::Candidates;
use super::philox::{Philox, unit};
use crate::TokenId;
use std::f64::consts::LN_2;

/// The candidate of the largest score plus noise, ties to the lowest id; 0 where there is none.
/// Token `t` has word `t` of `noise` for its own.
///
/// Two logarithms a token are spent only where the token could still win: by a bound on all noise
/// (no random word needed), then by a bound that a glance at its word gives. Rounding is monotone,
/// so neither can skip the winner of the full computation.
pub fn noisy_argmax(candidates: &Candidates, noise: &Philox) -> TokenId {
    let Candidates { tokens, scores } = candidates;
    // The best score is tried first: what it reaches rules out most others.
    let first = (0..scores.len()).reduce(|a, b| if scores[b] > scores[a] { b } else { a });
    let Some(first) = first else {
        return 0;
    };
    let mut winner = tokens[first];
    let mut best = scores[first] + gumbel(noise.block(winner / 4)[winner as usize % 4]);
    let most = gumbel_bound(u32::MAX);
    let mut block = (u32::MAX, [0; 4]);
    for (&token, &score) in tokens.iter().zip(scores) {
        if score + most < best {
            continue;
        }
        if block.0 != token / 4 {
            block = (token / 4, noise.block(token / 4));
        }
        let word = block.1[token as usize % 4];
        if score + gumbel_bound(word) < best {
            continue;
        }
        let noisy = score + gumbel(word);
        if noisy > best || (noisy == best && token < winner) {
            (winner, best) = (token, noisy);
        }
    }
    winner
}

/// Standard Gumbel noise from a uniform word.
fn gumbel(word: u32) -> f64 {
    -(-unit(word).ln()).ln()
}

/// At least `gumbel(word)`: since `-ln u >= 1 - u`, the noise is at most `-ln(1 - u)`, and `1 - u`
/// is at least the power of two that the leading zeros of the inverted word give.
fn gumbel_bound(word: u32) -> f64 {
    // For the rounding of `gumbel` itself, where the bound is tight.
    const SLACK: f64 = 1e-12;
    f64::from((!word).leading_zeros() + 1) * LN_2 + SLACK
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::Purpose;

    /// What [`noisy_argmax`] must equal: no shortcuts.
    fn full(candidates: &Candidates, noise: &Philox) -> TokenId {
        let noisy = candidates
            .tokens
            .iter()
            .zip(&candidates.scores)
            .map(|(&token, score)| (token, score + gumbel(noise.block(token / 4)[token as usize % 4])));
        noisy.reduce(|a, b| if b.1 > a.1 { b } else { a }).map_or(0, |c| c.0)
    }

    #[test]
    fn bound_holds() {
        let edges = (0..32).flat_map(|bit| {
            let power = 1u32 << bit;
            [power - 1, power, power.wrapping_add(1), !power, !(power - 1), !power.wrapping_add(1)]
        });
        let spread = (0..1 << 20).map(|i: u32| i.wrapping_mul(0x9E37_79B9));
        for word in edges.chain(spread).chain([0, u32::MAX]) {
            assert!(gumbel(word) <= gumbel_bound(word), "{word:#x}");
            assert!(gumbel_bound(word) <= gumbel_bound(u32::MAX));
        }
    }

    #[test]
    fn shortcuts_change_nothing() {
        let mut scores = Philox::new(1, 0, Purpose::Draft, 0);
        for position in 0..3000 {
            let spread = f64::from(position as u32 % 50);
            let tokens: Vec<TokenId> = (0..257).filter(|t| t % 7 != 3).collect();
            let scores = tokens.iter().map(|_| -spread * scores.uniform()).collect();
            let candidates = Candidates { tokens, scores };
            let noise = Philox::new(5, position, Purpose::Gumbel, 0);
            assert_eq!(noisy_argmax(&candidates, &noise), full(&candidates, &noise));
        }
        let noise = Philox::new(5, 0, Purpose::Gumbel, 0);
        assert_eq!(noisy_argmax(&Candidates { tokens: vec![], scores: vec![] }, &noise), 0);
        let one = Candidates { tokens: vec![3, 9], scores: vec![f64::NEG_INFINITY, 0.0] };
        assert_eq!(noisy_argmax(&one, &noise), 9);
    }
}
