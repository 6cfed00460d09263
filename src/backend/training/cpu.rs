//! Training on the processor, in f32, on as many threads as are wanted: the same bits on any number of them.

use super::adamw::{self, AdamStep};
use super::attention::Heads;
use super::chains::Chains;
use super::layer::Frame;
use super::loss::{LossOptions, Losses};
use super::model_side::ModelSide;
use super::parameters::Layout;
use super::rotary::Rotary;
use super::{Student, StudentState, Targets, TeacherBatch, check_steps};
use crate::backend::BackendError;
use crate::backend::rope::RopeTable;
use crate::model::{Geometry, ModelWeights};
use rayon::{ThreadPool, ThreadPoolBuilder};

/// An exit block that is trained on the processor.
pub struct CpuStudent {
    frame: Frame<f32>,
    state: StudentState,
    gradient: Vec<f32>,
    /// Of the positions in `gradient`.
    weight: f64,
    threads: ThreadPool,
}

impl CpuStudent {
    /// A student with these parameters, for segments of at most `window` tokens. `threads`: all cores unless given.
    ///
    /// # Errors
    /// If threads cannot be started, or memory cannot be had.
    pub fn new(
        geometry: &Geometry,
        layout: Layout,
        values: Vec<f32>,
        window: usize,
        threads: Option<usize>,
    ) -> Result<Self, BackendError> {
        let threads = ThreadPoolBuilder::new()
            .num_threads(threads.unwrap_or(0))
            .build()
            .map_err(|error| BackendError::Device(format!("threads: {error}")))?;
        let trained = layout.trained();
        Ok(Self {
            state: StudentState { values, mean: vec![0.0; trained], square: vec![0.0; trained] },
            gradient: vec![0.0; layout.len()],
            weight: 0.0,
            frame: frame(geometry, layout, window)?,
            threads,
        })
    }

    /// Lets it learn from hidden states, and a block that is recurrent in chains of `steps` steps.
    ///
    /// # Errors
    /// If there is no step, or there are several of a block that is not recurrent.
    pub fn with_model(mut self, model: &ModelWeights<'_>, steps: usize) -> Result<Self, BackendError> {
        let frame = &mut self.frame;
        check_steps(&frame.layout, steps)?;
        frame.model = Some(ModelSide::new(model, &frame.layout, frame.epsilon));
        frame.steps = steps;
        Ok(self)
    }

    fn pass(&mut self, batch: &TeacherBatch, loss: &LossOptions, learn: bool) -> Result<Losses, BackendError> {
        let Self { frame, state, gradient, weight, threads } = self;
        if frame.model.is_none() && matches!(batch.targets, Targets::States(_)) {
            return Err(BackendError::Device("hidden states for a student without the model's head".into()));
        }
        let positions = frame.rotary.positions();
        if let Some(long) = batch.lengths.iter().find(|&&len| len > positions) {
            return Err(BackendError::Device(format!("a segment of {long} tokens (expected at most {positions})")));
        }
        let gradient = learn.then_some(&mut gradient[..]);
        let losses = threads.install(|| pass(frame, &state.values, batch, loss, gradient));
        *weight += if learn { losses.all().weight } else { 0.0 };
        Ok(losses)
    }
}

/// The constants of a block of a model.
///
/// # Errors
/// If memory for them cannot be had.
pub(super) fn frame<R: super::real::Real>(
    geometry: &Geometry,
    layout: Layout,
    window: usize,
) -> Result<Frame<R>, BackendError> {
    let pairs = RopeTable::new(&geometry.rope, geometry.head_dim, window)?.pairs()?;
    Ok(Frame {
        heads: Heads {
            heads: geometry.heads,
            kv_heads: geometry.kv_heads,
            head_dim: geometry.head_dim,
            window: geometry.windows[layout.after],
        },
        epsilon: geometry.rms_norm_eps.into(),
        rotary: Rotary::new(&pairs, geometry.head_dim),
        layout,
        steps: 1,
        model: None,
    })
}

/// Forward, and backward where there is a gradient to add to.
pub(super) fn pass<R: super::real::Real>(
    frame: &Frame<R>,
    values: &[R],
    batch: &TeacherBatch,
    loss: &LossOptions,
    gradient: Option<&mut [R]>,
) -> Losses {
    let chains = Chains::new(batch);
    let made = frame.forward(values, &chains, batch);
    let Some(gradient) = gradient else { return frame.head(values, batch, &chains, loss, &made.outs(), None).0 };
    let (losses, douts) = frame.head(values, batch, &chains, loss, &made.outs(), Some(gradient));
    frame.backward(values, &chains, &made, douts, gradient);
    losses
}

impl Student for CpuStudent {
    fn layout(&self) -> &Layout {
        &self.frame.layout
    }

    fn takes_states(&self) -> bool {
        self.frame.model.is_some()
    }

    fn learn(&mut self, batch: &TeacherBatch, loss: &LossOptions) -> Result<Losses, BackendError> {
        self.pass(batch, loss, true)
    }

    fn test(&mut self, batch: &TeacherBatch, loss: &LossOptions) -> Result<Losses, BackendError> {
        self.pass(batch, loss, false)
    }

    fn update(&mut self, step: &AdamStep) -> Result<f64, BackendError> {
        let Self { frame, state, gradient, weight, threads } = self;
        let trained = frame.layout.trained();
        let per_position = if *weight > 0.0 { weight.recip() } else { 0.0 };
        let norm = threads.install(|| {
            let norm = adamw::norm(&gradient[..trained]) * per_position;
            let clipped = if norm > step.clip { step.clip / norm } else { 1.0 };
            let StudentState { values, mean, square } = state;
            if norm.is_finite() {
                let (gradient, values) = (&gradient[..trained], &mut values[..trained]);
                let decayed = frame.layout.decayed();
                adamw::update(step, per_position * clipped, gradient, values, mean, square, &decayed);
            }
            norm
        });
        gradient.fill(0.0);
        *weight = 0.0;
        Ok(norm)
    }

    fn state(&self) -> Result<StudentState, BackendError> {
        Ok(self.state.clone())
    }

    fn restore(&mut self, state: StudentState) -> Result<(), BackendError> {
        state.check(&self.frame.layout)?;
        self.state = state;
        self.gradient.fill(0.0);
        self.weight = 0.0;
        Ok(())
    }

    fn describe(&self) -> String {
        format!("cpu, {} threads", self.threads.current_num_threads())
    }
}
