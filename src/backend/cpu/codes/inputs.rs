//! Rows of activations in 8 bits, with a scale for each block of 32.

use super::super::super::BackendError;
use super::super::lanes::{Kernel, LANES, Lanes};
use super::super::memory::Memory;
use super::BLOCK;
use std::ops::Range;

/// A buffer of quantised rows.
pub struct QuantisedRows {
    codes: Memory<i8>,
    scales: Memory<f32>,
    negated: Memory<i32>,
    totals: Memory<f32>,
    /// Blocks from one row to the next.
    blocks: usize,
}

/// Rows of quantised inputs in memory.
#[derive(Clone, Copy)]
pub struct CodeRows {
    /// Codes, -127 to 127, rows of `blocks · 32`.
    pub codes: *mut i8,
    /// A scale for each block, rows of `blocks`.
    pub scales: *mut f32,
    /// Minus the sum of the codes of each half block, rows of `2 · blocks`, then of each block, rows of `blocks`:
    /// rows of `3 · blocks` together.
    pub negated: *mut i32,
    /// The sum of each half block's codes times the scale, then of each block's, likewise.
    pub totals: *mut f32,
    /// Blocks from one row to the next.
    pub blocks: usize,
}

impl QuantisedRows {
    /// Room for `rows` rows of up to `len` inputs.
    ///
    /// # Errors
    /// If the memory cannot be had.
    pub fn new(rows: usize, len: usize) -> Result<Self, BackendError> {
        // An odd number of cache lines of codes from row to row, so that rows do not compete for the same sets.
        let blocks = (len.div_ceil(2 * BLOCK) | 1) * 2;
        let all = rows.saturating_mul(blocks);
        Ok(Self {
            codes: Memory::zeroed(all.saturating_mul(BLOCK), "workspace")?,
            scales: Memory::zeroed(all, "workspace")?,
            negated: Memory::zeroed(all.saturating_mul(3), "workspace")?,
            totals: Memory::zeroed(all.saturating_mul(3), "workspace")?,
            blocks,
        })
    }

    /// The rows.
    pub fn rows(&self) -> CodeRows {
        let Self { codes, scales, negated, totals, blocks } = self;
        CodeRows {
            codes: codes.at(0),
            scales: scales.at(0),
            negated: negated.at(0),
            totals: totals.at(0),
            blocks: *blocks,
        }
    }
}

impl CodeRows {
    /// The rows from `row` on.
    pub fn from(self, row: usize) -> Self {
        let blocks = self.blocks;
        Self {
            codes: self.codes.wrapping_add(row * blocks * BLOCK),
            scales: self.scales.wrapping_add(row * blocks),
            negated: self.negated.wrapping_add(row * blocks * 3),
            totals: self.totals.wrapping_add(row * blocks * 3),
            blocks,
        }
    }
}

/// Quantises blocks of one row: of each the largest magnitude becomes 127, and what is between is rounded, ties to even.
///
/// Blocks of magnitudes below 1e-30 are zeros. The scale of a block with something in it that is not finite is no
/// number, and so is then whatever the row is multiplied by.
pub struct Quantise {
    /// The row, padded with zeros to whole vectors.
    pub x: *const f32,
    /// The row's true length.
    pub len: usize,
    /// Which blocks.
    pub blocks: Range<usize>,
    /// Where the result goes: the first of these rows.
    pub out: CodeRows,
}

impl Kernel for Quantise {
    type Output = ();

    #[inline(always)]
    fn run<V: Lanes>(self) {
        const SMALLEST: f32 = 1e-30;
        let Self { x, len, blocks, out } = self;
        let vectors = len.div_ceil(LANES);
        for block in blocks {
            let zero = V::splat(0.0);
            let first = 2 * block;
            // SAFETY: the row is padded to whole vectors.
            let halves = unsafe {
                let second = if first + 1 < vectors { V::load(x.add((first + 1) * LANES)) } else { zero };
                [V::load(x.add(first * LANES)), second]
            };
            let magnitude = |x: V| x.max(zero.sub(x));
            let largest = magnitude(halves[0]).max(magnitude(halves[1])).largest();
            let finite = halves[0].is_finite() && halves[1].is_finite();
            let (scale, factor) = match largest {
                _ if !finite => (f32::NAN, 0.0),
                _ if largest < SMALLEST => (0.0, 0.0),
                _ => (largest / 127.0, 127.0 / largest),
            };
            let halves = if finite { halves } else { [zero, zero] };
            // SAFETY: the row of the result has room for all blocks.
            unsafe {
                let mut sum = 0;
                for (half, numbers) in halves.into_iter().enumerate() {
                    let codes = out.codes.add(block * BLOCK + half * LANES);
                    let of_half = numbers.mul(V::splat(factor)).store_i8(codes);
                    out.negated.add(first + half).write(-of_half);
                    out.totals.add(first + half).write(scale * of_half as f32);
                    sum += of_half;
                }
                out.scales.add(block).write(scale);
                out.negated.add(2 * out.blocks + block).write(-sum);
                out.totals.add(2 * out.blocks + block).write(scale * sum as f32);
            }
        }
    }
}
