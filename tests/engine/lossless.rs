//! Speculative decoding writes what plain decoding writes: over every fixture and the bundled model,
//! every exit layer and every controller, greedy and coupled, token for token and bit for bit.

use crate::common::adversary::Adversary;
use crate::common::exits::exit_after;
use crate::common::grown::grown;
use crate::common::oracle::standing;
use crate::common::recurrent::recurrent;
use crate::common::requests::{run, tokens};
use crate::common::simulated_times;
use eesd::TokenId;
use eesd::backend::cpu::{CpuBackend, CpuOptions, KvFormat};
use eesd::control::Controller;
use eesd::draft::{Source, Sources};
use eesd::engine::{Engine, Event, Request};
use eesd::load::{Checkpoint, ExitBlock, bundled_prompts};
use eesd::model::{Dtype, ExitWeights};
use eesd::sample::{SamplingParams, VerifyMode};
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;

const EXITS: [usize; 3] = [1, 2, 3];
const CONTROLLERS: [&str; 8] =
    ["fixed:1", "fixed:4", "fixed:16", "threshold:0.6", "beta-ts", "calibration-ts", "goodput-ts", "adversary"];

/// A model with its exit blocks: the shipped ones, or untrained copies of its own last layer, which
/// draft badly and so try the refusals.
struct Subject {
    checkpoint: Checkpoint,
    shipped: Vec<ExitBlock>,
    prompts: Vec<Vec<TokenId>>,
    kv: KvFormat,
    /// Its blocks are made recurrent.
    recurrent: bool,
}

impl Subject {
    fn all() -> Vec<Subject> {
        let mut folders: Vec<_> =
            std::fs::read_dir("tests/fixtures/hf").unwrap().map(|entry| entry.unwrap().path()).collect();
        folders.sort();
        let mut subjects = vec![Self::bundled()];
        subjects.extend(folders.iter().map(|folder| Self::fixture(folder)));
        // Every type of blocks and both widths of groups, and keys and values in 8 bits.
        let quantised = ["gguf/llama-mixed.gguf", "gguf/qwen2-mixed.gguf", "gguf/qwen3-mixed.gguf"];
        let folders = ["hf-quantised/awq", "hf-quantised/ct-mixed"];
        for (index, place) in quantised.into_iter().chain(folders).enumerate() {
            let kv = if index % 2 == 0 { KvFormat::Full } else { KvFormat::Eight };
            subjects.push(Self { kv, ..Self::fixture(&Path::new("tests/fixtures").join(place)) });
        }
        subjects
    }

    fn bundled() -> Self {
        Self::shipped(Checkpoint::bundled().unwrap())
    }

    fn shipped(checkpoint: Checkpoint) -> Self {
        let tokenizer = checkpoint.tokenizer().unwrap();
        let prompts = bundled_prompts().iter().map(|prompt| tokenizer.encode(prompt, true).unwrap()).collect();
        let shipped = checkpoint.exit_blocks().unwrap();
        Self { checkpoint, shipped, prompts, kv: KvFormat::Full, recurrent: false }
    }

    fn fixture(folder: &Path) -> Self {
        let checkpoint = Checkpoint::open(folder).unwrap();
        let vocab = checkpoint.geometry().vocab_size as u64;
        let token = |prompt: u64, i: u64| ((prompt * 7919 + i * i * 31 + i * 17) % vocab) as TokenId;
        let prompts = (0..32).map(|p| (0..3 + p % 40).map(|i| token(p, i)).collect()).collect();
        Self { checkpoint, shipped: Vec::new(), prompts, kv: KvFormat::Full, recurrent: false }
    }

    /// The exits to try, each with something else.
    fn exits(&self) -> impl Iterator<Item = usize> {
        let layers = self.checkpoint.geometry().layers;
        EXITS.into_iter().map(move |exit| exit.min(layers - 1))
    }

    fn exit(&self, after: usize) -> ExitWeights<'_> {
        let exit = exit_after(&self.checkpoint, &self.shipped, after);
        let matrices = (self.kv == KvFormat::Full).then_some(Dtype::BF16);
        if self.recurrent { recurrent(exit, matrices) } else { exit }
    }

    /// An engine whose end tokens never come, so that every request has its full length.
    fn engine(&self, exit: usize, controller: &str, slots: usize) -> Engine {
        let options = CpuOptions { slots, context: 512, max_draft: 16, kv: self.kv, ..CpuOptions::default() };
        let exit = self.exit(exit);
        let weights = self.checkpoint.weights();
        let backend = CpuBackend::new(self.checkpoint.geometry(), &weights, Some(&exit), &options).unwrap();
        Engine::new(backend, build(controller), None, Vec::new())
    }
}

