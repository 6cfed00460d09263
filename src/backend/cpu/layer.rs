//! The operations of a pass, as all workers run them together.
//!
//! Between two barriers every worker writes its own part: a share of the output columns of a product,
//! a share of the rows of a norm, its units of attention.

use super::Simd;
use super::attention::{self, Attention, Span, Unit};
use super::cache::Cache;
use super::gemm::{Tiles, gemm, tiled};
use super::lanes::{Kernel, LANES, Lanes, padded};
use super::math::silu;
use super::norm::RmsNorm;
use super::pack::Panels;
use super::pool::Worker;
use super::rope::RopeTable;
use super::weights::{Head, Layer, Weights};
use super::workspace::{OWN_ROWS, Workspace};
use crate::TokenId;
use crate::model::Geometry;
use std::ops::Range;

/// What never changes once the backend is made.
pub struct Model {
    /// Instruction set.
    pub simd: Simd,
    /// Shape.
    pub geometry: Geometry,
    /// Packed weights.
    pub weights: Weights,
    /// Rotation tables.
    pub rope: RopeTable,
}

/// Rows on their way through the layers.
pub struct Pass<'a> {
    /// The model.
    pub model: &'a Model,
    /// The cache.
    pub cache: &'a Cache,
    /// The buffers.
    pub work: &'a Workspace,
    /// Which rows there are.
    pub spans: &'a [Span<'a>],
    tiles: Tiles,
    units: Vec<Unit>,
}

/// How much of a layer is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// All of it.
    Whole,
    /// Its keys and values only.
    KeysAndValues,
}

