//! A batch through the block: all steps of its chains, and back. Mirrors `unrolled` of the processor's code.

use super::Operands;
use super::batch::Told;
use super::launches::{Normed, Rows, at};
use super::memory::{Parameters, Step, Workspace};
use crate::backend::BackendError;
use crate::backend::cuda::driver::Driver;
use crate::backend::cuda::kernels::Address;
use crate::backend::training::parameters::{Layout, Slot};
use crate::model::Geometry;

/// What queueing returns.
pub type Done = Result<(), BackendError>;

/// One batch on a device.
pub struct Pass<'a, D: Driver> {
    pub(super) on: &'a D,
    pub(super) layout: &'a Layout,
    pub(super) geometry: &'a Geometry,
    pub(super) operands: Operands,
    pub(super) parameters: &'a Parameters,
    pub(super) work: &'a Workspace,
    pub(super) told: &'a Told,
}

impl<D: Driver> Pass<'_, D> {
    /// A pass of a batch that is queued to be told.
    ///
    /// # Safety
    /// Parameters and workspace lie in memory of the device as they were planned, for this layout, geometry and
    /// operands and for a batch of this size; what was told fits the rows.
    pub unsafe fn new<'a>(
        on: &'a D,
        layout: &'a Layout,
        geometry: &'a Geometry,
        operands: Operands,
        parameters: &'a Parameters,
        work: &'a Workspace,
        told: &'a Told,
    ) -> Pass<'a, D> {
        Pass { on, layout, geometry, operands, parameters, work, told }
    }

    fn text(&self) -> Rows {
        Rows { count: self.told.text, positions: self.work.inbox.positions }
    }

    /// The rows of a step.
    pub fn chains(&self, step: usize) -> Rows {
        let count = self.told.chains;
        Rows { count, positions: at::<i32>(self.work.inbox.chain_positions, step * count) }
    }

    fn zero(&self, floats: Address, count: usize) -> Done {
        // SAFETY: as promised to the pass.
        unsafe { self.on.zero(floats, count * size_of::<f32>()) }
    }

    /// The residual stream after the layer in each step.
    pub fn forward(&self) -> Done {
        let (work, layout, text) = (self.work, self.layout, self.text());
        if let Some(input) = &layout.input {
            self.narrow(work.hidden, text.count * self.geometry.hidden_size)?;
            self.times(self.weight(input), text.count, work.hidden.factor, work.text.x, 0.0)?;
        }
        self.norm_stream(&work.text, text.count, &layout.input_norm)?;
        self.keys(text, work.text.normed.factor, &work.text_keys)?;
        let (starts, count) = (work.inbox.starts, self.told.chains);
        let first = &work.steps[0].inputs;
        self.take(work.text.x, starts, first.x, count)?;
        self.take_factors(work.text.normed.factor, starts, first.normed.factor, count)?;
        self.layer(0)?;
        let Some(recurrent) = &layout.recurrent else { return Ok(()) };
        for number in 1..work.steps.len() {
            self.read_own(recurrent, number)?;
            self.layer(number)?;
        }
        Ok(())
    }

    /// What a step reads, and the keys that it makes: of the stream that the step before left, and the tokens that it drafted.
    fn read_own(&self, recurrent: &Slot, number: usize) -> Done {
        let (work, rows) = (self.work, self.chains(number));
        let (before, step) = (&work.steps[number - 1], &work.steps[number]);
        let Some(own) = &step.own else { return Ok(()) };
        let tokens = at::<u32>(work.inbox.tokens, (number - 1) * rows.count);
        self.take_factors(self.parameters.embeddings, tokens, own.embedded, rows.count)?;
        self.narrow(before.out, rows.count * self.geometry.hidden_size)?;
        let [of_state, of_token] = self.halves(recurrent);
        self.times(of_state, rows.count, before.out.factor, step.inputs.x, 0.0)?;
        self.times(of_token, rows.count, own.embedded, step.inputs.x, 1.0)?;
        self.norm_stream(&step.inputs, rows.count, &self.layout.input_norm)?;
        self.keys(rows, step.inputs.normed.factor, &own.keys)
    }

    /// Before [`head`](Self::head) adds to it: what does not count has no gradient.
    pub fn forget_gradients(&self) -> Done {
        let (chains, geometry) = (self.told.chains, self.geometry);
        for step in &self.work.steps {
            self.zero(step.dout, chains * geometry.hidden_size)?;
            if let Some(own) = &step.own {
                self.zero(own.keys.dk, chains * geometry.kv_size())?;
                self.zero(own.keys.dv, chains * geometry.kv_size())?;
            }
        }
        Ok(())
    }

    /// Adds the gradients of the block's parameters but for its last norm and head, given those of the steps' outputs.
    pub fn backward(&self) -> Done {
        let (work, layout) = (self.work, self.layout);
        let last = work.steps.len() - 1;
        if let Some(recurrent) = &layout.recurrent {
            for number in (1..=last).rev() {
                self.layer_backward(number, number < last)?;
                self.read_own_backward(recurrent, number)?;
            }
        }
        self.layer_backward(0, last > 0)?;
        let (text, starts, chains) = (self.text(), work.inbox.starts, self.told.chains);
        self.keys_backward(text, work.text.normed.factor, &work.text_keys, work.dtext, 0.0)?;
        self.add_back(work.dnormed, starts, work.dtext, chains)?;
        let stream = Normed::of(&work.text, text.count);
        let Some(input) = &layout.input else {
            // What is before the block is not trained.
            return self.norm_weight_backward(stream, &layout.input_norm, work.dtext);
        };
        self.norm_backward(stream, &layout.input_norm, work.dtext, work.dtext, false)?;
        self.add_back(work.steps[0].dout, starts, work.dtext, chains)?;
        let dx = self.narrowed(work.dtext, text.count * self.geometry.hidden_size)?;
        self.weight_backward(self.weight(input), text.count, work.hidden.factor, dx)
    }

    /// The way back of [`read_own`](Self::read_own). Later steps have all added to the gradients of this one's keys.
    fn read_own_backward(&self, recurrent: &Slot, number: usize) -> Done {
        let (work, rows) = (self.work, self.chains(number));
        let (before, step): (&Step, &Step) = (&work.steps[number - 1], &work.steps[number]);
        let Some(own) = &step.own else { return Ok(()) };
        self.keys_backward(rows, step.inputs.normed.factor, &own.keys, work.dnormed, 1.0)?;
        let inputs = Normed::of(&step.inputs, rows.count);
        self.norm_backward(inputs, &self.layout.input_norm, work.dnormed, step.dout, true)?;
        let dx = self.narrowed(step.dout, rows.count * self.geometry.hidden_size)?;
        let [of_state, of_token] = self.halves(recurrent);
        self.weight_backward(of_state, rows.count, before.out.factor, dx)?;
        // Embeddings are not trained.
        self.weight_backward(of_token, rows.count, own.embedded, dx)?;
        self.times_backward(of_state, rows.count, dx, before.dout, 1.0)
    }
}
