//! A random model and an exit block that agree as often as is asked for.
//!
//! The exit block is a copy of model layer N with the model's own norm and head: it does what the first of the layers
//! after the exit does. The others write only ε times as much to the residual stream as they would, so that the block
//! misses little of what they do together: nothing at ε = 0, ever more as ε grows. Those before the exit, which draft and
//! model share, make no difference, unless the block is a recurrent one: then they write less still. (On a GPU they write
//! as they would, and layer N as those after it.)

use eesd::TokenId;
use eesd::backend::{Backend, Chunk, Sequence};
use eesd::control::Way;
use eesd::kv::{BlockTable, PagePool};
use eesd::sample::{Sampler, SamplingParams};
use std::error::Error;

/// The acceptance found may differ this much from what is asked for, or half its standard error where that is more.
const TOLERANCE: f64 = 0.02;
/// Scales that are tried for one acceptance.
const TRIES: usize = 6;
/// ε·√L of the first one: what L layers write adds up as noise does.
const FIRST: f32 = 0.2;

/// Makes the model whose layers are scaled so, with its exit block.
pub type Build = dyn Fn(f32) -> Result<Box<dyn Backend>, Box<dyn Error>>;

/// What is common to all constructions.
pub struct Construction {
    /// N.
    pub exit_layer: usize,
    /// L.
    pub layers: usize,
    /// Makes a model; it has a slot per text, and room for the drafts of a round after it.
    pub build: Box<Build>,
    /// Drafts of a round that acceptance is measured of, made as a round of the engine makes them.
    pub drafts: usize,
    /// Prompts of the texts that acceptance is measured on.
    pub prompts: Vec<Vec<TokenId>>,
    /// Tokens of each text.
    pub tokens: usize,
    /// How tokens are chosen.
    pub sampling: SamplingParams,
    /// Scales measured so far, and their [acceptance](Constructed::acceptance); none at first.
    pub measured: Vec<(f32, Vec<f64>)>,
}

/// A model as it was asked for.
pub struct Constructed {
    /// ε.
    pub scale: f32,
    /// Of a round's first, second, … draft: how often it is the model's own token where all before it are.
    pub acceptance: Vec<f64>,
    /// The model, with its exit block.
    pub backend: Box<dyn Backend>,
}

impl Construction {
    /// The model whose measured acceptance, of first drafts, is nearest to `wanted`, of some that are tried: that of scale
    /// `first` to begin with, where one is given.
    ///
    /// # Errors
    /// If a model cannot be built or a pass fails.
    pub fn find(&mut self, wanted: f64, first: Option<f32>) -> Result<Constructed, Box<dyn Error>> {
        let tests = (self.tokens * self.prompts.len()) as f64;
        let tolerance = TOLERANCE.max((wanted * (1.0 - wanted) / tests).sqrt() / 2.0);
        let distance = |(_, acceptance): &(f32, Vec<f64>)| (acceptance[0] - wanted).abs();
        let mut last: Option<(f32, Box<dyn Backend>)> = None;
        for attempt in 0..TRIES {
            if self.measured.iter().any(|known| distance(known) <= tolerance) {
                break;
            }
            // There may be no room for two of them.
            drop(last.take());
            let scale = first.filter(|_| attempt == 0).unwrap_or_else(|| self.next_scale(wanted));
            let mut backend = (self.build)(scale)?;
            let acceptance = self.acceptance(&mut *backend)?;
            eprintln!("ε = {scale:.4}: acceptance {acceptance:.3?}");
            self.measured.push((scale, acceptance));
            self.measured.sort_by(|a, b| a.0.total_cmp(&b.0));
            last = Some((scale, backend));
        }
        let nearest = self.measured.iter().min_by(|a, b| distance(a).total_cmp(&distance(b)));
        let (scale, acceptance) = nearest.ok_or("nothing was measured")?.clone();
        let backend = match last {
            Some((built, backend)) if built == scale => backend,
            _ => {
                drop(last);
                (self.build)(scale)?
            }
        };
        Ok(Constructed { scale, acceptance, backend })
    }

    /// On the line between the neighbours whose acceptance encloses `wanted`; beyond the last, twice it.
    fn next_scale(&self, wanted: f64) -> f32 {
        // At scale 0 draft and model are the same function.
        let (mut low, mut above) = (0.0, 1.0);
        for &(scale, ref acceptance) in &self.measured {
            if acceptance[0] < wanted {
                return low + (scale - low) * ((above - wanted) / (above - acceptance[0])) as f32;
            }
            (low, above) = (scale, acceptance[0]);
        }
        if low > 0.0 { 2.0 * low } else { FIRST / (self.layers as f32).sqrt() }
    }

    /// The shares of positions, along the model's own texts, whose drafted tokens are the model's.
    fn acceptance(&self, backend: &mut dyn Backend) -> Result<Vec<f64>, Box<dyn Error>> {
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
        let mut tested = vec![(0, 0); self.drafts];
        for _ in 0..self.tokens {
            let mut recurrent = 0;
            for drafted in 0..self.drafts {
                let batch = self.sequences(&texts, &tables, &sampler, (drafted, recurrent));
                let way = backend.way_of_next(drafted, false);
                let drafts = backend.draft_by(way, &batch)?;
                recurrent = if way == Way::Recurrent { recurrent + 1 } else { 0 };
                std::iter::zip(&mut texts, &drafts).for_each(|(text, draft)| text.push(draft.token));
            }
            let batch = self.sequences(&texts, &tables, &sampler, (self.drafts, recurrent));
            let verdicts = backend.verify(&batch)?;
            // Only the first drafted position is committed, so that the next one is drafted first too.
            for (text, verdict) in std::iter::zip(&mut texts, &verdicts) {
                text.truncate(text.len() - self.drafts + verdict.accepted.min(1));
                if verdict.accepted == 0 {
                    text.push(verdict.next);
                }
                for (draft, (tested, accepted)) in tested.iter_mut().enumerate() {
                    *tested += usize::from(draft <= verdict.accepted);
                    *accepted += usize::from(draft < verdict.accepted);
                }
            }
        }
        Ok(tested.iter().map(|&(tested, accepted)| accepted as f64 / tested.max(1) as f64).collect())
    }

    /// All texts side by side; the last `drafted` tokens of each are drafts, and of these the last `recurrent` were made
    /// recurrently.
    fn sequences<'a>(
        &self,
        texts: &'a [Vec<TokenId>],
        tables: &'a [BlockTable],
        sampler: &'a Sampler,
        (drafted, recurrent): (usize, usize),
    ) -> Vec<Sequence<'a>> {
        let sequence = |(slot, tokens): (usize, &'a Vec<TokenId>)| Sequence {
            slot,
            pages: tables[slot].pages(),
            tokens,
            committed: tokens.len() - drafted,
            prompt: self.prompts[slot].len(),
            proposed: 0,
            recurrent,
            sampler,
        };
        texts.iter().enumerate().map(sequence).collect()
    }
}
