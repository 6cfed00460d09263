//! Training on a CUDA device, or on the emulated one: the passes of the processor's code, by kernels of this project's
//! own (`cuda/*.cu`) and, for products of matrices, the device's library.
//!
//! From the bottom up: `memory` lays everything out before it is taken, against `budget`; `host` is the host's side, `batch`
//! what it tells of a batch; `launches` are kernels and products, `layer` the layer made of them, `pass` all steps of the
//! chains, `head` what they cost; `update` is AdamW.
//!
//! What the teacher says comes as its last hidden states; its logits are made here, of the drafted tokens alone.
//!
//! Values, activations, gradients and the optimiser's memory are f32. Products read bf16 copies and sum in f32
//! ([`Operands::Bf16`]): that is what tensor cores are fast at, and a gradient needs bf16's range more than f16's
//! digits, so f16 models train with it too. [`Operands::F32`] keeps full f32 factors, to compare with the processor.
//!
//! Kernels sum in fixed orders; the library's depends on shapes, device and release ([`Driver::matmul`]). So training
//! twice on one machine gives the same bits, and on another one close ones. Everything is queued on one stream; the
//! host waits once per batch and once per update. **It has never been run on a GPU.**

mod batch;
mod budget;
mod head;
mod host;
mod launches;
mod layer;
mod memory;
mod pass;
mod places;
mod update;

pub use budget::TrainingBudget;

use super::adamw::AdamStep;
use super::loss::{LossOptions, LossSum, Losses};
use super::model_side::ModelSide;
use super::parameters::Layout;
use super::{States, Student, StudentState, Targets, TeacherBatch, check_steps};
use crate::backend::BackendError;
use crate::backend::cuda::HEAD_DIMS;
use crate::backend::cuda::arena::Arena;
use crate::backend::cuda::driver::{Driver, Memory};
use crate::backend::cuda::kernels::Address;
use crate::backend::cuda::kernels::training::PositionLoss;
use crate::backend::cuda::matmul::Number;
use crate::backend::rope::RopeTable;
use crate::model::{Geometry, ModelWeights};
use batch::Told;
use half::bf16;
use host::Host;
use memory::{Parameters, Workspace};
use pass::Pass;
use std::fmt;
use std::sync::Arc;

/// What products of matrices multiply.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Operands {
    /// bf16 copies, summed in f32.
    #[default]
    Bf16,
    /// f32.
    F32,
}

impl Operands {
    fn number(self) -> Number {
        match self {
            Operands::Bf16 => Number::Bf16,
            Operands::F32 => Number::F32,
        }
    }
}

impl fmt::Display for Operands {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.number().fmt(f)
    }
}

/// What to reserve on a device, and how to multiply there.
#[derive(Debug, Clone, PartialEq)]
pub struct CudaStudentOptions {
    /// Most tokens of a segment.
    pub window: usize,
    /// Most tokens of a batch.
    pub rows: usize,
    /// Steps of the chains of a recurrent block; else 1.
    pub steps: usize,
    /// The part of the device's memory that may be used, above 0 and at most 1.
    pub memory_fraction: f64,
    /// What products multiply.
    pub operands: Operands,
    /// Logits of the student that are on the device at a time; those of all steps for one position at least.
    pub logits: usize,
}

impl CudaStudentOptions {
    /// Enough positions for the products of the head to be large.
    pub const LOGITS: usize = 32 << 20;
}

/// An exit block that is trained on a CUDA device.
pub struct CudaStudent<D: Driver> {
    layout: Layout,
    geometry: Geometry,
    options: CudaStudentOptions,
    parameters: Parameters,
    work: Workspace,
    host: Host<D>,
    /// Of the positions in the gradient.
    weight: f64,
    memory: [Memory<D>; 2],
    driver: Arc<D>,
}

