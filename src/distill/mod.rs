//! Self-distillation: an exit block learns to say what the model says (EESD, Findings of ACL 2024, section 3).
//!
//! [`data`] brings texts together, most of them written by the model itself; the [`Teacher`] reads them; a
//! [`Student`](crate::backend::training::Student) learns from it, as the [`TrainPlan`] says; the [`Trainer`] is the loop,
//! with a snapshot to go on from and [`Metrics`] of every step.
//!
//! A block after two layers takes its first steps on one text:
//!
//! ```
//! use eesd::backend::cpu::{CpuBackend, CpuOptions};
//! use eesd::backend::training::CpuStudent;
//! use eesd::backend::training::parameters::{Head, Layout};
//! use eesd::distill::data::{Batches, Document};
//! use eesd::distill::{Cadence, Finish, Identity, Teacher, TrainPlan, Trainer};
//! use eesd::load::Checkpoint;
//! use eesd::model::ExitWeights;
//! use std::ops::ControlFlow;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let checkpoint = Checkpoint::open("models/pycode-4m".as_ref())?;
//! let (geometry, model) = (checkpoint.geometry(), checkpoint.weights());
//! let plan = TrainPlan { steps: 3, window: 32, batch_tokens: 32, warmup: 0, ..TrainPlan::default() };
//! let tokenizer = checkpoint.tokenizer().expect("this folder has one");
//! let text = [Document { tokens: tokenizer.encode("for line in open(path):\n    print(line)\n", true)?, prompt: 1 }];
//! let batches = Batches::new(&text, plan.window, plan.batch_tokens, plan.seed)?;
//!
//! let last_layer = ExitWeights::from_model(&model, 2, geometry.layers - 1);
//! let (layout, values) = Layout::new(&last_layer, &model, Head::Frozen, None)?;
//! let identity = Identity::new(checkpoint.fingerprint(), &layout, &values, &text, plan.clone());
//! let student = CpuStudent::new(geometry, layout, values, plan.window, Some(1))?;
//! let options = CpuOptions { threads: Some(1), context: plan.window, ..CpuOptions::default() };
//! let teacher = Teacher::new(CpuBackend::new(geometry, &model, None, &options)?, 2, plan.window)?;
//!
//! let mut trainer = Trainer::new(teacher, Box::new(student), &batches, None, identity, None)?;
//! let mut losses = Vec::new();
//! let finish = trainer.run(Cadence { measure: 3, save: 3, patience: None }, &mut |report| {
//!     losses.push(report.losses.all().mean().loss);
//!     ControlFlow::Continue(())
//! })?;
//! assert_eq!(finish, Finish::Done);
//! assert!(losses[2] < losses[0], "{losses:?}");
//! # Ok(())
//! # }
//! ```

pub mod data;
mod error;
mod metrics;
mod plan;
mod ridge;
mod snapshot;
mod states;
mod teacher;
mod trainer;

pub use error::DistillError;
pub use metrics::Metrics;
pub use plan::TrainPlan;
pub use snapshot::{Best, Identity, Snapshot, path_in as snapshot_path};
pub use states::{KeepStates, digest as model_digest};
pub use teacher::Teacher;
pub use trainer::{Cadence, Finish, StepReport, Trainer};
