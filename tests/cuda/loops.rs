//! Drafts of a whole round in one loop on the device: the drafts that are made step by step, in one launch and with one
//! wait; and what happens where there are no loops.

use crate::simulated_times;
use crate::support::{Subject, bits, emulated, engine, on, options, run, table, tokens};
use crate::tested_gpu::tested_gpu;
use eesd::TokenId;
use eesd::backend::cuda::CudaOptions;
use eesd::backend::cuda::driver::{Driver, HostMemory, Memory};
use eesd::backend::cuda::emulator::{Counts, EmulatedDevice, Emulator, LoopFault};
use eesd::backend::cuda::kernels::{KeepRows, keep_rows};
use eesd::backend::cuda::loop_probe::Loops;
use eesd::backend::{Backend, Chunk, Draft, Sequence};
use eesd::control::{ControllerSpec, DraftPlan, Rule};
use eesd::engine::{Completion, Engine, Finish, Request};
use eesd::sample::{Sampler, SamplingParams, VerifyMode};
use std::sync::Arc;

/// What a device did since `before`.
fn since(before: Counts, device: &EmulatedDevice) -> Counts {
    let now = device.counts();
    Counts {
        kernels: now.kernels - before.kernels,
        recordings: now.recordings - before.recordings,
        replays: now.replays - before.replays,
        products: now.products - before.products,
        copies: now.copies - before.copies,
        turns: now.turns - before.turns,
        waits: now.waits - before.waits,
    }
}

#[test]
fn all_drafts_of_a_round_are_one_graph_and_one_wait() {
    for controller in ["fixed:3", "threshold:0.01", "beta-ts:prior=9"] {
        let device = emulated(0, 1 << 30);
        let mut engine = engine(on(&device, &options(1)).unwrap(), controller);
        let request = Request::new(Subject::fixture("llama").text(0, 20), 16);
        let first = run(&mut engine, std::slice::from_ref(&request), 1);
        let before = device.counts();
        let second = run(&mut engine, &[request], 1);
        let done = since(before, &device);
        assert_eq!(first[0].tokens, second[0].tokens);
        let lengths = &second[0].stats.lengths;
        let rounds = second[0].stats.rounds as u64;
        let drafting = rounds - lengths[0] as u64;
        let drafts: u64 = lengths.iter().zip(0..).map(|(&rounds, k)| rounds as u64 * k).sum();
        assert!(drafts > drafting && drafting > 0, "{controller}: {lengths:?}");
        assert_eq!(done.turns, drafts, "{controller}");
        assert_eq!(done.replays, rounds + drafting, "{controller}");
        assert_eq!(
            done.waits,
            rounds + drafting + 2,
            "{controller}: one for each pass or loop, and for what the prompt's has noted"
        );
    }
}

/// A prompt.
struct Text {
    tokens: Vec<TokenId>,
    sampler: Sampler,
}

impl Text {
    fn new(subject: &Subject, len: usize, sampling: SamplingParams) -> Self {
        let sampler = Sampler::new(sampling, subject.geometry().vocab_size).unwrap();
        Self { tokens: subject.text(len as u64, len), sampler }
    }

    fn sequence<'a>(&'a self, pages: &'a eesd::kv::BlockTable, drafts: &'a [TokenId]) -> Sequence<'a> {
        let (slot, prompt) = (1, self.tokens.len());
        Sequence {
            slot,
            pages: pages.pages(),
            tokens: drafts,
            committed: prompt,
            prompt,
            proposed: 0,
            recurrent: 0,
            sampler: &self.sampler,
        }
    }

    /// Puts the prompt into the cache.
    fn fill(&self, backend: &mut dyn Backend) {
        let pages = table(2, 500);
        let chunk = Chunk { pages: pages.pages(), start: 0, tokens: &self.tokens[..self.tokens.len() - 1] };
        backend.prefill(&[chunk]).unwrap();
    }

    /// A round's drafts by the plan, and the verdict and logits that follow.
    fn round(&self, backend: &mut dyn Backend, plan: &DraftPlan, ends: &[TokenId]) -> (Vec<Draft>, Vec<u32>) {
        let pages = table(2, 500);
        let drafts = backend.draft_planned(&self.sequence(&pages, &self.tokens), plan, ends).unwrap();
        let drafted: Vec<TokenId> = self.tokens.iter().copied().chain(drafts.iter().map(|d| d.token)).collect();
        let verdicts = backend.verify(&[self.sequence(&pages, &drafted)]).unwrap();
        let mut seen = bits(&backend.target_logits(1).unwrap());
        seen.extend([verdicts[0].accepted as u32, verdicts[0].next]);
        (drafts, seen)
    }
}

