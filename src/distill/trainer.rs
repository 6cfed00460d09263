//! The training run: batches through teacher and student, updates, measurements on held-out text, snapshots.

use super::data::Batches;
use super::data::Segment;
use super::error::DistillError;
use super::plan::TrainPlan;
use super::ridge::Ridge;
use super::snapshot::{Best, Identity, Snapshot};
use super::teacher::Teacher;
use crate::backend::training::loss::Losses;
use crate::backend::training::parameters::{ExportedBlock, Rounding};
use crate::backend::training::{Student, StudentState, Targets, TeacherBatch};
use std::ops::ControlFlow;
use std::path::PathBuf;

/// One update, as it is told to whoever watches.
#[derive(Debug, Clone, PartialEq)]
pub struct StepReport {
    /// Its number, from 1.
    pub step: u64,
    /// Sums over its positions, measured before the update.
    pub losses: Losses,
    /// Its learning rate.
    pub rate: f64,
    /// The gradient's norm before clipping.
    pub norm: f64,
    /// Tokens read.
    pub tokens: usize,
    /// Sums over the held-out text, where they were measured after this update.
    pub held_out: Option<Losses>,
}

/// How often what is done, in updates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cadence {
    /// Held-out text is measured; always after the last update.
    pub measure: u64,
    /// A snapshot is written; always at the end of a run.
    pub save: u64,
    /// Measurements in a row without a better one after which a run is done; `None`: all updates are made.
    pub patience: Option<u64>,
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
    best: Option<Best>,
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
        Ok(Self { teacher, student, train, held_out, identity, snapshot, step: 0, saved: 0, best: None })
    }

    /// Goes on where the snapshot was taken, if there is one. Returns the updates done.
    ///
    /// # Errors
    /// If the snapshot is damaged or of another run.
    pub fn resume(&mut self) -> Result<u64, DistillError> {
        let found = self.snapshot.as_deref().map(|path| Snapshot::load(path, &self.identity)).transpose()?.flatten();
        if let Some(Snapshot { step, state, best }) = found {
            self.student.restore(state)?;
            (self.step, self.saved, self.best) = (step, step, best);
        }
        Ok(self.step)
    }

    /// Gives the block the input matrix that ridge regression finds on one pass over the training data, where the plan says
    /// so and nothing was trained yet. `on_batch` is told how many batches are done, of how many.
    ///
    /// # Errors
    /// If the block has no such matrix, the student takes no hidden states, a device or a file fails, or the states are no
    /// numbers.
    pub fn fit_input(&mut self, on_batch: &mut dyn FnMut(u64, u64) -> ControlFlow<()>) -> Result<Finish, DistillError> {
        if !self.identity.plan.ridge || self.step > 0 {
            return Ok(Finish::Done);
        }
        let place = self.student.layout().input();
        let place = place.filter(|_| self.student.takes_states()).ok_or_else(|| DistillError::Input {
            found: "ridge regression for a block without one, or a student that takes no hidden states".into(),
            expected: "a block with an input matrix, on the processor",
        })?;
        let mut ridge = Ridge::new(self.teacher.backend().geometry().hidden_size);
        let batches = self.train.steps_per_epoch();
        for step in 0..batches {
            let batch = self.read(&self.train.batch(step))?;
            let (from, to) = pairs(&batch);
            ridge.add(&from, to);
            if on_batch(step + 1, batches).is_break() {
                return Ok(Finish::Stopped);
            }
        }
        let mut state = self.student.state()?;
        state.values[place].copy_from_slice(&ridge.solve()?);
        self.student.restore(state)?;
        Ok(Finish::Done)
    }

    /// Trains to the end of the plan, or until held-out text gets no better, or until `on_step` breaks.
    ///
    /// # Errors
    /// If a device or a file fails, or the loss is no number any more. The last snapshot is kept.
    pub fn run(
        &mut self,
        cadence: Cadence,
        on_step: &mut dyn FnMut(&StepReport) -> ControlFlow<()>,
    ) -> Result<Finish, DistillError> {
        let steps = self.identity.plan.steps;
        while self.step < steps && !self.gets_no_better(cadence) {
            let mut report = self.update()?;
            let (done, last) = (self.step, self.step == steps);
            if last || done % cadence.measure.max(1) == 0 {
                report.held_out = self.measure()?;
                self.judge(report.held_out.as_ref())?;
            }
            let flow = on_step(&report);
            let last = last || self.gets_no_better(cadence);
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
        let (mut losses, mut tokens) = (Losses::default(), 0);
        for part in 0..accumulate as u64 {
            let segments = self.train.batch(self.step * accumulate as u64 + part);
            let batch = self.read(&segments)?;
            tokens += segments.iter().map(|segment| segment.tokens.len()).sum::<usize>();
            losses.add(&self.student.learn(&batch, &loss)?);
        }
        let mean = losses.all().mean().loss;
        if !mean.is_finite() {
            return Err(not_finite("the loss", mean, self.saved));
        }
        let step = self.identity.plan.update(number);
        let norm = self.student.update(&step)?;
        if !norm.is_finite() {
            return Err(not_finite("the gradient's norm", norm, self.saved));
        }
        self.step = number;
        Ok(StepReport { step: number, losses, rate: step.rate, norm, tokens, held_out: None })
    }

    /// What the teacher says of segments, as the student takes it.
    fn read(&mut self, segments: &[Segment]) -> Result<TeacherBatch, DistillError> {
        let plan = &self.identity.plan;
        if self.student.takes_states() {
            self.teacher.states(segments, plan)
        } else {
            self.teacher.logits(segments, plan)
        }
    }

    /// Remembers the student if it is the best so far.
    fn judge(&mut self, held_out: Option<&Losses>) -> Result<(), DistillError> {
        let Some(loss) = held_out.map(|losses| losses.all().mean().loss) else { return Ok(()) };
        match &mut self.best {
            Some(best) if loss.is_nan() || loss >= best.loss => best.since += 1,
            best => *best = Some(Best { step: self.step, loss, since: 0, values: self.student.state()?.values }),
        }
        Ok(())
    }

    fn gets_no_better(&self, cadence: Cadence) -> bool {
        let since = self.best.as_ref().map_or(0, |best| best.since);
        cadence.patience.is_some_and(|patience| since >= patience.max(1))
    }

    /// The updates after which the student was best on held-out text, if that was measured.
    pub fn best(&self) -> Option<u64> {
        self.best.as_ref().map(|best| best.step)
    }

    /// How often the teacher's states were not kept because there was no room.
    pub fn left_out(&self) -> usize {
        self.teacher.left_out()
    }

    /// Sums over the held-out text, of the student as it is; `None` where there is none.
    ///
    /// # Errors
    /// If a device fails.
    pub fn measure(&mut self) -> Result<Option<Losses>, DistillError> {
        let Some(held_out) = self.held_out else { return Ok(None) };
        let mut losses = Losses::default();
        for step in 0..held_out.steps_per_epoch() {
            let batch = self.read(&held_out.batch(step))?;
            losses.add(&self.student.test(&batch, &self.identity.plan.loss)?);
        }
        Ok(Some(losses))
    }

    /// The best block on held-out text, or else the last one, as it goes into a file, rounded, and what it reaches so on the held-out text.
    ///
    /// # Errors
    /// If a device fails, or a parameter cannot be rounded so.
    pub fn export(&mut self, rounding: impl Into<Rounding>) -> Result<(ExportedBlock, Option<Losses>), DistillError> {
        let state = self.student.state()?;
        let values = self.best.as_ref().map_or(&state.values, |best| &best.values);
        let block = self.student.layout().export(values, rounding)?;
        self.student.restore(StudentState { values: block.values(), ..state.clone() })?;
        let reached = self.measure();
        self.student.restore(state)?;
        Ok((block, reached?))
    }

    /// Writes the snapshot, where one is kept.
    fn save(&mut self) -> Result<(), DistillError> {
        if let Some(path) = &self.snapshot {
            Snapshot { step: self.step, state: self.student.state()?, best: self.best.clone() }
                .save(path, &self.identity)?;
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

/// The hidden states at the positions of a batch, and the last ones there.
fn pairs(batch: &TeacherBatch) -> (Vec<f32>, &[f32]) {
    let Targets::States(states) = &batch.targets else { return (Vec::new(), &[]) };
    let width = states.last.len() / batch.scored.len().max(1);
    let row = |row: usize| &batch.hidden[row * width..][..width];
    (batch.scored.iter().flat_map(|position| row(position.row)).copied().collect(), &states.last)
}
