//! The exit block's part of passes: what its layer reads, its keys and values, draft steps.

use super::super::{BackendError, Draft, Sequence};
use super::CpuBackend;
use super::attention::Span;
use super::lanes::padded;
use super::layer::{Extent, Pass};
use super::norm::RmsNorm;
use super::passes::{each, last_rows, outcomes};
use super::pool::Worker;
use super::weights::{Exit, Recurrent};
use super::workspace::RowBuffer;
use crate::control::Way;
use crate::sample::{Drafted, History};
use std::sync::OnceLock;

impl CpuBackend {
    /// One draft for each sequence, all of them made one way.
    pub fn draft_step(&mut self, way: Way, batch: &[Sequence<'_>]) -> Result<Vec<Draft>, BackendError> {
        if self.model.weights.exit.is_none() {
            return Err(BackendError::Exit("none was given, so nothing can be drafted".to_owned()));
        }
        self.check_batch(batch)?;
        self.limits.check_drafts(batch, 1)?;
        let Some(exit) = self.model.weights.exit.as_ref().filter(|_| !batch.is_empty()) else {
            return Ok(Vec::new());
        };
        let recurrent = match way {
            Way::FirstLayers => None,
            Way::Continued | Way::Recurrent => Some(exit.recurrent.as_ref().ok_or_else(BackendError::not_recurrent)?),
        };
        if recurrent.is_some() {
            self.check_drafted(batch)?;
        }
        let kept = |sequence: &Sequence<'_>| self.slots[sequence.slot].kept;
        let rows_before: Vec<usize> = match way {
            Way::FirstLayers => Vec::new(),
            Way::Continued => batch.iter().map(|of| kept(of).row_before(of)).collect::<Result<_, _>>()?,
            Way::Recurrent => batch.iter().try_for_each(|of| kept(of).check_state(of)).map(|()| Vec::new())?,
        };
        let (spans, tokens) = last_rows(batch, |sequence| if recurrent.is_some() { 1 } else { sequence.fresh() });
        let spans_before: Vec<Span<'_>> =
            spans.iter().zip(&rows_before).map(|(span, _)| Span { start: span.start - 1, ..*span }).collect();
        let pass = |spans| Pass::new(&self.model, &self.cache, &self.work, spans, self.pool.workers());
        let before = (!spans_before.is_empty()).then(|| pass(&spans_before));
        let pass = pass(&spans);
        let window = self.model.geometry.windows[exit.after];
        self.pool.run(&|worker| {
            if let Some(before) = &before {
                before.gather(worker, batch, |index| rows_before[index]..rows_before[index] + 1);
                let stream = before.exit_input(worker, exit);
                before.layer(worker, stream, before.exit_layer(), window, Extent::Whole);
                before.keep_states(worker, stream, batch);
                worker.barrier();
            }
            pass.embed(worker, &tokens);
            let stream = match recurrent {
                Some(recurrent) => pass.recurrent_input(worker, recurrent, batch),
                None => {
                    for layer in 0..exit.after {
                        pass.model_layer(worker, layer, Extent::Whole);
                    }
                    for index in worker.share(batch.len()) {
                        // SAFETY: the residual stream is complete and only read until the exit layer's projection is
                        // added; slots differ.
                        unsafe { pass.keep(index, &batch[index]) };
                    }
                    pass.exit_input(worker, exit)
                }
            };
            pass.layer(worker, stream, pass.exit_layer(), window, Extent::Whole);
            if exit.recurrent.is_some() {
                pass.keep_states(worker, stream, batch);
            }
            pass.logits(worker, stream, &exit.head);
        });
        let (vocab, ids) = (exit.vocab, exit.draft_ids.as_deref());
        let (work, drawn) = (&self.work, outcomes(batch.len()));
        each(&mut self.pool, batch.len(), |index| {
            let (sequence, span) = (&batch[index], &spans[index]);
            let history = History { tokens: sequence.tokens, prompt: sequence.prompt };
            // SAFETY: the pass that wrote the logits is over.
            let logits = unsafe { work.logits.part(span.row + span.rows - 1, 0, vocab) };
            let _ = drawn[index].set(sequence.sampler.draft(history, sequence.drafted(), logits, ids));
        });
        let keep = |(sequence, drawn): (&Sequence<'_>, OnceLock<Drafted>)| {
            let drafted = drawn.into_inner()?;
            let draft = Draft { token: drafted.token, confidence: drafted.confidence };
            let slot = &mut self.slots[sequence.slot];
            slot.drafted.push(drafted);
            slot.kept.drafted(sequence, way, 1);
            Some(draft)
        };
        Ok(batch.iter().zip(drawn).filter_map(keep).collect())
    }
}

impl Pass<'_> {
    /// Where the exit block's layer is, among the weights and in the cache.
    pub fn exit_layer(&self) -> usize {
        self.model.geometry.layers
    }

    /// Fills the exit layer's keys and values if the exit is after `layers` layers.
    pub fn exit_keys(&self, worker: &Worker<'_>, layers: usize) {
        if let Some(exit) = self.model.weights.exit.as_ref().filter(|exit| exit.after == layers) {
            let stream = self.exit_input(worker, exit);
            self.layer(worker, stream, self.exit_layer(), None, Extent::KeysAndValues);
        }
    }

    /// What the exit block reads of rows whose `h_N` is the residual stream: that itself, or what its matrix makes of it,
    /// which leaves the model's stream as it is. Starts and ends at a barrier.
    fn exit_input(&self, worker: &Worker<'_>, exit: &Exit) -> &RowBuffer {
        let Some(matrix) = &exit.input else { return &self.work.hidden };
        self.project(worker, &self.work.hidden, matrix, &self.work.exit_stream);
        &self.work.exit_stream
    }

    /// What a recurrent exit block reads: of its state at each sequence's last draft, and of that draft, whose embedding is
    /// the residual stream. Starts and ends at a barrier.
    fn recurrent_input(&self, worker: &Worker<'_>, recurrent: &Recurrent, batch: &[Sequence<'_>]) -> &RowBuffer {
        let (work, geometry) = (self.work, &self.model.geometry);
        let (len, epsilon) = (geometry.hidden_size, geometry.rms_norm_eps);
        for index in worker.share(batch.len()) {
            // SAFETY: embeddings and states are complete; the rows that are written are this worker's.
            unsafe {
                let x = work.hidden.part(index, 0, padded(len)).as_ptr();
                let normed = work.own_normed(worker.index).part_mut(0, 0, padded(len));
                let out = normed.as_mut_ptr();
                self.model.simd.run(RmsNorm { x, weight: &recurrent.norm, len, epsilon, out });
                let (state, embedding) = work.recurrent.part_mut(index, 0, 2 * len).split_at_mut(len);
                state.copy_from_slice(work.states.part(batch[index].slot, 0, len));
                embedding.copy_from_slice(&normed[..len]);
            }
        }
        worker.barrier();
        self.project(worker, &work.recurrent, &recurrent.matrix, &work.exit_stream);
        &work.exit_stream
    }

    /// Keeps the last row of each span of the exit block's residual stream, which is complete and only read until the next
    /// barrier, as its slot's state.
    fn keep_states(&self, worker: &Worker<'_>, stream: &RowBuffer, batch: &[Sequence<'_>]) {
        let len = self.model.geometry.hidden_size;
        for index in worker.share(batch.len()) {
            let span = &self.spans[index];
            // SAFETY: the stream is only read; slots differ.
            unsafe {
                let state = stream.part(span.row + span.rows - 1, 0, len);
                self.work.states.part_mut(batch[index].slot, 0, len).copy_from_slice(state);
            }
        }
    }
}
