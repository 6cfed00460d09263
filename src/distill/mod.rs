//! Self-distillation: an exit block learns to say what the model says (EESD, Findings of ACL 2024, section 3).
//!
//! [`data`] brings texts together, most of them written by the model itself; the [`Teacher`] reads them; a
//! [`Student`](crate::backend::training::Student) learns from it, as the [`TrainPlan`] says; the [`Trainer`] is the loop,
//! with a snapshot to go on from and [`Metrics`] of every step.

pub mod data;
mod error;
mod metrics;
mod plan;
mod snapshot;
mod teacher;
mod trainer;

pub use error::DistillError;
pub use metrics::Metrics;
pub use plan::TrainPlan;
pub use snapshot::{Identity, Snapshot, path_in as snapshot_path};
pub use teacher::Teacher;
pub use trainer::{Cadence, Finish, StepReport, Trainer};
