//! Training an exit block on a device: its forward pass, its loss against the teacher, gradients, AdamW.
//!
//! A [`Student`] knows parameters and batches; it knows no data, no schedule and no files (those are
//! `distill`'s). The teacher's side of a batch comes from [`Backend::evaluate`](super::Backend::evaluate).
//!
//! There are two: [`CpuStudent`], and [`CudaStudent`](cuda::CudaStudent) beside it.
//!
//! From the bottom up, on the processor: `real` is the number type (f64 in tests, so that the very code that trains is
//! checked against central differences), `gemm` the products; `chains` says which rows draft what; `norm`, `rotary` and
//! `attention` with their gradients, `layer`, `unrolled` and `head` the block, [`loss`] what a position costs, [`adamw`] the
//! update; [`parameters`] says where each tensor lies in one flat vector, `model_side` what is needed of the model.

pub mod adamw;
mod attention;
mod chains;
mod cpu;
pub mod cuda;
pub(crate) mod gemm;
#[cfg(test)]
mod gradients;
mod head;
mod layer;
pub mod loss;
mod model_side;
mod norm;
pub mod parameters;
mod real;
mod rotary;
mod unrolled;

pub use cpu::CpuStudent;

use super::{BackendError, Said};
use crate::model::DraftVocab;
use adamw::AdamStep;
use loss::{LossOptions, Losses, Taught};
use parameters::Layout;
use rayon::prelude::*;

/// A position that is learned from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Position {
    /// Its row in the batch.
    pub row: usize,
    /// The token that follows it.
    pub token: crate::TokenId,
    /// How much it counts.
    pub weight: f64,
}

/// What the teacher says of some segments of text.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TeacherBatch {
    /// Rows of each segment; every segment begins at position 0 and sees itself alone.
    pub lengths: Vec<usize>,
    /// The token of each row.
    pub tokens: Vec<crate::TokenId>,
    /// The residual stream after the exit layer, `[rows, hidden]`.
    pub hidden: Vec<f32>,
    /// The positions that count, ascending.
    pub scored: Vec<Position>,
    /// What the teacher says there.
    pub targets: Targets,
}

/// What the teacher says at the positions of a batch.
#[derive(Debug, Clone, PartialEq)]
pub enum Targets {
    /// Its logits, `[positions, vocabulary]`.
    Logits(Vec<f32>),
    /// Hidden states, from which a student makes the logits that it needs.
    States(States),
}

impl Default for Targets {
    fn default() -> Self {
        Self::Logits(Vec::new())
    }
}

/// What is kept of the teacher at some positions.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct States {
    /// The residual stream after the last layer, before the model's norm, `[positions, hidden]`.
    pub last: Vec<f32>,
    /// The logarithm of the sum of exponentials of all logits, `[positions]`.
    pub log_totals: Vec<f32>,
    /// The likeliest token, the lowest of several, `[positions]`.
    pub likeliest: Vec<crate::TokenId>,
    /// How many logits there are.
    pub vocab: usize,
}

/// What rows of `vocab` logits say in all.
pub(super) fn said_of(logits: &[f32], vocab: usize) -> Vec<Said> {
    let all = DraftVocab { size: vocab, ids: None };
    let said = |taught: &mut Taught<f32>, logits: &[f32]| {
        taught.whole(logits, all, &LossOptions::default());
        Said { log_total: taught.log_total() as f32, likeliest: taught.likeliest() }
    };
    logits.par_chunks_exact(vocab).map_init(Taught::default, said).collect()
}

/// All that a student would need to go on where it stopped.
#[derive(Debug, Clone, PartialEq)]
pub struct StudentState {
    /// Parameters, f32, [`Layout::len`].
    pub values: Vec<f32>,
    /// AdamW's mean gradient, [`Layout::trained`].
    pub mean: Vec<f32>,
    /// AdamW's mean squared gradient, likewise.
    pub square: Vec<f32>,
}

impl StudentState {
    fn check(&self, layout: &Layout) -> Result<(), BackendError> {
        let found = [self.values.len(), self.mean.len(), self.square.len()];
        let expected = [layout.len(), layout.trained(), layout.trained()];
        let why = || BackendError::Exit(format!("a state of {found:?} numbers (expected {expected:?})"));
        if found == expected { Ok(()) } else { Err(why()) }
    }
}

/// Refuses chains of no step, or of several of a block that is not recurrent.
fn check_steps(layout: &Layout, steps: usize) -> Result<(), BackendError> {
    if steps > 0 && (steps == 1 || layout.is_recurrent()) {
        return Ok(());
    }
    let expected = if steps == 0 { "at least 1" } else { "1 for a block without a recurrent matrix" };
    Err(BackendError::Exit(format!("chains of {steps} steps (expected {expected})")))
}

/// A device that trains an exit block.
pub trait Student: Send {
    /// Where its parameters lie.
    fn layout(&self) -> &Layout;

    /// Whether it makes logits of hidden states itself; else batches have to bring them.
    fn takes_states(&self) -> bool {
        false
    }

    /// The losses of a batch, by step of its chains; their gradient is added to that of the batches since the last update.
    ///
    /// # Errors
    /// If a segment is longer than was reserved for, or the device fails.
    fn learn(&mut self, batch: &TeacherBatch, loss: &LossOptions) -> Result<Losses, BackendError>;

    /// The losses of a batch, and nothing else.
    ///
    /// # Errors
    /// As [`learn`](Self::learn).
    fn test(&mut self, batch: &TeacherBatch, loss: &LossOptions) -> Result<Losses, BackendError>;

    /// One step of AdamW along the mean gradient of the positions learned from since the last one. Returns that
    /// gradient's norm before clipping; where it is not finite, nothing was changed but the gradient forgotten.
    ///
    /// # Errors
    /// If the device fails.
    fn update(&mut self, step: &AdamStep) -> Result<f64, BackendError>;

    /// Parameters and the optimiser's memory; gradients not yet used are not part of it.
    ///
    /// # Errors
    /// If the device fails.
    fn state(&self) -> Result<StudentState, BackendError>;

    /// Goes on from a state.
    ///
    /// # Errors
    /// If it is that of another layout, or the device fails.
    fn restore(&mut self, state: StudentState) -> Result<(), BackendError>;

    /// The device and how it is used, for people.
    fn describe(&self) -> String;
}