impl<D: Driver> CudaStudent<D> {
    /// A student with these parameters, of a block for `model`.
    ///
    /// # Errors
    /// If there is no library of matrix products or too little memory, no kernel for the model's heads, no step or several of a
    /// block that is not recurrent, or the device fails.
    pub fn new(
        driver: Arc<D>,
        geometry: &Geometry,
        model: &ModelWeights<'_>,
        layout: Layout,
        values: Vec<f32>,
        options: CudaStudentOptions,
    ) -> Result<Self, BackendError> {
        let CudaStudentOptions { window, rows, memory_fraction: fraction, .. } = options;
        let refused = |found: String| Err(BackendError::Device(format!("cuda: {found}")));
        if !HEAD_DIMS.contains(&geometry.head_dim) {
            return refused(format!("head_dim {} (expected one of {HEAD_DIMS:?})", geometry.head_dim));
        }
        layout.check(geometry).map_err(BackendError::Exit)?;
        check_steps(&layout, options.steps)?;
        if window == 0 || rows < window {
            return refused(format!(
                "batches of {rows} tokens, segments of {window} (expected at least 1, and as many)"
            ));
        }
        // Before the memory is counted: the library takes some.
        let library = driver.matmul_workspace()?;
        let lay_out = |base| Workspace::plan(base, &layout, geometry, &options, library);
        let keep = |base| Parameters::plan(base, &layout, geometry, &options);
        let (parameter_bytes, (work, work_bytes)) = (keep(Arena::NOWHERE).1, lay_out(Arena::NOWHERE));
        let budget = TrainingBudget {
            memory: driver.memory()?,
            fraction,
            parameters: parameter_bytes as u64,
            workspace: work_bytes as u64,
            rows,
        };
        budget.check()?;
        let memory = [
            Memory::zeroed(&driver, parameter_bytes, "parameters to train")?,
            Memory::zeroed(&driver, work_bytes, "workspace of training")?,
        ];
        let host = Host::new(&driver, work.inbox.bytes, rows * options.steps * size_of::<PositionLoss>())?;
        let trained = layout.trained();
        let mut student = Self {
            parameters: keep(memory[0].at()).0,
            work: lay_out(memory[1].at()).0,
            geometry: geometry.clone(),
            layout,
            options,
            host,
            weight: 0.0,
            memory,
            driver,
        };
        student.keep_model(model)?;
        student.restore(StudentState { values, mean: vec![0.0; trained], square: vec![0.0; trained] })?;
        Ok(student)
    }

