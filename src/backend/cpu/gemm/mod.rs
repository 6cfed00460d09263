//! Matrix products of a pass: a few rows against weights that come from memory once, or many rows
//! against blocks of weights that stay in the caches.

#[cfg(test)]
pub mod tests;
mod tile;

pub use tile::{Product, multiply};

use super::Simd;
use super::codes::{self, CodeRows};
use super::lanes::{E4m3, Element, Kernel, LANES, Lanes};
use super::pack::{Form, Packed, Panels};
use crate::model::Dtype;
use half::{bf16, f16};
use std::ops::Range;

/// Inputs in one block of the many-row product: its widened weights and its rows stay in L1 and L2.
const BLOCK: usize = 256;

/// Most panels of a tile of more than eight rows.
const BLOCK_PANELS: usize = 4;

/// Floats of scratch space that [`gemm`] needs.
pub const SCRATCH: usize = {
    let floats = BLOCK * BLOCK_PANELS * LANES;
    if floats > codes::SCRATCH { floats } else { codes::SCRATCH }
};

/// Floats from one row to the next in a buffer of rows of `len`: whole vectors, and an odd number of
/// cache lines, so that the rows of a tile do not compete for the same sets of the cache.
pub const fn row_stride(len: usize) -> usize {
    (len.div_ceil(LANES) | 1) * LANES
}

/// Rows of a matrix in memory.
#[derive(Clone, Copy)]
pub struct Rows<P> {
    /// Element (0, 0).
    pub at: P,
    /// Floats from one row to the next.
    pub stride: usize,
}

/// Rows that a matrix is multiplied by.
#[derive(Clone, Copy)]
pub struct Inputs {
    /// As they are, for plain numbers.
    pub floats: Rows<*const f32>,
    /// In 8 bits, for quantised weights: all rows in the first of the matrix's [orders](Panels::orders), then in the next.
    pub codes: Option<CodeRows>,
}

/// `out[row][16·panel ..] = Σ_k x[row][k] · w[panel][k]` for the panels of a range.
///
/// # Safety
/// `rows` rows of `x` have as many inputs as the matrix, in the forms that its panels take; those of `out` reach to the
/// last panel, and the range's columns are this thread's; `scratch` has [`SCRATCH`] floats.
pub unsafe fn gemm(
    simd: Simd,
    rows: usize,
    x: Inputs,
    (packed, matrix): (&Packed, &Panels),
    range: Range<usize>,
    out: Rows<*mut f32>,
    scratch: *mut f32,
) {
    for (form, range, start) in matrix.parts(range) {
        let weights = packed.at(start);
        let out = Rows { at: out.at.wrapping_add(range.start * LANES), ..out };
        let (panels, inputs) = (range.len(), matrix.inputs);
        macro_rules! with {
            ($element:ty, $group:expr) => {{
                let (weights, group) = (weights.cast::<$element>(), $group);
                let w_panel = form.panel_bytes(inputs) / size_of::<$element>();
                let task = Gemm { simd, rows, x: x.floats, weights, w_panel, panels, inputs, group, out };
                // SAFETY: the caller's promise; a matrix of this format has such elements.
                unsafe { if rows <= <$element>::FEW_ROWS { task.few_rows() } else { task.many_rows(scratch) } }
            }};
        }
        match form {
            Form::Floats(Dtype::F32) => with!(f32, inputs),
            Form::Floats(Dtype::F16) => with!(f16, inputs),
            Form::Floats(Dtype::BF16) => with!(bf16, inputs),
            Form::Eights(group) => with!(E4m3, group),
            Form::Codes(layout, order) => {
                let codes = x.codes.expect("quantised weights are multiplied by quantised inputs").from(order * rows);
                // SAFETY: the caller's promise.
                unsafe { codes::multiply(simd, &layout, (rows, codes), (panels, weights), out, scratch) };
            }
        }
    }
}

/// One worker's part of a product.
struct Gemm<W> {
    simd: Simd,
    rows: usize,
    x: Rows<*const f32>,
    weights: *const W,
    /// Elements from one panel to the next.
    w_panel: usize,
    panels: usize,
    inputs: usize,
    /// Inputs that share scales; all of them where there are none.
    group: usize,
    out: Rows<*mut f32>,
}

impl<W: Element> Gemm<W> {
    /// The rows in tiles: as few as the registers allow, of equal height give or take one.
    fn tiles(&self) -> impl Iterator<Item = Range<usize>> {
        let (rows, count) = (self.rows, self.rows.div_ceil(self.simd.max_rows()));
        (0..count).map(move |index| rows * index / count..rows * (index + 1) / count)
    }

    /// Weights go from memory to registers; a second tile finds them in the cache.
    ///
    /// # Safety
    /// As [`gemm`].
    unsafe fn few_rows(&self) {
        let step = self.simd.max_panels(self.tiles().map(|tile| tile.len()).max().unwrap_or(1));
        for first in (0..self.panels).step_by(step) {
            let panels = step.min(self.panels - first);
            for tile in self.tiles() {
                for from in (0..self.inputs).step_by(self.group) {
                    let product = Product {
                        x: self.x.at.wrapping_add(tile.start * self.x.stride + from),
                        x_row: self.x.stride,
                        w: self.group_of(first, from),
                        w_panel: self.w_panel,
                        w_k: LANES,
                        k: self.group.min(self.inputs - from),
                        out: self.out.at.wrapping_add(tile.start * self.out.stride + first * LANES),
                        out_row: self.out.stride,
                        resume: from > 0,
                    };
                    // SAFETY: the caller's promise.
                    unsafe { multiply(self.simd, tile.len(), panels, &product) };
                }
            }
        }
    }

