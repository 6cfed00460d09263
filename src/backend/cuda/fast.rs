//! Fast prefill: the library of matrix products in place of this project's own projections, where a prompt has many
//! rows. A matrix is unpacked into rows, multiplied, and its sums are finished by the epilogue that follows the same
//! projection in every other pass.

use super::arena::Arena;
use super::driver::Driver;
use super::kernels::{Address, Projection, UnpackWeights, unpack_weights};
use super::matmul::{Matmul, Number, RowMajor};
use super::pack::{BLOCK_ROWS, CHUNK, TILE_ROWS, chunks};
use super::pass::{Pass, Span};
use super::weights::{Packed, operand_stride};
use crate::backend::BackendError;
use crate::model::Geometry;

/// Passes of more rows are worth it, by the model in `cuda/README.md`: with fewer, unpacking the weights costs more
/// than what the library saves.
pub const LEAST_ROWS: usize = 129;

/// Bytes of a weight.
const ELEMENT: usize = 2;

/// What fast prefill works in.
#[derive(Clone, Copy)]
pub struct FastPrefill {
    /// A matrix by rows: `[outputs, operand_stride(inputs)]`, the largest of a layer, or an exit block's.
    pub matrix: Address,
    /// `[rows, sums_stride(outputs)]` f32, for the most outputs of a layer.
    pub sums: Address,
    /// The library's.
    pub workspace: Address,
    /// Of all of these.
    pub bytes: usize,
}

impl FastPrefill {
    /// Lays the buffers out for passes of at most `rows` rows; `library` is how many bytes the library works in.
    pub fn plan(arena: &mut Arena, geometry: &Geometry, rows: usize, library: usize) -> Self {
        let Geometry { hidden_size: hidden, intermediate_size: mlp, .. } = *geometry;
        let (q, kv) = (geometry.q_size(), geometry.kv_size());
        let gate_up = 2 * mlp.next_multiple_of(BLOCK_ROWS);
        let matrices = [(q + 2 * kv, hidden), (hidden, q), (gate_up, hidden), (hidden, mlp), (hidden, hidden)];
        let [elements, outputs] = matrices
            .map(|(outputs, inputs)| [outputs * operand_stride(inputs), sums_stride(outputs)])
            .into_iter()
            .fold([0, 0], |[elements, outputs], [e, o]| [elements.max(e), outputs.max(o)]);
        let before = arena.taken();
        let (matrix, sums) = (arena.take(elements * ELEMENT), arena.array::<f32>(rows * outputs));
        let workspace = arena.take(library);
        Self { matrix, sums, workspace, bytes: arena.taken() - before }
    }
}

/// Elements between rows of a projection's sums.
fn sums_stride(outputs: usize) -> usize {
    outputs.next_multiple_of(TILE_ROWS)
}

impl<D: Driver> Pass<'_, D> {
    /// Multiplies the rows of a span, and says where the sums are: to be finished.
    pub(super) unsafe fn multiply(
        &self,
        with: FastPrefill,
        span: Span,
        matrix: Packed,
        x: Address,
    ) -> Result<Projection, BackendError> {
        let number = Number::from(self.model.format);
        let (columns, stride) = (operand_stride(matrix.inputs), sums_stride(matrix.outputs));
        let unpack = UnpackWeights {
            source: matrix.at,
            rows: with.matrix,
            row_count: matrix.outputs as i32,
            chunks: chunks(matrix.inputs) as i32,
            first_block: 0,
            block_step: 1,
        };
        let product = Matmul {
            m: span.rows,
            n: matrix.outputs,
            // Past the last input both sides are zero.
            k: columns,
            a: RowMajor { at: x, stride: columns, number },
            transpose_a: false,
            b: RowMajor { at: with.matrix, stride: columns, number },
            transpose_b: true,
            c: RowMajor { at: with.sums, stride, number: Number::F32 },
            alpha: 1.0,
            beta: 0.0,
            workspace: with.workspace,
        };
        debug_assert!(columns % CHUNK == 0);
        // SAFETY: as promised to the pass; the buffers were planned for the largest matrix and the most rows.
        unsafe {
            unpack_weights(self.on, &unpack)?;
            self.on.matmul(&product)?;
        }
        Ok(Projection {
            weights: matrix.at,
            x: with.sums,
            outputs: matrix.outputs as i32,
            chunks: chunks(matrix.inputs) as i32,
            stride: stride as i32,
            tokens: span.rows as i32,
            coding: 0,
            padding: 0,
        })
    }
}
