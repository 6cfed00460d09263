//! Matrix products of a pass: a few rows against weights that come from memory once, or many rows
//! against blocks of weights that stay in the caches.

mod tile;

pub use tile::{Product, multiply};

use super::Simd;
use super::lanes::{Element, Kernel, LANES, Lanes};
use super::pack::{Packed, Panels};
use crate::model::Dtype;
use half::{bf16, f16};
use std::ops::Range;

/// Inputs in one block of the many-row product: its widened weights and its rows stay in L1 and L2.
const BLOCK: usize = 256;

/// Most panels of a tile of more than eight rows.
const BLOCK_PANELS: usize = 4;

/// Floats of scratch space that [`gemm`] needs.
pub const SCRATCH: usize = BLOCK * BLOCK_PANELS * LANES;

/// How the rows of a pass are cut into tiles: as few as the registers allow, of equal height give or
/// take one. The left operand of a product lies tile by tile, `[tile][k][row]`.
#[derive(Debug, Clone, Copy)]
pub struct Tiles {
    /// Rows in all.
    pub rows: usize,
    count: usize,
}

impl Tiles {
    /// Cuts `rows` rows for the registers of `simd`.
    pub fn new(simd: Simd, rows: usize) -> Self {
        Self { rows, count: rows.div_ceil(simd.max_rows()) }
    }

    /// Tiles.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Rows of tile `index`.
    pub fn tile(&self, index: usize) -> Range<usize> {
        self.rows * index / self.count..self.rows * (index + 1) / self.count
    }

    /// The tile of row `row`.
    pub fn of(&self, row: usize) -> Range<usize> {
        self.tile(((row + 1) * self.count - 1) / self.rows)
    }
}

/// Where element (row, k) lies in an operand of `k` inputs cut into tiles.
pub fn tiled(tile: &Range<usize>, inputs: usize, row: usize, k: usize) -> usize {
    tile.start * inputs + k * tile.len() + (row - tile.start)
}

/// `out[row][16·panel ..] = Σ_k x[row][k] · w[panel][k]` for the panels of a range.
///
/// # Safety
/// `x` holds `tiles` of as many inputs as the matrix has; rows of `out`, `out_row` floats apart, reach
/// to the last panel and the range's columns are this thread's; `scratch` has [`SCRATCH`] floats.
pub unsafe fn gemm(
    simd: Simd,
    (tiles, x): (Tiles, *const f32),
    (packed, matrix): (&Packed, &Panels),
    range: Range<usize>,
    (out, out_row): (*mut f32, usize),
    scratch: *mut f32,
) {
    let weights = packed.panel(matrix, range.start);
    let out = out.wrapping_add(range.start * LANES);
    let panels = range.len();
    let inputs = matrix.inputs;
    macro_rules! with {
        ($element:ty) => {{
            let task = Gemm { simd, tiles, x, weights: weights.cast::<$element>(), panels, inputs, out, out_row };
            // SAFETY: the caller's promise; a matrix of this format has such elements.
            unsafe { if tiles.len() <= 2 { task.few_rows() } else { task.many_rows(scratch) } }
        }};
    }
    match matrix.dtype {
        Dtype::F32 => with!(f32),
        Dtype::F16 => with!(f16),
        Dtype::BF16 => with!(bf16),
    }
}

/// One worker's part of a product.
struct Gemm<W> {
    simd: Simd,
    tiles: Tiles,
    x: *const f32,
    weights: *const W,
    panels: usize,
    inputs: usize,
    out: *mut f32,
    out_row: usize,
}

impl<W: Element> Gemm<W> {
    /// Weights go from memory to registers; a second tile finds them in the cache.
    ///
    /// # Safety
    /// As [`gemm`].
    unsafe fn few_rows(&self) {
        let step = self.simd.max_panels(self.tiles.tile(self.tiles.len() - 1).len());
        for first in (0..self.panels).step_by(step) {
            let panels = step.min(self.panels - first);
            for index in 0..self.tiles.len() {
                let tile = self.tiles.tile(index);
                let product = Product {
                    x: self.x.wrapping_add(tile.start * self.inputs),
                    x_row: 1,
                    x_k: tile.len(),
                    w: self.weights.wrapping_add(first * self.inputs * LANES),
                    w_panel: self.inputs * LANES,
                    w_k: LANES,
                    k: self.inputs,
                    out: self.out.wrapping_add(tile.start * self.out_row + first * LANES),
                    out_row: self.out_row,
                    resume: false,
                };
                // SAFETY: the caller's promise.
                unsafe { multiply(self.simd, tile.len(), panels, product) };
            }
        }
    }

    /// Block by block of inputs: widens a few panels' weights once, then takes all rows past them.
    ///
    /// # Safety
    /// As [`gemm`].
    unsafe fn many_rows(&self, scratch: *mut f32) {
        let step = self.simd.max_panels(self.simd.max_rows()).min(BLOCK_PANELS);
        for from in (0..self.inputs).step_by(BLOCK) {
            let k = BLOCK.min(self.inputs - from);
            for first in (0..self.panels).step_by(step) {
                let panels = step.min(self.panels - first);
                let weights = self.weights.wrapping_add((first * self.inputs + from) * LANES);
                self.simd.run(Widen { weights, w_panel: self.inputs * LANES, panels, k, out: scratch });
                for index in 0..self.tiles.len() {
                    let tile = self.tiles.tile(index);
                    let product = Product {
                        x: self.x.wrapping_add(tile.start * self.inputs + from * tile.len()),
                        x_row: 1,
                        x_k: tile.len(),
                        w: scratch.cast_const(),
                        w_panel: LANES,
                        w_k: panels * LANES,
                        k,
                        out: self.out.wrapping_add(tile.start * self.out_row + first * LANES),
                        out_row: self.out_row,
                        resume: from > 0,
                    };
                    // SAFETY: the caller's promise.
                    unsafe { multiply(self.simd, tile.len(), panels, product) };
                }
            }
        }
    }
}

/// Widens `k` inputs of `panels` panels into `[k][panel][16]` floats.
struct Widen<W> {
    weights: *const W,
    w_panel: usize,
    panels: usize,
    k: usize,
    out: *mut f32,
}

impl<W: Element> Kernel for Widen<W> {
    type Output = ();

    #[inline(always)]
    fn run<V: Lanes>(self) {
        let mut out = self.out;
        for k in 0..self.k {
            for panel in 0..self.panels {
                // SAFETY: the weights are readable, and `out` has room for `k · panels` vectors.
                unsafe { W::load::<V>(self.weights.add(panel * self.w_panel + k * LANES)).store(out) };
                out = out.wrapping_add(LANES);
            }
        }
    }
}
