//! The seam between the engine and a device: whole passes, never single operations.
//!
//! A backend holds the model's weights, the paged cache, and per *slot* (one running sequence) the
//! hidden states `h_N` and draft distributions of the round in progress. Sampling and acceptance run
//! behind the seam, because on a GPU logits never leave the device.
//!
//! Every pass computes each output element in an order that does not depend on how many rows share
//! it, so draft, verification, prefill and any chunking or batching of them agree bit for bit.
//!
//! One round by hand, which is what [`Engine`](crate::engine::Engine) does:
//!
//! ```
//! use eesd::backend::cpu::{CpuBackend, CpuOptions};
//! use eesd::backend::{Chunk, Sequence};
//! use eesd::kv::PageId;
//! use eesd::load::Checkpoint;
//! use eesd::sample::{Sampler, SamplingParams};
//!
//! fn sequence<'a>(tokens: &'a [u32], sampler: &'a Sampler) -> Sequence<'a> {
//!     Sequence { slot: 0, pages: &[PageId(0)], tokens, committed: 4, prompt: 4, proposed: 0, recurrent: 0, sampler }
//! }
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let checkpoint = Checkpoint::open("models/pycode-4m".as_ref())?;
//! let exit = checkpoint.open_exit("models/pycode-4m/exit-2.safetensors".as_ref())?;
//! let options = CpuOptions { context: 64, ..CpuOptions::default() };
//! let weights = checkpoint.weights();
//! let mut backend = CpuBackend::new(checkpoint.geometry(), &weights, Some(&exit.weights()), &options)?;
//!
//! let mut tokens = vec![1, 40, 50, 60]; // a prompt, of which the last token is pending
//! backend.prefill(&[Chunk { pages: &[PageId(0)], start: 0, tokens: &tokens[..3] }])?;
//! let sampler = Sampler::new(SamplingParams::default(), checkpoint.geometry().vocab_size)?;
//! for _ in 0..2 {
//!     let draft = backend.draft(&[sequence(&tokens, &sampler)])?[0];
//!     tokens.push(draft.token);
//! }
//! let verdict = &backend.verify(&[sequence(&tokens, &sampler)])?[0];
//! assert!(verdict.accepted <= 2);
//! # Ok(())
//! # }
//! ```

pub mod cpu;
pub mod cuda;
mod device;
mod error;
mod kept;
mod kv_format;
mod limits;
mod non_finite;
mod rope;
mod saved_pages;
pub mod training;

pub use device::Device;
pub use error::BackendError;
pub use kv_format::KvFormat;
pub use limits::Limits;
pub use saved_pages::SavedPages;

use crate::TokenId;
use crate::control::{DraftPlan, Way};
use crate::kv::PageId;
use crate::model::Geometry;
use crate::sample::{Sampler, Verdict};
use std::ops::Range;

/// Longest sequence where nobody asks for another and the model has more: the cache of a long-context model would
/// otherwise fill the memory before the first token.
pub const DEFAULT_CONTEXT: usize = 8192;

/// A device that runs passes of one model.
pub trait Backend: Send {
    /// Shape of the model.
    fn geometry(&self) -> &Geometry;

    /// `N` of the exit block; `None` without one: the backend can only decode plainly.
    fn exit_layer(&self) -> Option<usize>;

    /// What was reserved when the backend was made.
    fn limits(&self) -> Limits;

    /// The device and how it is used, for people: `cpu, 2 threads, avx512, bf16 weights`.
    fn describe(&self) -> String;