fn build(controller: &str) -> Box<dyn Controller> {
    match controller {
        "adversary" => Box::new(Adversary),
        spec => simulated_times::controller(spec),
    }
}

#[test]
fn greedy_ids_equal_plain_ids_over_100_000_tokens() {
    let mut compared = 0;
    for subject in Subject::all() {
        let name = subject.checkpoint.name();
        let request = |prompt: &Vec<TokenId>| Request::new(prompt.clone(), 120);
        let requests: Vec<Request> = subject.prompts.iter().take(6).map(request).collect();
        let plain = run(&mut subject.engine(1, "off", 1), &requests, 1);
        for exit in subject.exits() {
            let mut engine = subject.engine(exit, "off", 3);
            for controller in CONTROLLERS {
                engine.set_controller(build(controller));
                let speculative = run(&mut engine, &requests, 3);
                assert_eq!(tokens(&speculative), tokens(&plain), "{name}, exit {exit}, {controller}");
                compared += speculative.iter().map(|completion| completion.tokens.len()).sum::<usize>();
            }
        }
    }
    assert!(compared >= 100_000, "only {compared} tokens were compared");
}

/// By lookups in the text and in others, with an exit block and without, alone and side by side, greedy and coupled: on a
/// clock that stands still, so that whatever is proposed is taken.
#[test]
fn proposed_ids_equal_plain_ids() {
    let coupled = SamplingParams { temperature: 0.8, seed: Some(3), ..SamplingParams::default() };
    let mut kept = [0; 2];
    for subject in Subject::all() {
        let name = subject.checkpoint.name();
        for sampling in [SamplingParams::default(), coupled.clone()] {
            // The second half has been written before when it comes.
            let prompts = subject.prompts.iter().take(4).cycle().take(8);
            let request =
                |prompt: &Vec<TokenId>| Request { sampling: sampling.clone(), ..Request::new(prompt.clone(), 100) };
            let requests: Vec<Request> = prompts.map(request).collect();
            let plain = run(&mut subject.engine(1, "off", 1), &requests, 1);
            for (controller, slots) in [("off", 1), ("off", 3), ("fixed:2", 3), ("adversary", 1)] {
                let engine = subject.engine(1, controller, slots).with_clock(standing());
                let mut engine = engine.with_proposers(Sources::ALL.proposers());
                let proposed = run(&mut engine, &requests, slots);
                assert_eq!(tokens(&proposed), tokens(&plain), "{name}, {controller}, {slots} side by side");
                let of = |source| proposed.iter().map(|c| c.stats.by_source[source as usize].accepted).sum::<usize>();
                kept = [kept[0] + of(Source::Lookup), kept[1] + of(Source::Shared)];
            }
        }
    }
    assert!(kept.into_iter().all(|kept| kept > 1000), "kept of lookups, and of other texts: {kept:?}");
}

/// Drafts made without the first layers, alone and side by side, with lookups between them and without, greedy and coupled.
#[test]
fn recurrently_drafted_ids_equal_plain_ids() {
    let coupled = SamplingParams { temperature: 0.8, seed: Some(3), ..SamplingParams::default() };
    let mut accepted = 0;
    for subject in Subject::all() {
        let subject = Subject { recurrent: true, ..subject };
        let name = subject.checkpoint.name();
        for sampling in [SamplingParams::default(), coupled.clone()] {
            // Left with few tokens, even an untrained block is right now and then.
            let few = (20..24).map(|token| (token, 90.0)).collect();
            let narrow = SamplingParams { logit_bias: few, ..sampling.clone() };
            let both = [sampling, narrow].into_iter().cycle();
            let request =
                |(prompt, sampling): (&Vec<TokenId>, _)| Request { sampling, ..Request::new(prompt.clone(), 40) };
            let requests: Vec<Request> = subject.prompts.iter().zip(both).take(4).map(request).collect();
            let plain = run(&mut subject.engine(1, "off", 1), &requests, 1);
            for (exit, slots) in subject.exits().zip([1, 3, 5]) {
                let mut engine = subject.engine(exit, "off", slots);
                for controller in ["fixed:4", "goodput-ts", "adversary"] {
                    engine.set_controller(build(controller));
                    let found = run(&mut engine, &requests, slots);
                    assert_eq!(tokens(&found), tokens(&plain), "{name}, exit {exit}, {controller}");
                    let later = found.iter().flat_map(|completion| completion.stats.accepted_at.iter().skip(1));
                    accepted += later.sum::<usize>();
                }
                engine.set_controller(build("fixed:3"));
                let mut engine = engine.with_clock(standing()).with_proposers(Sources::ALL.proposers());
                assert_eq!(tokens(&run(&mut engine, &requests, slots)), tokens(&plain), "{name}, exit {exit}, lookups");
            }
        }
    }
    assert!(accepted >= 1000, "only {accepted} recurrent drafts were accepted");
}

