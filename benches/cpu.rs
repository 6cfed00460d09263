//! How fast the processor's passes are, beside what the machine can do at best.
//!
//! `cargo bench --bench cpu -- [f16] [bf16] [bundled] [FOLDER or FILE.gguf ...]` (the first three by default). Prints
//! Markdown. Speeds are medians over rounds; in each round every case runs once, between a sum over memory and a
//! multiply-add loop on the same number of threads, so that shares of those rates compare like with
//! like. The spread is half the distance between the quartiles.

mod synthetic;

use eesd::backend::cpu::probe::Probe;
use eesd::backend::cpu::{CpuBackend, CpuOptions};
use eesd::backend::{Backend, Chunk, Sequence};
use eesd::kv::{PAGE_TOKENS, PageId};
use eesd::load::Checkpoint;
use eesd::model::{Dtype, ExitWeights, Geometry, LayerWeights, Matrix, ModelWeights};
use eesd::sample::{Sampler, SamplingParams};
use std::time::Instant;
use synthetic::{RandomModel, geometry_330m};

/// Rows of the passes that are timed.
const ROWS: [usize; 7] = [1, 2, 3, 4, 8, 16, 32];

/// Drafts of the verification that is timed: eight rows of one sequence.
const DRAFTS: usize = 7;

/// Tokens of the timed prompts, where the model has as many positions.
const PROMPTS: [usize; 2] = [256, 2048];

/// Tokens before a timed decoding pass.
const CONTEXT: usize = 64;

/// Bytes that the sum reads: many times any cache.
const PROBE_BYTES: usize = 512 << 20;

fn main() {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let is_wanted = |name: &str| wanted.is_empty() || wanted.iter().any(|wanted| wanted == name);
    let threads = std::thread::available_parallelism().map_or(1, |cores| cores.get());
    for dtype in [Dtype::F16, Dtype::BF16] {
        if is_wanted(&dtype.to_string()) {
            let model = RandomModel::new(geometry_330m(), dtype.into(), |_| 1.0);
            measure(&format!("random model, {dtype}"), &model.geometry, &model.weights(), threads, 7, 1);
        }
    }
    if is_wanted("bundled") {
        let checkpoint = Checkpoint::bundled().expect("the bundled model opens");
        measure(checkpoint.name(), checkpoint.geometry(), &checkpoint.weights(), threads, 15, 100);
    }
    let known = ["f16", "bf16", "bundled"];
    for path in wanted.iter().filter(|wanted| !known.contains(&wanted.as_str())) {
        let checkpoint = Checkpoint::open(path.as_ref()).unwrap_or_else(|error| panic!("{error}"));
        measure(checkpoint.name(), checkpoint.geometry(), &checkpoint.weights(), threads, 7, 5);
    }
}