impl<'a> Pass<'a> {
    /// A pass of the rows of `spans`, which follow each other from row 0 on.
    pub fn new(model: &'a Model, cache: &'a Cache, work: &'a Workspace, spans: &'a [Span<'a>], workers: usize) -> Self {
        let rows = spans.iter().map(|span| span.rows).sum();
        assert!(rows > 0 && rows <= work.rows, "{rows} rows in a workspace for {}", work.rows);
        let units = attention::units(model.simd, &model.geometry, spans, workers);
        Self { model, cache, work, spans, tiles: Tiles::new(model.simd, rows), units }
    }

    /// Rows.
    pub fn rows(&self) -> usize {
        self.tiles.rows
    }

    /// Puts the tokens' embeddings in the residual stream. Ends at a barrier.
    pub fn embed(&self, worker: &Worker<'_>, tokens: &[TokenId]) {
        let columns = worker.share(self.model.geometry.hidden_size);
        for (row, &token) in tokens.iter().enumerate() {
            let at = row * self.work.hidden_row + columns.start;
            // SAFETY: this worker's columns.
            let out = unsafe { self.work.hidden.slice_mut(at, columns.len()) };
            self.model.weights.embed(token, columns.clone(), out);
        }
        worker.barrier();
    }

    /// Takes the residual stream through layer `index` of [`Weights::layers`], which is also its layer
    /// in the cache. Starts and ends at a barrier.
    pub fn layer(&self, worker: &Worker<'_>, index: usize, window: Option<usize>, extent: Extent) {
        let Model { geometry, weights, .. } = self.model;
        let layer = &weights.layers[index];
        let work = self.work;

        let normed = self.norm(worker, &layer.input_norm);
        let first_head = if extent == Extent::Whole { 0 } else { geometry.heads };
        let heads = worker.share(geometry.heads + 2 * geometry.kv_heads - first_head);
        let heads = first_head + heads.start..first_head + heads.end;
        let panels = padded(geometry.head_dim) / LANES;
        let columns = heads.start * panels..heads.end * panels;
        // SAFETY: the normalised rows are complete; the columns are this worker's.
        unsafe { self.multiply(worker, normed, &layer.qkv, columns, work.qkv.at(0), work.qkv_row) };
        self.finish_heads(layer, index, heads);
        worker.barrier();
        if extent == Extent::KeysAndValues {
            return;
        }

        let attention = Attention {
            simd: self.model.simd,
            geometry,
            cache: self.cache,
            layer: index,
            window,
            queries: work.qkv.at(0),
            queries_row: work.qkv_row,
            out: work.mixed.at(0),
            tiles: self.tiles,
        };
        while let Some(unit) = worker.claim(self.units.len()) {
            // SAFETY: queries, keys and values are complete; a unit is one worker's.
            unsafe { attention.compute(self.spans, &self.units[unit], &work.attention(worker.index)) };
        }
        worker.barrier();

        self.add_projection(worker, work.mixed.at(0), &layer.o, layer.o_bias.as_deref());
        worker.barrier();

        let normed = self.norm(worker, &layer.post_norm);
        let pairs = worker.share(layer.gate_up.count / 2);
        let columns = 2 * pairs.start..2 * pairs.end;
        // SAFETY: the normalised rows are complete; the columns are this worker's.
        unsafe { self.multiply(worker, normed, &layer.gate_up, columns, work.gate_up.at(0), work.gate_up_row) };
        for row in 0..self.rows() {
            self.model.simd.run(Gate { pass: self, bias: layer.gate_up_bias.as_deref(), row, pairs: pairs.clone() });
        }
        worker.barrier();

        self.add_projection(worker, work.gated.at(0), &layer.down, layer.down_bias.as_deref());
        worker.barrier();
    }

    /// Logits of all rows. Starts and ends at a barrier.
    pub fn logits(&self, worker: &Worker<'_>, head: &Head) {
        let normed = self.norm(worker, &head.norm);
        let columns = worker.share(head.matrix.count);
        let (out, out_row) = (self.work.logits.at(0), self.work.logits_row);
        // SAFETY: the normalised rows are complete; the columns are this worker's.
        unsafe { self.multiply(worker, normed, &head.matrix, columns, out, out_row) };
        worker.barrier();
    }

    /// The normalised residual stream, cut into tiles: of few rows a copy of this worker's own, of many
    /// rows a shared one (after a barrier).
    fn norm(&self, worker: &Worker<'_>, weight: &[f32]) -> *const f32 {
        let Model { geometry, simd, .. } = self.model;
        let own = self.rows() <= OWN_ROWS;
        let tiles = if own { 0..self.tiles.len() } else { worker.share(self.tiles.len()) };
        let normed = if own { self.work.own_normed(worker.index) } else { self.work.normed.at(0) };
        for tile in tiles.map(|index| self.tiles.tile(index)) {
            for row in tile.clone() {
                // SAFETY: the residual stream is complete, and not written before the next barrier.
                let x = unsafe { self.work.hidden.slice(row * self.work.hidden_row, self.work.hidden_row) };
                let out = normed.wrapping_add(tiled(&tile, geometry.hidden_size, row, 0));
                let (len, epsilon) = (geometry.hidden_size, geometry.rms_norm_eps);
                simd.run(RmsNorm { x, weight, len, epsilon, out, stride: tile.len() });
            }
        }
        if !own {
            worker.barrier();
        }
        normed
    }

    /// `out[row][columns] = x[row] · matrix[columns]`, columns counted in panels.
    ///
    /// # Safety
    /// `x` is complete and not written meanwhile; the columns of `out` are this worker's.
    unsafe fn multiply(
        &self,
        worker: &Worker<'_>,
        x: *const f32,
        matrix: &Panels,
        columns: Range<usize>,
        out: *mut f32,
        out_row: usize,
    ) {
        let weights = (&self.model.weights.packed, matrix);
        // SAFETY: the caller's promise; the buffers are made for these matrices.
        unsafe {
            gemm(self.model.simd, (self.tiles, x), weights, columns, (out, out_row), self.work.block(worker.index))
        };
    }

    /// Bias, norm and rotation of projected heads; keys and values go to the cache, queries stay.
    fn finish_heads(&self, layer: &Layer, index: usize, heads: Range<usize>) {
        let Model { geometry, simd, rope, .. } = self.model;
        let width = padded(geometry.head_dim);
        let (keys, values) = (geometry.heads, geometry.heads + geometry.kv_heads);
        for head in heads {
            for span in self.spans {
                for (row, position) in (span.row..).zip(span.start..).take(span.rows) {
                    // SAFETY: this worker's columns.
                    let numbers = unsafe { self.work.qkv.slice_mut(row * self.work.qkv_row + head * width, width) };
                    if let Some(bias) = &layer.qkv_bias {
                        add(numbers, &bias[head * width..][..width]);
                    }
                    if head >= values {
                        // SAFETY: the head is this worker's, and each row another position.
                        unsafe { self.cache.put_value(span.pages, position, index, head - values, numbers) };
                        continue;
                    }
                    if let Some(weight) = if head < keys { &layer.q_norm } else { &layer.k_norm } {
                        let (len, epsilon) = (geometry.head_dim, geometry.rms_norm_eps);
                        let before: &[f32] = &numbers.to_vec();
                        simd.run(RmsNorm { x: before, weight, len, epsilon, out: numbers.as_mut_ptr(), stride: 1 });
                    }
                    rope.rotate(&mut numbers[..geometry.head_dim], position);
                    if head >= keys {
                        // SAFETY: the head is this worker's, and each row another position.
                        unsafe { self.cache.put_key(span.pages, position, index, head - keys, numbers) };
                    }
                }
            }
        }
    }

    /// Adds `x · matrix + bias` to the residual stream, in this worker's columns.
    fn add_projection(&self, worker: &Worker<'_>, x: *const f32, matrix: &Panels, bias: Option<&[f32]>) {
        let work = self.work;
        let panels = worker.share(matrix.count);
        let (start, len) = (panels.start * LANES, panels.len() * LANES);
        // SAFETY: `x` was completed before the last barrier; the columns are this worker's.
        unsafe { self.multiply(worker, x, matrix, panels, work.sums.at(0), work.hidden_row) };
        for row in 0..self.rows() {
            let at = row * work.hidden_row + start;
            // SAFETY: this worker's columns of both buffers.
            let (hidden, sums) = unsafe { (work.hidden.slice_mut(at, len), work.sums.slice_mut(at, len)) };
            if let Some(bias) = bias {
                add(sums, &bias[start..start + len]);
            }
            add(hidden, sums);
        }
    }
}

fn add(to: &mut [f32], from: &[f32]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to += from;
    }
}

