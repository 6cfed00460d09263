//! Buffers that passes work in, and the cache: what lies where.

use super::arena::Arena;
use super::fast::FastPrefill;
use super::kernels::{Address, Attention, HeadPartial, RowChoice, Sample, Verdict};
use super::pack::TILE_ROWS;
use super::weights::operand_stride;
use crate::backend::{KvFormat, Limits};
use crate::kv::{PAGE_TOKENS, PageId};
use crate::model::Geometry;

/// Bytes of a weight, or an activation that a projection reads.
const ELEMENT: usize = 2;
/// Columns of the residual stream per partial sum of squares (`cuda/common/norm.cuh`).
pub const SQUARES_WIDTH: usize = 32;
/// Logits that can be read back at a time.
const LEAST_LOGIT_ROWS: usize = 64;

/// Rows of the largest pass of each kind.
#[derive(Debug, Clone, Copy)]
pub struct Rows {
    /// Of any pass.
    pub any: usize,
    /// With logits.
    pub logits: usize,
    /// Verified.
    pub verified: usize,
    /// Drafts and the token before them, per slot.
    pub round: usize,
    /// Whose `h_N` is kept: the rounds of all slots, and behind them what rows of no sequence leave.
    pub kept: usize,
}

impl Rows {
    /// What `limits` ask for, with `prefill` rows in a prefill pass.
    pub fn new(limits: &Limits, prefill: usize) -> Self {
        let round = limits.max_draft + 1;
        let verified = padded_rows(limits.slots * round);
        let logits = verified.max(LEAST_LOGIT_ROWS);
        Self { any: prefill.max(logits), logits, verified, round, kept: limits.slots * round + MOST_IDLE }
    }
}

/// Rows that a pass of `rows` rows is launched with: few of them as they are, more in steps, so that there
/// are not too many different graphs. Rows too many belong to no sequence, and nothing reads them.
pub fn padded_rows(rows: usize) -> usize {
    match rows {
        0..=16 => rows,
        17..=32 => rows.next_multiple_of(8),
        _ => rows.next_multiple_of(16),
    }
}

/// The same of rows that come without `h_N`, where some of them were proposed. Few of them in steps too: each may go with
/// any number of rows in all.
pub fn padded_fresh(rows: usize) -> usize {
    if rows <= 16 { rows.next_power_of_two() } else { padded_rows(rows) }
}

/// Most rows too many of a pass.
const MOST_IDLE: usize = 15;

/// Chunks of 256 positions that attention is launched for when the longest sequence has `len` tokens: few
/// different numbers, so that there are few different graphs. A chunk too many does nothing.
pub fn chunks_of(len: usize, context: usize) -> usize {
    let chunks = |len: usize| len.div_ceil(Attention::CHUNK_TOKENS as usize);
    chunks(len).next_power_of_two().min(chunks(context))
}

/// Addresses of everything but weights and inputs. Shapes are in the kernels' head comments.
pub struct Workspace {
    /// `[rows, hidden]` f32.
    pub residual: Address,
    /// `[rows, operand_stride(hidden)]`.
    pub operand: Address,
    /// `[rows, hidden / 32]` f32.
    pub squares: Address,
    /// The exit block's residual stream where that is not the model's, `[rows, hidden]` f32.
    pub exit_residual: Address,
    /// `h_N` as the exit block's matrix takes it, `[rows, operand_stride(hidden)]`.
    pub exit_operand: Address,
    /// `[slots]` rows of a recurrent exit block's input, `[operand_stride(2 · hidden)]`.
    pub recurrent_operand: Address,
    /// The exit block's residual stream at each slot's last draft, `[slots, hidden]` f32.
    pub states: Address,
    /// `[rows, q_size + 2 kv_size]` f32.
    pub qkv: Address,
    /// `[rows, operand_stride(q_size)]`.
    pub attended: Address,
    /// `[rows, operand_stride(intermediate)]`.
    pub gated: Address,
    /// Of split attention.
    pub partial: Address,
    /// Of split attention.
    pub arrived: Address,
    /// `h_N` of each slot's round, then of rows of no sequence, `[kept rows, hidden]` f32.
    pub kept: Address,
    /// `[logit rows, vocab]` f32, of the last pass that made some.
    pub logits: Address,
    /// Of those.
    pub partials: Address,
    /// `[verified rows, vocab]` f32: with penalties and biases.
    pub adjusted: Address,
    /// Of those.
    pub adjusted_partials: Address,
    /// `[verified rows, vocab]` u64.
    pub target_weights: Address,
    /// `[verified rows]`.
    pub target_choices: Address,
    /// `[slots · max_draft, vocab]` u64.
    pub draft_weights: Address,
    /// `[slots · max_draft]`.
    pub draft_choices: Address,
    /// Of sampling, `[verified rows]`.
    pub filters: Address,
    /// Of sampling, `[verified rows, slices]`.
    pub parts: Address,
    /// `[slots, vocab]` u32.
    pub counts: Address,
    /// `[context]` u32: tokens to be counted.
    pub counted: Address,
    /// u32, and one of padding: whether a bit of `non_finite` is set. The verdicts follow, so that one copy brings both.
    pub any_non_finite: Address,
    /// `[slots]`.
    pub verdicts: Address,
    /// `[pages, 2]` u32: a bit for each position whose keys or values were not finite.
    pub non_finite: Address,
    /// Of fast prefill, where that is asked for.
    pub fast: Option<FastPrefill>,
}

