//! The launches of a pass, step by step. Nothing here looks at numbers: what is launched depends on the
//! pass's shape alone, so that it can be recorded once and replayed.

use super::driver::Driver;
use super::inbox::{Inbox, Kind, Shape};
use super::kernels::{
    Accept, Address, Adjust, Attention, AttentionForm, Embedding, Form, Format, GateUp, GatherRows, KeepRows, LmHead,
    Norm, PagedBatch, Projection, Qkv, Residual, Sample, attend, keep_rows, per_token, project, sampling_kernel,
};
use super::pack::chunks;
use super::weights::{Head, Layer, Packed, Weights, operand_stride};
use super::workspace::{Cache, SQUARES_WIDTH, Workspace};
use crate::backend::BackendError;
use crate::model::Geometry;
use crate::profile;
use std::f64::consts::LOG2_E;
use std::ops::Range;

/// The parts of a backend that a pass reads.
pub struct Model {
    /// Shape of the model.
    pub geometry: Geometry,
    /// Number format of weights, activations and cache.
    pub format: Format,
    /// Where the weights are.
    pub weights: Weights,
    /// Where the cache is.
    pub cache: Cache,
    /// Where the buffers are.
    pub work: Workspace,
    /// Most drafts of a round.
    pub max_draft: usize,
}

/// Rows that go through layers together.
#[derive(Clone, Copy)]
struct Span {
    rows: usize,
    /// Most rows of one sequence.
    most_rows: usize,
    batch: PagedBatch,
}

/// One pass of a model on a device.
pub struct Pass<'a, D: Driver> {
    pub on: &'a D,
    pub model: &'a Model,
    pub inbox: &'a Inbox,
    pub shape: Shape,
}

type Done = Result<(), BackendError>;

