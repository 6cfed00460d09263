//! Rejection sampling over a recurrent exit block on the processor: χ² of whole answers of the bundled model against their
//! exact probabilities, which are those of the few tokens that it is left with at each position.

use crate::common::adversary::Adversary;
use crate::common::chi_squared::{p_value, uniformity};
use crate::common::recurrent::recurrent;
use eesd::TokenId;
use eesd::backend::cpu::{CpuBackend, CpuOptions};
use eesd::backend::{Backend, Chunk};
use eesd::control::{Controller, ControllerSpec};
use eesd::engine::{Engine, Event, Request};
use eesd::kv::PageId;
use eesd::load::Checkpoint;
use eesd::model::Dtype;
use eesd::sample::{SamplingParams, VerifyMode};
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;

const PROMPT: &str = "def fibonacci(n):\n    if n < 2:\n        return n\n    return";
/// Tokens of an answer: as many drafts and one more would be made if there were room.
const LENGTH: usize = 4;
/// The tokens that are left, and what their logits get for it.
const TOKENS: [TokenId; 3] = [20, 21, 22];
const BIAS: f32 = 90.0;
const TEMPERATURE: f64 = 2.0;
/// Answers behind one p-value, and p-values for each controller.
const ANSWERS: u64 = 800;
const BLOCKS: u64 = 3;

fn backend(checkpoint: &Checkpoint) -> Box<dyn Backend> {
    let blocks = checkpoint.exit_blocks().unwrap();
    let exit = recurrent(blocks[1].weights(), Some(Dtype::BF16));
    let options = CpuOptions { slots: 4, context: 64, max_draft: LENGTH, ..CpuOptions::default() };
    CpuBackend::new(checkpoint.geometry(), &checkpoint.weights(), Some(&exit), &options).unwrap()
}

/// The exact chance of every answer.
fn exact(backend: &mut dyn Backend, prompt: &[TokenId]) -> BTreeMap<Vec<TokenId>, f64> {
    let (mut chances, mut open) = (BTreeMap::new(), vec![(Vec::new(), 1.0)]);
    while let Some((answer, chance)) = open.pop() {
        if answer.len() == LENGTH {
            chances.insert(answer, chance);
            continue;
        }
        let tokens = &[prompt, &answer[..]].concat()[..];
        let logits = backend.evaluate(&Chunk { pages: &[PageId(0)], start: 0, tokens }, 0).unwrap().logits;
        let last = &logits[logits.len() - backend.geometry().vocab_size..];
        let weights = TOKENS.map(|token| ((f64::from(last[token as usize]) / TEMPERATURE).exp(), token));
        let total: f64 = weights.iter().map(|weight| weight.0).sum();
        open.extend(weights.iter().map(|&(weight, token)| ([&answer[..], &[token]].concat(), chance * weight / total)));
    }
    chances
}

#[test]
fn answers_follow_the_models_own_distribution() {
    let checkpoint = Checkpoint::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("models/pycode-4m")).unwrap();
    let prompt = checkpoint.tokenizer().unwrap().encode(PROMPT, true).unwrap();
    let chances = exact(&mut *backend(&checkpoint), &prompt);
    assert!((chances.values().sum::<f64>() - 1.0).abs() < 1e-9 && chances.len() == TOKENS.len().pow(LENGTH as u32));
    let expected: Vec<f64> = chances.values().copied().collect();
    let request = |seed: u64| {
        let (seed, verify) = (Some(seed), Some(VerifyMode::Rejection));
        let logit_bias = TOKENS.map(|token| (token, BIAS)).to_vec();
        let sampling =
            SamplingParams { temperature: TEMPERATURE, logit_bias, seed, verify, ..SamplingParams::default() };
        Request { sampling, ..Request::new(prompt.clone(), LENGTH) }
    };
    let fixed = || "fixed:3".parse::<ControllerSpec>().unwrap().build();
    let (mut found, mut kept) = (Vec::new(), 0);
    for (controller, trial) in [fixed(), Box::new(Adversary) as Box<dyn Controller>].into_iter().zip(0u64..) {
        let mut engine = Engine::new(backend(&checkpoint), controller, None, Vec::new());
        for block in 0..BLOCKS {
            let first = (trial * BLOCKS + block) * ANSWERS;
            let mut seen: BTreeMap<&[TokenId], usize> = chances.keys().map(|answer| (&answer[..], 0)).collect();
            let count = &mut |_, event| {
                if let Event::Done(completion) = event {
                    *seen.get_mut(&completion.tokens[..]).expect("every possible answer has a chance") += 1;
                    kept += completion.stats.accepted_at.iter().skip(1).sum::<usize>();
                }
                ControlFlow::Continue(())
            };
            engine.run(&mut (first..first + ANSWERS).map(request), 4, count).unwrap();
            found.push(p_value(&seen.into_values().collect::<Vec<_>>(), &expected));
        }
    }
    assert!(kept > 250, "only {kept} recurrent drafts were kept");
    assert!(found.iter().all(|&p| p > 1e-5), "{found:?}");
    assert!(uniformity(found.clone()) > 1e-3, "{found:?}");
}
