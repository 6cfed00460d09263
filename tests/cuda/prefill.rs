//! Fast prefill: close to the processor's, the same whatever comes beside a prompt, and of no consequence for what
//! speculation writes.

use crate::support::{
    CONTEXT, Subject, bits, can_multiply, difference, emulated, engine, options, run, size, table, tokens,
};
use eesd::TokenId;
use eesd::backend::cuda::{CudaBackend, CudaOptions, Prefill};
use eesd::backend::{Backend, BackendError, Chunk, Sequence};
use eesd::engine::Request;
use eesd::sample::{Sampler, SamplingParams, VerifyMode};

/// Rows of a prefill pass: prompts of 273 tokens are two fast passes, of 157 a fast and an exact one.
const ROWS: usize = 136;

fn fast(slots: usize) -> CudaOptions {
    CudaOptions { prefill_rows: ROWS, prefill: Prefill::Fast, ..options(slots) }
}

/// How passes are cut changes nothing here: at tiles, of which the emulator computes whole ones.
fn exact(slots: usize) -> CudaOptions {
    CudaOptions { prefill_rows: 128, prefill: Prefill::Exact, ..options(slots) }
}

/// Logits of the token after each prompt, all of which are filled in together.
fn logits_after(backend: &mut dyn Backend, prompts: &[Vec<TokenId>]) -> Vec<Vec<f32>> {
    let sampler = Sampler::new(SamplingParams::default(), backend.geometry().vocab_size).unwrap();
    let tables: Vec<_> = (0..prompts.len()).map(|slot| table(slot * CONTEXT / 64, CONTEXT)).collect();
    let chunks: Vec<_> = prompts
        .iter()
        .zip(&tables)
        .map(|(prompt, table)| Chunk { pages: table.pages(), start: 0, tokens: &prompt[..prompt.len() - 1] })
        .collect();
    backend.prefill(&chunks).unwrap();
    let round = |(slot, prompt): (usize, &Vec<TokenId>)| {
        let pages = tables[slot].pages();
        let sequence = Sequence {
            slot,
            pages,
            tokens: prompt,
            committed: prompt.len(),
            prompt: prompt.len(),
            proposed: 0,
            recurrent: 0,
            sampler: &sampler,
        };
        backend.verify(&[sequence]).unwrap();
        backend.target_logits(slot).unwrap()
    };
    prompts.iter().enumerate().map(round).collect()
}

fn check_against_processor(subject: &Subject) {
    if !can_multiply() {
        return;
    }
    let prompt = [subject.text(3, 135)];
    let exit = subject.geometry().layers / 2;
    let after = |mut backend: Box<dyn Backend>| logits_after(&mut *backend, &prompt).remove(0);
    let expected = after(subject.cpu(Some(exit), 1));
    let size = size(expected.iter().copied());
    let [fast, exact] = [fast(1), exact(1)].map(|options| after(subject.cuda(Some(exit), &options)));
    for (what, found) in [("fast", &fast), ("exact", &exact)] {
        let error = difference(found, &expected);
        // As for single passes.
        assert!(error < 0.015 * size, "{}, {what}: error {error} of {size}", subject.name());
    }
    // The sums were made in another order, or this test says nothing.
    assert!(bits(&fast) != bits(&exact), "{}", subject.name());
}

#[test]
fn fixtures_are_close_to_the_processor_after_fast_prefill() {
    Subject::fixtures().iter().for_each(check_against_processor);
}

#[test]
fn bundled_model_is_close_to_the_processor_after_fast_prefill() {
    check_against_processor(&Subject::bundled());
}

#[test]
fn neighbours_change_nothing() {
    if !can_multiply() {
        return;
    }
    let subject = Subject::fixture("qwen2");
    let prompts = [131, 157, 20, 273, 3].map(|len| subject.text(len as u64, len));
    let mut together = subject.cuda(Some(1), &fast(5));
    let found = logits_after(&mut *together, &prompts);
    for (prompt, found) in prompts.iter().zip(&found) {
        let mut alone = subject.cuda(None, &fast(1));
        let expected = logits_after(&mut *alone, std::slice::from_ref(prompt)).remove(0);
        assert!(bits(found) == bits(&expected), "{} tokens", prompt.len());
    }
    // Prompts too short for it are as exact ones.
    let mut exact = subject.cuda(Some(1), &exact(5));
    let expected = logits_after(&mut *exact, &prompts);
    let same: Vec<bool> = found.iter().zip(&expected).map(|(a, b)| bits(a) == bits(b)).collect();
    assert_eq!(same, [false, false, true, false, true]);
}

