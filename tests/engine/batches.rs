//! The bundled model answers the same, token for token, whatever runs beside it: any batch size, order of arrival,
//! controller, cut of its prompt, preemption, and pages of other requests.

use crate::common::requests::{run, tokens};
use crate::common::simulated_times;
use eesd::TokenId;
use eesd::backend::cpu::{CpuBackend, CpuOptions};
use eesd::engine::{Engine, EngineOptions, Request, Totals};
use eesd::load::{Checkpoint, bundled_prompts};
use eesd::sample::{SamplingParams, VerifyMode};

const CONTEXT: usize = 320;

/// An engine with the bundled exit block after layer 2, whose end tokens never come.
fn engine(controller: &str, slots: usize, pages: Option<usize>, options: EngineOptions) -> Engine {
    let checkpoint = Checkpoint::bundled().unwrap();
    let blocks = checkpoint.exit_blocks().unwrap();
    let exit = blocks.iter().find(|block| block.after() == 2).unwrap().weights();
    let reserved = CpuOptions { slots, context: CONTEXT, max_draft: 8, pages, ..CpuOptions::default() };
    let backend = CpuBackend::new(checkpoint.geometry(), &checkpoint.weights(), Some(&exit), &reserved).unwrap();
    Engine::new(backend, simulated_times::controller(controller), None, Vec::new()).with_options(options)
}

/// Two of each prompt, greedy and coupled; every third prompt has a common beginning of 150 tokens.
fn requests() -> Vec<Request> {
    let checkpoint = Checkpoint::bundled().unwrap();
    let tokenizer = checkpoint.tokenizer().unwrap();
    let prompts: Vec<Vec<TokenId>> =
        bundled_prompts().iter().map(|prompt| tokenizer.encode(prompt, true).unwrap()).collect();
    let beginning: Vec<TokenId> = prompts.concat().into_iter().take(150).collect();
    let coupled = SamplingParams {
        temperature: 0.9,
        top_p: 0.95,
        seed: Some(11),
        verify: Some(VerifyMode::Coupled),
        ..SamplingParams::default()
    };
    let request = |(i, prompt): (usize, &Vec<TokenId>)| {
        let prompt = if i % 3 == 0 { [&beginning[..], prompt].concat() } else { prompt.clone() };
        let plain = Request::new(prompt, 60 + i * 37 % 90);
        [plain.clone(), Request { sampling: coupled.clone(), ..plain }]
    };
    prompts.iter().take(16).enumerate().flat_map(request).collect()
}

#[test]
fn answers_do_not_depend_on_what_runs_beside_them() {
    let requests = requests();
    let alone = run(
        &mut engine("off", 1, None, EngineOptions { reuse_prefixes: false, ..EngineOptions::default() }),
        &requests,
        1,
    );
    let reverse: Vec<Request> = requests.iter().rev().cloned().collect();
    // Pages: as many as all need, or so few that answers push each other out.
    let cases = [
        ("off", 7, None, 512),
        ("goodput-ts", 2, Some(6), 512),
        ("goodput-ts", 7, Some(10), 100),
        ("fixed:5", 7, Some(8), 64),
        ("beta-ts", 64, Some(24), 300),
    ];
    let mut all = Totals::default();
    for (controller, batch, pages, token_budget) in cases {
        let mut engine = engine(controller, batch, pages, EngineOptions { token_budget, reuse_prefixes: batch != 2 });
        let found = run(&mut engine, &requests, batch);
        assert_eq!(tokens(&found), tokens(&alone), "{controller}, {batch} at a time");
        // Backwards, with pages of the first time.
        let mut found = run(&mut engine, &reverse, batch);
        found.reverse();
        assert_eq!(tokens(&found), tokens(&alone), "{controller}, {batch} at a time, backwards");
        let now = engine.snapshot();
        assert_eq!(now.free_pages, now.pages);
        all.preemptions += now.totals.preemptions;
        all.reused_tokens += now.totals.reused_tokens;
        all.accepted += now.totals.accepted;
    }
    assert!(all.preemptions > 20 && all.reused_tokens > 5_000 && all.accepted > 1_000, "{all:?}");
}
