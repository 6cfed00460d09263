//! Training on a CUDA device, or on the emulated one: the passes of the processor's code, by kernels of this project's
//! own (`cuda/*.cu`) and, for products of matrices, the device's library.
//!
//! From the bottom up: `memory` lays everything out before it is taken, `host` is the host's side, `launches` the
//! steps and `pass` their order, `update` AdamW.
//!
//! Values, activations, gradients and the optimiser's memory are f32. Products read bf16 copies and sum in f32
//! ([`Operands::Bf16`]): that is what tensor cores are fast at, and a gradient needs bf16's range more than f16's
//! digits, so f16 models train with it too. [`Operands::F32`] keeps full f32 factors, to compare with the processor.
//!
//! Kernels sum in fixed orders; the library's depends on shapes, device and release ([`Driver::matmul`]). So training
//! twice on one machine gives the same bits, and on another one close ones. Everything is queued on one stream; the
//! host waits once per batch and once per update. **It has never been run on a GPU.**

mod host;
mod launches;
mod memory;
mod pass;
mod update;

pub use memory::TrainingBudget;

use super::adamw::AdamStep;
use super::loss::{LossOptions, LossSum, Losses};
use super::parameters::Layout;
use super::{Student, StudentState, Targets, TeacherBatch};
use crate::backend::BackendError;
use crate::backend::cuda::HEAD_DIMS;
use crate::backend::cuda::arena::Arena;
use crate::backend::cuda::driver::{Driver, Memory};
use crate::backend::cuda::kernels::training::PositionLoss;
use crate::backend::cuda::kernels::{Address, Flash, RowTile};
use crate::backend::cuda::matmul::Number;
use crate::backend::rope::RopeTable;
use crate::model::Geometry;
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
    /// The part of the device's memory that may be used, above 0 and at most 1.
    pub memory_fraction: f64,
    /// What products multiply.
    pub operands: Operands,
    /// Logits of the teacher that are on the device at a time; those of one position at least.
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
    /// A student with these parameters.
    ///
    /// # Errors
    /// If there is no library of matrix products or too little memory, no kernel for the model's heads, or the device
    /// fails.
    pub fn new(
        driver: Arc<D>,
        geometry: &Geometry,
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
        if layout.input.is_some() || layout.recurrent.is_some() {
            return refused("a block with an input matrix or a recurrent one is not trained on a GPU yet".into());
        }
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
        let piece = work.piece * geometry.vocab_size * size_of::<f32>();
        let host = Host::new(&driver, work.inbox.bytes, piece, rows * size_of::<PositionLoss>())?;
        let turns = RopeTable::new(&geometry.rope, geometry.head_dim, window)?.pairs()?;
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
        // SAFETY: planned for as many positions.
        unsafe { student.host.upload(student.parameters.turns, &turns) }?;
        if let Some(ids) = student.layout.draft_vocab().ids {
            // SAFETY: planned for as many tokens.
            unsafe { student.host.upload(student.parameters.draft_ids, ids) }?;
        }
        student.restore(StudentState { values, mean: vec![0.0; trained], square: vec![0.0; trained] })?;
        Ok(student)
    }

    /// Bytes of the device's memory that it takes.
    pub fn device_bytes(&self) -> usize {
        self.memory.iter().map(Memory::bytes).sum()
    }

    /// A batch through the block, and back where `learn`. After an error nothing is queued any more.
    fn run(&mut self, batch: &TeacherBatch, loss: &LossOptions, learn: bool) -> Result<Losses, BackendError> {
        let logits = self.check(batch)?;
        if batch.scored.is_empty() {
            return Ok(Losses::of_steps(1));
        }
        let losses = self.queue(batch, logits, loss, learn);
        if losses.is_err() {
            // The first error is the one to be told.
            let _ = self.driver.wait();
        }
        let mut total = LossSum::default();
        for (position, PositionLoss { loss, divergence, overlap, agreement }) in batch.scored.iter().zip(losses?) {
            total.add(&LossSum { weight: position.weight, loss, divergence, overlap, agreement });
        }
        self.weight += if learn { total.weight } else { 0.0 };
        Ok(Losses { drafts: vec![total] })
    }

    fn queue(
        &mut self,
        batch: &TeacherBatch,
        logits: &[f32],
        loss: &LossOptions,
        learn: bool,
    ) -> Result<Vec<PositionLoss>, BackendError> {
        let Self { driver, layout, geometry, options, parameters, work, host, .. } = self;
        let tiles: Vec<RowTile> = Flash::tiles(&batch.lengths, geometry.head_dim);
        let positions: Vec<i32> = batch.lengths.iter().flat_map(|&len| 0..len as i32).collect();
        let index: Vec<u32> = batch.scored.iter().map(|position| position.row as u32).collect();
        let drafted = layout.draft_vocab();
        let column = |token| drafted.column(token).map_or(u32::MAX, |column| column as u32);
        let columns: Vec<u32> = batch.scored.iter().map(|position| column(position.token)).collect();
        let weights: Vec<f64> = batch.scored.iter().map(|position| position.weight).collect();
        let inbox = &work.inbox;
        host.tell(
            inbox,
            &[
                (inbox.positions, bytemuck::cast_slice(&positions)),
                (inbox.tiles, bytemuck::cast_slice(&tiles)),
                (inbox.index, bytemuck::cast_slice(&index)),
                (inbox.columns, bytemuck::cast_slice(&columns)),
                (inbox.weights, bytemuck::cast_slice(&weights)),
                (inbox.hidden, bytemuck::cast_slice(&batch.hidden)),
            ],
        )?;
        let (rows, hidden) = (positions.len(), geometry.hidden_size);
        // SAFETY: laid out by `new` for these; the batch was checked.
        let pass =
            unsafe { Pass::new(&**driver, layout, geometry, options.operands, parameters, work, rows, tiles.len()) };
        pass.forward()?;
        if learn {
            // Rows that do not count have no gradient.
            // SAFETY: planned for as many rows.
            unsafe { driver.zero(work.dout.wide, rows * hidden * size_of::<f32>()) }?;
        }
        for start in (0..index.len()).step_by(work.piece) {
            let piece = start..index.len().min(start + work.piece);
            let vocab = geometry.vocab_size;
            // SAFETY: planned for the logits of a piece.
            unsafe { host.upload(work.teacher, &logits[piece.start * vocab..piece.end * vocab]) }?;
            pass.head(&piece, loss, learn)?;
        }
        if learn {
            pass.backward()?;
        }
        // SAFETY: planned for as many positions.
        unsafe { host.answer(work.losses, index.len()) }
    }

    /// Refuses a batch that the buffers were not planned for, or whose parts do not fit each other. The teacher's logits.
    fn check<'a>(&self, batch: &'a TeacherBatch) -> Result<&'a [f32], BackendError> {
        let refused = |found: String| Err(BackendError::Device(found));
        let Targets::Logits(logits) = &batch.targets else {
            return refused(
                "hidden states of the teacher, which are not learned from on a GPU (expected logits)".into(),
            );
        };
        let (rows, CudaStudentOptions { window, rows: most, .. }) =
            (batch.lengths.iter().sum::<usize>(), &self.options);
        if let Some(long) = batch.lengths.iter().find(|&len| len > window) {
            return refused(format!("a segment of {long} tokens (expected at most {window})"));
        }
        if rows > *most {
            return refused(format!("a batch of {rows} tokens (expected at most {most})"));
        }
        let found = [batch.hidden.len(), logits.len()];
        let expected = [rows * self.geometry.hidden_size, batch.scored.len() * self.geometry.vocab_size];
        if found != expected {
            return refused(format!("a batch of {found:?} hidden numbers and logits (expected {expected:?})"));
        }
        let ascending = batch.scored.windows(2).all(|pair| pair[0].row < pair[1].row);
        if !ascending || batch.scored.last().is_some_and(|position| position.row >= rows) {
            return refused(format!("positions that are not ascending rows of {rows}"));
        }
        Ok(logits)
    }
}

impl<D: Driver> Student for CudaStudent<D> {
    fn layout(&self) -> &Layout {
        &self.layout
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
