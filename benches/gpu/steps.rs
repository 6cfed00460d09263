//! Whole passes through the backend, as the engine runs them: drafts, and verification of 1 to 16 rows.

use crate::costs::median;
use crate::device::Measurable;
use crate::expected;
use crate::sizes::{ROUND, Size};
use eesd::TokenId;
use eesd::backend::cuda::kernels::Attention;
use eesd::backend::cuda::{CudaBackend, CudaOptions};
use eesd::backend::{Backend, Chunk, KvFormat, Sequence};
use eesd::control::DraftPlan;
use eesd::kv::{BlockTable, PAGE_TOKENS, PagePool};
use eesd::model::Geometry;
use eesd::sample::{Sampler, SamplingParams};
use std::error::Error;
use std::sync::Arc;
use std::time::Instant;

/// Bytes of a weight, or of a number in the cache.
pub const ELEMENT: usize = 2;
/// Drafts of a loop.
pub const LOOP: usize = 8;

/// Measures the passes of one model and prints them. `open` opens the device, with kernels that overlap or
/// without; `copy_rate` is in bytes per second.
///
/// # Errors
/// If the model does not fit the device, or the device fails.
pub fn steps<D: Measurable>(
    open: &dyn Fn(bool) -> Result<Arc<D>, Box<dyn Error>>,
    size: &Size,
    copy_rate: f64,
) -> Result<(), Box<dyn Error>> {
    println!(
        "### Whole passes, {}\n\n\
         Random weights, exit layer {}; wall-clock of a pass, medians of {}. Bytes: weights, and keys and values, \
         read once. A verification of 1 row is plain decoding; its exit layer's keys and values are filled as well.\n",
        size.name, size.exit_after, size.repetitions
    );
    for (overlap, graphs) in [(true, true), (false, true), (true, false), (false, false)] {
        // Everything in the way it is meant to be run, and a part of it in the others.
        let [contexts, rows] = match (overlap, graphs) {
            (true, true) => [size.contexts.to_vec(), size.rows.to_vec()],
            _ => [vec![size.contexts[1]], vec![1, size.rows[size.rows.len().saturating_sub(2)]]],
        };
        let longest = contexts[contexts.len() - 1];
        let options = CudaOptions {
            context: longest,
            max_draft: ROUND - 1,
            prefill_rows: 1024,
            graphs,
            ..CudaOptions::default()
        };
        let backend = CudaBackend::synthetic(open(overlap)?, &size.geometry, size.exit_after, 1.0, &options)?;
        let mut rounds = Rounds::new(backend, longest)?;
        let seconds = rounds.prefill()?;
        println!(
            "Graphs {}, overlapping kernels {}. Prefill of {} tokens: {seconds:.3} s, {:.0} tokens/s.\n",
            on(graphs),
            on(overlap),
            rounds.text.len(),
            rounds.text.len() as f64 / seconds
        );
        println!(
            "| context | pass | ms | expected | range | MB | GB/s | of a copy | of plain |\n|--:|---|--:|--:|--:|--:|--:|--:|--:|"
        );
        for &context in &contexts {
            let plain = median(&rounds.measure(context, 1, size.repetitions)?.1);
            if let Some(drafts) = rounds.measure_loop(context, size.repetitions)? {
                let reads = Reads::of_draft(&size.geometry, size.exit_after, context);
                println!("| {context} | draft, of {LOOP} in a loop {}", row(&drafts, reads, 1, copy_rate, plain));
            }
            for &rows in &rows {
                let (drafts, verifications) = rounds.measure(context, rows, size.repetitions)?;
                let print = |pass: &str, seconds: &[f64], reads: Reads, rows: usize| {
                    println!("| {context} | {pass} {}", row(seconds, reads, rows, copy_rate, plain));
                };
                if rows == 2 || (!drafts.is_empty() && contexts.len() == 1) {
                    print("draft", &drafts, Reads::of_draft(&size.geometry, size.exit_after, context), 1);
                }
                let reads = Reads::of_verification(&size.geometry, context);
                print(&format!("verify, rows: {rows}"), &verifications, reads, rows);
            }
        }
        println!();
    }
    Ok(())
}

fn on(on: bool) -> &'static str {
    if on { "on" } else { "off" }
}

fn row(seconds: &[f64], reads: Reads, rows: usize, copy_rate: f64, plain: f64) -> String {
    let bytes = reads.weights + reads.cache;
    let expected = reads.expected(rows);
    let middle = median(seconds);
    let (low, high) = seconds.iter().fold((f64::MAX, 0f64), |(low, high), &s| (low.min(s), high.max(s)));
    let rate = bytes as f64 / middle;
    format!(
        "| {:.3} | {:.3} | {:.3}–{:.3} | {:.0} | {:.0} | {:.0} % | {:.3} |",
        middle * 1e3,
        expected * 1e3,
        low * 1e3,
        high * 1e3,
        bytes as f64 * 1e-6,
        rate * 1e-9,
        rate / copy_rate * 100.0,
        middle / plain
    )
}

/// Bytes of the matrices of one layer.
pub fn layer_bytes(geometry: &Geometry) -> usize {
    let rows = 2 * (geometry.q_size() + geometry.kv_size()) + 3 * geometry.intermediate_size;
    rows * geometry.hidden_size * ELEMENT
}

/// Bytes of one layer's keys and values of a context.
pub fn cache_bytes(geometry: &Geometry, kv: KvFormat, context: usize) -> usize {
    2 * context * geometry.kv_heads * Attention::row_bytes(kv, geometry.head_dim)
}

