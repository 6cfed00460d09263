//! The one inner loop: a register tile of a matrix product.
//!
//! `out[r][16·p + lane] (+)= Σ_k x[r][k] · w[p][k][lane]`, one accumulator per output element, fused
//! multiply-adds in the order of `k`; weights that have scales are multiplied by them first. Cutting `k` in parts (`resume`) stores and reloads the same
//! accumulator, so neither tiling nor the number of rows changes a bit.

use super::super::Simd;
use super::super::lanes::{Element, Kernel, LANES, Lanes};

/// Where a product's operands lie. Strides are in elements.
pub struct Product<W> {
    /// Element (0, 0) of the left operand.
    pub x: *const f32,
    /// From one row of `x` to the next.
    pub x_row: usize,
    /// The first panel's block of weights at `k = 0`, or the scales before it.
    pub w: *const W,
    /// From one panel to the next.
    pub w_panel: usize,
    /// From one `k` of a panel to the next; half of a block's distance from the next.
    pub w_k: usize,
    /// Length of the sums.
    pub k: usize,
    /// Element (0, 0) of the result; panels follow each other 16 floats apart.
    pub out: *mut f32,
    /// From one row of the result to the next.
    pub out_row: usize,
    /// Go on from the sums in `out` instead of zero.
    pub resume: bool,
}

/// The tile of `R` rows and `P` panels at the given panel. It borrows the product: copies of it, made
/// of freshly written fields, would stall each call.
struct Tile<'a, W, const R: usize, const P: usize>(&'a Product<W>, usize);

impl<W: Element, const R: usize, const P: usize> Kernel for Tile<'_, W, R, P> {
    type Output = ();

    #[expect(clippy::needless_range_loop, reason = "indices are those of the formula")]
    #[inline(always)]
    fn run<V: Lanes>(self) {
        let Product { x, x_row, w, w_panel, w_k, k, out, out_row, resume } = *self.0;
        // SAFETY: the operands are as large as `multiply`'s caller promises.
        unsafe {
            let w = w.add(self.1 * w_panel);
            let mut scales = [V::splat(1.0); P];
            if W::SCALES > 0 {
                for p in 0..P {
                    scales[p] = V::load(w.add(p * w_panel).cast());
                }
            }
            let w = w.add(W::SCALES);
            let out = out.add(self.1 * LANES);
            let mut sums = [[V::splat(0.0); P]; R];
            if resume {
                for r in 0..R {
                    for p in 0..P {
                        sums[r][p] = V::load(out.add(r * out_row + p * LANES));
                    }
                }
            }
            // One step of all sums: an input of all rows, and its weights. Registers hold the fewer of the two.
            macro_rules! step {
                ($k:expr, $load:expr) => {
                    if R < P {
                        let mut inputs = [V::splat(0.0); R];
                        for r in 0..R {
                            inputs[r] = V::splat(*x.add(r * x_row + $k));
                        }
                        for p in 0..P {
                            let weights: V = W::scaled($load(w.add(p * w_panel + ($k & !1) * w_k)), scales[p]);
                            for r in 0..R {
                                sums[r][p] = weights.fma(inputs[r], sums[r][p]);
                            }
                        }
                    } else {
                        let mut weights = [V::splat(0.0); P];
                        for p in 0..P {
                            weights[p] = W::scaled($load(w.add(p * w_panel + ($k & !1) * w_k)), scales[p]);
                        }
                        for r in 0..R {
                            let input = V::splat(*x.add(r * x_row + $k));
                            for p in 0..P {
                                sums[r][p] = weights[p].fma(input, sums[r][p]);
                            }
                        }
                    }
                };
            }
            let mut at = 0;
            while at + 1 < k {
                step!(at, |block| W::first::<V>(block));
                step!(at + 1, |block| W::second::<V>(block, w_k));
                at += 2;
            }
            if at < k {
                step!(at, |block| W::single::<V>(block));
            }
            for r in 0..R {
                for p in 0..P {
                    sums[r][p].store(out.add(r * out_row + p * LANES));
                }
            }
        }
    }
}

/// Multiplies `rows` rows (at most [`Simd::max_rows`]) by `panels` panels, cut into the widest tiles
/// there are.
///
/// # Safety
/// The operands that `product` describes are readable and the result writable by this thread alone.
pub unsafe fn multiply<W: Element>(simd: Simd, rows: usize, panels: usize, product: &Product<W>) {
    let most = simd.max_panels(rows);
    let mut first = 0;
    while first < panels {
        let wide = match (panels - first).min(most) {
            7 => 6,
            wide => wide,
        };
        // SAFETY: the caller's promise.
        unsafe { tile(simd, rows, first, wide, product) };
        first += wide;
    }
}

/// Picks the tile by its size, among those for which [`Simd::max_panels`] asks.
///
/// # Safety
/// As [`multiply`].
unsafe fn tile<W: Element>(simd: Simd, rows: usize, first: usize, panels: usize, product: &Product<W>) {
    macro_rules! pick {
        ($(($r:literal: $($p:literal)+))+) => {
            match (rows, panels) {
                $($(($r, $p) => simd.run(Tile::<W, $r, $p>(product, first)),)+)+
                _ => unreachable!("no tile of {rows} rows and {panels} panels"),
            }
        };
    }
    pick! {
        (1: 1 2 3 4 5 6 8) (2: 1 2 3 4 5 6) (3: 1 2 3 4 5 6) (4: 1 2 3 4) (5: 1 2 3)
        (6: 1 2) (7: 1 2) (8: 1 2)
    }
}