    /// Copies what is needed of the model, and the turns of positions.
    fn keep_model(&mut self, model: &ModelWeights<'_>) -> Result<(), BackendError> {
        let Self { layout, geometry, options, parameters, host, .. } = self;
        let turns = RopeTable::new(&geometry.rope, geometry.head_dim, options.window)?.pairs()?;
        let side = ModelSide::<f32>::new(model, layout, geometry.rms_norm_eps.into());
        // SAFETY: planned for as many elements.
        unsafe {
            host.upload(parameters.turns, &turns)?;
            host.upload(parameters.model_norm, &side.norm)?;
        }
        for (to, values) in [(parameters.model_head, side.head), (parameters.embeddings, side.embeddings)] {
            // SAFETY: planned for as many elements, as products read them.
            unsafe {
                match options.operands {
                    Operands::F32 => host.upload(to, &values)?,
                    Operands::Bf16 => {
                        let narrow: Vec<u16> = values.into_iter().map(|x| bf16::from_f32(x).to_bits()).collect();
                        host.upload(to, &narrow)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Bytes of the device's memory that it takes.
    pub fn device_bytes(&self) -> usize {
        self.memory.iter().map(Memory::bytes).sum()
    }

    /// A batch through the block, and back where `learn`. After an error nothing is queued any more.
    fn run(&mut self, batch: &TeacherBatch, loss: &LossOptions, learn: bool) -> Result<Losses, BackendError> {
        let states = self.check(batch)?;
        let mut total = Losses::of_steps(self.options.steps);
        if batch.scored.is_empty() {
            return Ok(total);
        }
        let losses = self.queue(batch, states, loss, learn);
        if losses.is_err() {
            // The first error is the one to be told.
            let _ = self.driver.wait();
        }
        let (told, losses) = losses?;
        for (&(position, step), of_draft) in told.drafts.iter().zip(losses) {
            let PositionLoss { loss, divergence, overlap, agreement } = of_draft;
            let weight = batch.scored[position].weight;
            total.steps[step].add(&LossSum { weight, loss, divergence, overlap, agreement });
        }
        self.weight += if learn { total.all().weight } else { 0.0 };
        Ok(total)
    }

    fn queue(
        &mut self,
        batch: &TeacherBatch,
        states: &States,
        loss: &LossOptions,
        learn: bool,
    ) -> Result<(Told, Vec<PositionLoss>), BackendError> {
        let Self { driver, layout, geometry, options, parameters, work, host, .. } = self;
        let told = Told::tell(host, work, batch, states, layout, geometry)?;
        // SAFETY: laid out by `new` for these; the batch was checked.
        let pass = unsafe { Pass::new(&**driver, layout, geometry, options.operands, parameters, work, &told) };
        pass.forward()?;
        if learn {
            pass.forget_gradients()?;
        }
        told.pieces.iter().try_for_each(|piece| pass.head(piece, loss, learn))?;
        if learn {
            pass.backward()?;
        }
        // SAFETY: planned for as many drafts.
        let losses = unsafe { host.answer(work.losses, told.drafts.len()) }?;
        Ok((told, losses))
    }

    /// Refuses a batch that the buffers were not planned for, or whose parts do not fit each other. What the teacher says.
    fn check<'a>(&self, batch: &'a TeacherBatch) -> Result<&'a States, BackendError> {
        let refused = |found: String| Err(BackendError::Device(found));
        let Targets::States(states) = &batch.targets else {
            return refused("logits of the teacher (expected its last hidden states)".into());
        };
        let (rows, CudaStudentOptions { window, rows: most, .. }) =
            (batch.lengths.iter().sum::<usize>(), &self.options);
        if let Some(long) = batch.lengths.iter().find(|&len| len > window) {
            return refused(format!("a segment of {long} tokens (expected at most {window})"));
        }
        if rows > *most {
            return refused(format!("a batch of {rows} tokens (expected at most {most})"));
        }
        let Geometry { hidden_size, vocab_size, .. } = self.geometry;
        let positions = batch.scored.len();
        let found = [batch.tokens.len(), batch.hidden.len(), states.last.len()];
        let expected = [rows, rows * hidden_size, positions * hidden_size];
        if found != expected {
            return refused(format!(
                "a batch of {found:?} tokens, hidden numbers and last ones (expected {expected:?})"
            ));
        }
        let found = [states.log_totals.len(), states.likeliest.len(), states.vocab];
        let expected = [positions, positions, vocab_size];
        if found != expected {
            return refused(format!("{found:?} sums, likeliest tokens and logits of each (expected {expected:?})"));
        }
        if let Some(token) = batch.tokens.iter().find(|&&token| token as usize >= vocab_size) {
            return refused(format!("token {token} (expected less than {vocab_size})"));
        }
        let ascending = batch.scored.windows(2).all(|pair| pair[0].row < pair[1].row);
        if !ascending || batch.scored.last().is_some_and(|position| position.row >= rows) {
            return refused(format!("positions that are not ascending rows of {rows}"));
        }
        Ok(states)
    }
}

impl<D: Driver> Student for CudaStudent<D> {
    fn layout(&self) -> &Layout {
        &self.layout
    }

    fn takes_states(&self) -> bool {
        true
    }

    fn learn(&mut self, batch: &TeacherBatch, loss: &LossOptions) -> Result<Losses, BackendError> {
        self.run(batch, loss, true)
    }

    fn test(&mut self, batch: &TeacherBatch, loss: &LossOptions) -> Result<Losses, BackendError> {
        self.run(batch, loss, false)
    }

    fn update(&mut self, step: &AdamStep) -> Result<f64, BackendError> {
        self.queue_update(step)
    }

    fn state(&self) -> Result<StudentState, BackendError> {
        let Self { layout, parameters, host, .. } = self;
        let read = |from: Address, count| {
            // SAFETY: planned for as many elements.
            unsafe { host.download(from, count) }
        };
        Ok(StudentState {
            values: read(parameters.values.wide, layout.len())?,
            mean: read(parameters.mean, layout.trained())?,
            square: read(parameters.square, layout.trained())?,
        })
    }

    fn restore(&mut self, state: StudentState) -> Result<(), BackendError> {
        state.check(&self.layout)?;
        let Self { layout, parameters, host, driver, .. } = self;
        let arrays =
            [(parameters.values.wide, state.values), (parameters.mean, state.mean), (parameters.square, state.square)];
        for (to, values) in arrays {
            // SAFETY: planned for as many elements, as was checked.
            unsafe { host.upload(to, &values) }?;
        }
        // SAFETY: planned for as many elements.
        unsafe { driver.zero(parameters.gradient, layout.trained() * size_of::<f32>()) }?;
        self.copy_values()?;
        self.weight = 0.0;
        self.driver.wait()
    }

    fn describe(&self) -> String {
        format!("cuda, {}, products of {}", self.driver.describe(), self.options.operands)
    }
}
