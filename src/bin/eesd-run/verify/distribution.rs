//! Rejection sampling against the model's exact probabilities.

use super::{Check, LEAST_P, answers, chi_squared};
use crate::args::VerifyArgs;
use crate::failure::Outcome;
use eesd::TokenId;
use eesd::backend::{Backend, Chunk};
use eesd::control::ControllerSpec;
use eesd::engine::{Engine, Request};
use eesd::kv::{PAGE_TOKENS, PageId};
use eesd::sample::{SamplingParams, VerifyMode};
use std::collections::HashMap;

/// First tokens whose followers are told apart.
const BRANCHES: usize = 12;
/// Tokens of each draw: room for drafts past the two that are tested.
const DRAW_TOKENS: usize = 6;
/// Smallest expected count of a χ² cell; rarer outcomes are pooled.
const LEAST_EXPECTED: f64 = 5.0;

/// The model's own distribution of the two tokens after a prompt.
pub struct Exact {
    prompt: Vec<TokenId>,
    temperature: f64,
    /// Probability of each first token.
    first: Vec<f64>,
    /// Probabilities of the second token after each of the most probable first ones.
    second: HashMap<TokenId, Vec<f64>>,
}

impl Exact {
    /// Reads the probabilities off the model, without a draft or a sampler in between.
    ///
    /// # Errors
    /// If a pass fails.
    pub fn of(backend: &mut dyn Backend, prompt: &[TokenId], temperature: f64) -> Outcome<Self> {
        let mut tokens = prompt.to_vec();
        let first = next_token(backend, &tokens, temperature)?;
        let mut ranked: Vec<TokenId> = (0..first.len() as TokenId).collect();
        ranked.sort_by(|&a, &b| first[b as usize].total_cmp(&first[a as usize]));
        let mut second = HashMap::new();
        for &token in ranked.iter().take(BRANCHES) {
            tokens.push(token);
            second.insert(token, next_token(backend, &tokens, temperature)?);
            tokens.pop();
        }
        Ok(Self { prompt: prompt.to_vec(), temperature, first, second })
    }

    /// Draws many continuations under `controller` and tests how their first two tokens are distributed.
    ///
    /// # Errors
    /// If a pass fails.
    pub fn check(&self, engine: &mut Engine, controller: &ControllerSpec, args: &VerifyArgs) -> Outcome<Check> {
        let draw = |seed: u64| Request {
            sampling: SamplingParams {
                temperature: self.temperature,
                seed: Some(args.seed.wrapping_add(seed)),
                verify: Some(VerifyMode::Rejection),
                ..SamplingParams::default()
            },
            ignore_end: true,
            ..Request::new(self.prompt.clone(), DRAW_TOKENS)
        };
        let requests: Vec<Request> = (0..args.samples as u64).map(draw).collect();
        let draws = answers(engine, controller, &requests, super::BATCH)?;
        let pairs: Vec<(TokenId, TokenId)> = draws.iter().map(|draw| (draw.tokens[0], draw.tokens[1])).collect();
        let accepted: usize = draws.iter().map(|draw| draw.stats.accepted()).sum();
        let (expected, observed) = self.cells(&pairs);
        let test = chi_squared::test(&expected, &observed);
        Ok(Check {
            check: "rejection",
            controller: controller.to_string(),
            compared: format!("{} draws, {} outcomes", draws.len(), expected.len()),
            passed: test.p > LEAST_P,
            result: format!(
                "χ² {:.1}, {} degrees, p = {:.4}; {accepted} drafts accepted",
                test.statistic, test.degrees, test.p
            ),
        })
    }