impl Workspace {
    /// Lays the buffers out from `base` on; returns them and the bytes they take. `exit_stream`: an exit block has a
    /// residual stream of its own. `library` is how many bytes the library of matrix products works in, where there is fast
    /// prefill.
    pub fn plan(
        base: Address,
        geometry: &Geometry,
        limits: &Limits,
        rows: &Rows,
        exit_stream: bool,
        library: Option<usize>,
    ) -> (Self, usize) {
        let Geometry { hidden_size: hidden, intermediate_size: mlp, vocab_size: vocab, .. } = *geometry;
        let (heads, kv_heads, head_dim) = (geometry.heads, geometry.kv_heads, geometry.head_dim);
        let mut arena = Arena::new(base);
        let tiles = Attention::row_tiles(rows.round.max(Self::SPLIT_ROWS), heads, kv_heads);
        let chunks = chunks_of(limits.context, limits.context);
        let head_tiles = vocab.div_ceil(TILE_ROWS);
        let drafts = limits.slots * limits.max_draft;
        let (exit_rows, exit_slots) = if exit_stream { (rows.any, limits.slots) } else { (0, 0) };
        let answers = arena.array::<Verdict>(1 + limits.slots);
        let workspace = Self {
            any_non_finite: answers,
            verdicts: Address(answers.0 + size_of::<Verdict>() as u64),
            non_finite: arena.array::<u32>(2 * limits.pages),
            residual: arena.array::<f32>(rows.any * hidden),
            operand: arena.take(rows.any * operand_stride(hidden) * ELEMENT),
            squares: arena.array::<f32>(rows.any * hidden.div_ceil(SQUARES_WIDTH)),
            exit_residual: arena.array::<f32>(exit_rows * hidden),
            exit_operand: arena.take(exit_rows * operand_stride(hidden) * ELEMENT),
            recurrent_operand: arena.take(exit_slots * operand_stride(2 * hidden) * ELEMENT),
            states: arena.array::<f32>(exit_slots * hidden),
            qkv: arena.array::<f32>(rows.any * (geometry.q_size() + 2 * geometry.kv_size())),
            attended: arena.take(rows.any * operand_stride(geometry.q_size()) * ELEMENT),
            gated: arena.take(rows.any * operand_stride(mlp) * ELEMENT),
            partial: arena.take(Attention::partial_bytes(limits.slots, kv_heads, tiles, chunks, head_dim)),
            arrived: arena.array::<u32>(limits.slots * kv_heads * tiles),
            kept: arena.array::<f32>(rows.kept * hidden),
            logits: arena.array::<f32>(rows.logits * vocab),
            partials: arena.array::<HeadPartial>(rows.logits * head_tiles),
            adjusted: arena.array::<f32>(rows.verified * vocab),
            adjusted_partials: arena.array::<HeadPartial>(rows.verified * head_tiles),
            target_weights: arena.array::<u64>(rows.verified * vocab),
            target_choices: arena.array::<RowChoice>(rows.verified),
            draft_weights: arena.array::<u64>(drafts * vocab),
            draft_choices: arena.array::<RowChoice>(drafts),
            filters: arena.take(rows.verified * Sample::FILTER_BYTES),
            parts: arena.take(rows.verified * Sample::slices(vocab) * Sample::PART_BYTES),
            counts: arena.array::<u32>(limits.slots * vocab),
            counted: arena.array::<u32>(limits.context),
            fast: library.map(|bytes| FastPrefill::plan(&mut arena, geometry, rows.any, bytes)),
        };
        (workspace, arena.taken())
    }

    /// Most rows of a sequence that split attention takes in a prefill pass.
    pub const SPLIT_ROWS: usize = 16;
}

/// The paged cache: an array of pages for K and one for V of each model layer, and of the exit layer after them.
pub struct Cache {
    base: Address,
    format: KvFormat,
    arrays: usize,
    pages: usize,
    part_bytes: usize,
}

impl Cache {
    /// Of `pages` pages, from `base` on.
    pub fn new(base: Address, geometry: &Geometry, format: KvFormat, pages: usize) -> Self {
        Self {
            base,
            format,
            arrays: Self::arrays_of(geometry),
            pages,
            part_bytes: Self::part_bytes_of(geometry, format),
        }
    }

    /// Bytes of one page in all layers, the exit layer included.
    pub fn page_bytes(geometry: &Geometry, format: KvFormat) -> usize {
        Self::arrays_of(geometry) * Self::part_bytes_of(geometry, format)
    }

    /// How keys and values are kept.
    pub fn format(&self) -> KvFormat {
        self.format
    }

    /// K and V of a layer.
    pub fn layer(&self, index: usize) -> [Address; 2] {
        [0, 1].map(|half| self.part(2 * index + half, PageId(0)))
    }

    /// How many arrays: K of the first layer, V of the first layer, K of the second one, and so on.
    pub fn arrays(&self) -> usize {
        self.arrays
    }

    /// Where a page lies in one of the arrays; the next page follows it.
    pub fn part(&self, array: usize, page: PageId) -> Address {
        Address(self.base.0 + ((array * self.pages + page.0 as usize) * self.part_bytes) as u64)
    }

    /// Bytes of one page in one of the arrays.
    pub fn part_bytes(&self) -> usize {
        self.part_bytes
    }

    fn arrays_of(geometry: &Geometry) -> usize {
        2 * (geometry.layers + 1)
    }

    fn part_bytes_of(geometry: &Geometry, format: KvFormat) -> usize {
        PAGE_TOKENS * geometry.kv_heads * Attention::row_bytes(format, geometry.head_dim)
    }
}
