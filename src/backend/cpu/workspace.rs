//! Buffers that a pass works in, made once.

use super::super::{BackendError, Limits};
use super::Simd;
use super::attention::{Attention, Scratch};
use super::codes::{CodeRows, QuantisedRows};
use super::gemm::{self, Rows, row_stride};
use super::lanes::padded;
use super::memory::Memory;
use crate::kv::PAGE_TOKENS;
use crate::model::Geometry;

/// Rows of a prefill pass: enough for the weights' way through the caches to pay.
pub const PREFILL_ROWS: usize = 256;

/// Up to here every worker normalises all rows for itself, which is cheaper than to wait for others.
pub const OWN_ROWS: usize = 16;

/// A buffer of rows, each padded with zeros to whole vectors.
pub struct RowBuffer {
    numbers: Memory<f32>,
    stride: usize,
}

impl RowBuffer {
    fn new(rows: usize, len: usize) -> Result<Self, BackendError> {
        let stride = row_stride(len);
        Ok(Self { numbers: Memory::zeroed(rows.saturating_mul(stride), "workspace")?, stride })
    }

    /// The rows, to be written.
    pub fn rows_mut(&self) -> Rows<*mut f32> {
        Rows { at: self.numbers.at(0), stride: self.stride }
    }

    /// The rows, to be read.
    pub fn rows(&self) -> Rows<*const f32> {
        Rows { at: self.numbers.at(0), stride: self.stride }
    }

    /// Elements `at..at + len` of a row.
    ///
    /// # Safety
    /// Nobody writes them meanwhile.
    pub unsafe fn part(&self, row: usize, at: usize, len: usize) -> &[f32] {
        // SAFETY: the caller's promise.
        unsafe { self.numbers.slice(row * self.stride + at, len) }
    }

    /// Elements `at..at + len` of a row, to be written.
    ///
    /// # Safety
    /// Nobody else touches them meanwhile.
    #[expect(clippy::mut_from_ref, reason = "workers write disjoint parts of one buffer")]
    pub unsafe fn part_mut(&self, row: usize, at: usize, len: usize) -> &mut [f32] {
        // SAFETY: the caller's promise.
        unsafe { self.numbers.slice_mut(row * self.stride + at, len) }
    }
}

/// Shared buffers and each worker's own.
pub struct Workspace {
    /// Rows that fit.
    pub rows: usize,
    /// Residual stream.
    pub hidden: RowBuffer,
    /// Residual stream of the exit block, where that is not the model's.
    pub exit_stream: RowBuffer,
    /// What a recurrent exit block reads: a row of its residual stream, and after it an embedding.
    pub recurrent: RowBuffer,
    /// By slot, the exit block's residual stream at the last draft.
    pub states: RowBuffer,
    /// `h_N` of the rows of each slot's round.
    kept: RowBuffer,
    round_rows: usize,
    /// Normalised rows.
    pub normed: RowBuffer,
    /// Rows of `[heads + 2·kv_heads][head_dim, padded]`.
    pub qkv: RowBuffer,
    /// What attention gives, rows of `[heads][head_dim]`.
    pub mixed: RowBuffer,
    /// Panels of gate and up in turn.
    pub gate_up: RowBuffer,
    /// Gated activations.
    pub gated: RowBuffer,
    /// What is added to the residual stream.
    pub sums: RowBuffer,
    /// Rows of `[vocab]`.
    pub logits: RowBuffer,
    /// Rows in 8 bits, whatever is multiplied next, of many rows; but for what is quantised as it is made:
    codes: QuantisedRows,
    /// What attention gives, in 8 bits.
    mixed_codes: QuantisedRows,
    /// Gated activations in 8 bits.
    gated_codes: QuantisedRows,
    workers: Vec<Own>,
}

/// One worker's own buffers.
struct Own {
    normed: RowBuffer,
    codes: QuantisedRows,
    block: Memory<f32>,
    scores: Memory<f32>,
    queries: Memory<f32>,
    mixed: Memory<f32>,
    widened: Memory<f32>,
}

