//! Causal attention over the paged cache.
//!
//! One query's numbers depend on nothing but its own position: scores sum over the head in order, the
//! exponentials are added in 16 lanes by absolute position modulo 16 and then by one tree, and values
//! are summed position by position. Queries that share a key/value head are worked on together.

use super::Simd;
use super::cache::Cache;
use super::codes::{BLOCK, CodeRows, Quantise};
use super::gemm::{Product, Rows, multiply};
use super::lanes::{Kernel, LANES, Lanes, padded};
use super::math;
use crate::kv::{PAGE_TOKENS, PageId};
use crate::model::Geometry;
use std::ops::Range;

/// Consecutive rows of a pass that are consecutive positions of one sequence.
#[derive(Debug, Clone, Copy)]
pub struct Span<'a> {
    /// The sequence's block table.
    pub pages: &'a [PageId],
    /// Position of the first row.
    pub start: usize,
    /// The first row in the pass.
    pub row: usize,
    /// Rows.
    pub rows: usize,
}

/// A piece of attention for one worker: queries of one span that share a key/value head, counted row
/// by row and, in a row, head by head.
#[derive(Debug, Clone)]
pub struct Unit {
    span: usize,
    kv_head: usize,
    queries: Range<usize>,
}

/// Cuts the attention of a pass into units: as many queries together as the registers hold, but no
/// worker left without one. Late positions come first: they cost most.
pub fn units(simd: Simd, geometry: &Geometry, spans: &[Span<'_>], workers: usize) -> Vec<Unit> {
    let mut units = Vec::new();
    let at_least = workers.div_ceil(geometry.kv_heads * spans.len().max(1));
    for (index, span) in spans.iter().enumerate() {
        let queries = span.rows * geometry.group();
        let pieces = queries.div_ceil(simd.max_rows()).max(at_least).min(queries);
        for piece in (0..pieces).rev() {
            let queries = queries * piece / pieces..queries * (piece + 1) / pieces;
            units.extend((0..geometry.kv_heads).map(|kv_head| Unit { span: index, kv_head, queries: queries.clone() }));
        }
    }
    units
}

/// No instruction set has taller register tiles.
const MAX_QUERIES: usize = 8;

/// One worker's scratch space for attention.
pub struct Scratch {
    /// `[queries][positions]`; see [`Attention::scores_len`].
    pub scores: *mut f32,
    /// `[queries][head_dim, padded]`.
    pub queries: *mut f32,
    /// `[queries][head_dim, padded]`.
    pub mixed: *mut f32,
    /// Keys or values of a page, where the cache keeps them in 8 bits: `64 · head_dim, padded`.
    pub widened: *mut f32,
}

/// Attention of one layer in one pass.
pub struct Attention<'a> {
    /// Instruction set.
    pub simd: Simd,
    /// Shape of the model.
    pub geometry: &'a Geometry,
    /// The cache; the pass's own positions are in it.
    pub cache: &'a Cache,
    /// Layer of the cache.
    pub layer: usize,
    /// Sliding window.
    pub window: Option<usize>,
    /// Rotated queries, rows of `[head][head_dim, padded]`.
    pub queries: Rows<*const f32>,
    /// The result, rows of `[head][head_dim]`.
    pub out: Rows<*mut f32>,
    /// The same in 8 bits, where it is wanted and heads are whole blocks.
    pub codes: Option<CodeRows>,
}

