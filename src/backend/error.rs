//! What can go wrong on a device.

use super::{cuda, training};

/// A pass that could not be run.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum BackendError {
    /// Memory for weights, cache or workspace could not be had.
    #[error("{what}: {bytes} bytes could not be allocated")]
    OutOfMemory {
        /// What it was for.
        what: &'static str,
        /// How much was asked for.
        bytes: usize,
    },
    /// A GPU has too little memory for what was asked for.
    #[error("{0}")]
    DeviceMemory(cuda::Budget),
    /// A GPU has too little memory to train there.
    #[error("{0}")]
    TrainingMemory(training::cuda::TrainingBudget),
    /// The model's weights are not of the shapes that its geometry says.
    #[error("model: {0}")]
    Model(String),
    /// The exit block's shapes are not the model's, or its layer is not inside it.
    #[error("exit block: {0}")]
    Exit(String),
    /// Keys or values of a position are not finite numbers.
    #[error(
        "position {position}: the keys or values are not finite numbers (the weights hold such a number, or what they \
         give is too large for its format)"
    )]
    NonFinite {
        /// The first such position of the sequence.
        position: usize,
    },
    /// The device reported an error.
    #[error("device: {0}")]
    Device(String),
}

impl BackendError {
    pub(super) fn not_recurrent() -> Self {
        Self::Exit("it is not recurrent, so that every draft goes through the model's first layers".to_owned())
    }
}