impl<D: Driver> Pass<'_, D> {
    /// First-N and the exit block on one row of each sequence; a draft from each.
    ///
    /// # Safety
    /// Here and below: when the launches run, the inbox holds a pass of this shape, within the model's and the
    /// workspace's limits.
    ///
    /// # Errors
    /// If there is no exit block, or the device refuses or fails.
    pub unsafe fn draft(&self) -> Done {
        let Some(exit) = &self.model.weights.exit else {
            return Err(BackendError::Exit("none was given, so nothing can be drafted".into()));
        };
        let span = self.fresh();
        // SAFETY: as promised to the pass.
        unsafe {
            self.embed(span)?;
            self.layers(span, 0..exit.after)?;
            self.keep()?;
            self.layer(span, &exit.layer, self.model.geometry.layers, exit.after, exit.head.norm)?;
            self.head(span, &exit.head)?;
            self.sample(exit.head.matrix.outputs, true)
        }
    }

    /// First-N on the last row of each sequence, Last-M on all rows of the round, verdicts.
    ///
    /// # Safety
    /// As [`draft`](Self::draft).
    ///
    /// # Errors
    /// If the device refuses or fails.
    pub unsafe fn verify(&self) -> Done {
        let layers = self.model.geometry.layers;
        let weights = &self.model.weights;
        // SAFETY: as promised to the pass.
        unsafe {
            let fresh = self.fresh();
            self.embed(fresh)?;
            let rest = match &weights.exit {
                Some(exit) => {
                    self.layers(fresh, 0..exit.after)?;
                    self.keys_and_values(fresh, &exit.layer, layers, exit.after)?;
                    self.keep()?;
                    self.gather(self.model.work.kept, weights.layers[exit.after].input_norm)?;
                    exit.after..layers
                }
                None => 0..layers,
            };
            let all = self.later();
            self.layers(all, rest)?;
            self.head(all, &weights.head)?;
            self.sample(self.model.geometry.vocab_size, false)?;
            self.accept()
        }
    }

    /// Fills the cache for a text.
    ///
    /// # Safety
    /// As [`draft`](Self::draft).
    ///
    /// # Errors
    /// If the device refuses or fails.
    pub unsafe fn prefill(&self) -> Done {
        let last = self.model.geometry.layers - 1;
        let span = self.fresh();
        // SAFETY: as promised to the pass.
        unsafe {
            self.embed(span)?;
            self.text_layers(span, 0..last)?;
            self.exit_keys_and_values(span, last)?;
            // Nothing reads what comes after the last layer's keys and values.
            self.keys_and_values(span, &self.model.weights.layers[last], last, last)
        }
    }

    /// A text up to the residual stream after `tap` layers.
    ///
    /// # Safety
    /// As [`draft`](Self::draft).
    ///
    /// # Errors
    /// If the device refuses or fails.
    pub unsafe fn read_until(&self, tap: usize) -> Done {
        // SAFETY: as promised to the pass.
        unsafe {
            self.embed(self.fresh())?;
            self.text_layers(self.fresh(), 0..tap)
        }
    }

    /// What follows [`read_until`](Self::read_until), up to the logits.
    ///
    /// # Safety
    /// As [`draft`](Self::draft).
    ///
    /// # Errors
    /// If the device refuses or fails.
    pub unsafe fn read_from(&self, tap: usize) -> Done {
        // SAFETY: as promised to the pass.
        unsafe {
            self.text_layers(self.fresh(), tap..self.model.geometry.layers)?;
            self.head(self.fresh(), &self.model.weights.head)
        }
    }

    /// Layers over a text, the exit layer's cache included.
    unsafe fn text_layers(&self, span: Span, range: Range<usize>) -> Done {
        for index in range {
            // SAFETY: as promised to the pass.
            unsafe {
                self.exit_keys_and_values(span, index)?;
                self.layers(span, index..index + 1)?;
            }
        }
        Ok(())
    }

    /// Fills the exit layer's cache if it follows the first `index` layers.
    unsafe fn exit_keys_and_values(&self, span: Span, index: usize) -> Done {
        let Model { geometry, weights, work, .. } = self.model;
        let Some(exit) = weights.exit.as_ref().filter(|exit| exit.after == index) else { return Ok(()) };
        // SAFETY: as promised to the pass.
        unsafe {
            self.keys_and_values(span, &exit.layer, geometry.layers, index)?;
            self.gather(work.residual, weights.layers[index].input_norm)
        }
    }

    fn fresh(&self) -> Span {
        let most_rows = if self.shape.kind == Kind::Verify { 1 } else { self.shape.most_rows };
        Span { rows: self.shape.fresh, most_rows, batch: self.inbox.fresh_batch(&self.shape) }
    }

    fn later(&self) -> Span {
        Span { rows: self.shape.rows, most_rows: self.shape.most_rows, batch: self.inbox.later_batch(&self.shape) }
    }

    /// The norm of whatever multiplies the residual stream after layer `index`.
    fn next_norm(&self, index: usize) -> Address {
        let weights = &self.model.weights;
        match &weights.exit {
            Some(exit) if exit.after == index + 1 => exit.layer.input_norm,
            _ => weights.layers.get(index + 1).map_or(weights.head.norm, |next| next.input_norm),
        }
    }

    unsafe fn layers(&self, span: Span, range: Range<usize>) -> Done {
        for index in range {
            // SAFETY: as promised to the pass.
            unsafe { self.layer(span, &self.model.weights.layers[index], index, index, self.next_norm(index)) }?;
        }
        Ok(())
    }

    unsafe fn embed(&self, span: Span) -> Done {
        let Model { geometry, weights, work, .. } = self.model;
        let arguments = Embedding {
            ids: self.inbox.of(&self.inbox.layout.ids),
            table: weights.embedding,
            packed: weights.embedding_packed.into(),
            hidden: geometry.hidden_size as i32,
            residual: work.residual,
            norm: weights.layers[0].input_norm,
            operand: work.operand,
            stride: operand_stride(geometry.hidden_size) as i32,
            padding: 0,
            squares: work.squares,
        };
        // SAFETY: as promised to the pass.
        unsafe { per_token(self.on, "embedding", self.model.format, span.rows, &arguments) }
    }

    /// One layer, whose cache is layer `cached` and whose window is that of model layer `like`.
    unsafe fn layer(&self, span: Span, layer: &Layer, cached: usize, like: usize, next_norm: Address) -> Done {
        let _range = profile::numbered("layer", cached);
        let Model { geometry, work, format, .. } = self.model;
        // SAFETY: as promised to the pass.
        unsafe {
            self.project_qkv(span, layer.qkv, layer.qkv_bias, 0)?;
            self.attend(span, layer, cached, like)?;
            self.add(span, layer.o, work.attended, layer.o_bias, layer.post_norm)?;
            let gate_up = GateUp {
                projection: self.projection(layer.gate_up, work.operand, span),
                norm: self.norm(),
                bias: layer.gate_up_bias,
                out: work.gated,
                stride: operand_stride(geometry.intermediate_size) as i32,
                intermediate: geometry.intermediate_size as i32,
            };
            project(self.on, "gate_up", *format, form(span), &gate_up)?;
            self.add(span, layer.down, work.gated, layer.down_bias, next_norm)
        }
    }

    /// A layer's keys and values alone.
    unsafe fn keys_and_values(&self, span: Span, layer: &Layer, cached: usize, like: usize) -> Done {
        let (matrix, bias) = layer.key_value(&self.model.geometry);
        let append = AttentionForm::Append { rows: span.most_rows };
        // SAFETY: as promised to the pass.
        unsafe {
            self.project_qkv(span, matrix, bias, self.model.geometry.q_size())?;
            self.attention(append, span, layer, cached, like)
        }
    }

    /// Rows of the stacked projections, to column `column` on of the buffer.
    unsafe fn project_qkv(&self, span: Span, matrix: Packed, bias: Address, column: usize) -> Done {
        let Model { geometry, work, format, .. } = self.model;
        let arguments = Qkv {
            projection: self.projection(matrix, work.operand, span),
            norm: self.norm(),
            bias,
            out: Address(work.qkv.0 + 4 * column as u64),
            stride: (geometry.q_size() + 2 * geometry.kv_size()) as i32,
            padding: 0,
        };
        // SAFETY: as promised to the pass.
        unsafe { project(self.on, "qkv", *format, form(span), &arguments) }
    }

    unsafe fn attend(&self, span: Span, layer: &Layer, cached: usize, like: usize) -> Done {
        let rounds = matches!(self.shape.kind, Kind::Draft | Kind::Verify);
        // SAFETY: as promised to the pass.
        unsafe {
            if rounds || span.most_rows <= Workspace::SPLIT_ROWS {
                return self.attention(AttentionForm::Split { chunks: self.shape.chunks }, span, layer, cached, like);
            }
            self.attention(AttentionForm::Append { rows: span.most_rows }, span, layer, cached, like)?;
            self.attention(AttentionForm::Prefill, span, layer, cached, like)
        }
    }

    unsafe fn attention(&self, form: AttentionForm, span: Span, layer: &Layer, cached: usize, like: usize) -> Done {
        let Model { geometry, weights, work, cache, format, .. } = self.model;
        let [k_cache, v_cache] = cache.layer(cached);
        let arguments = Attention {
            batch: span.batch,
            qkv: work.qkv,
            k_cache,
            v_cache,
            rotary: weights.rotary,
            q_norm: layer.q_norm,
            k_norm: layer.k_norm,
            epsilon: geometry.rms_norm_eps,
            scale: (LOG2_E / (geometry.head_dim as f64).sqrt()) as f32,
            heads: geometry.heads as i32,
            kv_heads: geometry.kv_heads as i32,
            window: geometry.windows[like].unwrap_or(0) as i32,
            row_tiles: Attention::row_tiles(span.most_rows, geometry.heads, geometry.kv_heads) as i32,
            out: work.attended,
            stride: operand_stride(geometry.q_size()) as i32,
            padding: 0,
            partial: work.partial,
            arrived: work.arrived,
        };
        // SAFETY: as promised to the pass.
        unsafe { attend(self.on, *format, form, self.shape.batch, geometry.head_dim, &arguments) }
    }

    /// Adds a projection of `x` to the residual stream and prepares it for `next_norm`.
    unsafe fn add(&self, span: Span, matrix: Packed, x: Address, bias: Address, next_norm: Address) -> Done {
        let work = &self.model.work;
        let arguments = Residual {
            projection: self.projection(matrix, x, span),
            bias,
            residual: work.residual,
            next_norm,
            operand: work.operand,
            stride: operand_stride(self.model.geometry.hidden_size) as i32,
            padding: 0,
            squares: work.squares,
        };
        // SAFETY: as promised to the pass.
        unsafe { project(self.on, "residual", self.model.format, form(span), &arguments) }
    }

    /// Keeps the fresh rows' `h_N` for the pass that verifies them.
    unsafe fn keep(&self) -> Done {
        let arguments = KeepRows {
            residual: self.model.work.residual,
            index: self.inbox.of(&self.inbox.layout.keep),
            stored: self.model.work.kept,
            hidden: self.model.geometry.hidden_size as i32,
            padding: 0,
        };
        // SAFETY: as promised to the pass.
        unsafe { keep_rows(self.on, self.shape.fresh, &arguments) }
    }

    /// Takes rows up again, under the norm of the layer that follows.
    unsafe fn gather(&self, stored: Address, norm: Address) -> Done {
        let work = &self.model.work;
        let arguments = GatherRows {
            stored,
            index: self.inbox.of(&self.inbox.layout.gather),
            hidden: self.model.geometry.hidden_size as i32,
            padding: 0,
            residual: work.residual,
            norm,
            operand: work.operand,
            stride: operand_stride(self.model.geometry.hidden_size) as i32,
            padding_2: 0,
            squares: work.squares,
        };
        // SAFETY: as promised to the pass.
        unsafe { per_token(self.on, "gather_rows", self.model.format, self.shape.rows, &arguments) }
    }

    unsafe fn head(&self, span: Span, head: &Head) -> Done {
        let work = &self.model.work;
        let arguments = LmHead {
            projection: self.projection(head.matrix, work.operand, span),
            norm: self.norm(),
            logits: work.logits,
            partials: work.partials,
        };
        // SAFETY: as promised to the pass.
        unsafe { project(self.on, "lm_head", self.model.format, form(span), &arguments) }
    }

    /// A token from each row of `vocab` logits: drafts, or the target's choices.
    unsafe fn sample(&self, vocab: usize, draws: bool) -> Done {
        let Model { geometry, work, max_draft, .. } = self.model;
        let (inbox, layout) = (self.inbox, &self.inbox.layout);
        let (params, rows) = (inbox.of(&layout.params), inbox.of(&layout.judged));
        let adjusts = self.shape.biases.is_some();
        if adjusts {
            let arguments = Adjust {
                logits: work.logits,
                params,
                rows,
                counts: work.counts,
                recent: inbox.of(&layout.recent),
                bias_begin: inbox.of(&layout.bias_begin),
                bias: inbox.of(&layout.biases),
                adjusted: work.adjusted,
                partials: work.adjusted_partials,
                vocab: vocab as i32,
                counts_stride: geometry.vocab_size as i32,
                most_drafts: *max_draft as i32,
                padding: 0,
            };
            // SAFETY: as promised to the pass.
            unsafe { sampling_kernel(self.on, self.shape.rows, &arguments) }?;
        }
        let (logits, partials) =
            if adjusts { (work.adjusted, work.adjusted_partials) } else { (work.logits, work.partials) };
        let (weights, choices) =
            if draws { (work.draft_weights, work.draft_choices) } else { (work.target_weights, work.target_choices) };
        let arguments = Sample {
            logits,
            partials,
            raw_partials: work.partials,
            params,
            rows,
            weights,
            choices,
            vocab: vocab as i32,
            draws: draws.into(),
            stride: geometry.vocab_size as i32,
            padding: 0,
        };
        // SAFETY: as promised to the pass.
        unsafe { sampling_kernel(self.on, self.shape.rows, &arguments) }
    }

    unsafe fn accept(&self) -> Done {
        let Model { geometry, work, max_draft, .. } = self.model;
        let arguments = Accept {
            sequences: self.inbox.of(&self.inbox.layout.verified),
            params: self.inbox.of(&self.inbox.layout.params),
            target: work.target_choices,
            target_weights: work.target_weights,
            draft: work.draft_choices,
            draft_weights: work.draft_weights,
            counts: if self.shape.biases.is_some() { work.counts } else { Address(0) },
            verdicts: work.verdicts,
            vocab: geometry.vocab_size as i32,
            most_drafts: *max_draft as i32,
        };
        // SAFETY: as promised to the pass.
        unsafe { sampling_kernel(self.on, self.shape.batch, &arguments) }
    }

    fn projection(&self, matrix: Packed, x: Address, span: Span) -> Projection {
        Projection {
            weights: matrix.at,
            x,
            outputs: matrix.outputs as i32,
            chunks: chunks(matrix.inputs) as i32,
            stride: operand_stride(matrix.inputs) as i32,
            tokens: span.rows as i32,
        }
    }

    /// The norm of the residual stream.
    fn norm(&self) -> Norm {
        let geometry = &self.model.geometry;
        Norm {
            squares: self.model.work.squares,
            slots: geometry.hidden_size.div_ceil(SQUARES_WIDTH) as i32,
            width: geometry.hidden_size as i32,
            epsilon: geometry.rms_norm_eps,
            padding: 0,
        }
    }
}

/// The faster implementation of projections for so many rows; both give the same bits.
fn form(span: Span) -> Form {
    Form::for_tokens(span.rows as i32)
}