/// A model so deep that it gains from its drafts, with a trained block.
#[test]
fn a_deep_model_writes_what_it_writes_alone() {
    let folder = grown(32);
    let subject = Subject::shipped(Checkpoint::open(folder.path()).unwrap());
    let coupled = SamplingParams { temperature: 0.8, seed: Some(3), ..SamplingParams::default() };
    for sampling in [SamplingParams::default(), coupled] {
        let request =
            |prompt: &Vec<TokenId>| Request { sampling: sampling.clone(), ..Request::new(prompt.clone(), 64) };
        let requests: Vec<Request> = subject.prompts.iter().take(6).map(request).collect();
        let mut engine = subject.engine(3, "off", 3);
        let plain = run(&mut engine, &requests, 1);
        for controller in ["fixed:4", "adversary", "goodput-ts"] {
            engine.set_controller(build(controller));
            let speculative = run(&mut engine, &requests, 3);
            assert_eq!(tokens(&speculative), tokens(&plain), "{controller}");
            let accepted: usize = speculative.iter().map(|completion| completion.stats.accepted()).sum();
            assert!(accepted > 50, "{controller}: {accepted} drafts accepted");
        }
    }
}

/// The target's logits for every generated position, as bits, from the passes of a run itself.
fn logit_bits(engine: &mut Engine, request: &Request) -> BTreeMap<usize, Vec<u32>> {
    let vocab = engine.backend().geometry().vocab_size;
    let mut bits = BTreeMap::new();
    engine.submit(0, request.clone());
    while !engine.is_idle() {
        let first = bits.len();
        let mut emitted = 0;
        let flow = engine.step(&mut |_, event| {
            emitted += usize::from(matches!(event, Event::Token(_)));
            ControlFlow::Continue(())
        });
        assert!(flow.unwrap().is_continue());
        let logits = engine.backend().target_logits(0).unwrap();
        for (i, row) in logits.chunks_exact(vocab).take(emitted).enumerate() {
            bits.insert(first + i, row.iter().map(|logit| logit.to_bits()).collect());
        }
    }
    bits
}

#[test]
fn logits_are_bit_equal() {
    for subject in Subject::all() {
        let request = Request::new(subject.prompts[1].clone(), 100);
        let plain = logit_bits(&mut subject.engine(1, "off", 1), &request);
        assert_eq!(plain.len(), 100);
        for (exit, controller) in subject.exits().zip(["fixed:5", "adversary", "fixed:16"]) {
            let speculative = logit_bits(&mut subject.engine(exit, controller, 1), &request);
            assert!(speculative == plain, "{}, exit {exit}, {controller}", subject.checkpoint.name());
        }
    }
}

#[test]
fn coupled_ids_equal_plain_ids_over_20_000_tokens() {
    let filters = [
        SamplingParams { temperature: 0.7, ..SamplingParams::default() },
        SamplingParams { temperature: 1.0, top_k: 40, ..SamplingParams::default() },
        SamplingParams { temperature: 1.3, top_p: 0.9, min_p: 0.02, ..SamplingParams::default() },
        SamplingParams {
            temperature: 1.0,
            repetition_penalty: 1.1,
            frequency_penalty: 0.2,
            ..SamplingParams::default()
        },
    ];
    let mut compared = 0;
    for subject in Subject::all() {
        let name = subject.checkpoint.name();
        let requests: Vec<Request> = (subject.prompts.iter().zip(0u64..))
            .take(8)
            .map(|(prompt, seed)| {
                let filter = filters[seed as usize % filters.len()].clone();
                let sampling =
                    SamplingParams { seed: Some(seed * 977 + 5), verify: Some(VerifyMode::Coupled), ..filter };
                Request { sampling, ..Request::new(prompt.clone(), 75) }
            })
            .collect();
        let plain = run(&mut subject.engine(1, "off", 1), &requests, 1);
        let mut backwards = requests.clone();
        backwards.reverse();
        for (exit, controllers) in
            subject.exits().zip([["fixed:4", "goodput-ts"], ["adversary", "beta-ts"], ["fixed:16", "goodput-ts"]])
        {
            let mut engine = subject.engine(exit, "off", 5);
            for controller in controllers {
                engine.set_controller(build(controller));
                let mut speculative = run(&mut engine, &backwards, 5);
                speculative.reverse();
                assert_eq!(tokens(&speculative), tokens(&plain), "{name}, exit {exit}, {controller}");
                compared += speculative.iter().map(|completion| completion.tokens.len()).sum::<usize>();
            }
        }
    }
    assert!(compared >= 20_000, "only {compared} tokens were compared");
}
