//! What a pass is told: token ids, positions, block tables, sampling parameters. All of it is written into
//! page-locked memory and goes to the device in one copy.

use super::kernels::{Address, DraftLoop, DraftRule, JudgedRow, PagedBatch, Params, TokenBias, VerifiedSequence};
use bytemuck::Pod;
use std::marker::PhantomData;

/// Everything that the launches of a pass depend on apart from addresses and contents: passes of the same
/// shape are the same graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Shape {
    /// Which launches there are.
    pub kind: Kind,
    /// Sequences.
    pub batch: usize,
    /// Rows that begin with an embedding.
    pub fresh: usize,
    /// Most of those of a sequence.
    pub most_fresh: usize,
    /// Rows of the later layers: those, or all of a round; of a draft that continues a round, those that it begins from.
    pub rows: usize,
    /// Most of those of a sequence.
    pub most_rows: usize,
    /// Chunks of 256 positions that the longest sequence is thought to have.
    pub chunks: usize,
    /// Room for so many parameters, lists of biases and masks: each sequence's, then others that some of its rows have
    /// (`views.rs`).
    pub views: usize,
    /// Penalties, biases or masks: room for so many biases of single tokens. `None`: there is none of them.
    pub biases: Option<usize>,
    /// Elements of a mask; 0: every row may have every token.
    pub mask_words: usize,
    /// Some token is not the likeliest one, so that distributions are made.
    pub weighs: bool,
}

/// The kinds of passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// One draft for each sequence.
    Draft,
    /// The drafts of one sequence's round, as many as its plan asks for.
    DraftLoop,
    /// One recurrent draft for each sequence, the first of a round that continues the one before.
    Continued,
    /// One recurrent draft for each sequence.
    Recurrent,
    /// The recurrent drafts of one sequence's round.
    RecurrentLoop,
    /// The rest of a round.
    Verify,
    /// Any rows of text into the cache.
    Read,
}

/// Bins of confidence that a draft loop's plan may have: those of the controllers, and at most a lane's per edge.
pub const MOST_BINS: usize = 8;

/// Pages of one chunk of 256 positions.
const CHUNK_PAGES: usize = 4;

impl Kind {
    /// Whether all its drafts are recurrent.
    pub fn is_recurrent(self) -> bool {
        matches!(self, Kind::Continued | Kind::Recurrent | Kind::RecurrentLoop)
    }

    /// Whether some of its rows are taken up from a round's that were kept, at positions of their own.
    pub fn takes_up(self) -> bool {
        matches!(self, Kind::Continued | Kind::Verify)
    }

    /// Whether it makes drafts until a plan ends them.
    pub fn loops(self) -> bool {
        matches!(self, Kind::DraftLoop | Kind::RecurrentLoop)
    }
}

impl Shape {
    /// Columns of the block table.
    pub fn max_pages(&self) -> usize {
        self.chunks * CHUNK_PAGES
    }

    /// Whether the pass belongs to a round, and ends with the choice of tokens.
    pub fn judges(&self) -> bool {
        self.kind != Kind::Read
    }

    /// Whether the pass drafts.
    pub fn drafts(&self) -> bool {
        !matches!(self.kind, Kind::Verify | Kind::Read)
    }
}

/// A run of elements in the inbox.
#[derive(Debug, Clone, Copy)]
pub struct Part<T> {
    offset: usize,
    len: usize,
    element: PhantomData<T>,
}

impl<T: Pod> Part<T> {
    /// The run, as an earlier pass has left it.
    pub fn room<'a>(&self, inbox: &'a mut [u8]) -> &'a mut [T] {
        bytemuck::cast_slice_mut(&mut inbox[self.offset..][..self.len * size_of::<T>()])
    }

    /// Writes the elements; what is left of the run is filled with zeros.
    ///
    /// # Panics
    /// If there are too many.
    pub fn put(&self, inbox: &mut [u8], values: impl IntoIterator<Item = T>) {
        let room = self.room(inbox);
        let mut written = 0;
        for value in values {
            room[written] = value;
            written += 1;
        }
        room[written..].fill(T::zeroed());
    }
}