fn samplings() -> [SamplingParams; 4] {
    let coupled = SamplingParams {
        temperature: 0.9,
        seed: Some(3),
        verify: Some(VerifyMode::Coupled),
        ..SamplingParams::default()
    };
    let penalised = SamplingParams {
        repetition_penalty: 1.5,
        frequency_penalty: 0.4,
        logit_bias: vec![(3, -4.0), (5, 1.0)],
        ..coupled.clone()
    };
    let rejecting = SamplingParams { verify: Some(VerifyMode::Rejection), top_k: 50, ..penalised.clone() };
    [SamplingParams::default(), coupled, penalised, rejecting]
}

/// Plans of many kinds, some with edges that are confidences met on the way: these count as reached.
fn plans(met: &[Draft]) -> Vec<DraftPlan> {
    let mut sorted: Vec<f32> = met.iter().map(|draft| draft.confidence).collect();
    sorted.sort_by(f32::total_cmp);
    let threshold =
        |edge| DraftPlan { edges: vec![edge], rules: [Rule::STOP, Rule::GO].repeat(7), ..DraftPlan::of_length(8) };
    let rule = |kept: f64| Rule { kept, worth: 1.0 / (0.5 * kept) };
    let table = DraftPlan {
        edges: vec![sorted[1], sorted[3], sorted[6]],
        rules: [0.7, 0.8, 0.9, 0.99].map(rule).repeat(7),
        ..DraftPlan::of_length(8)
    };
    let lengths = [1, 2, 8].map(DraftPlan::of_length);
    let thresholds = sorted.iter().step_by(2).copied().map(threshold);
    lengths.into_iter().chain(thresholds).chain([table]).collect()
}

#[test]
fn drafts_of_a_loop_are_those_made_step_by_step() {
    let subject = Subject::fixture("qwen2");
    let options = CudaOptions { prefill_rows: 128, ..options(2) };
    // After layer 3 the block drafts from listed tokens.
    let looping = &mut *subject.cuda(Some(3), &options);
    let stepping = &mut *subject.cuda(Some(3), &CudaOptions { draft_loops: false, ..options });
    assert!(looping.follows_plans() && !stepping.follows_plans());
    let mut lengths = Vec::new();
    // The second one's drafts begin in one chunk of attention and end in the next.
    for (len, sampling) in [9, 253, 30, 12].into_iter().zip(samplings()) {
        let text = Text::new(&subject, len, sampling);
        text.fill(looping);
        text.fill(stepping);
        let (met, _) = text.round(stepping, &DraftPlan::of_length(8), &[]);
        for plan in plans(&met) {
            let expected = text.round(stepping, &plan, &[]);
            assert_eq!(text.round(looping, &plan, &[]), expected, "{len}: {plan:?}");
            assert_eq!(expected.0, met[..expected.0.len()], "a plan changes lengths alone");
            lengths.push(expected.0.len());
        }
        // End tokens, the last of as many as the device looks for.
        for (end, last) in met.iter().enumerate().skip(1).take(2) {
            let mut ends: Vec<TokenId> = (0..31).map(|i| 200 + i).collect();
            ends.push(last.token);
            let found = text.round(looping, &DraftPlan::of_length(8), &ends);
            assert_eq!(found, text.round(stepping, &DraftPlan::of_length(8), &ends));
            assert!(found.0.len() <= end + 1);
        }
    }
    lengths.sort_unstable();
    lengths.dedup();
    assert!(lengths.len() > 4, "hardly a plan ended drafts by their confidence: {lengths:?}");
}

