//! What sampling costs: microseconds of `draft` and of `accept` (four drafts, all accepted) by
//! vocabulary, rule and filter. Run: `cargo bench --bench sampler`.

use eesd::TokenId;
use eesd::sample::{History, Philox, Purpose, Sampler, SamplingParams, VerifyMode};
use std::hint::black_box;
use std::time::Instant;

/// Drafts in the round that `accept` judges.
const DRAFTS: usize = 4;

fn main() {
    println!("| vocabulary | parameters | draft, µs | accept of {DRAFTS} + 1 rows, µs |\n|---|---|---|---|");
    for vocab in [4_096, 131_072] {
        for (name, params) in variants() {
            let sampler = Sampler::new(params, vocab).expect("parameters are in range");
            let (draft, accept) = measure(&sampler, vocab);
            println!("| {vocab} | {name} | {draft:.1} | {accept:.1} |");
        }
    }
}

fn variants() -> Vec<(&'static str, SamplingParams)> {
    let with = |verify, temperature| SamplingParams { verify: Some(verify), temperature, ..Default::default() };
    let rejection = with(VerifyMode::Rejection, 0.8);
    let coupled = with(VerifyMode::Coupled, 0.8);
    vec![
        ("greedy", SamplingParams::default()),
        ("greedy, repetition penalty", SamplingParams { repetition_penalty: 1.1, ..Default::default() }),
        ("greedy, 5 logprobs", SamplingParams { logprobs: Some(5), ..Default::default() }),
        ("rejection", rejection.clone()),
        ("rejection, top-k 40", SamplingParams { top_k: 40, ..rejection.clone() }),
        ("rejection, top-p 0.95", SamplingParams { top_p: 0.95, ..rejection.clone() }),
        ("rejection, top-k 40, top-p 0.95", SamplingParams { top_k: 40, top_p: 0.95, ..rejection }),
        ("coupled", coupled.clone()),
        ("coupled, top-k 40", SamplingParams { top_k: 40, ..coupled.clone() }),
        ("coupled, top-p 0.95", SamplingParams { top_p: 0.95, ..coupled }),
    ]
}

/// Median microseconds of a draft and of an accept.
fn measure(sampler: &Sampler, vocab: usize) -> (f64, f64) {
    let prompt: Vec<TokenId> = (0..512).map(|i| i * 7 % vocab as TokenId).collect();
    let (mut draft, mut accept) = (Vec::new(), Vec::new());
    for repetition in 0..40 {
        let logits = logits(vocab, repetition);
        let rows = logits.repeat(DRAFTS + 1);
        let mut tokens = prompt.clone();
        let mut drafted = Vec::new();
        for j in 0..DRAFTS {
            let history = History { tokens: &tokens, prompt: prompt.len() };
            let start = Instant::now();
            let next = sampler.draft(black_box(history), j, black_box(&logits), None);
            draft.push(start.elapsed().as_secs_f64() * 1e6);
            tokens.push(next.token);
            drafted.push(next);
        }
        let history = History { tokens: &tokens, prompt: prompt.len() };
        let start = Instant::now();
        black_box(sampler.accept(black_box(history), black_box(&rows), &drafted));
        accept.push(start.elapsed().as_secs_f64() * 1e6);
    }
    (median(draft), median(accept))
}

/// Normal logits, standard deviation 2.5, a few of them raised as a language model's are.
fn logits(vocab: usize, repetition: usize) -> Vec<f32> {
    let mut random = Philox::new(1, repetition, Purpose::Draft, 0);
    let mut logits: Vec<f32> = (0..vocab)
        .map(|_| {
            let radius = (-2.0 * random.uniform().ln()).sqrt();
            (2.5 * radius * (std::f64::consts::TAU * random.uniform()).cos()) as f32
        })
        .collect();
    for i in 0..20 {
        let token = random.word() as usize % vocab;
        logits[token] += 14.0 - 0.5 * i as f32;
    }
    logits
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}
