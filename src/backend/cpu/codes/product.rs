//! Goes over the panels of a matrix, tile by tile.

use super::super::Simd;
use super::super::gemm::Rows;
use super::super::lanes::{Kernel, LANES, Lanes};
use super::BLOCK;
use super::dots::{LINE, prefetch};
use super::inputs::CodeRows;
use super::layout::{Codes, Layout, SUPER, Scales};
use super::tile::{Kind, Product, Tile};
use half::f16;

/// Inputs that are multiplied before the next ones are: their scales stay in the first cache.
const PART: usize = 4096;

/// Floats of scratch space that [`multiply`] needs: scales and minima of the groups of a part.
pub const SCRATCH: usize = 2 * PART / 16 * LANES;

/// `out[row][16 panel ..] = inputs[row] · weights[panel]` for `panels` panels that follow each other. While one is multiplied,
/// the next one is fetched, evenly: memory is never idle for long, however many rows there are.
///
/// # Safety
/// `rows` rows of inputs are quantised, as long as the matrix's; `weights` are panels of this layout; `out` reaches to the
/// last panel, and its columns are this thread's; `scratch` has [`SCRATCH`] floats.
pub unsafe fn multiply(
    simd: Simd,
    layout: &Layout,
    (rows, inputs): (usize, CodeRows),
    (panels, weights): (usize, *const u8),
    out: Rows<*mut f32>,
    scratch: *mut f32,
) {
    let tile = tile_of(layout);
    let count = rows.div_ceil(simd.max_code_rows());
    let (per_part, next, lines) = (PART / BLOCK, layout.panel_bytes(), layout.codes.block_bytes() / LINE);
    for panel in 0..panels {
        let weights = weights.wrapping_add(panel * layout.panel_bytes());
        (0..layout.codes_at()).step_by(LINE).for_each(|at| prefetch::<false>(weights.wrapping_add(next + at)));
        for first in (0..layout.blocks()).step_by(per_part) {
            let blocks = per_part.min(layout.blocks() - first);
            let minima = scratch.wrapping_add(SCRATCH / 2);
            // SAFETY: a part's groups fit in the scratch space, the panel has their scales.
            unsafe { widen(simd, layout, weights, first..first + blocks, [scratch, minima]) };
            for index in 0..count {
                let (from, to) = (rows * index / count, rows * (index + 1) / count);
                let product = Product {
                    inputs: inputs.from(from),
                    first,
                    blocks,
                    codes: weights.wrapping_add(layout.codes_at() + first * layout.codes.block_bytes()),
                    next,
                    fetch: (lines * index / count, lines * (index + 1) / count),
                    cold: index == 0,
                    scales: scratch,
                    minima,
                    out: out.at.wrapping_add(from * out.stride + panel * LANES),
                    out_row: out.stride,
                    resume: first > 0,
                };
                // SAFETY: the caller's promise.
                unsafe { tile(simd, to - from, &product) };
            }
        }
    }
}

/// Widens the scales, and the minima, of some blocks of a panel.
///
/// # Safety
/// The panel is one of the layout's, and each of `to` has room for 16 floats a group.
unsafe fn widen(simd: Simd, layout: &Layout, panel: *const u8, blocks: std::ops::Range<usize>, to: [*mut f32; 2]) {
    let parts = if layout.minima { 2 } else { 1 };
    for (part, out) in to.into_iter().take(parts).enumerate() {
        let from = panel.wrapping_add(part * layout.scales_bytes());
        simd.run(Widen { layout, from, blocks: blocks.clone(), out });
    }
}

/// Widens the scales of some blocks.
struct Widen<'a> {
    layout: &'a Layout,
    from: *const u8,
    blocks: std::ops::Range<usize>,
    out: *mut f32,
}

impl Kernel for Widen<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Lanes>(self) {
        let Self { layout, from, blocks, mut out } = self;
        let mut put = |numbers: V| {
            // SAFETY: there is room for the groups of all blocks.
            unsafe {
                numbers.store(out);
                out = out.add(LANES);
            }
        };
        // SAFETY: the panel has scales for all its groups.
        unsafe {
            match layout.scales {
                Scales::Half => {
                    for block in blocks {
                        put(V::load_f16(from.cast::<f16>().add(block * LANES)));
                    }
                }
                Scales::Super => {
                    let of_groups = from.add(layout.padded.div_ceil(SUPER) * LANES * 2).cast::<i8>();
                    let groups = BLOCK / layout.group;
                    for group in blocks.start * groups..blocks.end * groups {
                        let whole = V::load_f16(from.cast::<f16>().add(group * layout.group / SUPER * LANES));
                        put(whole.mul(V::load_i8(of_groups.add(group * LANES))));
                    }
                }
                Scales::Single(size) => {
                    for block in blocks {
                        put(V::load(from.cast::<f32>().add(block * BLOCK / size * LANES)));
                    }
                }
            }
        }
    }
}

type TileOf = unsafe fn(Simd, usize, &Product);

/// The tiles of a layout's kind of codes.
fn tile_of(layout: &Layout) -> TileOf {
    macro_rules! kinds {
        ($($name:ident: $codes:ident $halves:literal $minima:literal,)+) => {{
            $(
                struct $name;
                impl Kind for $name {
                    const CODES: Codes = Codes::$codes;
                    const HALVES: bool = $halves;
                    const MINIMA: bool = $minima;
                }
            )+
            match (layout.codes, layout.group == BLOCK / 2, layout.minima) {
                $((Codes::$codes, $halves, $minima) => tile::<$name>,)+
                _ => unreachable!("no layout is {layout:?}"),
            }
        }};
    }
    kinds! {
        Plain4: Nibbles false false,
        Above4: Nibbles false true,
        HalfPlain4: Nibbles true false,
        HalfAbove4: Nibbles true true,
        Plain5: Fifths false false,
        Above5: Fifths false true,
        Plain8: Bytes false false,
        Above8: Bytes false true,
        HalfPlain8: Bytes true false,
        Steps4: Steps false false,
    }
}

/// Runs the tile of so many rows.
///
/// # Safety
/// As [`multiply`].
unsafe fn tile<K: Kind>(simd: Simd, rows: usize, product: &Product) {
    match rows {
        1 => simd.run_codes(Tile::<K, 1>::new(product)),
        2 => simd.run_codes(Tile::<K, 2>::new(product)),
        3 => simd.run_codes(Tile::<K, 3>::new(product)),
        4 => simd.run_codes(Tile::<K, 4>::new(product)),
        5 => simd.run_codes(Tile::<K, 5>::new(product)),
        6 => simd.run_codes(Tile::<K, 6>::new(product)),
        7 => simd.run_codes(Tile::<K, 7>::new(product)),
        8 => simd.run_codes(Tile::<K, 8>::new(product)),
        _ => unreachable!("no tile of {rows} rows"),
    }
}
