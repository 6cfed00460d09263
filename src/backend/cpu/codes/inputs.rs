//! Rows of activations in 8 bits, with a scale for each block of 32.

use super::super::super::BackendError;
use super::super::lanes::{Kernel, LANES, Lanes};
use super::super::memory::Memory;
use super::BLOCK;
use bytemuck::{Pod, Zeroable};
use std::ops::Range;

/// A block of a row in 8 bits with all that a product wants to know of it, in one cache line: a thread that reads a block
/// which another one made waits once, and whoever makes another block meanwhile does not hold it up.
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
#[repr(C, align(64))]
pub struct CodeBlock {
    /// Codes, -127 to 127.
    pub codes: [i8; BLOCK],
    /// What a code of one stands for.
    pub scale: f32,
    /// Minus the sum of the codes of each half, then of all.
    pub negated: [i32; 3],
    /// The sum of each half's codes times the scale, then of all, likewise.
    pub totals: [f32; 3],
    unused: u32,
}

/// A buffer of quantised rows.
pub struct QuantisedRows {
    blocks: Memory<CodeBlock>,
    /// Blocks from one row to the next.
    stride: usize,
}

/// Rows of quantised inputs in memory.
#[derive(Clone, Copy)]
pub struct CodeRows {
    /// The first row's first block.
    pub at: *mut CodeBlock,
    /// Blocks from one row to the next.
    pub stride: usize,
}

impl QuantisedRows {
    /// Room for `rows` rows of up to `len` inputs.
    ///
    /// # Errors
    /// If the memory cannot be had.
    pub fn new(rows: usize, len: usize) -> Result<Self, BackendError> {
        // An odd number of cache lines from row to row, so that rows do not compete for the same sets.
        let stride = len.div_ceil(BLOCK) | 1;
        Ok(Self { blocks: Memory::zeroed(rows.saturating_mul(stride), "workspace")?, stride })
    }

    /// The rows.
    pub fn rows(&self) -> CodeRows {
        CodeRows { at: self.blocks.at(0), stride: self.stride }
    }
}

impl CodeRows {
    /// The rows from `row` on.
    pub fn from(self, row: usize) -> Self {
        Self { at: self.at.wrapping_add(row * self.stride), ..self }
    }
}

/// Quantises blocks of one row: of each the largest magnitude becomes 127, and what is between is rounded, ties to even.
///
/// Blocks of magnitudes below 1e-30 are zeros. The scale of a block with something in it that is not finite is no
/// number, and so is then whatever the row is multiplied by.
pub struct Quantise<'a> {
    /// The row, padded with zeros to whole vectors.
    pub x: *const f32,
    /// The row's true length.
    pub len: usize,
    /// The input that comes at each place, `len` of them; `None`: as they are.
    pub order: Option<&'a [u32]>,
    /// Which blocks.
    pub blocks: Range<usize>,
    /// Where the result goes: the first of these rows.
    pub out: CodeRows,
}

impl Kernel for Quantise<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Lanes>(self) {
        const SMALLEST: f32 = 1e-30;
        let Self { x, len, order, blocks, out } = self;
        let vectors = len.div_ceil(LANES);
        let vector = |at: usize| match order {
            _ if at >= vectors => V::splat(0.0),
            // SAFETY: the row is padded to whole vectors.
            None => unsafe { V::load(x.add(at * LANES)) },
            Some(order) => {
                // SAFETY: the row has this length.
                let x = unsafe { std::slice::from_raw_parts(x, len) };
                let mut numbers = [0.0; LANES];
                let inputs = &order[at * LANES..len.min((at + 1) * LANES)];
                numbers.iter_mut().zip(inputs).for_each(|(number, &input)| *number = x[input as usize]);
                // SAFETY: these are 16 floats.
                unsafe { V::load(numbers.as_ptr()) }
            }
        };
        for block in blocks {
            let zero = V::splat(0.0);
            let first = 2 * block;
            let halves = [vector(first), vector(first + 1)];
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
                let out = out.at.add(block);
                let codes = (&raw mut (*out).codes).cast::<i8>();
                let [first, second] = halves.map(|numbers| numbers.mul(V::splat(factor)));
                let sums = [first.store_i8(codes), second.store_i8(codes.add(LANES))];
                let sums = [sums[0], sums[1], sums[0] + sums[1]];
                (*out).scale = scale;
                (*out).negated = sums.map(|sum| -sum);
                (*out).totals = sums.map(|sum| scale * sum as f32);
            }
        }
    }
}