/// Bytes of the head.
pub fn head_bytes(geometry: &Geometry) -> usize {
    geometry.vocab_size * geometry.hidden_size * ELEMENT
}

/// Bytes that a pass reads, of weights and of keys and values.
#[derive(Clone, Copy)]
pub struct Reads {
    pub weights: usize,
    pub cache: usize,
}

impl Reads {
    /// A verification: all layers, the head, and the exit layer's matrices of keys and values.
    pub fn of_verification(geometry: &Geometry, context: usize) -> Self {
        let exit = 2 * geometry.kv_size() * geometry.hidden_size * ELEMENT;
        let weights = geometry.layers * layer_bytes(geometry) + head_bytes(geometry) + exit;
        Self { weights, cache: geometry.layers * cache_bytes(geometry, KvFormat::Full, context) }
    }

    /// A draft step: the first layers, the exit layer, and the head.
    pub fn of_draft(geometry: &Geometry, exit_after: usize, context: usize) -> Self {
        let layers = exit_after + 1;
        let weights = layers * layer_bytes(geometry) + head_bytes(geometry);
        Self { weights, cache: layers * cache_bytes(geometry, KvFormat::Full, context) }
    }

    /// Seconds that an H200 should take for a pass of so many rows.
    pub fn expected(self, rows: usize) -> f64 {
        expected::projection(self.weights, rows) + expected::reading(self.cache)
    }
}

/// A text in the cache, and rounds at any place of it.
pub struct Rounds {
    backend: Box<dyn Backend>,
    table: BlockTable,
    pub text: Vec<TokenId>,
    sampler: Sampler,
}

impl Rounds {
    /// A text of `longest` tokens, but for room for a round.
    pub fn new(backend: Box<dyn Backend>, longest: usize) -> Result<Self, Box<dyn Error>> {
        let vocab = backend.geometry().vocab_size;
        let mut pool = PagePool::new(longest.div_ceil(PAGE_TOKENS));
        let mut table = BlockTable::default();
        table.reserve(longest, &mut pool).map_err(|missing| format!("{missing} pages are missing"))?;
        let text = (0..longest - ROUND).map(|i| (i * 7919 % vocab) as TokenId).collect();
        Ok(Self { backend, table, text, sampler: Sampler::new(SamplingParams::default(), vocab)? })
    }

    /// The passes, and a round after `committed` of these tokens.
    pub fn round<'a>(&'a mut self, tokens: &'a [TokenId], committed: usize) -> (&'a mut dyn Backend, Sequence<'a>) {
        (&mut *self.backend, sequence(&self.table, &self.sampler, tokens, committed))
    }

    /// Fills the cache; returns the seconds it took.
    pub fn prefill(&mut self) -> Result<f64, Box<dyn Error>> {
        let chunk = |tokens| Chunk { pages: self.table.pages(), start: 0, tokens };
        // Kernels are loaded when they are first needed.
        let short = self.text.len().min(64);
        self.backend.prefill(&[chunk(&self.text[..short])])?;
        let start = Instant::now();
        self.backend.prefill(&[chunk(&self.text)])?;
        Ok(start.elapsed().as_secs_f64())
    }

    /// Seconds of the draft steps and of the verification of rounds that end at `context`.
    pub fn measure(
        &mut self,
        context: usize,
        rows: usize,
        repetitions: usize,
    ) -> Result<(Vec<f64>, Vec<f64>), Box<dyn Error>> {
        let (mut drafts, mut verifications) = (Vec::new(), Vec::new());
        // The first ones record graphs.
        for repetition in 0..repetitions + 2 {
            let committed = context - ROUND;
            let mut tokens = self.text[..committed].to_vec();
            for _ in 1..rows {
                let start = Instant::now();
                let draft = self.backend.draft(&[sequence(&self.table, &self.sampler, &tokens, committed)])?;
                if repetition > 1 {
                    drafts.push(start.elapsed().as_secs_f64());
                }
                tokens.push(draft[0].token);
            }
            let start = Instant::now();
            self.backend.verify(&[sequence(&self.table, &self.sampler, &tokens, committed)])?;
            if repetition > 1 {
                verifications.push(start.elapsed().as_secs_f64());
            }
        }
        Ok((drafts, verifications))
    }

    /// Seconds of one of [`LOOP`] drafts that are made in a loop on the device; `None` where it has none.
    fn measure_loop(&mut self, context: usize, repetitions: usize) -> Result<Option<Vec<f64>>, Box<dyn Error>> {
        let committed = context - ROUND;
        let mut drafts = Vec::new();
        for repetition in 0..repetitions + 2 {
            if !self.backend.follows_plans() {
                return Ok(None);
            }
            let round = sequence(&self.table, &self.sampler, &self.text[..committed], committed);
            let start = Instant::now();
            self.backend.draft_planned(&round, &DraftPlan::of_length(LOOP), &[])?;
            if repetition > 1 {
                drafts.push(start.elapsed().as_secs_f64() / LOOP as f64);
            }
        }
        Ok(Some(drafts))
    }
}

fn sequence<'a>(table: &'a BlockTable, sampler: &'a Sampler, tokens: &'a [TokenId], committed: usize) -> Sequence<'a> {
    Sequence { slot: 0, pages: table.pages(), tokens, committed, prompt: 1, proposed: 0, recurrent: 0, sampler }
}