#[test]
fn what_a_loop_cannot_do_is_done_step_by_step() {
    let subject = Subject::fixture("llama");
    let text = Text::new(&subject, 12, SamplingParams::default());
    let many_edges = DraftPlan {
        edges: (1..20).map(|i| i as f32 / 1000.0).collect(),
        rules: [Rule::GO; 20].repeat(3),
        ..DraftPlan::of_length(4)
    };
    let many_ends: Vec<TokenId> = (600..640).collect();
    let device = emulated(0, 1 << 30);
    let mut backend = on(&device, &CudaOptions { draft_loops: false, ..options(2) }).unwrap();
    text.fill(&mut *backend);
    let expected = text.round(&mut *backend, &DraftPlan::of_length(4), &[]);
    let mut backend = on(&device, &options(2)).unwrap();
    text.fill(&mut *backend);
    let mut waits = |plan: &DraftPlan, ends: &[TokenId]| {
        let before = device.counts();
        let found = text.round(&mut *backend, plan, ends);
        (found == expected, since(before, &device).turns)
    };
    assert_eq!(waits(&DraftPlan::of_length(4), &[]), (true, 4));
    assert_eq!(waits(&many_edges, &[]), (true, 0));
    assert_eq!(waits(&DraftPlan::of_length(4), &many_ends), (true, 0));
    assert_eq!(waits(&DraftPlan::of_length(4), &many_ends[..30]), (true, 4));

    // No loops, none tried, none after all, no graphs, none wanted.
    let new = || EmulatedDevice::new(Emulator::new(0), 1 << 30);
    let (none, untried) = (Arc::new(new().without_loops()), Arc::new(new()));
    let refusing = Arc::new(new().failing_at_loops(LoopFault::Refuses, Loops::InOrder));
    untried.allow_loops(Loops::None);
    let eager = CudaOptions { graphs: false, ..options(2) };
    let unwanted = CudaOptions { draft_loops: false, ..options(2) };
    for (device, options, follows) in [
        (&none, options(2), false),
        (&untried, options(2), false),
        (&refusing, options(2), true),
        (&device, eager, false),
        (&device, unwanted, false),
    ] {
        let mut backend = on(device, &options).unwrap();
        assert_eq!(backend.follows_plans(), follows);
        text.fill(&mut *backend);
        let before = device.counts();
        assert_eq!(text.round(&mut *backend, &DraftPlan::of_length(4), &[]), expected);
        assert_eq!(since(before, device).turns, 0);
        assert!(!backend.follows_plans(), "refused once, refused for good");
    }
}

#[test]
fn plans_that_do_not_fit_are_refused() {
    let subject = Subject::fixture("llama");
    let mut backend = subject.cuda(Some(1), &options(2));
    let text = Text::new(&subject, 12, SamplingParams::default());
    let mut refused = |pages: &eesd::kv::BlockTable, limit| {
        let sequence = text.sequence(pages, &text.tokens);
        let drafts = backend.draft_planned(&sequence, &DraftPlan::of_length(limit), &[]);
        drafts.map(|drafts| drafts.len()).map_err(|error| error.to_string())
    };
    let room = table(2, 64);
    assert_eq!(refused(&room, 0), Ok(0));
    assert!(refused(&room, 17).unwrap_err().contains("more than 16 drafts in a round"));
    let text = Text::new(&subject, 60, SamplingParams::default());
    let mut refused = |limit| {
        let drafts = backend.draft_planned(&text.sequence(&room, &text.tokens), &DraftPlan::of_length(limit), &[]);
        drafts.map(|drafts| drafts.len()).map_err(|error| error.to_string())
    };
    // The last draft is made at a position before its own.
    assert_eq!(refused(5), Ok(5));
    let more = subject.cuda(None, &options(1)).draft_planned(
        &text.sequence(&room, &text.tokens),
        &DraftPlan::of_length(1),
        &[],
    );
    assert!(more.unwrap_err().to_string().contains("nothing can be drafted"));
}

/// An engine that drafts in loops, whatever its controller.
fn looping_engine(subject: &Subject, ends: Vec<TokenId>) -> Engine {
    let backend = subject.cuda(Some(2), &options(1));
    assert!(backend.follows_plans() || tested_gpu().is_some());
    Engine::new(backend, ControllerSpec::Off.build(), None, ends)
}

fn answers(engine: &mut Engine, controller: &str, requests: &[Request]) -> Vec<Completion> {
    engine.set_controller(simulated_times::controller(controller));
    run(engine, requests, 1)
}

