//! Runs the passes on the processor.
//!
//! From the bottom up:
//! - `lanes` is the one vector type, `math` and `norm` what is written with it;
//! - `pool` keeps threads awake during a pass, `memory` is what they share;
//! - `pack` lays weights out, `gemm` multiplies by them, and by quantised ones with `codes`; `cache` and `attention`;
//! - `weights` and `workspace` hold a model, `layer` runs one layer, `passes` whole passes, `exit` the exit block's part of
//!   them.
//!
//! Every output element is summed in one fixed order, whatever the instruction set, the number of
//! rows, of threads, or the way a prompt was cut.

mod attention;
mod cache;
mod codes;
mod exit;
mod gemm;
mod lanes;
mod layer;
mod math;
mod memory;
mod norm;
mod pack;
mod passes;
mod pool;
pub mod probe;
pub mod system;
mod weights;
mod workspace;

pub use super::KvFormat;
use super::rope::RopeTable;
use super::{Backend, BackendError, DEFAULT_CONTEXT, Limits};
use crate::kv::PAGE_TOKENS;
use crate::model::{ExitWeights, Geometry, ModelWeights};
use cache::Cache;
use layer::Model;
use passes::Slot;
use pool::Pool;
use weights::Weights;
use workspace::Workspace;

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
    /// What quantised weights are multiplied by.
    pub activations: Activations,
    /// How keys and values are kept.
    pub kv: KvFormat,
    /// Pages of the KV cache; `None`: enough for `slots` sequences of `context` tokens.
    pub pages: Option<usize>,
}

impl Default for CpuOptions {
    /// One sequence of up to [`DEFAULT_CONTEXT`] tokens, 8 drafts in a round, all cores.
    fn default() -> Self {
        Self {
            threads: None,
            simd: None,
            slots: 1,
            context: DEFAULT_CONTEXT,
            max_draft: 8,
            activations: Activations::Eight,
            kv: KvFormat::Full,
            pages: None,
        }
    }
}

/// What weights in integer codes are multiplied by. Numbers, those of 8 bits too, are multiplied in f32 always.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activations {
    /// Activations in 8 bits, with a scale for each 32 of them: the weights stay as they are in the file.
    Eight,
    /// Activations in f32: the weights are dequantised to f32 when the model is packed. It takes four to eight times the
    /// memory, and shows what 8 bits cost.
    Full,
}

/// Vector instruction sets that the kernels are written for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Simd {
    /// AVX-512 with the integer dot products of AVX512-VNNI.
    Avx512Vnni,
    /// AVX-512F.
    Avx512,
    /// AVX2 with FMA and F16C, and the integer dot products of AVX-VNNI.
    AvxVnni,
    /// AVX2 with FMA and F16C.
    Avx2,
    /// Whatever the compiler makes of plain Rust.
    Portable,
}

impl Simd {
    /// All of them, the best first.
    pub const ALL: [Self; 5] = [Self::Avx512Vnni, Self::Avx512, Self::AvxVnni, Self::Avx2, Self::Portable];
}

impl std::fmt::Display for Simd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Simd::Avx512Vnni => "avx512-vnni",
            Simd::Avx512 => "avx512",
            Simd::AvxVnni => "avx-vnni",
            Simd::Avx2 => "avx2",
            Simd::Portable => "portable",
        })
    }
}

/// The processor as a [`Backend`].
pub struct CpuBackend {
    model: Model,
    cache: Cache,
    work: Workspace,
    slots: Vec<Slot>,
    limits: Limits,
    pool: Pool,
}

impl CpuBackend {
    /// Bytes of the KV cache that a page of a model takes: every layer's, the exit layer's included, padding and all.
    pub fn page_bytes(geometry: &Geometry, kv: KvFormat) -> usize {
        cache::page_bytes(geometry, kv)
    }

    /// Repacks the weights (in their own number format) and reserves the cache.
    ///
    /// # Errors
    /// If memory cannot be had, weights or exit block do not fit the geometry, or the processor lacks the
    /// instruction set that was asked for.
    #[expect(clippy::new_ret_no_self, reason = "the engine knows no device")]
    pub fn new(
        geometry: &Geometry,
        weights: &ModelWeights<'_>,
        exit: Option<&ExitWeights<'_>>,
        options: &CpuOptions,
    ) -> Result<Box<dyn Backend>, BackendError> {
        weights.check(geometry).map_err(BackendError::Model)?;
        exit.map_or(Ok(()), |exit| exit.check(geometry)).map_err(BackendError::Exit)?;
        let simd = options.simd.unwrap_or_else(Simd::detect);
        if !simd.is_available() {
            return Err(BackendError::Device(format!("this processor has no {simd}")));
        }
        let CpuOptions { slots, context, max_draft, .. } = *options;
        let cores = || std::thread::available_parallelism().map_or(1, |cores| cores.get());
        let workers = options.threads.unwrap_or_else(cores).max(1);
        let mut pool = Pool::new(workers).map_err(|error| BackendError::Device(format!("threads: {error}")))?;
        let pages = options.pages.unwrap_or(slots * context.div_ceil(PAGE_TOKENS));
        let limits = Limits { pages, slots, max_draft, context };
        let weights = Weights::new(geometry, weights, exit, options.activations == Activations::Eight, &mut pool)?;
        Ok(Box::new(Self {
            cache: Cache::new(geometry, options.kv, pages)?,
            work: Workspace::new(geometry, simd, &limits, workers, weights.packed.orders)?,
            slots: (0..slots).map(|_| Slot::default()).collect(),
            limits,
            model: Model {
                simd,
                geometry: geometry.clone(),
                weights,
                rope: RopeTable::new(&geometry.rope, geometry.head_dim, context)?,
            },
            pool,
        }))
    }
}