/// Times a model's passes in `rounds` rounds, `repeats` passes at a time, and prints a table.
fn measure(name: &str, geometry: &Geometry, weights: &ModelWeights<'_>, threads: usize, rounds: usize, repeats: usize) {
    let most = ROWS[ROWS.len() - 1];
    let prompts: Vec<usize> = PROMPTS.into_iter().filter(|&prompt| prompt <= geometry.max_positions).collect();
    let longest = prompts.iter().copied().max().unwrap_or(0).max(CONTEXT + 1);
    let (table, long) = ((CONTEXT + 1).div_ceil(PAGE_TOKENS), longest.div_ceil(PAGE_TOKENS));
    let pages = Some(most * table + long);
    let options = CpuOptions {
        threads: Some(threads),
        slots: most,
        context: longest,
        max_draft: 0,
        pages,
        ..CpuOptions::default()
    };
    let mut backend = CpuBackend::new(geometry, weights, None, &options).expect("the model fits in memory");
    let mut verification =
        (geometry.layers > 1).then(|| Verification::new(geometry, weights, threads, &tokens_of(geometry, CONTEXT)));
    let mut probe = Probe::new(threads, PROBE_BYTES).expect("the probe's memory fits");
    let read_bytes = decoding_bytes(weights) as f64;

    let tokens = tokens_of(geometry, longest);
    let long: Vec<PageId> = (0..long).map(|page| PageId((most * table + page) as u32)).collect();
    let pages: Vec<Vec<PageId>> =
        (0..most).map(|slot| (0..table).map(|page| PageId((slot * table + page) as u32)).collect()).collect();
    for pages in &pages {
        backend.prefill(&[Chunk { pages, start: 0, tokens: &tokens[..CONTEXT] }]).expect("prefill");
    }

    let (mut reads, mut multiplies, mut prefills) = (Vec::new(), Vec::new(), vec![Vec::new(); prompts.len()]);
    let (mut passes, mut verifications) = (vec![Vec::new(); ROWS.len()], Vec::new());
    for round in 0..=rounds {
        let read = probe.read();
        let multiply = probe.multiply_add(20_000_000);
        let prefill = |&prompt: &usize| {
            time(repeats.div_ceil(20), || {
                backend.prefill(&[Chunk { pages: &long, start: 0, tokens: &tokens[..prompt] }]).expect("prefill");
            })
        };
        let round_prefills: Vec<f64> = prompts.iter().map(prefill).collect();
        let mut round_passes = Vec::new();
        for rows in ROWS {
            round_passes.push(time(repeats, || decode(&mut *backend, &pages[..rows], &tokens[..=CONTEXT])));
        }
        let round_verification = verification.as_mut().map(|of| time(repeats, || of.run()));
        // The first round warms up.
        if round > 0 {
            reads.push(read);
            multiplies.push(multiply);
            round_prefills.into_iter().zip(&mut prefills).for_each(|(prefill, all)| all.push(prefill));
            verifications.extend(round_verification);
            round_passes.into_iter().zip(&mut passes).for_each(|(pass, all)| all.push(pass));
        }
    }

    let (read, multiply) = (Spread::of(&reads), Spread::of(&multiplies));
    println!("\n### {name}: {}\n", backend.describe());
    println!("Sum over memory {} GB/s, multiply-add loop {} GFLOP/s.\n", read.scaled(1e-9), multiply.scaled(1e-9));
    println!("| pass | ms | tokens/s | of the sum's rate | of the multiply-add rate | time against 1 row |");
    println!("|---|---|---|---|---|---|");
    let shares = |rates: &[f64], work: f64, times: &[f64]| {
        let shares: Vec<f64> = rates.iter().zip(times).map(|(rate, time)| work / time / rate * 100.0).collect();
        Spread::of(&shares)
    };
    let drafts = (!verifications.is_empty()).then_some((format!("{DRAFTS} drafts of one"), DRAFTS + 1, &verifications));
    let plain = ROWS.into_iter().zip(&passes).map(|(rows, times)| (format!("{rows} rows"), rows, times));
    for (name, rows, times) in plain.chain(drafts) {
        let speeds: Vec<f64> = times.iter().map(|time| rows as f64 / time).collect();
        let ratios: Vec<f64> = times.iter().zip(&passes[0]).map(|(time, one)| time / one).collect();
        println!(
            "| {name} | {} | {} | {} % | – | {} |",
            Spread::of(times).scaled(1e3),
            Spread::of(&speeds),
            shares(&reads, read_bytes, times),
            Spread::of(&ratios),
        );
    }
    for (prompt, times) in prompts.into_iter().zip(&prefills) {
        let speeds: Vec<f64> = times.iter().map(|time| prompt as f64 / time).collect();
        println!(
            "| prefill of {prompt} | {} | {} | – | {} % | – |",
            Spread::of(times).scaled(1e3),
            Spread::of(&speeds),
            shares(&multiplies, prefill_flops(geometry, prompt), times),
        );
    }
}

/// One sequence with drafts of an untrained exit block after the first layer: nearly all of the pass has a row for each.
struct Verification {
    backend: Box<dyn Backend>,
    pages: Vec<PageId>,
    tokens: Vec<u32>,
    committed: usize,
    sampler: Sampler,
}

