//! What can go wrong while an exit block is trained.

use super::data::DataError;
use crate::backend::BackendError;
use crate::load::LoadError;
use crate::model::NotEncodable;
use std::path::PathBuf;

/// Why a training run ended early. Whatever was saved before is still there.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DistillError {
    /// Data could not be read, written or put together.
    #[error(transparent)]
    Data(#[from] DataError),
    /// A model's or snapshot's file could not be read or written.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The device failed.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// A trained parameter cannot be rounded as was asked for.
    #[error("a matrix of the block: {0}")]
    Rounding(#[from] NotEncodable),
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Hidden states could not be kept.
    #[error("{path}: {source}; what is there already is kept, and --keep-states 0 trains without")]
    States {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// No input matrix can be fitted.
    #[error("the input matrix: {found} (expected {expected})")]
    Input {
        /// What was wrong.
        found: String,
        /// What would be right.
        expected: &'static str,
    },
    /// An option has no meaning.
    #[error("{option}: {found} (expected {expected})")]
    Option {
        /// Its name.
        option: &'static str,
        /// Its value.
        found: String,
        /// What it should be.
        expected: String,
    },
    /// A snapshot belongs to another run.
    #[error(
        "{path}: `{key}` is {found}, and this run has {expected}: give that again, another folder, or start afresh"
    )]
    OtherRun {
        /// The snapshot.
        path: PathBuf,
        /// What differs.
        key: String,
        /// In the snapshot.
        found: String,
        /// In this run.
        expected: String,
    },
    /// The loss or its gradient is not a number any more. The parameters are as they were before that step.
    #[error(
        "step {step}: {what} is {found} (expected a number): try a lower learning rate; nothing later than step {saved} is saved"
    )]
    NotFinite {
        /// The step, from 1.
        step: u64,
        /// The loss or the gradient's norm.
        what: &'static str,
        /// Its value.
        found: f64,
        /// The last step in the snapshot.
        saved: u64,
    },
}

impl DistillError {
    /// A snapshot is no use to this run: another run's, or damaged. Reading it has not failed.
    pub fn is_of_snapshot(&self) -> bool {
        match self {
            Self::OtherRun { .. } => true,
            Self::Load(error) => !matches!(error, LoadError::Io { .. }),
            _ => false,
        }
    }
}
