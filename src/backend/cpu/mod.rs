//! Runs the passes on the processor.

use super::{Backend, BackendError};
use crate::model::{ExitWeights, Geometry, ModelWeights};

/// How much to reserve and which cores to use.
#[derive(Debug, Clone, PartialEq)]
pub struct CpuOptions {
    /// Worker threads; `None`: all cores this process may run on.
    pub threads: Option<usize>,
    /// Instruction set; `None`: the best one here. Every one gives the same bits.
    pub simd: Option<Simd>,
    /// Sequences in one pass.
    pub slots: usize,
    /// Longest sequence, in tokens.
    pub context: usize,
    /// Most drafts in one round.
    pub max_draft: usize,
    /// Pages of the KV cache; `None`: enough for `slots` sequences of `context` tokens.
    pub pages: Option<usize>,
}

/// Vector instruction sets that the kernels are written for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Simd {
    /// AVX-512F.
    Avx512,
    /// AVX2 with FMA and F16C.
    Avx2,
    /// Whatever the compiler makes of plain Rust.
    Portable,
}

/// The processor as a [`Backend`].
pub struct CpuBackend {}

impl CpuBackend {
    /// Repacks the weights (in their own number format) and reserves the cache.
    ///
    /// # Errors
    /// If memory cannot be had or the exit block does not fit the model.
    pub fn new(
        _geometry: &Geometry,
        _weights: &ModelWeights<'_>,
        _exit: Option<&ExitWeights<'_>>,
        _options: &CpuOptions,
    ) -> Result<Box<dyn Backend>, BackendError> {
        unimplemented!()
    }
}
