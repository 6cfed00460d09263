//! What starts a residual stream: `embedding`, `gather_rows`, `recurrent_input`; and what stores its rows: `keep_rows`.

use super::{Address, Format, Launcher, Shape, launch};
use crate::backend::BackendError;
use crate::backend::cuda::coding::Storage;

arguments! {
    /// `cuda/embedding.cu`.
    Embedding {
        /// `[tokens]` u32.
        ids: Address,
        /// `[vocab, hidden]`.
        table: Address,
        /// [`TableForm::word`].
        form: i32,
        /// Width of the residual stream.
        hidden: i32,
        /// `[tokens, hidden]` f32.
        residual: Address,
        /// Weight of the first norm, f32.
        norm: Address,
        /// Input of the first projection.
        operand: Address,
        /// Of `operand`.
        stride: i32,
        /// Zero.
        padding: u32,
        /// Of the first norm.
        squares: Address,
    }
}

arguments! {
    /// `cuda/gather_rows.cu`.
    GatherRows {
        /// `[rows, hidden]` f32; may be `residual`, where each row stays in its place.
        stored: Address,
        /// `[tokens]` u32.
        index: Address,
        /// Width of the residual stream.
        hidden: i32,
        /// Zero.
        padding: u32,
        /// `[tokens, hidden]` f32.
        residual: Address,
        /// Weight of the norm that follows, f32.
        norm: Address,
        /// Input of the projection that follows.
        operand: Address,
        /// Of `operand`.
        stride: i32,
        /// Zero.
        padding_2: u32,
        /// Of the norm that follows.
        squares: Address,
    }
}

arguments! {
    /// `cuda/keep_rows.cu`.
    KeepRows {
        /// `[tokens, hidden]` f32.
        residual: Address,
        /// `[tokens]` u32, unequal.
        index: Address,
        /// `[rows, hidden]` f32.
        stored: Address,
        /// Width of the residual stream.
        hidden: i32,
        /// Zero.
        padding: u32,
    }
}

arguments! {
    /// `cuda/recurrent_input.cu`.
    RecurrentInput {
        /// `[tokens]` u32.
        ids: Address,
        /// `[vocab, hidden]`.
        table: Address,
        /// [`TableForm::word`].
        form: i32,
        /// Width of the residual stream.
        hidden: i32,
        /// `[rows, hidden]` f32.
        states: Address,
        /// `[tokens]` u32.
        index: Address,
        /// `[tokens, stride]`.
        operand: Address,
        /// Of `operand`.
        stride: i32,
        /// Added to the mean of squares.
        epsilon: f32,
    }
}

/// How the rows of an embedding lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TableForm {
    /// By rows, as numbers of 16 bits.
    Rows,
    /// Packed for projections.
    Packed(Storage),
}

impl TableForm {
    /// As kernels are told.
    pub fn word(self) -> i32 {
        match self {
            Self::Rows => 0,
            Self::Packed(Storage::Plain) => 1,
            Self::Packed(codes) => codes.word(),
        }
    }
}

const THREADS: u32 = 256;

/// One block per token: `embedding`, `gather_rows` and `recurrent_input`.
///
/// # Safety
/// As [`Launcher::launch`].
///
/// # Errors
/// If the device refuses or fails.
pub unsafe fn per_token<A: bytemuck::Pod>(
    on: &impl Launcher,
    name: &str,
    format: Format,
    tokens: usize,
    arguments: &A,
) -> Result<(), BackendError> {
    let shape = Shape { grid: [tokens as u32, 1, 1], threads: THREADS, shared_bytes: 0 };
    // SAFETY: the caller's promise.
    unsafe { launch(on, &format!("{name}_{}", format.suffix()), shape, arguments) }
}

/// Stores `tokens` rows of a residual stream: `keep_rows`.
///
/// # Safety
/// As [`Launcher::launch`].
///
/// # Errors
/// If the device refuses or fails.
pub unsafe fn keep_rows(on: &impl Launcher, tokens: usize, arguments: &KeepRows) -> Result<(), BackendError> {
    let shape = Shape { grid: [tokens as u32, 1, 1], threads: THREADS, shared_bytes: 0 };
    // SAFETY: the caller's promise.
    unsafe { launch(on, "keep_rows", shape, arguments) }
}