impl Attention<'_> {
    /// Floats of scores that a unit may need.
    pub fn scores_len(simd: Simd, context: usize) -> usize {
        simd.max_rows() * (context.next_multiple_of(PAGE_TOKENS) + PAGE_TOKENS)
    }

    /// Computes one unit.
    ///
    /// # Safety
    /// Nobody writes the queries or the spans' cached positions meanwhile; the unit's part of the
    /// result is this thread's, and so is the scratch space.
    pub unsafe fn compute(&self, spans: &[Span<'_>], unit: &Unit, scratch: &Scratch) {
        let span = &spans[unit.span];
        let (group, head_dim) = (self.geometry.group(), self.geometry.head_dim);
        let width = padded(head_dim);
        let count = unit.queries.len();
        let position = |query: usize| span.start + query / group;
        let begin = |position: usize| self.window.map_or(0, |window| (position + 1).saturating_sub(window));
        let from = begin(position(unit.queries.start));
        let to = position(unit.queries.end - 1) + 1;
        let base = from / PAGE_TOKENS * PAGE_TOKENS;
        let scores_row = to.next_multiple_of(PAGE_TOKENS) - base;

        // SAFETY: queries and results of the unit's rows and heads, cached positions of the span that
        // are complete, scratch space of this thread, all as the caller promises.
        unsafe {
            let scale = 1.0 / (head_dim as f32).sqrt();
            for (index, query) in unit.queries.clone().enumerate() {
                let head = unit.kv_head * group + query % group;
                let from = self.queries.at.add((span.row + query / group) * self.queries.stride + head * width);
                for dim in 0..head_dim {
                    *scratch.queries.add(index * width + dim) = *from.add(dim) * scale;
                }
            }
            for page in base / PAGE_TOKENS..to.div_ceil(PAGE_TOKENS) {
                let first = page * PAGE_TOKENS;
                let block = (span.pages[page], self.layer, unit.kv_head);
                let keys = self.cache.keys(self.simd, block, (to - first).min(PAGE_TOKENS), scratch.widened);
                let product = Product {
                    x: scratch.queries.cast_const(),
                    x_row: width,
                    w: keys,
                    w_panel: LANES,
                    w_k: PAGE_TOKENS,
                    k: head_dim,
                    out: scratch.scores.add(first - base),
                    out_row: scores_row,
                    resume: false,
                };
                multiply(self.simd, count, (to - first).min(PAGE_TOKENS).div_ceil(LANES), &product);
            }
            let mut totals = [0.0; MAX_QUERIES];
            for (index, query) in unit.queries.clone().enumerate() {
                let row = std::slice::from_raw_parts_mut(scratch.scores.add(index * scores_row), scores_row);
                let last = position(query);
                totals[index] = self.simd.run(Softmax { scores: row, visible: begin(last) - base..last + 1 - base });
            }
            for page in base / PAGE_TOKENS..to.div_ceil(PAGE_TOKENS) {
                let first = from.max(page * PAGE_TOKENS);
                let block = (span.pages[page], self.layer, unit.kv_head);
                let tokens = first % PAGE_TOKENS..to.min((page + 1) * PAGE_TOKENS) - page * PAGE_TOKENS;
                let values = self.cache.values(self.simd, block, tokens.clone(), scratch.widened);
                let product = Product {
                    x: scratch.scores.add(first - base).cast_const(),
                    x_row: scores_row,
                    w: values.add(tokens.start * width),
                    w_panel: LANES,
                    w_k: width,
                    k: tokens.len(),
                    out: scratch.mixed,
                    out_row: width,
                    resume: first > from,
                };
                multiply(self.simd, count, width / LANES, &product);
            }
            for (index, query) in unit.queries.clone().enumerate() {
                let head = unit.kv_head * group + query % group;
                let out = self.out.at.add((span.row + query / group) * self.out.stride + head * head_dim);
                for dim in 0..head_dim {
                    *out.add(dim) = *scratch.mixed.add(index * width + dim) / totals[index];
                }
                if let Some(codes) = self.codes {
                    let (x, len) = (out.sub(head * head_dim).cast_const(), self.geometry.q_size());
                    let blocks = head * head_dim / BLOCK..(head + 1) * head_dim / BLOCK;
                    self.simd.run(Quantise { x, len, order: None, blocks, out: codes.from(span.row + query / group) });
                }
            }
        }
    }
}

/// Turns the visible scores of a query into exponentials and the others into zeros; gives their sum.
pub struct Softmax<'a> {
    /// Scores, the first one's absolute position a multiple of 16.
    pub scores: &'a mut [f32],
    /// The scores that count; not empty.
    pub visible: Range<usize>,
}

impl Kernel for Softmax<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<V: Lanes>(self) -> f32 {
        let Self { scores, visible } = self;
        let (first, end) = (visible.start / LANES * LANES, visible.end.next_multiple_of(LANES));
        assert!(visible.start < visible.end && end <= scores.len());
        scores[..first].fill(0.0);
        scores[first..visible.start].fill(f32::NEG_INFINITY);
        scores[visible.end..end].fill(f32::NEG_INFINITY);
        scores[end..].fill(0.0);
        let row = scores.as_mut_ptr();
        let mut largest = V::splat(f32::NEG_INFINITY);
        for at in (first..end).step_by(LANES) {
            // SAFETY: `end` is inside the scores and a whole number of vectors from `first`.
            largest = largest.max(unsafe { V::load(row.add(at)) });
        }
        let largest = V::splat(math::max(largest));
        let mut total = V::splat(0.0);
        for at in (first..end).step_by(LANES) {
            // SAFETY: as above.
            unsafe {
                let exponential = math::exp(V::load(row.add(at)).sub(largest));
                exponential.store(row.add(at));
                total = total.add(exponential);
            }
        }
        math::sum(total)
    }
}

#[cfg(test)]
pub mod tests;
