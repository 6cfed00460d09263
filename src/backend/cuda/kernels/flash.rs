//! Attention in training: `flash_attention`, `flash_attention_dq`, `flash_attention_dkv`, `flash_attention_own`.

use super::{Address, Launcher, Shape, launch};
use crate::backend::BackendError;

arguments! {
    /// A tile of a segment's rows (`cuda/common/flash.cuh`): keys, or chains by where they start.
    RowTile {
        /// First row of the segment, in the text.
        segment: i32,
        /// Rows of the segment.
        length: i32,
        /// First row of the tile, in the segment.
        first: i32,
        /// First row of the segment where a chain starts.
        start: i32,
        /// The chain that starts at row `i` of the segment is `chains + i`.
        chains: i32,
    }
}

arguments! {
    /// `cuda/flash_attention.cu`, `cuda/flash_attention_backward.cu`.
    Flash {
        /// `[tiles]` of [`RowTile`].
        tiles: Address,
        /// `[chains, heads, head_dim]` f32, rotated.
        q: Address,
        /// `[rows, kv_heads, head_dim]` f32, rotated.
        k: Address,
        /// `[rows, kv_heads, head_dim]` f32.
        v: Address,
        /// `[step, own_rows, kv_heads, head_dim]` f32, rotated: of each chain's steps 1 to this one.
        own_k: Address,
        /// Likewise.
        own_v: Address,
        /// `[chains, heads, head_dim]` f32.
        out: Address,
        /// `[chains, heads]` f32.
        lse: Address,
        /// As `out`; backward only, as all that follow.
        dout: Address,
        /// `[chains, heads]` f32.
        delta: Address,
        /// As `q`.
        dq: Address,
        /// As `k`.
        dk: Address,
        /// As `v`.
        dv: Address,
        /// As `own_k`; grows.
        own_dk: Address,
        /// As `own_v`; grows.
        own_dv: Address,
        /// Rows from a step's own keys to the next one's.
        own_rows: u64,
        /// Of scores.
        scale: f32,
        /// Query heads.
        heads: i32,
        /// Key and value heads; divides `heads`.
        kv_heads: i32,
        /// Sliding window; 0: none.
        window: i32,
        /// The chains' step, from 0.
        step: i32,
        /// 1: `dk` and `dv` grow.
        add: i32,
    }
}

/// Which pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FlashPass {
    /// `out` and `lse`.
    Forward,
    /// `dq` and `delta`.
    Queries,
    /// `dk` and `dv`, after [`Queries`](Self::Queries).
    Keys,
    /// `own_dk` and `own_dv`, likewise.
    Own,
}

const THREADS: u32 = 128;

impl Flash {
    /// Rows of a tile.
    pub fn tile_rows(head_dim: usize) -> usize {
        if head_dim <= 128 { 32 } else { 16 }
    }

    /// The tiles of segments one after another, which are these many rows long and where chains start from these rows on:
    /// tiles of queries, and tiles of keys.
    pub fn tiles(lengths: &[usize], starts: &[usize], head_dim: usize) -> [Vec<RowTile>; 2] {
        let rows = Self::tile_rows(head_dim);
        let (mut segment, mut chain) = (0, 0);
        let mut tiles = [Vec::new(), Vec::new()];
        for (&length, &start) in lengths.iter().zip(starts) {
            let tile = |first: usize| RowTile {
                segment: segment as i32,
                length: length as i32,
                first: first as i32,
                start: start as i32,
                chains: chain as i32 - start as i32,
            };
            tiles[0].extend((start..length).step_by(rows).map(tile));
            tiles[1].extend((0..length).step_by(rows).map(tile));
            segment += length;
            chain += length - start;
        }
        tiles
    }
}

/// # Safety
/// As [`Launcher::launch`]; the kernel's buffers have the shapes that its file states.
///
/// # Errors
/// If the device refuses or fails; there is a kernel for `head_dim` 32, 64, 80, 96, 128 and 256.
pub unsafe fn flash(
    on: &impl Launcher,
    pass: FlashPass,
    tiles: usize,
    head_dim: usize,
    arguments: &Flash,
) -> Result<(), BackendError> {
    let (name, heads, row_tiles, weight_tiles) = match pass {
        FlashPass::Forward => ("flash_attention", arguments.heads, 2, 1),
        FlashPass::Queries => ("flash_attention_dq", arguments.heads, 3, 1),
        FlashPass::Keys => ("flash_attention_dkv", arguments.kv_heads, 4, 2),
        FlashPass::Own => ("flash_attention_own", arguments.kv_heads, 0, 0),
    };
    let rows = Flash::tile_rows(head_dim);
    let elements = rows * (row_tiles * (head_dim + 1) + weight_tiles * (rows + 1));
    let shape = Shape {
        grid: [tiles as u32, heads as u32, 1],
        threads: THREADS,
        shared_bytes: (elements * size_of::<f32>()) as u32,
    };
    // SAFETY: the caller's promise.
    unsafe { launch(on, &format!("{name}_{head_dim}"), shape, arguments) }
}