    /// Expected and observed counts: pairs that are probable enough have a cell of their own; the
    /// rest after each first token is one cell, and what is still too rare is pooled in the last.
    fn cells(&self, pairs: &[(TokenId, TokenId)]) -> (Vec<f64>, Vec<f64>) {
        let n = pairs.len() as f64;
        let mut seen: HashMap<(TokenId, TokenId), f64> = HashMap::new();
        pairs.iter().for_each(|&pair| *seen.entry(pair).or_default() += 1.0);
        let (mut expected, mut observed) = (Vec::new(), Vec::new());
        for (first, &p) in self.first.iter().enumerate() {
            let first = first as TokenId;
            let total: f64 = seen.iter().filter(|(pair, _)| pair.0 == first).map(|(_, count)| count).sum();
            if p * n < LEAST_EXPECTED {
                continue;
            }
            let (mut rest, mut rest_seen) = (p * n, total);
            for (second, q) in self.second.get(&first).into_iter().flatten().enumerate() {
                if p * q * n >= LEAST_EXPECTED {
                    let count = seen.get(&(first, second as TokenId)).copied().unwrap_or(0.0);
                    expected.push(p * q * n);
                    observed.push(count);
                    rest -= p * q * n;
                    rest_seen -= count;
                }
            }
            if rest >= LEAST_EXPECTED {
                expected.push(rest);
                observed.push(rest_seen);
            }
        }
        let rare = n - expected.iter().sum::<f64>();
        let rare_seen = n - observed.iter().sum::<f64>();
        match (expected.last_mut(), observed.last_mut()) {
            (Some(last), Some(last_seen)) if rare < LEAST_EXPECTED => {
                *last += rare;
                *last_seen += rare_seen;
            }
            _ => {
                expected.push(rare);
                observed.push(rare_seen);
            }
        }
        (expected, observed)
    }
}

/// The probabilities of the token after `tokens`, in f64.
fn next_token(backend: &mut dyn Backend, tokens: &[TokenId], temperature: f64) -> Outcome<Vec<f64>> {
    let pages: Vec<PageId> = (0..tokens.len().div_ceil(PAGE_TOKENS) as u32).map(PageId).collect();
    let vocab = backend.geometry().vocab_size;
    let read = backend.evaluate(&Chunk { pages: &pages, start: 0, tokens }, 0)?;
    let logits = &read.logits[(tokens.len() - 1) * vocab..];
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weights: Vec<f64> = logits.iter().map(|&logit| (f64::from(logit - largest) / temperature).exp()).collect();
    let sum: f64 = weights.iter().sum();
    Ok(weights.iter().map(|weight| weight / sum).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use eesd::sample::{Philox, Purpose};

    /// Four tokens; the second one depends on the first.
    fn exact() -> Exact {
        let second =
            (0..4).map(|first| (first, (0..4).map(|i| [0.4, 0.3, 0.2, 0.1][((first + i) % 4) as usize]).collect()));
        Exact { prompt: vec![0], temperature: 1.0, first: vec![0.5, 0.3, 0.19, 0.01], second: second.collect() }
    }

    fn draw(probabilities: &[f64], rng: &mut Philox) -> TokenId {
        let mut u = rng.uniform();
        let at = probabilities.iter().position(|p| {
            u -= p;
            u < 0.0
        });
        at.unwrap_or(probabilities.len() - 1) as TokenId
    }

    #[test]
    fn true_draws_pass_and_biased_ones_fail() {
        let exact = exact();
        let mut rng = Philox::new(1, 0, Purpose::Draft, 0);
        let mut pairs: Vec<(TokenId, TokenId)> = Vec::new();
        for _ in 0..4000 {
            let first = draw(&exact.first, &mut rng);
            pairs.push((first, draw(&exact.second[&first], &mut rng)));
        }
        let p = |pairs: &[(TokenId, TokenId)]| {
            let (expected, observed) = exact.cells(pairs);
            assert!((expected.iter().sum::<f64>() - observed.iter().sum::<f64>()).abs() < 1e-6);
            chi_squared::test(&expected, &observed).p
        };
        assert!(p(&pairs) > 0.001);
        // One draw in eight loses its second token to the most probable one.
        pairs.iter_mut().step_by(8).for_each(|pair| pair.1 = 0);
        assert!(p(&pairs) < LEAST_P);
    }
}