impl Workspace {
    /// Buffers for `workers` workers and as many rows as the largest pass within `limits` has, in 8 bits in up to `orders`
    /// orders of inputs.
    ///
    /// # Errors
    /// If the memory cannot be had.
    pub fn new(
        geometry: &Geometry,
        simd: Simd,
        limits: &Limits,
        workers: usize,
        orders: usize,
    ) -> Result<Self, BackendError> {
        let round_rows = limits.max_draft + 1;
        let rows = PREFILL_ROWS.max(limits.slots * round_rows);
        let width = padded(geometry.head_dim);
        let longest = (2 * geometry.hidden_size).max(geometry.intermediate_size).max(geometry.q_size());
        let own = || {
            let zeroed = |len| Memory::zeroed(len, "workspace");
            Ok(Own {
                normed: RowBuffer::new(OWN_ROWS, geometry.hidden_size)?,
                codes: QuantisedRows::new(OWN_ROWS * orders, longest)?,
                block: zeroed(gemm::SCRATCH)?,
                scores: zeroed(Attention::scores_len(simd, limits.context))?,
                queries: zeroed(simd.max_rows() * width)?,
                mixed: zeroed(simd.max_rows() * width)?,
                widened: zeroed(PAGE_TOKENS * width)?,
            })
        };
        Ok(Self {
            rows,
            hidden: RowBuffer::new(rows, geometry.hidden_size)?,
            exit_stream: RowBuffer::new(rows, geometry.hidden_size)?,
            recurrent: RowBuffer::new(limits.slots, 2 * geometry.hidden_size)?,
            states: RowBuffer::new(limits.slots, geometry.hidden_size)?,
            kept: RowBuffer::new(limits.slots * round_rows, geometry.hidden_size)?,
            round_rows,
            normed: RowBuffer::new(rows, geometry.hidden_size)?,
            qkv: RowBuffer::new(rows, (geometry.heads + 2 * geometry.kv_heads) * width)?,
            mixed: RowBuffer::new(rows, geometry.q_size())?,
            gate_up: RowBuffer::new(rows, 2 * padded(geometry.intermediate_size))?,
            gated: RowBuffer::new(rows, geometry.intermediate_size)?,
            sums: RowBuffer::new(rows, geometry.hidden_size)?,
            logits: RowBuffer::new(rows, geometry.vocab_size)?,
            codes: QuantisedRows::new(rows * orders, longest)?,
            mixed_codes: QuantisedRows::new(rows, geometry.q_size())?,
            gated_codes: QuantisedRows::new(rows, geometry.intermediate_size)?,
            workers: (0..workers).map(|_| own()).collect::<Result<_, _>>()?,
        })
    }

    /// The kept `h_N` of row `index` of a slot's round.
    ///
    /// # Safety
    /// Nobody writes it meanwhile.
    pub unsafe fn kept(&self, slot: usize, index: usize, len: usize) -> &[f32] {
        assert!(index < self.round_rows);
        // SAFETY: the caller's promise.
        unsafe { self.kept.part(slot * self.round_rows + index, 0, len) }
    }

    /// The same, to be written.
    ///
    /// # Safety
    /// Nobody else touches it meanwhile.
    #[expect(clippy::mut_from_ref, reason = "workers write disjoint rows of one buffer")]
    pub unsafe fn kept_mut(&self, slot: usize, index: usize, len: usize) -> &mut [f32] {
        assert!(index < self.round_rows);
        // SAFETY: the caller's promise.
        unsafe { self.kept.part_mut(slot * self.round_rows + index, 0, len) }
    }

    /// A worker's own place for up to [`OWN_ROWS`] normalised rows.
    pub fn own_normed(&self, worker: usize) -> &RowBuffer {
        &self.workers[worker].normed
    }

    /// A place for quantised rows: of up to [`OWN_ROWS`] the worker's own.
    pub fn codes(&self, worker: usize, rows: usize) -> CodeRows {
        if rows <= OWN_ROWS { self.workers[worker].codes.rows() } else { self.codes.rows() }
    }

    /// A place for what attention gives, in 8 bits.
    pub fn mixed_codes(&self) -> CodeRows {
        self.mixed_codes.rows()
    }

    /// A place for gated activations in 8 bits.
    pub fn gated_codes(&self) -> CodeRows {
        self.gated_codes.rows()
    }

    /// A worker's scratch space for [`gemm`](gemm::gemm).
    pub fn block(&self, worker: usize) -> *mut f32 {
        self.workers[worker].block.at(0)
    }

    /// A worker's scratch space for attention.
    pub fn attention(&self, worker: usize) -> Scratch {
        let Own { scores, queries, mixed, widened, .. } = &self.workers[worker];
        Scratch { scores: scores.at(0), queries: queries.at(0), mixed: mixed.at(0), widened: widened.at(0) }
    }
}
