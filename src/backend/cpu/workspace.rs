//! Buffers that a pass works in, made once.

use super::super::{BackendError, Limits};
use super::Simd;
use super::attention::{Attention, Scratch};
use super::gemm;
use super::lanes::padded;
use super::memory::Memory;
use crate::model::Geometry;

/// Rows of a prefill pass: enough for the weights' way through the caches to pay.
pub const PREFILL_ROWS: usize = 256;

/// Up to here every worker normalises all rows for itself, which is cheaper than to wait for others.
pub const OWN_ROWS: usize = 16;

/// Shared buffers, rows first, and each worker's own. All rows are padded to whole vectors with zeros.
pub struct Workspace {
    /// Rows that fit.
    pub rows: usize,
    /// Residual stream `[rows][hidden, padded]`.
    pub hidden: Memory<f32>,
    /// Floats in a row of `hidden` and `sums`.
    pub hidden_row: usize,
    /// `h_N` of the rows of each slot's round, `[slots][round_rows][hidden, padded]`.
    kept: Memory<f32>,
    round_rows: usize,
    /// Normalised rows, cut into tiles.
    pub normed: Memory<f32>,
    /// `[rows][heads + 2·kv_heads][head_dim, padded]`.
    pub qkv: Memory<f32>,
    /// Floats in a row of `qkv`.
    pub qkv_row: usize,
    /// What attention gives, cut into tiles.
    pub mixed: Memory<f32>,
    /// `[rows][gate and up by panels]`.
    pub gate_up: Memory<f32>,
    /// Floats in a row of `gate_up`.
    pub gate_up_row: usize,
    /// Gated activations, cut into tiles.
    pub gated: Memory<f32>,
    /// What is added to the residual stream.
    pub sums: Memory<f32>,
    /// `[rows][vocab, padded]`.
    pub logits: Memory<f32>,
    /// Floats in a row of `logits`.
    pub logits_row: usize,
    workers: Vec<Own>,
}

/// One worker's own buffers.
struct Own {
    normed: Memory<f32>,
    block: Memory<f32>,
    scores: Memory<f32>,
    queries: Memory<f32>,
    mixed: Memory<f32>,
}

impl Workspace {
    /// Buffers for `workers` workers and as many rows as the largest pass within `limits` has.
    ///
    /// # Errors
    /// If the memory cannot be had.
    pub fn new(geometry: &Geometry, simd: Simd, limits: &Limits, workers: usize) -> Result<Self, BackendError> {
        let round_rows = limits.max_draft + 1;
        let rows = PREFILL_ROWS.max(limits.slots * round_rows);
        let shared = |len: usize| Memory::zeroed(rows * len, "workspace");
        let width = padded(geometry.head_dim);
        let hidden_row = padded(geometry.hidden_size);
        let qkv_row = (geometry.heads + 2 * geometry.kv_heads) * width;
        let gate_up_row = 2 * padded(geometry.intermediate_size);
        let logits_row = padded(geometry.vocab_size);
        let own = || {
            let zeroed = |len| Memory::zeroed(len, "workspace");
            Ok(Own {
                normed: zeroed(OWN_ROWS * hidden_row)?,
                block: zeroed(gemm::SCRATCH)?,
                scores: zeroed(Attention::scores_len(simd, limits.context))?,
                queries: zeroed(simd.max_rows() * width)?,
                mixed: zeroed(simd.max_rows() * width)?,
            })
        };
        Ok(Self {
            rows,
            hidden: shared(hidden_row)?,
            hidden_row,
            kept: Memory::zeroed(limits.slots * round_rows * hidden_row, "hidden states")?,
            round_rows,
            normed: shared(hidden_row)?,
            qkv: shared(qkv_row)?,
            qkv_row,
            mixed: shared(geometry.q_size())?,
            gate_up: shared(gate_up_row)?,
            gate_up_row,
            gated: shared(geometry.intermediate_size)?,
            sums: shared(hidden_row)?,
            logits: shared(logits_row)?,
            logits_row,
            workers: (0..workers).map(|_| own()).collect::<Result<_, _>>()?,
        })
    }

    /// The kept `h_N` of row `index` of a slot's round.
    ///
    /// # Safety
    /// Nobody else touches it meanwhile.
    #[expect(clippy::mut_from_ref, reason = "workers write disjoint rows of one buffer")]
    pub unsafe fn kept(&self, slot: usize, index: usize) -> &mut [f32] {
        // SAFETY: the caller's promise.
        unsafe { self.kept.slice_mut((slot * self.round_rows + index) * self.hidden_row, self.hidden_row) }
    }

    /// A worker's own place for normalised rows.
    pub fn own_normed(&self, worker: usize) -> *mut f32 {
        self.workers[worker].normed.at(0)
    }

    /// A worker's scratch space for [`gemm`](gemm::gemm).
    pub fn block(&self, worker: usize) -> *mut f32 {
        self.workers[worker].block.at(0)
    }

    /// A worker's scratch space for attention.
    pub fn attention(&self, worker: usize) -> Scratch {
        let own = &self.workers[worker];
        Scratch { scores: own.scores.at(0), queries: own.queries.at(0), mixed: own.mixed.at(0) }
    }
}
