//! The training run: batches through teacher and student, updates, measurements on held-out text, snapshots.

use super::data::Batches;
use super::error::DistillError;
use super::plan::TrainPlan;
use super::snapshot::{Identity, Snapshot};
use super::teacher::Teacher;
use crate::backend::training::loss::LossSum;
use crate::backend::training::parameters::{ExportedBlock, Rounding};
use crate::backend::training::{Student, StudentState};
use std::ops::ControlFlow;
use std::path::PathBuf;

/// One update, as it is told to whoever watches.
#[derive(Debug, Clone, PartialEq)]
pub struct StepReport {
    /// Its number, from 1.
    pub step: u64,
    /// Means over its positions, measured before the update.
    pub losses: LossSum,
    /// Its learning rate.
    pub rate: f64,
    /// The gradient's norm before clipping.
    pub norm: f64,
    /// Tokens read.
    pub tokens: usize,
    /// Means over the held-out text, where they were measured after this update.
    pub held_out: Option<LossSum>,
}

/// How often what is done, in updates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cadence {
    /// Held-out text is measured; always after the last update.
    pub measure: u64,
    /// A snapshot is written; always at the end of a run.
    pub save: u64,
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// All updates are done.
    Done,
    /// It was asked to stop; a snapshot is where it stopped.
    Stopped,
}

/// A training run of one exit block.
pub struct Trainer<'a> {
    teacher: Teacher,
    student: Box<dyn Student>,
    train: &'a Batches<'a>,
    held_out: Option<&'a Batches<'a>>,
    identity: Identity,
    snapshot: Option<PathBuf>,
    step: u64,
    saved: u64,
}

impl<'a> Trainer<'a> {
    /// A run from its beginning. `held_out` is measured and never trained on; with a `snapshot` path, the run is saved
    /// there.
    ///
    /// # Errors
    /// If the plan makes no sense.
    pub fn new(
        teacher: Teacher,
        student: Box<dyn Student>,
        train: &'a Batches<'a>,
        held_out: Option<&'a Batches<'a>>,
        identity: Identity,
        snapshot: Option<PathBuf>,
    ) -> Result<Self, DistillError> {
        identity.plan.check()?;
        Ok(Self { teacher, student, train, held_out, identity, snapshot, step: 0, saved: 0 })
    }

    /// Goes on where the snapshot was taken, if there is one. Returns the updates done.
    ///
    /// # Errors
    /// If the snapshot is damaged or of another run.
    pub fn resume(&mut self) -> Result<u64, DistillError> {
        let found = self.snapshot.as_deref().map(|path| Snapshot::load(path, &self.identity)).transpose()?.flatten();
        if let Some(Snapshot { step, state }) = found {
            self.student.restore(state)?;
            (self.step, self.saved) = (step, step);
        }
        Ok(self.step)
    }

    /// Trains to the end of the plan, or until `on_step` breaks.
    ///
    /// # Errors
    /// If a device or a file fails, or the loss is no number any more. The last snapshot is kept.
    pub fn run(
        &mut self,
        cadence: Cadence,
        on_step: &mut dyn FnMut(&StepReport) -> ControlFlow<()>,
    ) -> Result<Finish, DistillError> {
        let steps = self.identity.plan.steps;
        while self.step < steps {
            let mut report = self.update()?;
            let (done, last) = (self.step, self.step == steps);
            if last || done % cadence.measure.max(1) == 0 {
                report.held_out = self.measure()?;
            }
            let flow = on_step(&report);
            if last || flow.is_break() || done % cadence.save.max(1) == 0 {
                self.save()?;
            }
            if flow.is_break() && !last {
                return Ok(Finish::Stopped);
            }
        }
        Ok(Finish::Done)
    }

    /// One update.
    fn update(&mut self) -> Result<StepReport, DistillError> {
        let TrainPlan { accumulate, loss, .. } = self.identity.plan;
        let number = self.step + 1;
        let not_finite = |what, found, saved| DistillError::NotFinite { step: number, what, found, saved };
        let (mut sum, mut tokens) = (LossSum::default(), 0);
        for part in 0..accumulate as u64 {
            let segments = self.train.batch(self.step * accumulate as u64 + part);
            let batch = self.teacher.read(&segments, &self.identity.plan)?;
            tokens += batch.lengths.iter().sum::<usize>();
            sum.add(&self.student.learn(&batch, &loss)?);
        }
        let losses = sum.mean();
        if !losses.loss.is_finite() {
            return Err(not_finite("the loss", losses.loss, self.saved));
        }
        let step = self.identity.plan.update(number);
        let norm = self.student.update(&step)?;
        if !norm.is_finite() {
            return Err(not_finite("the gradient's norm", norm, self.saved));
        }
        self.step = number;
        Ok(StepReport { step: number, losses, rate: step.rate, norm, tokens, held_out: None })
    }

    /// Means over the held-out text, of the student as it is; `None` where there is none.
    ///
    /// # Errors
    /// If a device fails.
    pub fn measure(&mut self) -> Result<Option<LossSum>, DistillError> {
        let Some(held_out) = self.held_out else { return Ok(None) };
        let mut sum = LossSum::default();
        for step in 0..held_out.steps_per_epoch() {
            let batch = self.teacher.read(&held_out.batch(step), &self.identity.plan)?;
            sum.add(&self.student.test(&batch, &self.identity.plan.loss)?);
        }
        Ok(Some(sum.mean()))
    }

    /// The block as it goes into a file, rounded, and what it reaches so on the held-out text.
    ///
    /// # Errors
    /// If a device fails, or a parameter cannot be rounded so.
    pub fn export(&mut self, rounding: impl Into<Rounding>) -> Result<(ExportedBlock, Option<LossSum>), DistillError> {
        let state = self.student.state()?;
        let block = self.student.layout().export(&state.values, rounding)?;
        self.student.restore(StudentState { values: block.values(), ..state.clone() })?;
        let reached = self.measure();
        self.student.restore(state)?;
        Ok((block, reached?))
    }

    /// Writes the snapshot, where one is kept.
    fn save(&mut self) -> Result<(), DistillError> {
        if let Some(path) = &self.snapshot {
            Snapshot { step: self.step, state: self.student.state()? }.save(path, &self.identity)?;
            self.saved = self.step;
        }
        Ok(())
    }

    /// Updates done so far.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// The devices, for people.
    pub fn describe(&self) -> (String, String) {
        (self.teacher.backend().describe(), self.student.describe())
    }
}
