//! Attention over the paged cache: `attention`, `prefill_attention`, `append`.

use super::{Address, Format, Launcher, Shape, launch};
use crate::backend::{BackendError, KvFormat};
use crate::kv::PAGE_TOKENS;

arguments! {
    /// A ragged batch over the paged cache (`cuda/common/paged_kv.cuh`).
    PagedBatch {
        /// `[batch + 1]` i32.
        row_begin: Address,
        /// `[batch]` i32.
        start: Address,
        /// `[batch, max_pages]` u32.
        block_table: Address,
        /// Columns of the block table.
        max_pages: i32,
        /// Zero.
        padding: u32,
    }
}

arguments! {
    /// `cuda/attention.cu`, `cuda/prefill_attention.cu`, `cuda/append.cu`.
    Attention {
        /// Sequences and their rows.
        batch: PagedBatch,
        /// `[tokens, (heads + 2 kv_heads) head_dim]` f32.
        qkv: Address,
        /// `[pages, kv_heads, 64 rows]` ([`row_bytes`](Self::row_bytes)).
        k_cache: Address,
        /// The same.
        v_cache: Address,
        /// `[positions, head_dim / 2, 2]` f32: cos, sin.
        rotary: Address,
        /// `[head_dim]` f32, or null.
        q_norm: Address,
        /// `[head_dim]` f32, or null.
        k_norm: Address,
        /// Of those norms.
        epsilon: f32,
        /// Softmax scale times log2(e).
        scale: f32,
        /// Query heads.
        heads: i32,
        /// Key/value heads.
        kv_heads: i32,
        /// Sliding window; 0: none.
        window: i32,
        /// Most query tiles of a sequence ([`row_tiles`](Self::row_tiles)).
        row_tiles: i32,
        /// `[tokens, stride]`.
        out: Address,
        /// Of `out`.
        stride: i32,
        /// Zero.
        padding: u32,
        /// Workspace of split attention.
        partial: Address,
        /// Counters of split attention, zero between launches.
        arrived: Address,
        /// `[pages, 2]` u32: a bit for each position, set where K or V of a new row are not finite; or null.
        non_finite: Address,
        /// u32: 1 where a bit was set.
        any_non_finite: Address,
    }
}

/// Bytes of a number of the weights' format.
const ELEMENT: usize = 2;

impl Attention {
    /// Positions that one block of split attention reads.
    pub const CHUNK_TOKENS: u32 = 256;
    const TILE: usize = 16;
    const THREADS: u32 = 128;
    /// Query tiles of a block of `cuda/prefill_attention.cu`, up to this width of a head.
    const PREFILL_TILES: u32 = 4;
    const WIDEST_SHARED_HEAD: usize = 128;

    /// Query tiles of a sequence with `rows` rows.
    pub fn row_tiles(rows: usize, heads: usize, kv_heads: usize) -> usize {
        (rows * (heads / kv_heads)).div_ceil(Self::TILE)
    }

    /// Bytes of a position of one kv head in the cache: of its numbers, or of its codes and scales.
    pub fn row_bytes(kv: KvFormat, head_dim: usize) -> usize {
        match kv {
            KvFormat::Full => head_dim * ELEMENT,
            KvFormat::Eight => head_dim + head_dim.div_ceil(KvFormat::GROUP) * ELEMENT,
        }
    }

    /// Bytes of `partial`.
    pub fn partial_bytes(batch: usize, kv_heads: usize, row_tiles: usize, chunks: usize, head_dim: usize) -> usize {
        batch * kv_heads * row_tiles * chunks * Self::TILE * (head_dim + 2) * 4
    }
}

/// How a batch reaches attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttentionForm {
    /// `cuda/attention.cu`: appends, then attends, over `chunks` chunks of 256 positions at most.
    Split {
        /// Chunks of the longest context.
        chunks: usize,
    },
    /// `cuda/prefill_attention.cu`: attends over a cache that [`AttentionForm::Append`] has filled.
    Prefill,
    /// `cuda/append.cu`: only appends, `rows` rows of a sequence at most.
    Append {
        /// Rows of the longest one.
        rows: usize,
    },
}

/// Over a cache that is kept this way.
///
/// # Safety
/// As [`Launcher::launch`].
///
/// # Errors
/// If the device refuses or fails; there is a kernel for `head_dim` 32, 64, 80, 96, 128 and 256.
pub unsafe fn attend(
    on: &impl Launcher,
    (format, kv): (Format, KvFormat),
    form: AttentionForm,
    batch: usize,
    head_dim: usize,
    arguments: &Attention,
) -> Result<(), BackendError> {
    let (kv_heads, tiles) = (arguments.kv_heads as u32, arguments.row_tiles as u32);
    let mut shared_bytes = 0;
    let (name, grid) = match form {
        AttentionForm::Split { chunks } => ("attention", [chunks as u32, kv_heads * tiles, batch as u32]),
        AttentionForm::Prefill if head_dim <= Attention::WIDEST_SHARED_HEAD => {
            // The tiles' queries and two pages, or one that is widened from two of codes, in rows of 16 bytes more; and the
            // tiles' sums.
            let (queries, page, padded) =
                (Attention::PREFILL_TILES as usize * Attention::TILE, PAGE_TOKENS, head_dim + 8);
            let pages = match kv {
                KvFormat::Full => 2 * page * padded * ELEMENT,
                KvFormat::Eight => 2 * page * Attention::row_bytes(kv, head_dim) + page * padded * ELEMENT,
            };
            shared_bytes = (queries * padded * ELEMENT + pages + queries * head_dim * 4) as u32;
            ("prefill_attention", [tiles.div_ceil(Attention::PREFILL_TILES), kv_heads, batch as u32])
        }
        AttentionForm::Prefill => ("prefill_attention", [tiles, kv_heads, batch as u32]),
        AttentionForm::Append { rows } => ("append", [rows.div_ceil(4) as u32, kv_heads, batch as u32]),
    };
    let kept = match kv {
        KvFormat::Full => "",
        KvFormat::Eight => "_q8",
    };
    let kernel = format!("{name}_{}{kept}_{head_dim}", format.suffix());
    // SAFETY: the caller's promise.
    unsafe { launch(on, &kernel, Shape { grid, threads: Attention::THREADS, shared_bytes }, arguments) }
}