    /// Block by block: widens a few panels' weights once, then takes all rows past them; meanwhile the
    /// next block's weights are fetched.
    ///
    /// # Safety
    /// As [`gemm`].
    unsafe fn many_rows(&self, scratch: *mut f32) {
        let (tiles, blocks) = (self.tiles().count(), self.blocks());
        for (index, block) in blocks.iter().enumerate() {
            let Block { from, k, first, panels } = *block;
            let (weights, scales) = (self.weights_of(block, 0), self.group_of(first, from));
            self.simd.run(Widen { weights, scales, w_panel: self.w_panel, panels, k, out: scratch });
            for (tile_index, tile) in self.tiles().enumerate() {
                if let Some(next) = blocks.get(index + 1) {
                    self.fetch(next, tile_index, tiles);
                }
                let product = Product {
                    x: self.x.at.wrapping_add(tile.start * self.x.stride + from),
                    x_row: self.x.stride,
                    w: scratch.cast_const(),
                    w_panel: LANES,
                    w_k: panels * LANES,
                    k,
                    out: self.out.at.wrapping_add(tile.start * self.out.stride + first * LANES),
                    out_row: self.out.stride,
                    resume: from > 0,
                };
                // SAFETY: the caller's promise.
                unsafe { multiply(self.simd, tile.len(), panels, &product) };
            }
        }
    }

    /// All blocks of the product, those of the first inputs first: every row's block of inputs stays in
    /// the cache while the panels go by.
    fn blocks(&self) -> Vec<Block> {
        let step = self.simd.max_panels(self.simd.max_rows()).min(BLOCK_PANELS);
        let of_inputs = |inputs: Range<usize>| {
            (0..self.panels).step_by(step).map(move |first| Block {
                from: inputs.start,
                k: inputs.len(),
                first,
                panels: step.min(self.panels - first),
            })
        };
        let of_group = |start: usize| {
            let end = self.inputs.min(start + self.group);
            (start..end).step_by(BLOCK).map(move |from| from..end.min(from + BLOCK))
        };
        (0..self.inputs).step_by(self.group).flat_map(of_group).flat_map(of_inputs).collect()
    }

    /// Where a panel's group of an input starts.
    fn group_of(&self, panel: usize, input: usize) -> *const W {
        let of_groups = input / self.group * (W::SCALES + self.group * LANES);
        self.weights.wrapping_add(panel * self.w_panel + of_groups)
    }

    /// A block's weights in its `panel`th panel.
    fn weights_of(&self, block: &Block, panel: usize) -> *const W {
        let group = self.group_of(block.first + panel, block.from);
        group.wrapping_add(W::SCALES + block.from % self.group * LANES)
    }

    /// Asks for the `part`th of `parts` parts of a block's weights.
    fn fetch(&self, block: &Block, part: usize, parts: usize) {
        const LINE: usize = 64;
        let lines = (block.k * LANES * size_of::<W>()).div_ceil(LINE);
        for panel in 0..block.panels {
            let weights = self.weights_of(block, panel).cast::<u8>();
            for line in lines * part / parts..lines * (part + 1) / parts {
                prefetch(weights.wrapping_add(line * LINE));
            }
        }
    }
}

/// Some inputs of some panels.
struct Block {
    from: usize,
    k: usize,
    first: usize,
    panels: usize,
}

/// Asks for a cache line; a hint that touches nothing.
fn prefetch(at: *const u8) {
    // SAFETY: prefetching never faults, whatever the address.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T1>(at.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// Widens `k` inputs of `panels` panels into `[k][panel][16]` floats.
struct Widen<W> {
    weights: *const W,
    /// Their scales in the first panel, where they have any.
    scales: *const W,
    w_panel: usize,
    panels: usize,
    k: usize,
    out: *mut f32,
}

impl<W: Element> Kernel for Widen<W> {
    type Output = ();

    #[inline(always)]
    fn run<V: Lanes>(self) {
        for panel in 0..self.panels {
            let mut scales = V::splat(1.0);
            if W::SCALES > 0 {
                // SAFETY: the panel's scales are readable.
                scales = unsafe { V::load(self.scales.add(panel * self.w_panel).cast()) };
            }
            let widen = |k: usize, panel: usize, weights: V| {
                // SAFETY: `out` has room for `k · panels` vectors.
                unsafe { W::scaled(weights, scales).store(self.out.add((k * self.panels + panel) * LANES)) };
            };
            for k in (0..self.k).step_by(2) {
                let block = self.weights.wrapping_add(panel * self.w_panel + k * LANES);
                // SAFETY: the weights are readable.
                unsafe {
                    if k + 1 < self.k {
                        widen(k, panel, W::first(block));
                        widen(k + 1, panel, W::second(block, LANES));
                    } else {
                        widen(k, panel, W::single(block));
                    }
                }
            }
        }
    }
}
