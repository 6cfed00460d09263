//! The engine's rejection sampling is exact: χ² of whole answers against their exact probabilities,
//! by the real round with its random numbers, batch, end tokens and controllers that learn.

mod common {
    pub mod adversary;
    pub mod chi_squared;
    pub mod hash_backend;
    pub mod simulated_times;
}

use common::adversary::Adversary;
use common::chi_squared::{p_value, uniformity};
use common::hash_backend::HashBackend;
use common::simulated_times::controller;
use eesd::TokenId;
use eesd::backend::Limits;
use eesd::control::{Controller, Outcome, Step};
use eesd::engine::{Engine, Event, Request};
use eesd::sample::{Philox, SamplingParams, VerifyMode};
use std::collections::BTreeMap;
use std::ops::ControlFlow;

const VOCAB: usize = 5;
const END: TokenId = 2;
const PROMPT: [TokenId; 2] = [1, 4];
/// Most tokens of an answer.
const LENGTH: usize = 4;
const TEMPERATURE: f64 = 4.0;
/// Answers behind one p-value.
const ANSWERS: u64 = 4000;
/// p-values per controller.
const BLOCKS: u64 = 12;

/// Drafts on whenever its own random number is large.
struct Gambler;

impl Controller for Gambler {
    fn spec(&self) -> String {
        "gambler".into()
    }

    fn start(&mut self, _slot: usize) {}

    fn proceed(&mut self, _step: &Step<'_>, rng: &mut Philox) -> bool {
        rng.fine_uniform() > 0.4
    }

    fn observe(&mut self, _outcome: &Outcome<'_>) {}

    fn state(&self) -> serde_json::Value {
        serde_json::Value::Null
    }
}

/// The exact chance of every answer.
fn exact() -> BTreeMap<Vec<TokenId>, f64> {
    let mut chances = BTreeMap::new();
    let mut open = vec![(Vec::new(), 1.0)];
    while let Some((answer, chance)) = open.pop() {
        if answer.len() == LENGTH || answer.last() == Some(&END) {
            chances.insert(answer, chance);
            continue;
        }
        let logits = HashBackend::target(VOCAB, &[&PROMPT, &answer[..]].concat());
        let weights: Vec<f64> = logits.iter().map(|&logit| (f64::from(logit) / TEMPERATURE).exp()).collect();
        let total: f64 = weights.iter().sum();
        let longer = |(weight, token): (&f64, TokenId)| ([&answer[..], &[token]].concat(), chance * weight / total);
        open.extend(weights.iter().zip(0..).map(longer));
    }
    chances
}

/// The p-values of one controller. Seeds start at `trial`, so that no two trials share any.
fn p_values(controller: Box<dyn Controller>, trial: u64) -> Vec<f64> {
    let limits = Limits { pages: 3, slots: 3, max_draft: 4, context: 32 };
    let mut engine = Engine::new(Box::new(HashBackend::new(VOCAB, limits, 100)), controller, None, vec![END]);
    let chances = exact();
    let expected: Vec<f64> = chances.values().copied().collect();
    let block = |block: u64| {
        let mut counts: BTreeMap<&[TokenId], usize> = chances.keys().map(|answer| (&answer[..], 0)).collect();
        let request = |i: u64| {
            let (seed, verify) = (Some(trial << 32 | (block * ANSWERS + i)), Some(VerifyMode::Rejection));
            let sampling = SamplingParams { temperature: TEMPERATURE, seed, verify, ..SamplingParams::default() };
            Request { sampling, ..Request::new(PROMPT.to_vec(), LENGTH) }
        };
        let count = &mut |_, event| {
            if let Event::Done(completion) = event {
                *counts.get_mut(&completion.tokens[..]).expect("every possible answer has a chance") += 1;
            }
            ControlFlow::Continue(())
        };
        engine.run(&mut (0..ANSWERS).map(request), 3, count).unwrap();
        p_value(&counts.into_values().collect::<Vec<_>>(), &expected)
    };
    (0..BLOCKS).map(block).collect()
}

#[test]
fn answers_follow_the_models_own_distribution() {
    let controllers: Vec<Box<dyn Controller>> = vec![
        controller("off"),
        controller("fixed:4"),
        controller("threshold:0.4"),
        controller("beta-ts"),
        controller("goodput-ts"),
        Box::new(Adversary),
        Box::new(Gambler),
    ];
    let mut all = Vec::new();
    for (controller, trial) in controllers.into_iter().zip(0..) {
        let name = controller.spec();
        let found = p_values(controller, trial);
        assert!(found.iter().all(|&p| p > 1e-5), "{name}: {found:?}");
        all.extend(found);
    }
    let uniformity = uniformity(all.clone());
    println!("{} p-values, uniform with p = {uniformity:.3}", all.len());
    assert!(uniformity > 1e-3, "{all:?}");
}