/// Where a pass finds what it is told: offsets from the inbox's beginning.
pub struct Layout {
    /// Tokens of the fresh rows.
    pub ids: Part<u32>,
    /// `[batch + 1]`: each sequence's fresh rows.
    pub fresh_begin: Part<i32>,
    /// `[batch]`: position of its first fresh row.
    pub fresh_start: Part<i32>,
    /// `[batch + 1]`: each sequence's rows of the later layers, or those that are taken up.
    pub begin: Part<i32>,
    /// `[batch]`: position of the first of them.
    pub start: Part<i32>,
    /// `[batch, max_pages]`.
    pub table: Part<u32>,
    /// Where the fresh rows' `h_N` is kept: a row of its own for each, those of no sequence included.
    pub keep: Part<u32>,
    /// Where the exit block's state at each draft is kept: its slot.
    pub states: Part<u32>,
    /// Which kept (or, outside of rounds, fresh) row each of those begins with.
    pub gather: Part<u32>,
    /// `[views + 1]`: those for rows of no sequence come after all others.
    pub params: Part<Params>,
    /// Rows to be sampled from.
    pub judged: Part<JudgedRow>,
    /// `[rows, max_draft]`: the drafts before each row.
    pub recent: Part<u32>,
    /// `[views + 2]`.
    pub bias_begin: Part<i32>,
    /// All biases.
    pub biases: Part<TokenBias>,
    /// `[views + 1, mask_words]`: a bit for each token that is allowed.
    pub masks: Part<u32>,
    /// `[batch]`.
    pub verified: Part<VerifiedSequence>,
    /// One, of a draft loop: how it stands. So that few layouts serve all plans, the rest has room for the largest.
    pub draft_loop: Part<DraftLoop>,
    /// `[MOST_BINS - 1]`: edges of bins of confidence.
    pub edges: Part<f32>,
    /// `[max_draft, MOST_BINS]`: what follows from drafts, without gaps between rows.
    pub rules: Part<DraftRule>,
    /// `[LANES]`: end tokens.
    pub ends: Part<u32>,
    /// Bytes of all.
    pub bytes: usize,
}

impl Layout {
    /// The layout of a pass.
    pub fn new(shape: &Shape, max_draft: usize) -> Self {
        let Shape { batch, fresh, rows, views, .. } = *shape;
        let mut bytes = 0;
        let later = if shape.kind.takes_up() { batch } else { 0 };
        let judged_rows = if shape.judges() { rows } else { 0 };
        let adjusted_rows = if shape.biases.is_some() { rows } else { 0 };
        let loops = usize::from(shape.kind.loops());
        Self {
            ids: take(&mut bytes, fresh),
            fresh_begin: take(&mut bytes, batch + 1),
            fresh_start: take(&mut bytes, batch),
            begin: take(&mut bytes, if later > 0 { later + 1 } else { 0 }),
            start: take(&mut bytes, later),
            table: take(&mut bytes, batch * shape.max_pages()),
            keep: take(&mut bytes, if shape.judges() { fresh } else { 0 }),
            states: take(&mut bytes, if shape.drafts() { fresh } else { 0 }),
            gather: take(&mut bytes, if shape.drafts() && !shape.kind.takes_up() { 0 } else { rows }),
            params: take(&mut bytes, if shape.judges() { views + 1 } else { 0 }),
            judged: take(&mut bytes, judged_rows),
            recent: take(&mut bytes, adjusted_rows * max_draft),
            bias_begin: take(&mut bytes, if shape.biases.is_some() { views + 2 } else { 0 }),
            biases: take(&mut bytes, shape.biases.unwrap_or(0)),
            masks: take(&mut bytes, (views + 1) * shape.mask_words),
            verified: take(&mut bytes, if shape.kind == Kind::Verify { batch } else { 0 }),
            draft_loop: take(&mut bytes, loops),
            edges: take(&mut bytes, loops * (MOST_BINS - 1)),
            rules: take(&mut bytes, loops * max_draft * MOST_BINS),
            ends: take(&mut bytes, loops * DraftLoop::LANES),
            bytes,
        }
    }
}

fn take<T>(bytes: &mut usize, len: usize) -> Part<T> {
    let offset = *bytes;
    *bytes += (len * size_of::<T>()).next_multiple_of(16);
    Part { offset, len, element: PhantomData }
}

/// A layout at its place on the device.
pub struct Inbox {
    /// Offsets.
    pub layout: Layout,
    /// The beginning.
    pub at: Address,
}

impl Inbox {
    /// The address of one run.
    pub fn of<T>(&self, part: &Part<T>) -> Address {
        Address(self.at.0 + part.offset as u64)
    }

    /// The fresh rows as attention sees them.
    pub fn fresh_batch(&self, shape: &Shape) -> PagedBatch {
        self.batch(&self.layout.fresh_begin, &self.layout.fresh_start, shape)
    }

    /// The later rows as attention sees them.
    pub fn later_batch(&self, shape: &Shape) -> PagedBatch {
        self.batch(&self.layout.begin, &self.layout.start, shape)
    }

    fn batch(&self, begin: &Part<i32>, start: &Part<i32>, shape: &Shape) -> PagedBatch {
        PagedBatch {
            row_begin: self.of(begin),
            start: self.of(start),
            block_table: self.of(&self.layout.table),
            max_pages: shape.max_pages() as i32,
            padding: 0,
        }
    }
}
