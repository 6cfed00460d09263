//! The single launches of a pass: what each kernel is given.

use super::driver::Driver;
use super::kernels::{
    Accept, Address, Adjust, Attention, AttentionForm, Embedding, Form, GateUp, GatherRows, KeepRows, LmHead,
    NextDraft, Norm, Projection, Qkv, RecurrentInput, Residual, Sample, attend, keep_rows, next_draft, per_token,
    project, sample, sampling_kernel,
};
use super::pack::chunks;
use super::pass::{Done, Model, Next, Pass, Span};
use super::weights::{Exit, Head, Layer, Packed, operand_stride};
use super::workspace::{SQUARES_WIDTH, Workspace};
use crate::backend::BackendError;
use crate::profile;
use std::f64::consts::LOG2_E;

impl<D: Driver> Pass<'_, D> {
    /// The embeddings of the fresh rows.
    pub(super) unsafe fn embed(&self, span: Span) -> Done {
        let Model { geometry, weights, work, .. } = self.model;
        let arguments = Embedding {
            ids: self.inbox.of(&self.inbox.layout.ids),
            table: weights.embedding,
            form: weights.embedding_form.word(),
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

    /// The input of a recurrent exit block's matrix: its state and the last draft of each sequence.
    pub(super) unsafe fn recurrent_input(&self, span: Span) -> Done {
        let Model { geometry, weights, work, .. } = self.model;
        let arguments = RecurrentInput {
            ids: self.inbox.of(&self.inbox.layout.ids),
            table: weights.embedding,
            form: weights.embedding_form.word(),
            hidden: geometry.hidden_size as i32,
            states: work.states,
            index: self.inbox.of(&self.inbox.layout.states),
            operand: work.recurrent_operand,
            stride: operand_stride(2 * geometry.hidden_size) as i32,
            epsilon: geometry.rms_norm_eps,
        };
        // SAFETY: as promised to the pass.
        unsafe { per_token(self.on, "recurrent_input", self.model.format, span.rows, &arguments) }
    }

    /// Begins the exit block's residual stream with a projection of `x`.
    pub(super) unsafe fn begin_exit_stream(&self, span: Span, matrix: Packed, x: Address, exit: &Exit) -> Done {
        let work = &self.model.work;
        let next = Next { norm: exit.layer.input_norm, operand: work.operand };
        // SAFETY: as promised to the pass.
        unsafe { self.project_to(span, (Address(0), work.exit_residual), matrix, x, Address(0), next) }
    }

    /// One layer on a residual stream; its cache is layer `cached` and its window that of model layer `like`.
    pub(super) unsafe fn layer(
        &self,
        span: Span,
        stream: Address,
        layer: &Layer,
        cached: usize,
        like: usize,
        next: Next,
    ) -> Done {
        let _range = profile::numbered("layer", cached);
        let Model { geometry, work, format, .. } = self.model;
        // SAFETY: as promised to the pass.
        unsafe {
            self.project_qkv(span, layer, 0)?;
            self.attend(span, layer, cached, like)?;
            let within = Next { norm: layer.post_norm, operand: work.operand };
            self.project_to(span, (stream, stream), layer.o, work.attended, layer.o_bias, within)?;
            let gate_up = GateUp {
                projection: self.projection(layer.gate_up, work.operand, span)?,
                norm: self.norm(),
                bias: layer.gate_up_bias,
                out: work.gated,
                stride: operand_stride(geometry.intermediate_size) as i32,
                intermediate: geometry.intermediate_size as i32,
            };
            project(self.on, "gate_up", *format, form(span), &gate_up)?;
            self.project_to(span, (stream, stream), layer.down, work.gated, layer.down_bias, next)
        }
    }

    /// A layer's keys and values alone.
    pub(super) unsafe fn keys_and_values(&self, span: Span, layer: &Layer, cached: usize, like: usize) -> Done {
        let append = AttentionForm::Append { rows: span.most_rows };
        // SAFETY: as promised to the pass.
        unsafe {
            self.project_qkv(span, layer, self.model.geometry.q_size())?;
            self.attention(append, span, layer, cached, like)
        }
    }

    /// The stacked projections from row `first` on, each to the column of its row.
    unsafe fn project_qkv(&self, span: Span, layer: &Layer, first: usize) -> Done {
        let Model { geometry, work, format, .. } = self.model;
        for (matrix, row) in layer.qkv.rows_from(first) {
            let at_row = |floats: Address| Address(floats.0 + 4 * row as u64);
            let bias = layer.qkv_bias;
            let arguments = Qkv {
                // SAFETY: as promised to the pass.
                projection: unsafe { self.projection(matrix, work.operand, span) }?,
                norm: self.norm(),
                bias: if bias == Address(0) { bias } else { at_row(bias) },
                out: at_row(work.qkv),
                stride: (geometry.q_size() + 2 * geometry.kv_size()) as i32,
                padding: 0,
            };
            // SAFETY: as promised to the pass.
            unsafe { project(self.on, "qkv", *format, form(span), &arguments) }?;
        }
        Ok(())
    }

    unsafe fn attend(&self, span: Span, layer: &Layer, cached: usize, like: usize) -> Done {
        // SAFETY: as promised to the pass.
        unsafe {
            if self.shape.judges() || span.most_rows <= Workspace::SPLIT_ROWS {
                return self.attention(AttentionForm::Split { chunks: self.shape.chunks }, span, layer, cached, like);
            }
            self.attention(AttentionForm::Append { rows: span.most_rows }, span, layer, cached, like)?;
            self.attention(AttentionForm::Prefill, span, layer, cached, like)
        }
    }

    unsafe fn attention(&self, form: AttentionForm, span: Span, layer: &Layer, cached: usize, like: usize) -> Done {
        let Model { geometry, weights, work, cache, format, .. } = self.model;
        let kept = (*format, cache.format());
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
            window: geometry.windows[like].unwrap_or(0).min(i32::MAX as usize) as i32,
            row_tiles: Attention::row_tiles(span.most_rows, geometry.heads, geometry.kv_heads) as i32,
            out: work.attended,
            stride: operand_stride(geometry.q_size()) as i32,
            padding: 0,
            partial: work.partial,
            arrived: work.arrived,
            // The exit layer's numbers change what is drafted, never what is written.
            non_finite: if cached < geometry.layers { work.non_finite } else { Address(0) },
            any_non_finite: work.any_non_finite,
        };
        // SAFETY: as promised to the pass.
        unsafe { attend(self.on, kept, form, self.shape.batch, geometry.head_dim, &arguments) }
    }

    /// Adds a projection of `x` to one residual stream, or to zeros where that is null, which makes the other, and prepares
    /// that for what is next.
    unsafe fn project_to(
        &self,
        span: Span,
        (from, residual): (Address, Address),
        matrix: Packed,
        x: Address,
        bias: Address,
        next: Next,
    ) -> Done {
        let arguments = Residual {
            // SAFETY: as promised to the pass.
            projection: unsafe { self.projection(matrix, x, span) }?,
            bias,
            from,
            residual,
            next_norm: next.norm,
            operand: next.operand,
            stride: operand_stride(self.model.geometry.hidden_size) as i32,
            padding: 0,
            squares: self.model.work.squares,
        };
        // SAFETY: as promised to the pass.
        unsafe { project(self.on, "residual", self.model.format, form(span), &arguments) }
    }

    /// Keeps the fresh rows' `h_N` for the pass that verifies them.
    pub(super) unsafe fn keep(&self) -> Done {
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

    /// Keeps the exit block's residual stream at each draft for the one after it.
    pub(super) unsafe fn keep_states(&self, stream: Address) -> Done {
        let arguments = KeepRows {
            residual: stream,
            index: self.inbox.of(&self.inbox.layout.states),
            stored: self.model.work.states,
            hidden: self.model.geometry.hidden_size as i32,
            padding: 0,
        };
        // SAFETY: as promised to the pass.
        unsafe { keep_rows(self.on, self.shape.fresh, &arguments) }
    }

    /// Takes rows up again, for what follows.
    pub(super) unsafe fn gather(&self, stored: Address, next: Next) -> Done {
        let work = &self.model.work;
        let arguments = GatherRows {
            stored,
            index: self.inbox.of(&self.inbox.layout.gather),
            hidden: self.model.geometry.hidden_size as i32,
            padding: 0,
            residual: work.residual,
            norm: next.norm,
            operand: next.operand,
            stride: operand_stride(self.model.geometry.hidden_size) as i32,
            padding_2: 0,
            squares: work.squares,
        };
        // SAFETY: as promised to the pass.
        unsafe { per_token(self.on, "gather_rows", self.model.format, self.shape.rows, &arguments) }
    }

    /// Logits of all rows of a span.
    pub(super) unsafe fn head(&self, span: Span, head: &Head) -> Done {
        let work = &self.model.work;
        let arguments = LmHead {
            // SAFETY: as promised to the pass.
            projection: unsafe { self.projection(head.matrix, work.operand, span) }?,
            norm: self.norm(),
            logits: work.logits,
            partials: work.partials,
        };
        // SAFETY: as promised to the pass.
        unsafe { project(self.on, "lm_head", self.model.format, form(span), &arguments) }
    }

    /// A token from each row of `vocab` logits, of these tokens where there is a list: drafts, or the target's choices.
    pub(super) unsafe fn sample(&self, vocab: usize, draft_ids: Address, draws: bool) -> Done {
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
                draft_ids,
                masks: if self.shape.mask_words > 0 { inbox.of(&layout.masks) } else { Address(0) },
                adjusted: work.adjusted,
                partials: work.adjusted_partials,
                raw_partials: work.partials,
                vocab: vocab as i32,
                counts_stride: geometry.vocab_size as i32,
                most_drafts: *max_draft as i32,
                mask_words: self.shape.mask_words as i32,
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
            draft_ids,
            filters: work.filters,
            parts: work.parts,
            vocab: vocab as i32,
            draws: draws.into(),
            stride: geometry.vocab_size as i32,
            padding: 0,
        };
        // SAFETY: as promised to the pass.
        unsafe { sample(self.on, self.shape.rows, self.shape.weighs, &arguments) }
    }

    /// What a draft loop does between two drafts.
    pub(super) unsafe fn next_draft(&self) -> Done {
        let (inbox, layout) = (self.inbox, &self.inbox.layout);
        let arguments = NextDraft {
            choices: self.model.work.draft_choices,
            state: inbox.of(&layout.draft_loop),
            edges: inbox.of(&layout.edges),
            rules: inbox.of(&layout.rules),
            ends: inbox.of(&layout.ends),
            ids: inbox.of(&layout.ids),
            start: inbox.of(&layout.fresh_start),
            keep: inbox.of(&layout.keep),
            row: inbox.of(&layout.judged),
            recent: if self.shape.biases.is_some() { inbox.of(&layout.recent) } else { Address(0) },
        };
        // SAFETY: as promised to the pass.
        unsafe { next_draft(self.on, &arguments) }
    }

    /// Verdicts on all sequences.
    pub(super) unsafe fn accept(&self) -> Done {
        let Model { geometry, work, max_draft, .. } = self.model;
        let arguments = Accept {
            sequences: self.inbox.of(&self.inbox.layout.verified),
            params: self.inbox.of(&self.inbox.layout.params),
            target: work.target_choices,
            target_weights: work.target_weights,
            draft: work.draft_choices,
            draft_weights: work.draft_weights,
            ids: self.inbox.of(&self.inbox.layout.ids),
            counts: if self.shape.biases.is_some() { work.counts } else { Address(0) },
            verdicts: work.verdicts,
            vocab: geometry.vocab_size as i32,
            most_drafts: *max_draft as i32,
        };
        // SAFETY: as promised to the pass.
        unsafe { sampling_kernel(self.on, self.shape.batch, &arguments) }
    }

    /// What the kernel of a projection multiplies: or, in fast prefill, the sums, which are made here.
    unsafe fn projection(&self, matrix: Packed, x: Address, span: Span) -> Result<Projection, BackendError> {
        if let Some(fast) = span.fast {
            // SAFETY: as promised to the pass.
            return unsafe { self.multiply(fast, span, matrix, x) };
        }
        Ok(Projection {
            weights: matrix.at,
            x,
            outputs: matrix.outputs as i32,
            chunks: chunks(matrix.inputs) as i32,
            stride: operand_stride(matrix.inputs) as i32,
            tokens: span.rows as i32,
            coding: matrix.storage.word(),
            padding: 0,
        })
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

/// Of projections: the faster implementation for so many rows, which both give the same bits; or what is left of
/// them where the library makes the sums.
fn form(span: Span) -> Form {
    if span.fast.is_some() { Form::Finish } else { Form::for_tokens(span.rows as i32) }
}