    /// Fills the cache, exit layer included, for each chunk's tokens. Needs no logits: the last
    /// prompt token is the first round's pending one.
    ///
    /// # Errors
    /// If the device fails.
    fn prefill(&mut self, batch: &[Chunk<'_>]) -> Result<(), BackendError>;

    /// Whether what [`prefill`](Self::prefill) leaves in the cache depends on the tokens alone, not on how they were cut
    /// into chunks: then a prompt may be taken in piece by piece, and its pages may serve other prompts.
    fn prefill_is_exact(&self) -> bool {
        true
    }

    /// Copies pages out of the cache, in all layers, the exit layer included.
    ///
    /// # Errors
    /// If there is no such page, or the device fails.
    fn save_pages(&mut self, pages: &[PageId]) -> Result<SavedPages, BackendError>;

    /// Puts saved pages back, bit for bit, into as many pages, which need not be those they came from.
    ///
    /// # Errors
    /// If there is no such page, their number is another, or the device fails.
    fn restore_pages(&mut self, saved: &SavedPages, pages: &[PageId]) -> Result<(), BackendError>;

    /// One draft step: First-N and the exit block on the [fresh](Sequence::fresh) rows of each sequence, at most one
    /// sequence per slot; the last row's logits give the draft. Keeps `h_N` and `q` for [`verify`](Self::verify). Nothing
    /// is drafted after proposed tokens.
    ///
    /// # Errors
    /// If the device fails.
    fn draft(&mut self, batch: &[Sequence<'_>]) -> Result<Vec<Draft>, BackendError>;

    /// Whether the exit block is a recurrent one, which can [draft recurrently](Self::draft_recurrently).
    fn is_recurrent(&self) -> bool {
        false
    }

    /// One draft step of a recurrent exit block: the block alone, on its own state at each sequence's last draft, which the
    /// step before this one made, and on that draft. Keeps `q`. The draft it starts from stays without `h_N`; keys and
    /// values that the step gives its row are the round's, until a later pass gives it those from `h_N`.
    ///
    /// # Errors
    /// If the exit block is no recurrent one, or the device fails.
    fn draft_recurrently(&mut self, _batch: &[Sequence<'_>]) -> Result<Vec<Draft>, BackendError> {
        Err(BackendError::not_recurrent())
    }

    /// Whether a round's first draft can be made from what the verification before it left: [`draft_continued`](Self::draft_continued).
    fn continues(&self) -> bool {
        false
    }

    /// A round's first draft by a recurrent exit block alone: on its state at the row before the pending token, which it
    /// has from that row's `h_N`, and on the pending token. The verification before, in the same slot, must have come as
    /// far as that row; its verdict was committed as it was. Else as [`draft_recurrently`](Self::draft_recurrently).
    ///
    /// # Errors
    /// If the exit block is no recurrent one, the row's `h_N` was not kept, or the device fails.
    fn draft_continued(&mut self, _batch: &[Sequence<'_>]) -> Result<Vec<Draft>, BackendError> {
        Err(BackendError::not_recurrent())
    }

    /// How the next draft of a round is made, after so many: with a recurrent exit block without the first layers, but for
    /// the first one where it cannot be [continued](Self::continues) from a round before.
    fn way_of_next(&self, drafted: usize, continued: bool) -> Way {
        match drafted {
            _ if !self.is_recurrent() => Way::FirstLayers,
            0 if continued && self.continues() => Way::Continued,
            0 => Way::FirstLayers,
            _ => Way::Recurrent,
        }
    }

    /// One draft step, whichever way.
    ///
    /// # Errors
    /// Those of the way.
    fn draft_by(&mut self, way: Way, batch: &[Sequence<'_>]) -> Result<Vec<Draft>, BackendError> {
        match way {
            Way::FirstLayers => self.draft(batch),
            Way::Continued => self.draft_continued(batch),
            Way::Recurrent => self.draft_recurrently(batch),
        }
    }

    /// Whether [`draft_planned`](Self::draft_planned) costs less than a [`draft`](Self::draft) for each token.
    fn follows_plans(&self) -> bool {
        false
    }

    /// Drafts for one sequence as long as the plan says, and not past a token of `ends`: at most
    /// `plan.limit` drafts more than the sequence has. Else as [`draft`](Self::draft).
    ///
    /// # Errors
    /// If the device fails.
    fn draft_planned(
        &mut self,
        sequence: &Sequence<'_>,
        plan: &DraftPlan,
        ends: &[TokenId],
    ) -> Result<Vec<Draft>, BackendError> {
        draft_step_by_step(self, sequence, plan, ends)
    }

    /// The rest of a round, for any draft lengths `k ≥ 0`: First-N and exit K/V for the rows that come without `h_N` (the
    /// last token, and whatever was [proposed](Sequence::proposed) or drafted [recurrently](Sequence::recurrent)), Last-M
    /// over the `k + 1` rows since the pending one, acceptance.
    ///
    /// # Errors
    /// If the device fails.
    fn verify(&mut self, batch: &[Sequence<'_>]) -> Result<Vec<Verdict>, BackendError>;

    /// Tells an attached profiler to record from here on, or no longer (`cudaProfilerStart`, `cudaProfilerStop`); false
    /// where there is nobody to tell.
    ///
    /// # Errors
    /// If the device fails.
    fn set_profiling(&mut self, _on: bool) -> Result<bool, BackendError> {
        Ok(false)
    }

    /// The target's raw logits `[k + 1, vocab]` of the slot's last [`verify`](Self::verify), copied
    /// from the device. For proofs of losslessness, not for speed. To be asked for before the next
    /// pass, which may reuse their memory.
    ///
    /// # Errors
    /// If the device fails.
    fn target_logits(&self, slot: usize) -> Result<Vec<f32>, BackendError>;

    /// The first of a sequence's positions whose keys or values, in some layer of the model, were not all finite numbers
    /// when they were last computed; of positions that a [`prefill`](Self::prefill) or a [`verify`](Self::verify) has
    /// completed. The cache has zeros in their place, so that no other position is touched, but nothing that follows
    /// from such a position means anything.
    fn first_non_finite(&self, _pages: &[PageId], _positions: Range<usize>) -> Option<usize> {
        None
    }

    /// The full model over a chunk, as a teacher reads a text: fills the cache as
    /// [`prefill`](Self::prefill) does, and returns logits and the hidden states after `tap` layers.
    ///
    /// # Errors
    /// If the device fails, or a position's keys or values are not finite numbers.
    fn evaluate(&mut self, chunk: &Chunk<'_>, tap: usize) -> Result<Evaluation, BackendError>;

    /// The same for several taps, ascending, and logits of the rows `logits` alone: no layer after the last that is asked
    /// for needs to run.
    ///
    /// # Errors
    /// As [`evaluate`](Self::evaluate).
    fn read(&mut self, chunk: &Chunk<'_>, taps: &[usize], logits: Range<usize>) -> Result<Reading, BackendError> {
        let vocab = self.geometry().vocab_size;
        let mut reading = Reading::default();
        for &tap in taps {
            let read = self.evaluate(chunk, tap)?;
            reading.hidden.push(read.hidden);
            reading.logits = read.logits[logits.start * vocab..logits.end * vocab].to_vec();
        }
        Ok(reading)
    }

    /// The same hidden states, and of the logits of `rows` only what [`Said`] keeps.
    ///
    /// # Errors
    /// As [`evaluate`](Self::evaluate).
    fn read_said(
        &mut self,
        chunk: &Chunk<'_>,
        taps: &[usize],
        rows: Range<usize>,
    ) -> Result<(Vec<Vec<f32>>, Vec<Said>), BackendError> {
        let Reading { hidden, logits } = self.read(chunk, taps, rows)?;
        Ok((hidden, training::said_of(&logits, self.geometry().vocab_size)))
    }
}

/// [`Backend::draft_planned`] with a pass for each draft.
fn draft_step_by_step<B: Backend + ?Sized>(
    backend: &mut B,
    sequence: &Sequence<'_>,
    plan: &DraftPlan,
    ends: &[TokenId],
) -> Result<Vec<Draft>, BackendError> {
    let (mut tokens, mut recurrent) = (sequence.tokens.to_vec(), sequence.recurrent);
    let mut drafts = Vec::new();
    let mut following = plan.follow();
    let mut going = plan.limit > 0;
    while going {
        let next = Sequence { tokens: &tokens, recurrent, ..*sequence };
        let way = plan.way(next.drafted());
        let drafted = backend.draft_by(way, &[next])?;
        recurrent = next.recurrent_after(way);
        for draft in drafted {
            tokens.push(draft.token);
            drafts.push(draft);
            let over = sequence.sampler.guide().is_some_and(|mut guide| guide.is_over(&tokens[sequence.prompt..]));
            going = !ends.contains(&draft.token) && !over && following.goes_on(draft.confidence);
        }
    }
    Ok(drafts)
}

/// A run of a sequence's tokens to be put in the cache.
#[derive(Debug, Clone, Copy)]
pub struct Chunk<'a> {
    /// The sequence's block table, with room for `start + tokens.len()` positions.
    pub pages: &'a [PageId],
    /// Position of the first token; all before it are in the cache.
    pub start: usize,
    /// The tokens.
    pub tokens: &'a [TokenId],
}

/// One sequence in a draft or verification pass.
#[derive(Debug, Clone, Copy)]
pub struct Sequence<'a> {
    /// Where the backend keeps this sequence's `h_N` and `q`.
    pub slot: usize,
    /// The block table, with room for `tokens.len()` positions.
    pub pages: &'a [PageId],
    /// Committed tokens, the last of them pending (through no layer yet), then this round's drafts.
    pub tokens: &'a [TokenId],
    /// How many of `tokens` are committed, the pending one included; at least 1.
    pub committed: usize,
    /// How many of `tokens` are the prompt.
    pub prompt: usize,
    /// How many of the drafts, the last ones, were proposed by somebody who ran no pass for them, and was certain of each:
    /// they are no samples, and have no `h_N` yet.
    pub proposed: usize,
    /// How many of the drafts before those, the last ones, were made [recurrently](Backend::draft_recurrently), since any
    /// [`draft`](Backend::draft): each began from a row that has no `h_N` yet.
    pub recurrent: usize,
    /// Sampling parameters and seed.
    pub sampler: &'a Sampler,
}

impl Sequence<'_> {
    /// Drafts made so far in this round, proposed ones included.
    pub fn drafted(&self) -> usize {
        self.tokens.len() - self.committed
    }

    /// Drafts that are samples of the exit block's distributions.
    pub fn sampled(&self) -> usize {
        self.drafted() - self.proposed
    }

    /// Rows of the round, from the pending token on, that have their `h_N`: those that went through the first layers.
    pub fn hidden(&self) -> usize {
        self.sampled() - self.recurrent
    }

    /// Rows of the round that come without `h_N`: all others, at least the last sampled draft, or else the pending token.
    pub fn fresh(&self) -> usize {
        self.drafted() + 1 - self.hidden()
    }

    /// What [`recurrent`](Self::recurrent) is after one more draft, made this way.
    pub fn recurrent_after(&self, way: Way) -> usize {
        if way.is_recurrent() { self.recurrent + 1 } else { 0 }
    }
}

/// A drafted token, as the engine sees it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Draft {
    /// The token.
    pub token: TokenId,
    /// Largest probability of the draft distribution; see [`Drafted`](crate::sample::Drafted).
    pub confidence: f32,
}

/// What [`Backend::evaluate`] returns.
#[derive(Debug, Clone)]
pub struct Evaluation {
    /// `[tokens, vocab]`.
    pub logits: Vec<f32>,
    /// Residual stream after the tapped layer, before any norm, `[tokens, hidden]`.
    pub hidden: Vec<f32>,
}

/// What [`Backend::read`] returns.
#[derive(Debug, Clone, Default)]
pub struct Reading {
    /// For each tap as in [`Evaluation::hidden`].
    pub hidden: Vec<Vec<f32>>,
    /// `[rows asked for, vocab]`.
    pub logits: Vec<f32>,
}

/// What all logits of a row say together.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Said {
    /// The logarithm of the sum of their exponentials.
    pub log_total: f32,
    /// The likeliest token, the lowest of several.
    pub likeliest: TokenId,
}
