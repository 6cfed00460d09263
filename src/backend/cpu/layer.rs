//! The operations of a pass, as all workers run them together.
//!
//! Between two barriers every worker writes its own part: a share of the output columns of a product,
//! a share of the rows of a norm, its units of attention.

use super::Simd;
use super::attention::{self, Attention, Span, Unit};
use super::cache::Cache;
use super::codes::{BLOCK, LINE, Quantise, prefetch};
use super::gemm::{Inputs, gemm};
use super::lanes::{Kernel, LANES, Lanes, padded};
use super::math::silu;
use super::norm::RmsNorm;
use super::pack::Panels;
use super::pool::Worker;
use super::weights::{Head, Layer, Weights};
use super::workspace::{OWN_ROWS, RowBuffer, Workspace};
use crate::TokenId;
use crate::backend::rope::RopeTable;
use crate::model::Geometry;
use std::ops::Range;

/// Pairs of a gate's panel and an up's that make a block of the next product's inputs.
const PAIRS: usize = BLOCK / LANES;

/// Bytes of a product's first weights that are asked for beforehand: about as many as come while a barrier is met.
const FIRST: usize = 6 << 10;

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
    /// How many.
    pub rows: usize,
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
        Self { model, cache, work, spans, rows, units }
    }

    /// Puts the tokens' embeddings in the residual stream. Ends at a barrier.
    pub fn embed(&self, worker: &Worker<'_>, tokens: &[TokenId]) {
        if worker.index == 0 {
            let mut non_finite = self.cache.non_finite();
            self.spans.iter().for_each(|span| non_finite.forget(span.pages, span.start..span.start + span.rows));
        }
        let columns = worker.share(self.model.geometry.hidden_size);
        for (row, &token) in tokens.iter().enumerate() {
            // SAFETY: this worker's columns.
            let out = unsafe { self.work.hidden.part_mut(row, columns.start, columns.len()) };
            self.model.weights.embed(token, columns.clone(), out);
        }
        worker.barrier();
    }

    /// Takes a residual stream through layer `index` of [`Weights::layers`], which is also its layer
    /// in the cache. Starts and ends at a barrier.
    pub fn layer(&self, worker: &Worker<'_>, stream: &RowBuffer, index: usize, window: Option<usize>, extent: Extent) {
        let Model { geometry, weights, .. } = self.model;
        let layer = &weights.layers[index];
        let work = self.work;

        let normed = self.norm(worker, stream, &layer.input_norm, &layer.qkv);
        let first_head = if extent == Extent::Whole { 0 } else { geometry.heads };
        let panels = padded(geometry.head_dim) / LANES;
        let heads = geometry.heads + 2 * geometry.kv_heads;
        worker.divide(heads - first_head, |heads| {
            let heads = first_head + heads.start..first_head + heads.end;
            let columns = heads.start * panels..heads.end * panels;
            // SAFETY: the normalised rows are complete; the columns are this worker's.
            unsafe { self.multiply(worker, normed, &layer.qkv, columns, &work.qkv) };
            self.finish_heads(layer, index, heads);
        });
        self.fetch(&layer.o, worker.share(layer.o.count).start);
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
            queries: work.qkv.rows(),
            out: work.mixed.rows_mut(),
            codes: (takes_blocks(&layer.o) && geometry.head_dim.is_multiple_of(BLOCK)).then(|| work.mixed_codes()),
        };
        while let Some(unit) = worker.claim(self.units.len()) {
            // SAFETY: queries, keys and values are complete; a unit is one worker's.
            unsafe { attention.compute(self.spans, &self.units[unit], &work.attention(worker.index)) };
        }
        worker.barrier();

        let len = geometry.intermediate_size;
        let blocks = len.div_ceil(BLOCK);
        let mixed = match attention.codes {
            Some(codes) => Inputs { floats: work.mixed.rows(), codes: Some(codes) },
            None => self.inputs(worker, (&work.mixed, geometry.q_size()), &layer.o),
        };
        self.add_projection(worker, stream, mixed, &layer.o, layer.o_bias.as_deref());
        self.fetch(&layer.gate_up, worker.share(blocks).start * 2 * PAIRS);
        worker.barrier();

        let normed = self.norm(worker, stream, &layer.post_norm, &layer.gate_up);
        let (gated, gated_codes) = (work.gated.rows(), takes_blocks(&layer.down).then(|| work.gated_codes()));
        let pairs = layer.gate_up.count / 2;
        // Whole blocks, so that whoever makes their activations can quantise them, while they are at hand.
        worker.divide(blocks, |blocks| {
            let pairs = blocks.start * PAIRS..pairs.min(blocks.end * PAIRS);
            let columns = 2 * pairs.start..2 * pairs.end;
            // SAFETY: the normalised rows are complete; the columns are this worker's.
            unsafe { self.multiply(worker, normed, &layer.gate_up, columns, &work.gate_up) };
            for row in 0..self.rows {
                let bias = layer.gate_up_bias.as_deref();
                self.model.simd.run(Gate { pass: self, bias, row, pairs: pairs.clone() });
                if let Some(codes) = gated_codes {
                    let (x, blocks) = (gated.at.wrapping_add(row * gated.stride), blocks.clone());
                    self.model.simd.run(Quantise { x, len, order: None, blocks, out: codes.from(row) });
                }
            }
        });
        self.fetch(&layer.down, worker.share(layer.down.count).start);
        worker.barrier();

        let gated = match gated_codes {
            Some(codes) => Inputs { floats: gated, codes: Some(codes) },
            None => self.inputs(worker, (&work.gated, len), &layer.down),
        };
        self.add_projection(worker, stream, gated, &layer.down, layer.down_bias.as_deref());
        if index + 1 < geometry.layers {
            self.fetch(&weights.layers[index + 1].qkv, worker.share(heads).start * panels);
        } else {
            self.fetch(&weights.head.matrix, worker.share(weights.head.matrix.count).start);
        }
        worker.barrier();
    }

    /// Logits of all rows of a residual stream. Starts and ends at a barrier.
    pub fn logits(&self, worker: &Worker<'_>, stream: &RowBuffer, head: &Head) {
        let normed = self.norm(worker, stream, &head.norm, &head.matrix);
        worker.divide(head.matrix.count, |columns| {
            // SAFETY: the normalised rows are complete; the columns are this worker's.
            unsafe { self.multiply(worker, normed, &head.matrix, columns, &self.work.logits) };
        });
        worker.barrier();
    }

    /// `out[row] = matrix · x[row]` for all rows, which `x` has complete. Starts and ends at a barrier.
    pub fn project(&self, worker: &Worker<'_>, x: &RowBuffer, matrix: &Panels, out: &RowBuffer) {
        let inputs = self.inputs(worker, (x, matrix.inputs), matrix);
        worker.divide(matrix.count, |columns| {
            // SAFETY: the inputs are complete; the columns are this worker's.
            unsafe { self.multiply(worker, inputs, matrix, columns, out) };
        });
        worker.barrier();
    }

    /// The normalised residual stream, as `matrix` takes it: of few rows a copy of this worker's own, of many rows a
    /// shared one (after a barrier).
    fn norm(&self, worker: &Worker<'_>, stream: &RowBuffer, weight: &[f32], matrix: &Panels) -> Inputs {
        let Model { geometry, simd, .. } = self.model;
        let own = self.rows <= OWN_ROWS;
        let normed = if own { self.work.own_normed(worker.index) } else { &self.work.normed };
        let (len, epsilon) = (geometry.hidden_size, geometry.rms_norm_eps);
        for row in self.own_rows(worker) {
            // SAFETY: the residual stream is complete until the next barrier; the result's row is this worker's.
            unsafe {
                let x = stream.part(row, 0, padded(len)).as_ptr();
                let out = normed.part_mut(row, 0, padded(len)).as_mut_ptr();
                simd.run(RmsNorm { x, weight, len, epsilon, out });
            }
        }
        let inputs = self.inputs(worker, (normed, len), matrix);
        if !own && inputs.codes.is_none() {
            worker.barrier();
        }
        inputs
    }

    /// The rows that a worker prepares for a product: of few rows all of them, for itself.
    fn own_rows(&self, worker: &Worker<'_>) -> Range<usize> {
        if self.rows <= OWN_ROWS { 0..self.rows } else { worker.share(self.rows) }
    }

    /// Complete rows, as `matrix` takes them: where it has quantised weights, in 8 bits too (of many rows after a barrier).
    fn inputs(&self, worker: &Worker<'_>, (x, len): (&RowBuffer, usize), matrix: &Panels) -> Inputs {
        let floats = x.rows();
        if matrix.orders.is_empty() {
            return Inputs { floats, codes: None };
        }
        let (codes, blocks) = (self.work.codes(worker.index, self.rows), len.div_ceil(BLOCK));
        for (index, order) in matrix.orders.iter().enumerate() {
            for row in self.own_rows(worker) {
                let (x, out) = (floats.at.wrapping_add(row * floats.stride), codes.from(index * self.rows + row));
                self.model.simd.run(Quantise { x, len, order: order.as_deref(), blocks: 0..blocks, out });
            }
        }
        if self.rows > OWN_ROWS {
            worker.barrier();
        }
        Inputs { floats, codes: Some(codes) }
    }

    /// `out[row][columns] = x[row] · matrix[columns]`, columns counted in panels.
    ///
    /// # Safety
    /// `x` is complete and not written meanwhile; the columns of `out` are this worker's.
    unsafe fn multiply(&self, worker: &Worker<'_>, x: Inputs, matrix: &Panels, columns: Range<usize>, out: &RowBuffer) {
        let weights = (&self.model.weights.packed, matrix);
        let scratch = self.work.block(worker.index);
        // SAFETY: the caller's promise; the buffers are made for these matrices.
        unsafe { gemm(self.model.simd, self.rows, x, weights, columns, out.rows_mut(), scratch) };
    }

    /// Asks for the first weights, from panel `first` on, that a worker is going to multiply: they come while it waits for
    /// others.
    fn fetch(&self, matrix: &Panels, first: usize) {
        if let Some((_, _, start)) = matrix.parts(first..matrix.count).next() {
            let weights = self.model.weights.packed.at(start);
            (0..FIRST).step_by(LINE).for_each(|at| prefetch::<false>(weights.wrapping_add(at)));
        }
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
                    let numbers = unsafe { self.work.qkv.part_mut(row, head * width, width) };
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
                        let out = numbers.as_mut_ptr();
                        simd.run(RmsNorm { x: out, weight, len, epsilon, out });
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

    /// Adds `x · matrix + bias` to a residual stream, in this worker's columns. Not to its padding, which stays zero: 0
    /// times what is not finite would be there for whoever has the row next.
    fn add_projection(
        &self,
        worker: &Worker<'_>,
        stream: &RowBuffer,
        x: Inputs,
        matrix: &Panels,
        bias: Option<&[f32]>,
    ) {
        let work = self.work;
        worker.divide(matrix.count, |panels| {
            let start = panels.start * LANES;
            let len = (panels.end * LANES).min(self.model.geometry.hidden_size).saturating_sub(start);
            // SAFETY: `x` was completed before the last barrier; the columns are this worker's.
            unsafe { self.multiply(worker, x, matrix, panels, &work.sums) };
            for row in 0..self.rows {
                // SAFETY: this worker's columns of both buffers.
                let (hidden, sums) = unsafe { (stream.part_mut(row, start, len), work.sums.part_mut(row, start, len)) };
                if let Some(bias) = bias {
                    add(sums, &bias[start..start + len]);
                }
                add(hidden, sums);
            }
        });
    }
}