impl Verification {
    fn new(geometry: &Geometry, weights: &ModelWeights<'_>, threads: usize, prompt: &[u32]) -> Self {
        let (context, committed) = (prompt.len() + 1 + DRAFTS, prompt.len() + 1);
        let options =
            CpuOptions { threads: Some(threads), slots: 1, context, max_draft: DRAFTS, ..CpuOptions::default() };
        let exit = ExitWeights::from_model(weights, 1, 1);
        let mut backend = CpuBackend::new(geometry, weights, Some(&exit), &options).expect("the model fits in memory");
        let pages: Vec<PageId> = (0..context.div_ceil(PAGE_TOKENS)).map(|page| PageId(page as u32)).collect();
        backend.prefill(&[Chunk { pages: &pages, start: 0, tokens: prompt }]).expect("prefill");
        let tokens = [prompt, &prompt[..1]].concat();
        let sampler = Sampler::new(SamplingParams::default(), geometry.vocab_size).expect("greedy is allowed");
        let mut verification = Self { backend, pages, tokens, committed, sampler };
        for _ in 0..DRAFTS {
            let Self { backend, pages, tokens, sampler, .. } = &mut verification;
            let drafts = backend.draft(&[round(pages, tokens, committed, sampler)]).expect("a draft");
            tokens.extend(drafts.iter().map(|draft| draft.token));
        }
        verification
    }

    fn run(&mut self) {
        let Self { backend, pages, tokens, committed, sampler } = self;
        backend.verify(&[round(pages, tokens, *committed, sampler)]).expect("a pass");
    }
}

/// A sequence with the drafts that it has; all but the last committed token are the prompt.
fn round<'a>(pages: &'a [PageId], tokens: &'a [u32], committed: usize, sampler: &'a Sampler) -> Sequence<'a> {
    let (slot, prompt, proposed, recurrent) = (0, committed - 1, 0, 0);
    Sequence { slot, pages, tokens, committed, prompt, proposed, recurrent, sampler }
}

/// Tokens all over the vocabulary.
fn tokens_of(geometry: &Geometry, len: usize) -> Vec<u32> {
    (0..len as u32).map(|i| i * 7919 % geometry.vocab_size as u32).collect()
}

/// Seconds of one of `repeats` calls, on average.
fn time(repeats: usize, mut call: impl FnMut()) -> f64 {
    let start = Instant::now();
    for _ in 0..repeats {
        call();
    }
    start.elapsed().as_secs_f64() / repeats as f64
}

/// One plain decoding step of as many sequences as there are block tables.
fn decode(backend: &mut dyn Backend, pages: &[Vec<PageId>], tokens: &[u32]) {
    let sampler = Sampler::new(SamplingParams::default(), backend.geometry().vocab_size).expect("greedy is allowed");
    let sequence = |(slot, pages)| Sequence {
        slot,
        pages,
        tokens,
        committed: tokens.len(),
        prompt: CONTEXT,
        proposed: 0,
        recurrent: 0,
        sampler: &sampler,
    };
    let batch: Vec<Sequence<'_>> = pages.iter().map(Vec::as_slice).enumerate().map(sequence).collect();
    backend.verify(&batch).expect("a pass");
}

/// Bytes of all matrices that a decoding pass reads: every layer and the head.
fn decoding_bytes(weights: &ModelWeights<'_>) -> usize {
    weights
        .layers
        .iter()
        .map(|layer| matrices(layer).iter().map(|matrix| matrix.bytes.len()).sum::<usize>())
        .sum::<usize>()
        + weights.head.bytes.len()
}

/// Operations of the products of a prefill: all layers, and of the last one keys and values only.
fn prefill_flops(geometry: &Geometry, rows: usize) -> f64 {
    let (hidden, kv) = (geometry.hidden_size, geometry.kv_size());
    let layer = 2 * hidden * (geometry.q_size() + kv) + 3 * hidden * geometry.intermediate_size;
    (2 * rows * ((geometry.layers - 1) * layer + 2 * hidden * kv)) as f64
}

fn matrices<'a>(layer: &LayerWeights<'a>) -> [Matrix<'a>; 7] {
    [layer.q, layer.k, layer.v, layer.o, layer.gate, layer.up, layer.down]
}

/// Median, and half the distance between the quartiles.
struct Spread {
    median: f64,
    spread: f64,
}

impl Spread {
    fn of(samples: &[f64]) -> Self {
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        let at = |share: f64| sorted[((sorted.len() - 1) as f64 * share).round() as usize];
        Self { median: at(0.5), spread: (at(0.75) - at(0.25)) / 2.0 }
    }

    fn scaled(&self, factor: f64) -> Self {
        Self { median: self.median * factor, spread: self.spread * factor }
    }
}

impl std::fmt::Display for Spread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let digits = if self.median >= 1000.0 { 0 } else { 2 - (self.median.log10().floor() as usize).min(2) };
        write!(f, "{:.*} ± {:.*}", digits.max(1), self.median, digits.max(1), self.spread)
    }
}
