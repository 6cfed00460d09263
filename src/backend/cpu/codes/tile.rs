//! The one inner loop: a few rows of inputs, one panel of codes.
//!
//! For each group of inputs, the integer sum of the products of codes and inputs, exact; then
//! `out += (scale · input scale) · sum`, and where there are minima `out += minimum · (input scale · sum of the inputs)`, each
//! a fused multiply-add, in the order of the groups. Cutting the inputs in parts (`resume`) stores and reloads the same
//! accumulator.

use super::super::lanes::{LANES, Lanes};
use super::dots::{CodeKernel, Dots, LINE, prefetch};
use super::inputs::CodeRows;
use super::layout::Codes;
use std::array::from_fn;

/// Where a product's operands lie.
#[derive(Clone, Copy)]
pub struct Product {
    /// The first of the tile's rows.
    pub inputs: CodeRows,
    /// The first block of all that is multiplied.
    pub first: usize,
    /// Blocks.
    pub blocks: usize,
    /// The panel's codes of the first block.
    pub codes: *const u8,
    /// From these codes to the next panel's.
    pub next: usize,
    /// Which lines of each block of the next panel's are asked for meanwhile.
    pub fetch: (usize, usize),
    /// Whether no other tile has read these codes: the first cache does not have them.
    pub cold: bool,
    /// For each group 16 scales.
    pub scales: *const f32,
    /// For each group 16 minima, where there are any.
    pub minima: *const f32,
    /// 16 outputs of the first row.
    pub out: *mut f32,
    /// From one row of the result to the next.
    pub out_row: usize,
    /// Go on from the sums in `out` instead of zero.
    pub resume: bool,
}

/// A kind of codes, at compile time.
pub trait Kind {
    /// How they are stored.
    const CODES: Codes;
    /// Whether a block has two groups instead of one.
    const HALVES: bool;
    /// Whether groups have minima.
    const MINIMA: bool;
}

/// The tile of `R` rows.
pub struct Tile<'a, K, const R: usize> {
    product: &'a Product,
    kind: std::marker::PhantomData<K>,
}

impl<'a, K: Kind, const R: usize> Tile<'a, K, R> {
    /// A tile of a product.
    pub fn new(product: &'a Product) -> Self {
        Self { product, kind: std::marker::PhantomData }
    }
}

/// How far ahead codes that were fetched to the second cache are asked for from there.
const AHEAD: usize = 1024;

impl<K: Kind, const R: usize> CodeKernel for Tile<'_, K, R> {
    #[inline(always)]
    fn run<V: Lanes, D: Dots<V>>(self) {
        let Product { inputs, first, blocks, codes, next, fetch, cold, scales, minima, out, out_row, resume } =
            *self.product;
        let groups = if K::HALVES { 2 } else { 1 };
        // SAFETY: the operands are as large as `multiply`'s caller promises.
        unsafe {
            let mut sums = [V::splat(0.0); R];
            if resume {
                for (r, sum) in sums.iter_mut().enumerate() {
                    *sum = V::load(out.add(r * out_row));
                }
            }
            for block in 0..blocks {
                let codes = codes.add(block * K::CODES.block_bytes());
                for line in fetch.0..fetch.1 {
                    prefetch::<false>(codes.wrapping_add(next + line * LINE));
                }
                if cold {
                    for line in 0..K::CODES.block_bytes() / LINE {
                        prefetch::<true>(codes.wrapping_add(AHEAD + line * LINE));
                    }
                }
                let inputs: [_; R] = from_fn(|r| inputs.at.add(r * inputs.stride + first + block).cast_const());
                // Where the sums of a group's inputs lie in a block.
                let sums_at = |group: usize| if K::HALVES { group } else { 2 };
                let mut dots = [[D::zero(); R]; 2];
                for (group, dots) in dots.iter_mut().enumerate().take(groups) {
                    for (input, dot) in inputs.iter().zip(dots) {
                        *dot = start::<K, V, D>(&(**input).negated[sums_at(group)]);
                    }
                }
                for pair in 0..4 {
                    for (half, codes) in load::<K, V, D>(codes, pair).into_iter().enumerate() {
                        for (input, sum) in inputs.iter().zip(&mut dots[half * (groups - 1)]) {
                            let x = input.cast::<i8>().add(16 * half + 4 * pair);
                            *sum = dot::<K, V, D>(codes, x, *sum);
                        }
                    }
                }
                for (group, dots) in dots.into_iter().enumerate().take(groups) {
                    let number = (groups * block + group) * LANES;
                    let scale = V::load(scales.add(number));
                    for r in 0..R {
                        let of_input = V::splat((*inputs[r]).scale);
                        sums[r] = scale.mul(of_input).fma(D::to_floats(dots[r]), sums[r]);
                        if K::MINIMA {
                            let total = V::splat((*inputs[r]).totals[sums_at(group)]);
                            sums[r] = V::load(minima.add(number)).fma(total, sums[r]);
                        }
                    }
                }
            }
            for (r, sum) in sums.into_iter().enumerate() {
                sum.store(out.add(r * out_row));
            }
        }
    }
}

/// Vectors `pair` and `4 + pair` of a block's codes.
///
/// # Safety
/// The block is readable.
#[inline(always)]
unsafe fn load<K: Kind, V: Lanes, D: Dots<V>>(block: *const u8, pair: usize) -> [D::Codes; 2] {
    // SAFETY: the caller's promise.
    unsafe {
        match K::CODES {
            Codes::Bytes => [D::bytes(block.add(64 * pair)), D::bytes(block.add(64 * (4 + pair)))],
            Codes::Nibbles => D::nibbles(block.add(64 * pair)),
            Codes::Steps => D::nibbles(block.add(64 * pair)).map(D::steps),
            Codes::Fifths => {
                let [low, high] = D::nibbles(block.add(64 * pair));
                let bits = block.add(256);
                [D::with_fifths(low, bits.add(8 * pair)), D::with_fifths(high, bits.add(8 * (4 + pair)))]
            }
        }
    }
}

/// Where a group's sum starts: codes of 8 bits are around their centre always, others where there are no minima.
///
/// # Safety
/// `negated` is readable.
#[inline(always)]
unsafe fn start<K: Kind, V: Lanes, D: Dots<V>>(negated: *const i32) -> D::Sums {
    // SAFETY: the caller's promise.
    unsafe {
        match K::CODES {
            Codes::Bytes | Codes::Steps => D::start::<7, true>(negated),
            _ if K::MINIMA => D::zero(),
            Codes::Fifths => D::start::<4, false>(negated),
            Codes::Nibbles => D::start::<3, false>(negated),
        }
    }
}

/// Adds four inputs' products.
///
/// # Safety
/// The inputs are readable.
#[inline(always)]
unsafe fn dot<K: Kind, V: Lanes, D: Dots<V>>(codes: D::Codes, x: *const i8, sums: D::Sums) -> D::Sums {
    // SAFETY: the caller's promise.
    unsafe { if K::CODES.wide() { D::dot::<true>(codes, x, sums) } else { D::dot::<false>(codes, x, sums) } }
}