/// `silu(gate) · up` of one row, into the tiled buffer.
struct Gate<'a> {
    pass: &'a Pass<'a>,
    bias: Option<&'a [f32]>,
    row: usize,
    pairs: Range<usize>,
}

impl Kernel for Gate<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Lanes>(self) {
        let Self { pass: Pass { work, tiles, model, .. }, bias, row, pairs } = self;
        let inputs = model.geometry.intermediate_size;
        let tile = tiles.of(row);
        for pair in pairs {
            let column = pair * 2 * LANES;
            // SAFETY: these columns of the row are this worker's, and so is what becomes of them.
            unsafe {
                let from = work.gate_up.at(row * work.gate_up_row + column);
                let (mut gate, mut up) = (V::load(from), V::load(from.add(LANES)));
                if let Some(bias) = bias {
                    let bias = bias[column..column + 2 * LANES].as_ptr();
                    gate = gate.add(V::load(bias));
                    up = up.add(V::load(bias.add(LANES)));
                }
                let gated = silu(gate).mul(up);
                let first = pair * LANES;
                let out = work.gated.at(tiled(&tile, inputs, row, first));
                let lanes = LANES.min(inputs - first);
                if tile.len() == 1 && lanes == LANES {
                    gated.store(out);
                } else {
                    for (lane, &number) in gated.to_array()[..lanes].iter().enumerate() {
                        out.add(lane * tile.len()).write(number);
                    }
                }
            }
        }
    }
}