/// Answers with end tokens and little room, as plain decoding gives them.
#[test]
fn answers_end_where_they_end_plainly() {
    let subject = Subject::bundled();
    let tokenizer = subject.checkpoint.tokenizer().unwrap();
    let prompt = tokenizer.encode("def fibonacci(n):", true).unwrap();
    let request = |room, ignore_end| Request { ignore_end, ..Request::new(prompt.clone(), room) };
    let all = answers(&mut looping_engine(&subject, vec![]), "fixed:4", &[request(14, false)]).remove(0).tokens;
    let end = all[9];
    let mut engine = looping_engine(&subject, vec![3, end]);
    let plain = answers(&mut engine, "off", &[request(14, false)]).remove(0);
    assert_eq!((&plain.finish, &plain.tokens[..]), (&Finish::EndToken(end), &all[..plain.tokens.len()]));
    for controller in ["fixed:6", "threshold:0.2", "beta-ts", "goodput-ts"] {
        let found = answers(&mut engine, controller, &[request(14, false)]).remove(0);
        assert_eq!((found.tokens, found.finish), (plain.tokens.clone(), plain.finish.clone()), "{controller}");
        // A draft that ends the answer is the last one of its round.
        assert!(controller != "fixed:6" || found.stats.lengths.len() <= 7, "{:?}", found.stats.lengths);
        for room in 1..4 {
            let found = answers(&mut engine, controller, &[request(room, true)]).remove(0);
            assert_eq!((&found.tokens[..], found.finish), (&all[..room], Finish::Length), "{controller}");
            assert!(found.stats.lengths.len() <= room, "{controller}: {:?} in {room}", found.stats.lengths);
        }
    }
}

#[test]
fn loops_change_no_token() {
    let subject = Subject::fixture("llama");
    let mut engine = looping_engine(&subject, vec![]);
    let controllers = ["fixed:3", "threshold:0.02", "beta-ts", "goodput-ts"];
    let samplings = samplings();
    for (number, pair) in [(0, [0, 3]), (1, [1, 2]), (2, [2, 0])] {
        let request = |i: u64| {
            let sampling = SamplingParams { seed: Some(i), ..samplings[number].clone() };
            Request { sampling, ..Request::new(subject.text(i, 3 + 9 * i as usize), 10) }
        };
        let requests: Vec<Request> = (0..2).map(request).collect();
        let plain = answers(&mut engine, "off", &requests);
        for controller in pair.map(|index: usize| controllers[index]) {
            let found = answers(&mut engine, controller, &requests);
            assert_eq!(tokens(&found), tokens(&plain), "{controller}, sampling {number}");
            assert!(found.iter().any(|done| done.stats.lengths.len() > 2), "{controller}: no draft of two");
        }
    }
}

/// A word that a kernel copies on the device, for loops with nothing else in them.
fn copy_word(device: &Arc<EmulatedDevice>, words: &Memory<EmulatedDevice>) -> Result<(), eesd::backend::BackendError> {
    let (residual, index) = (words.at(), words.byte(8));
    let arguments = KeepRows { residual, index, stored: words.byte(4), hidden: 1, padding: 0 };
    // SAFETY: a row of one word, to the row after it; the index is 0.
    unsafe { keep_rows(&**device, 1, &arguments) }
}

#[test]
fn what_an_emulated_device_says_of_loops_that_cannot_be() {
    let device = emulated(0, 1 << 20);
    let words = Memory::zeroed(&device, 16, "a test").unwrap();
    let mut host = HostMemory::zeroed(&device, 16).unwrap();
    let error = |result: Result<(), eesd::backend::BackendError>, why: &str| {
        let error = result.unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    };
    let end = || {
        // SAFETY: a word of this memory.
        unsafe { device.end_loop(words.byte(4)) }
    };
    error(device.begin_loop(), "outside of a recording");
    error(end(), "no loop was begun");
    device.begin_capture().unwrap();
    device.begin_loop().unwrap();
    error(device.begin_loop(), "inside of another");
    // SAFETY: refused.
    error(unsafe { device.zero(words.at(), 4) }, "launches alone");
    error(device.end_capture().map(|_| ()), "not ended");
    // The word to go on is copied from another, which is 0 and then 1.
    device.begin_capture().unwrap();
    device.begin_loop().unwrap();
    copy_word(&device, &words).unwrap();
    end().unwrap();
    let graph = device.end_capture().unwrap();
    // SAFETY: all is still there.
    let replay = || unsafe { device.replay(&graph) }.and(device.wait());
    replay().unwrap();
    assert_eq!(device.counts().turns, 1);
    host.contents_mut()[0] = 1;
    // SAFETY: as many bytes.
    unsafe { device.copy_to_device(words.at(), host.at(), 4) }.unwrap();
    error(replay(), "a loop of more than");
}
