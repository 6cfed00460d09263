//! The kernels' arguments, as `cuda/*.cu` declare them, and how each is launched.
//!
//! Shapes are in the head comment of each kernel file. Addresses are the device's; 0 is null.

macro_rules! arguments {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $type:ty,)* }) => {
        $(#[$doc])*
        #[repr(C)]
        #[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
        pub struct $name { $($(#[$field_doc])* pub $field: $type,)* }
    };
}

mod attention;
mod drafting;
mod flash;
mod projection;
mod rows;
mod sampling;
pub mod training;
mod weights;

pub use attention::{Attention, AttentionForm, PagedBatch, attend};
pub use drafting::{ContinueLoop, DraftLoop, DraftRule, NextDraft, next_draft};
pub use flash::{Flash, FlashPass, RowTile, flash};
pub use projection::{Form, GateUp, HeadPartial, LmHead, Norm, Projection, Qkv, Residual, project};
pub use rows::{Embedding, GatherRows, KeepRows, RecurrentInput, TableForm, keep_rows, per_token};
pub use sampling::{
    Accept, Adjust, CountTokens, JudgedRow, Params, RowChoice, Sample, SamplingKernel, TokenBias, Verdict,
    VerifiedSequence, sample, sampling_kernel,
};
pub use weights::{PackWeights, RandomWeights, UnpackWeights, pack_weights, random_weights, unpack_weights};

use crate::backend::BackendError;

/// An address in the launcher's memory.
#[repr(transparent)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Address(pub u64);

/// Grid and block of a launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub threads: u32,
    /// Bytes of dynamic shared memory.
    pub shared_bytes: u32,
}

/// What can run a kernel: a GPU's stream, or the emulator.
pub trait Launcher {
    /// Launches `kernel` with its one parameter, the bytes of an argument structure.
    ///
    /// # Safety
    /// Every address among the arguments must be good for what the kernel reads and writes there.
    ///
    /// # Errors
    /// If the device refuses or fails.
    unsafe fn launch(&self, kernel: &str, shape: Shape, arguments: &[u8]) -> Result<(), BackendError>;
}

/// Number format of weights, activations and cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// The upper half of a binary32.
    Bf16,
    /// IEEE 754 binary16.
    F16,
}

impl Format {
    fn suffix(self) -> &'static str {
        match self {
            Format::Bf16 => "bf16",
            Format::F16 => "f16",
        }
    }
}

impl std::fmt::Display for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.suffix())
    }
}

/// Launches a kernel of `arguments`.
///
/// # Safety
/// As [`Launcher::launch`].
unsafe fn launch<A: bytemuck::Pod>(
    on: &impl Launcher,
    kernel: &str,
    shape: Shape,
    arguments: &A,
) -> Result<(), BackendError> {
    // SAFETY: the caller's promise.
    unsafe { on.launch(kernel, shape, bytemuck::bytes_of(arguments)) }
}
