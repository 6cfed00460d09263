//! The one inner loop: a register tile of a matrix product.
//!
//! `out[r][16·p + lane] (+)= Σ_k x[r][k] · w[p][k][lane]`, one accumulator per output element, fused
//! multiply-adds in the order of `k`. Cutting `k` in parts (`resume`) stores and reloads the same
//! accumulator, so neither tiling nor the number of rows changes a bit.

use super::super::Simd;
use super::super::lanes::{Element, Kernel, LANES, Lanes};

/// Where a product's operands lie. Strides are in elements.
pub struct Product<W> {
    /// Element (0, 0) of the left operand.
    pub x: *const f32,
    /// From one row of `x` to the next.
    pub x_row: usize,
    /// From one `k` of `x` to the next.
    pub x_k: usize,
    /// 16 weights of the first panel at `k = 0`.
    pub w: *const W,
    /// From one panel to the next.
    pub w_panel: usize,
    /// From one `k` of a panel to the next.
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

// Not derived: that would ask for `W: Clone`.
impl<W> Clone for Product<W> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<W> Copy for Product<W> {}

/// The tile of `R` rows and `P` panels. `INTERLEAVED`: `x` is `[k][R]`.
struct Tile<W, const R: usize, const P: usize, const INTERLEAVED: bool>(Product<W>);

impl<W: Element, const R: usize, const P: usize, const INTERLEAVED: bool> Kernel for Tile<W, R, P, INTERLEAVED> {
    type Output = ();

    #[inline(always)]
    fn run<V: Lanes>(self) {
        let Product { mut x, w, w_panel, w_k, k, out, out_row, resume, .. } = self.0;
        let (x_row, x_k) = if INTERLEAVED { (1, R) } else { (self.0.x_row, self.0.x_k) };
        // SAFETY: the operands are as large as `multiply`'s caller promises.
        unsafe {
            let mut sums = [[V::splat(0.0); P]; R];
            if resume {
                for r in 0..R {
                    for p in 0..P {
                        sums[r][p] = V::load(out.add(r * out_row + p * LANES));
                    }
                }
            }
            let mut weights = [w; P];
            for p in 0..P {
                weights[p] = w.add(p * w_panel);
            }
            for _ in 0..k {
                let mut loaded = [V::splat(0.0); P];
                for p in 0..P {
                    loaded[p] = W::load::<V>(weights[p]);
                    weights[p] = weights[p].wrapping_add(w_k);
                }
                for r in 0..R {
                    let input = V::splat(*x.add(r * x_row));
                    for p in 0..P {
                        sums[r][p] = loaded[p].fma(input, sums[r][p]);
                    }
                }
                x = x.wrapping_add(x_k);
            }
            for r in 0..R {
                for p in 0..P {
                    sums[r][p].store(out.add(r * out_row + p * LANES));
                }
            }
        }
    }
}

/// Multiplies `rows` rows (at most [`Simd::max_rows`]) by `panels` panels.
///
/// # Safety
/// The operands that `product` describes are readable and the result writable by this thread alone.
#[inline]
pub unsafe fn multiply<W: Element>(simd: Simd, rows: usize, panels: usize, product: Product<W>) {
    if rows > 1 && product.x_row == 1 && product.x_k == rows {
        // SAFETY: the caller's promise.
        unsafe { by_panels::<W, true>(simd, rows, panels, product) }
    } else {
        // SAFETY: the caller's promise.
        unsafe { by_panels::<W, false>(simd, rows, panels, product) }
    }
}

/// Cuts `panels` into the widest tiles there are.
///
/// # Safety
/// As [`multiply`].
unsafe fn by_panels<W: Element, const I: bool>(simd: Simd, rows: usize, panels: usize, mut product: Product<W>) {
    let most = simd.max_panels(rows);
    let mut left = panels;
    while left > 0 {
        let wide = match left.min(most) {
            8.. => 8,
            6.. => 6,
            few => few.min(4),
        };
        // SAFETY: the caller's promise.
        unsafe { tile::<W, I>(simd, rows, wide, product) };
        product.w = product.w.wrapping_add(wide * product.w_panel);
        product.out = product.out.wrapping_add(wide * LANES);
        left -= wide;
    }
}

/// Picks the tile by its size: those for which [`Simd::max_panels`] asks.
///
/// # Safety
/// As [`multiply`].
unsafe fn tile<W: Element, const I: bool>(simd: Simd, rows: usize, panels: usize, product: Product<W>) {
    macro_rules! pick {
        ($(($r:literal: $($p:literal)+))+) => {
            match (rows, panels) {
                $($(($r, $p) => simd.run(Tile::<W, $r, $p, I>(product)),)+)+
                _ => unreachable!("no tile of {rows} rows and {panels} panels"),
            }
        };
    }
    pick! {
        (1: 1 2 3 4 6 8) (2: 1 2 3 4 6 8) (3: 1 2 3 4 6) (4: 1 2 3 4 6) (5: 1 2 3 4) (6: 1 2 3 4)
        (7: 1 2 3) (8: 1 2 3) (9: 1 2) (10: 1 2) (11: 1 2) (12: 1 2)
    }
}
