//! The default controller over many requests one at a time on the bundled model: those that draft well, thousands that cannot
//! draft or draft badly, and good ones again.

use crate::common::requests::run;
use crate::common::simulated_times;
use eesd::TokenId;
use eesd::backend::cpu::{CpuBackend, CpuOptions};
use eesd::engine::{Engine, Request};
use eesd::load::{Checkpoint, bundled_prompts};

/// Its first exit block, so that drafting gains something, and not too much to be worth comparing with plain rounds.
fn engine() -> Engine {
    let checkpoint = Checkpoint::bundled().unwrap();
    let blocks = checkpoint.exit_blocks().unwrap();
    let exit = blocks.iter().find(|block| block.after() == 1).unwrap().weights();
    let reserved = CpuOptions { threads: Some(1), slots: 1, context: 256, max_draft: 8, ..CpuOptions::default() };
    let backend = CpuBackend::new(checkpoint.geometry(), &checkpoint.weights(), Some(&exit), &reserved).unwrap();
    Engine::new(backend, simulated_times::controller("goodput-ts"), None, Vec::new())
}

/// Continues code: 60 answers of so many tokens.
fn code(tokens: usize) -> Vec<Request> {
    let checkpoint = Checkpoint::bundled().unwrap();
    let tokenizer = checkpoint.tokenizer().unwrap();
    let request = |prompt: &str| Request::new(tokenizer.encode(prompt, true).unwrap(), tokens);
    bundled_prompts().iter().cycle().take(60).map(|prompt| request(prompt)).collect()
}

/// Tokens drafted for some requests.
fn drafted(engine: &mut Engine, requests: &[Request]) -> usize {
    let before = engine.snapshot().totals.drafted;
    run(engine, requests, 1);
    engine.snapshot().totals.drafted - before
}

#[test]
fn goodput_ts_drafts_again_after_thousands_of_requests_that_could_not_or_did_badly() {
    let vocab = Checkpoint::bundled().unwrap().geometry().vocab_size;
    let noise = |i: usize| (0..6).map(|j| ((i * 7919 + j * j * 31 + j * 17) % vocab) as TokenId).collect::<Vec<_>>();
    // Answers of one token are never drafted; those of noise of a few, and drafts of them are refused more often than not.
    for (name, count, tokens) in [("one token", 5000, 1), ("few tokens", 2000, 4)] {
        for length in [20, 80] {
            let mut engine = engine();
            let code = code(length);
            let first = drafted(&mut engine, &code);
            let short: Vec<Request> = (0..count).map(|i| Request::new(noise(i), tokens)).collect();
            drafted(&mut engine, &short);
            let last = drafted(&mut engine, &code);
            let share = last as f64 / first as f64;
            assert!(
                first > 10 * code.len() && share > 0.8,
                "{name}, then {length}: {first} drafts at first, {last} at last"
            );
        }
    }
}
