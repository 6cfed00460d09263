//! A random model and an exit block that agree as often as is asked for.
//!
//! The exit block is a copy of model layer N with the model's own norm and head. Layers from N on
//! write only ε times as much as the others, so the block, which does what the first of them does,
//! misses little of what they do together: nothing at ε = 0, ever more as ε grows.

use eesd::TokenId;
use eesd::backend::{Backend, Chunk, Sequence};
use eesd::kv::{BlockTable, PagePool};
use eesd::model::{Dtype, Geometry};
use eesd::sample::{Sampler, SamplingParams};
use std::error::Error;

/// The acceptance found may differ this much from what is asked for.
const TOLERANCE: f64 = 0.02;
/// Scales that are tried for one acceptance.
const TRIES: usize = 6;
/// The first one.
const FIRST_SCALE: f32 = 0.04;

/// Makes the model whose layers from N on are scaled so, with its exit block.
pub type Build = dyn Fn(f32) -> Result<Box<dyn Backend>, Box<dyn Error>>;

/// What is common to all constructions.
pub struct Construction {
    /// N.
    pub exit_layer: usize,
    /// Makes a model; it has a slot per text.
    build: Box<Build>,
    /// Prompts of the texts that acceptance is measured on.
    pub prompts: Vec<Vec<TokenId>>,
    /// Tokens of each text.
    pub tokens: usize,
    /// How tokens are chosen.
    pub sampling: SamplingParams,
    /// Scales measured so far, ascending, and their acceptance.
    measured: Vec<(f32, f64)>,
}

impl Construction {
    /// Texts of `tokens` tokens after `prompts`; nothing is measured yet.
    pub fn new(
        exit_layer: usize,
        build: Box<Build>,
        prompts: Vec<Vec<TokenId>>,
        tokens: usize,
        sampling: SamplingParams,
    ) -> Self {
        // At scale 0 draft and model are the same function.
        Self { exit_layer, build, prompts, tokens, sampling, measured: vec![(0.0, 1.0)] }
    }

    /// The scale ε whose measured acceptance is nearest to `wanted`, and that acceptance.
    ///
    /// # Errors
    /// If a model cannot be built or a pass fails.
    pub fn find(&mut self, wanted: f64) -> Result<(f32, f64), Box<dyn Error>> {
        for _ in 0..TRIES {
            if self.measured.iter().any(|(_, acceptance)| (acceptance - wanted).abs() <= TOLERANCE) {
                break;
            }
            let scale = self.next_scale(wanted);
            let acceptance = self.acceptance(&mut *self.build(scale)?)?;
            eprintln!("ε = {scale:.4}: acceptance {acceptance:.3}");
            self.measured.push((scale, acceptance));
            self.measured.sort_by(|a, b| a.0.total_cmp(&b.0));
        }
        let distance = |(_, acceptance): &(f32, f64)| (acceptance - wanted).abs();
        let nearest = self.measured.iter().min_by(|a, b| distance(a).total_cmp(&distance(b)));
        nearest.copied().ok_or_else(|| "nothing was measured".into())
    }

    /// On the line between the neighbours whose acceptance encloses `wanted`; beyond the last, twice it.
    fn next_scale(&self, wanted: f64) -> f32 {
        let enclosing = self.measured.windows(2).find(|pair| pair[1].1 < wanted);
        match (enclosing, self.measured.last()) {
            (Some(&[(low, above), (high, below), ..]), _) => {
                low + (high - low) * ((above - wanted) / (above - below)) as f32
            }
            (_, Some(&(last, _))) => (2.0 * last).max(FIRST_SCALE),
            _ => FIRST_SCALE,
        }
    }

    /// The model at scale ε, with its exit block.
    ///
    /// # Errors
    /// If the memory cannot be had.
    pub fn build(&self, scale: f32) -> Result<Box<dyn Backend>, Box<dyn Error>> {
        (self.build)(scale)
    }

    /// The share of positions, along the model's own texts, whose drafted token is the model's.
    fn acceptance(&self, backend: &mut dyn Backend) -> Result<f64, Box<dyn Error>> {
        let sampler = Sampler::new(self.sampling.clone(), backend.geometry().vocab_size)?;
        let mut pool = PagePool::new(backend.limits().pages);
        let mut tables = Vec::new();
        for _ in &self.prompts {
            let mut table = BlockTable::default();
            table
                .reserve(backend.limits().context, &mut pool)
                .map_err(|missing| format!("{missing} pages are missing"))?;
            tables.push(table);
        }
        let mut texts = self.prompts.clone();
        let chunks: Vec<Chunk<'_>> = std::iter::zip(&texts, &tables)
            .map(|(text, table)| Chunk { pages: table.pages(), start: 0, tokens: &text[..text.len() - 1] })
            .collect();
        backend.prefill(&chunks)?;
        let mut accepted = 0;
        for _ in 0..self.tokens {
            let drafts = backend.draft(&self.sequences(&texts, &tables, &sampler, 0))?;
            std::iter::zip(&mut texts, &drafts).for_each(|(text, draft)| text.push(draft.token));
            let verdicts = backend.verify(&self.sequences(&texts, &tables, &sampler, 1))?;
            // Only the drafted position is committed, so that the next one is drafted too.
            for (text, verdict) in std::iter::zip(&mut texts, &verdicts).filter(|(_, verdict)| verdict.accepted == 0) {
                text.pop();
                text.push(verdict.next);
            }
            accepted += verdicts.iter().filter(|verdict| verdict.accepted == 1).count();
        }
        Ok(accepted as f64 / (self.tokens * texts.len()) as f64)
    }

    /// All texts side by side; the last `drafted` tokens of each are drafts.
    fn sequences<'a>(
        &self,
        texts: &'a [Vec<TokenId>],
        tables: &'a [BlockTable],
        sampler: &'a Sampler,
        drafted: usize,
    ) -> Vec<Sequence<'a>> {
        let sequence = |(slot, tokens): (usize, &'a Vec<TokenId>)| Sequence {
            slot,
            pages: tables[slot].pages(),
            tokens,
            committed: tokens.len() - drafted,
            prompt: self.prompts[slot].len(),
            proposed: 0,
            recurrent: 0,
            sampler,
        };
        texts.iter().enumerate().map(sequence).collect()
    }
}

/// Bytes of the matrices that a plain step reads: every layer and the head.
pub fn step_bytes(geometry: &Geometry) -> usize {
    let layer = 2 * (geometry.q_size() + geometry.kv_size()) + 3 * geometry.intermediate_size;
    (geometry.layers * layer + geometry.vocab_size) * geometry.hidden_size * Dtype::BF16.size()
}
