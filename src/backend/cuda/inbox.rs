//! What a pass is told: token ids, positions, block tables, sampling parameters. All of it is written into
//! page-locked memory and goes to the device in one copy.

use super::kernels::{Address, JudgedRow, PagedBatch, Params, TokenBias, VerifiedSequence};
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
    /// Rows of the later layers: those, or all of a round.
    pub rows: usize,
    /// Most rows of a sequence.
    pub most_rows: usize,
    /// Chunks of 256 positions that the longest sequence is thought to have.
    pub chunks: usize,
    /// Penalties or biases: room for so many biases of single tokens. `None`: there are neither.
    pub biases: Option<usize>,
}

/// The kinds of passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// One draft for each sequence.
    Draft,
    /// The rest of a round.
    Verify,
    /// Any rows of text into the cache.
    Read,
}

/// Pages of one chunk of 256 positions.
const CHUNK_PAGES: usize = 4;

impl Shape {
    /// Columns of the block table.
    pub fn max_pages(&self) -> usize {
        self.chunks * CHUNK_PAGES
    }

    fn judges(&self) -> bool {
        matches!(self.kind, Kind::Draft | Kind::Verify)
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
    /// Writes the elements; what is left of the run is filled with zeros.
    ///
    /// # Panics
    /// If there are too many.
    pub fn put(&self, inbox: &mut [u8], values: impl IntoIterator<Item = T>) {
        let room: &mut [T] = bytemuck::cast_slice_mut(&mut inbox[self.offset..][..self.len * size_of::<T>()]);
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
    /// `[batch + 1]`: each sequence's rows of the later layers.
    pub begin: Part<i32>,
    /// `[batch]`: position of the first of them.
    pub start: Part<i32>,
    /// `[batch, max_pages]`.
    pub table: Part<u32>,
    /// Where the fresh rows' `h_N` is kept.
    pub keep: Part<u32>,
    /// Which kept (or, outside of rounds, fresh) row each later row begins with.
    pub gather: Part<u32>,
    /// `[batch + 1]`, the last for rows of no sequence.
    pub params: Part<Params>,
    /// Rows to be sampled from.
    pub judged: Part<JudgedRow>,
    /// `[rows, max_draft]`: the drafts before each row.
    pub recent: Part<u32>,
    /// `[batch + 2]`.
    pub bias_begin: Part<i32>,
    /// All sequences' biases.
    pub biases: Part<TokenBias>,
    /// `[batch]`.
    pub verified: Part<VerifiedSequence>,
    /// Bytes of all.
    pub bytes: usize,
}

impl Layout {
    /// The layout of a pass.
    pub fn new(shape: &Shape, max_draft: usize) -> Self {
        let Shape { batch, fresh, rows, .. } = *shape;
        let mut bytes = 0;
        let later = if shape.kind == Kind::Verify { batch } else { 0 };
        let judged_rows = if shape.judges() { rows } else { 0 };
        let adjusted_rows = if shape.biases.is_some() { rows } else { 0 };
        Self {
            ids: take(&mut bytes, fresh),
            fresh_begin: take(&mut bytes, batch + 1),
            fresh_start: take(&mut bytes, batch),
            begin: take(&mut bytes, if later > 0 { later + 1 } else { 0 }),
            start: take(&mut bytes, later),
            table: take(&mut bytes, batch * shape.max_pages()),
            keep: take(&mut bytes, if shape.judges() { fresh } else { 0 }),
            gather: take(&mut bytes, if shape.kind == Kind::Draft { 0 } else { rows }),
            params: take(&mut bytes, if shape.judges() { batch + 1 } else { 0 }),
            judged: take(&mut bytes, judged_rows),
            recent: take(&mut bytes, adjusted_rows * max_draft),
            bias_begin: take(&mut bytes, if shape.biases.is_some() { batch + 2 } else { 0 }),
            biases: take(&mut bytes, shape.biases.unwrap_or(0)),
            verified: take(&mut bytes, if shape.kind == Kind::Verify { batch } else { 0 }),
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
