//! Passes, step by step. Nothing here looks at numbers: what is launched depends on the
//! pass's shape alone, so that it can be recorded once and replayed.

use super::driver::Driver;
use super::fast::FastPrefill;
use super::inbox::{Inbox, Shape};
use super::kernels::{Address, DraftLoop, Format, PagedBatch};
use super::weights::{Exit, Weights};
use super::workspace::{Cache, Workspace};
use crate::backend::BackendError;
use crate::model::Geometry;
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
pub(super) struct Span {
    pub rows: usize,
    /// Most rows of one sequence.
    pub most_rows: usize,
    pub batch: PagedBatch,
    /// Where projections are the library's.
    pub fast: Option<FastPrefill>,
}

/// What follows in a residual stream: the norm, and where what is multiplied under it goes.
#[derive(Clone, Copy)]
pub(super) struct Next {
    pub norm: Address,
    pub operand: Address,
}

/// One pass of a model on a device.
pub struct Pass<'a, D: Driver> {
    pub on: &'a D,
    pub model: &'a Model,
    pub inbox: &'a Inbox,
    pub shape: Shape,
}

pub(super) type Done = Result<(), BackendError>;

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
            let stream = self.exit_input(span, exit)?;
            self.draft_from(span, stream, exit)
        }
    }

    /// The exit block alone on its state and the last draft of each sequence; a draft from each.
    ///
    /// # Safety
    /// As [`draft`](Self::draft).
    ///
    /// # Errors
    /// If there is no recurrent exit block, or the device refuses or fails.
    pub unsafe fn draft_recurrently(&self) -> Done {
        let exit = self.model.weights.exit.as_ref();
        let Some((exit, recurrent)) = exit.and_then(|exit| Some((exit, exit.recurrent?))) else {
            return Err(BackendError::not_recurrent());
        };
        let (span, work) = (self.fresh(), &self.model.work);
        // SAFETY: as promised to the pass.
        unsafe {
            self.recurrent_input(span)?;
            self.begin_exit_stream(span, recurrent, work.recurrent_operand, exit)?;
            self.draft_from(span, work.exit_residual, exit)
        }
    }

    /// The exit block on the row of the round before that comes before each sequence's pending token, for its state there;
    /// then as [`draft_recurrently`](Self::draft_recurrently).
    ///
    /// # Safety
    /// As [`draft`](Self::draft).
    ///
    /// # Errors
    /// As [`draft_recurrently`](Self::draft_recurrently).
    pub unsafe fn draft_continued(&self) -> Done {
        let Model { geometry, weights, work, .. } = self.model;
        let exit = weights.exit.as_ref().filter(|exit| exit.recurrent.is_some());
        let (exit, before) = (exit.ok_or_else(BackendError::not_recurrent)?, self.later());
        let any = Next { norm: exit.head.norm, operand: work.operand };
        // SAFETY: as promised to the pass.
        unsafe {
            self.gather(work.kept, self.next(exit.after - 1))?;
            let stream = self.exit_input(before, exit)?;
            self.layer(before, stream, &exit.layer, geometry.layers, exit.after, any)?;
            self.keep_states(stream)?;
            self.draft_recurrently()
        }
    }

    /// The exit block on its input; a draft from each row.
    unsafe fn draft_from(&self, span: Span, stream: Address, exit: &Exit) -> Done {
        let next = Next { norm: exit.head.norm, operand: self.model.work.operand };
        // SAFETY: as promised to the pass.
        unsafe {
            self.layer(span, stream, &exit.layer, self.model.geometry.layers, exit.after, next)?;
            if exit.recurrent.is_some() {
                self.keep_states(stream)?;
            }
            self.head(span, &exit.head)?;
            self.sample(exit.head.matrix.outputs, exit.draft_ids, true)
        }
    }

    /// What the exit block's layer reads of rows whose `h_N` is the model's residual stream: the stream that it goes on
    /// with.
    unsafe fn exit_input(&self, span: Span, exit: &Exit) -> Result<Address, BackendError> {
        let work = &self.model.work;
        let Some(input) = &exit.input else { return Ok(work.residual) };
        // SAFETY: as promised to the pass.
        unsafe { self.begin_exit_stream(span, input.matrix, work.exit_operand, exit) }?;
        Ok(work.exit_residual)
    }

    /// All drafts of one sequence's round, as its plan has it: a loop, so to be recorded.
    ///
    /// # Safety
    /// As [`draft`](Self::draft), for each of the drafts.
    ///
    /// # Errors
    /// As [`draft`](Self::draft), or if the device has no loops.
    pub unsafe fn draft_loop(&self) -> Done {
        let state = self.inbox.of(&self.inbox.layout.draft_loop);
        self.on.begin_loop()?;
        // SAFETY: as promised to the pass; drafts are counted, so the loop ends.
        unsafe {
            if self.shape.kind.is_recurrent() { self.draft_recurrently() } else { self.draft() }?;
            self.next_draft()?;
            self.on.end_loop(Address(state.0 + DraftLoop::GO_ON as u64))
        }
    }

    /// First-N on the rows of each sequence that come without `h_N`, Last-M on all rows of the round, verdicts.
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
                    self.exit_input(fresh, exit)?;
                    self.keys_and_values(fresh, &exit.layer, layers, exit.after)?;
                    self.keep()?;
                    let norm = weights.layers[exit.after].input_norm;
                    self.gather(self.model.work.kept, Next { norm, operand: self.model.work.operand })?;
                    exit.after..layers
                }
                // Nothing was sampled: the rows are the same.
                None => 0..layers,
            };
            let all = self.later();
            self.layers(all, rest)?;
            self.head(all, &weights.head)?;
            self.sample(self.model.geometry.vocab_size, Address(0), false)?;
            self.accept()
        }
    }

    /// Fills the cache for a text; with `fast` its projections are the library's.
    ///
    /// # Safety
    /// As [`draft`](Self::draft).
    ///
    /// # Errors
    /// If the device refuses or fails.
    pub unsafe fn prefill(&self, fast: Option<FastPrefill>) -> Done {
        let last = self.model.geometry.layers - 1;
        let span = Span { fast, ..self.fresh() };
        // SAFETY: as promised to the pass.
        unsafe {
            self.embed(span)?;
            self.text_layers(span, 0..last)?;
            self.exit_keys_and_values(span, last)?;
            // Nothing reads what comes after the last layer's keys and values.
            self.keys_and_values(span, &self.model.weights.layers[last], last, last)
        }
    }

    /// A text as it goes into the first layer.
    ///
    /// # Safety
    /// As [`draft`](Self::draft).
    ///
    /// # Errors
    /// If the device refuses or fails.
    pub unsafe fn begin_reading(&self) -> Done {
        // SAFETY: as promised to the pass.
        unsafe { self.embed(self.fresh()) }
    }

    /// Some layers over a text, up to the residual stream behind them.
    ///
    /// # Safety
    /// As [`draft`](Self::draft), and the residual stream is where the layer before the first of these left it.
    ///
    /// # Errors
    /// If the device refuses or fails.
    pub unsafe fn read_layers(&self, range: Range<usize>) -> Done {
        // SAFETY: as promised to the pass.
        unsafe { self.text_layers(self.fresh(), range) }
    }

    /// The logits of a text.
    ///
    /// # Safety
    /// As [`draft`](Self::draft), and the residual stream is where the last layer left it.
    ///
    /// # Errors
    /// If the device refuses or fails.
    pub unsafe fn read_logits(&self) -> Done {
        // SAFETY: as promised to the pass.
        unsafe { self.head(self.fresh(), &self.model.weights.head) }
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
            self.exit_input(span, exit)?;
            self.keys_and_values(span, &exit.layer, geometry.layers, index)?;
            self.gather(work.residual, Next { norm: weights.layers[index].input_norm, operand: work.operand })
        }
    }

    fn fresh(&self) -> Span {
        let (rows, most_rows) = (self.shape.fresh, self.shape.most_fresh);
        Span { rows, most_rows, batch: self.inbox.fresh_batch(&self.shape), fast: None }
    }

    fn later(&self) -> Span {
        let (rows, most_rows) = (self.shape.rows, self.shape.most_rows);
        Span { rows, most_rows, batch: self.inbox.later_batch(&self.shape), fast: None }
    }

    /// What follows the residual stream after layer `index`.
    fn next(&self, index: usize) -> Next {
        let Model { weights, work, .. } = self.model;
        let norm = match weights.exit.as_ref().filter(|exit| exit.after == index + 1) {
            Some(Exit { input: Some(input), .. }) => return Next { norm: input.norm, operand: work.exit_operand },
            Some(exit) => exit.layer.input_norm,
            None => weights.layers.get(index + 1).map_or(weights.head.norm, |next| next.input_norm),
        };
        Next { norm, operand: work.operand }
    }

    unsafe fn layers(&self, span: Span, range: Range<usize>) -> Done {
        for index in range {
            // SAFETY: as promised to the pass.
            unsafe {
                let (stream, layer) = (self.model.work.residual, &self.model.weights.layers[index]);
                self.layer(span, stream, layer, index, index, self.next(index))
            }?;
        }
        Ok(())
    }
}