/// Whether a matrix takes codes of its inputs in their own order, block by block: so that whoever makes a block can quantise
/// it. Of another order's blocks no one is made before all inputs are.
fn takes_blocks(matrix: &Panels) -> bool {
    matrix.orders[..] == [None]
}

fn add(to: &mut [f32], from: &[f32]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to += from;
    }
}

/// `silu(gate) · up` of one row.
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
        let Self { pass: Pass { work, .. }, bias, row, pairs } = self;
        let (start, len) = (pairs.start * LANES, pairs.len() * LANES);
        // SAFETY: these columns of the row are this worker's, and so is what becomes of them.
        unsafe {
            let gate_up = work.gate_up.part(row, 2 * start, 2 * len).as_ptr();
            let gated = work.gated.part_mut(row, start, len).as_mut_ptr();
            for at in (0..len).step_by(LANES) {
                let (mut gate, mut up) = (V::load(gate_up.add(2 * at)), V::load(gate_up.add(2 * at + LANES)));
                if let Some(bias) = bias {
                    let bias = bias[2 * (start + at)..][..2 * LANES].as_ptr();
                    gate = gate.add(V::load(bias));
                    up = up.add(V::load(bias.add(LANES)));
                }
                silu(gate).mul(up).store(gated.add(at));
            }
        }
    }
}