#[test]
fn speculation_changes_no_token_after_fast_prefill() {
    if !can_multiply() {
        return;
    }
    let sampled = SamplingParams { temperature: 0.9, verify: Some(VerifyMode::Coupled), ..SamplingParams::default() };
    // Two fast runs; a fast and an exact one; an exact one alone.
    let cases = [
        (Subject::bundled(), SamplingParams::default(), &[157][..]),
        (Subject::fixture("llama"), sampled, &[273, 157, 40]),
    ];
    for (subject, sampling, lengths) in cases {
        let request = |(seed, &len): (u64, &usize)| {
            let sampling = SamplingParams { seed: Some(seed), ..sampling.clone() };
            Request { sampling, ..Request::new(subject.text(seed, len), 8) }
        };
        let requests: Vec<Request> = (0..).zip(lengths).map(request).collect();
        let mut plain = engine(subject.cuda(None, &fast(1)), "off");
        let expected = run(&mut plain, &requests, 1);
        for (controller, batch) in [("beta-ts", 1), ("fixed:2", 3)] {
            let mut drafting = engine(subject.cuda(Some(2), &fast(batch)), controller);
            let found = run(&mut drafting, &requests, batch);
            assert_eq!(tokens(&found), tokens(&expected), "{}, {controller}, {batch}", subject.name());
            assert!(found.iter().any(|done| done.stats.lengths.iter().skip(1).any(|&rounds| rounds > 0)));
        }
    }
}

#[test]
fn every_projection_of_a_long_prompt_is_a_product() {
    let subject = Subject::fixture("llama");
    let device = emulated(0, 1 << 30);
    let weights = subject.checkpoint.weights();
    let exit = subject.exit(1);
    let new = |options: &CudaOptions| {
        CudaBackend::new(device.clone(), subject.geometry(), &weights, Some(&exit), options).unwrap()
    };
    let products = |options: &CudaOptions, len: usize| {
        let mut backend = new(options);
        let (table, text) = (table(0, CONTEXT), subject.text(0, len));
        let before = device.counts().products;
        backend.prefill(&[Chunk { pages: table.pages(), start: 0, tokens: &text }]).unwrap();
        // Reading makes none, however long the text.
        backend.evaluate(&Chunk { pages: table.pages(), start: 0, tokens: &text[..len.min(130)] }, 1).unwrap();
        device.counts().products - before
    };
    // Four in each layer but the last, of which keys and values alone are wanted, as of the exit layer.
    let of_a_pass = 4 * (subject.geometry().layers as u64 - 1) + 2;
    assert_eq!(products(&fast(1), 128), 0);
    assert_eq!(products(&fast(1), 129), of_a_pass);
    assert_eq!(products(&fast(1), 2 * ROWS), 2 * of_a_pass);
    assert_eq!(products(&fast(1), 2 * ROWS + 128), 2 * of_a_pass);
    assert_eq!(products(&exact(1), ROWS), 0);
    assert!(new(&fast(1)).describe().ends_with("bf16 weights, fast prefill"));
    assert!(new(&exact(1)).describe().ends_with("bf16 weights"));
}

#[test]
fn memory_counts_what_fast_prefill_works_in() {
    let subject = Subject::fixture("llama");
    let (weights, geometry) = (subject.checkpoint.weights(), subject.geometry());
    let on = |bytes: u64, options: &CudaOptions| {
        let device = emulated(0, bytes);
        let backend = CudaBackend::new(device.clone(), geometry, &weights, None, options)?;
        let taken = device.allocated().0;
        drop(backend);
        assert_eq!(device.allocated(), (0, 0));
        Ok::<_, BackendError>(taken)
    };
    let exact = CudaOptions { prefill: Prefill::Exact, ..fast(1) };
    let [with, without] = [&fast(1), &exact].map(|options| on(1 << 30, options).unwrap());
    let (hidden, mlp) = (geometry.hidden_size, geometry.intermediate_size);
    assert_eq!((hidden % 64, mlp % 16), (0, 0), "the largest matrix of this fixture has no padding");
    let qkv = geometry.q_size() + 2 * geometry.kv_size();
    let largest = hidden * (2 * mlp).max(qkv).max(geometry.q_size());
    let sums = ROWS * (2 * mlp).max(qkv).max(hidden);
    let library = 4096;
    assert_eq!(with - without, 2 * largest + 4 * sums + library);
    // Room for the one and not for the other.
    let enough = ((without + (with - without) / 2) as f64 / 0.9) as u64;
    on(enough, &exact).unwrap();
    let error = on(enough, &fast(1)).unwrap_err();
    assert!(matches!(error, BackendError::DeviceMemory(_)), "{error}");
    for part in ["of it for --prefill fast)", "leave out --prefill fast"] {
        assert!(error.to_string().contains(part), "{error}");
    }
}
