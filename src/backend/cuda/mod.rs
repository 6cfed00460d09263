//! Runs the passes on an NVIDIA GPU: hand-written kernels (`cuda/*.cu`), compiled when the program is
//! built, where nvcc was found.
//!
//! From the bottom up:
//! - [`kernels`] has each kernel's arguments and launch shape; [`pack`] says how weights lie, [`coding`] how those that stay
//!   codes do.
//! - [`driver`] is what the runtime asks of a device, [`matmul`] what it asks of a library of matrix products; [`gpu`]
//!   answers through the CUDA driver and cuBLASLt, and `emulator` (feature `emulated-kernels`) runs the same kernels
//!   on the processor.
//! - [`Budget`] shares out the memory, `weights` and `workspace` lay it out, `upload` fills it.
//! - `inbox` is what a pass is told, `pass` its steps and `launches` their kernels, `graphs` recordings of them.
//! - `host` and `slots` are the host's side, `noted` what it learns of numbers that are not finite; `views` are the biases of
//!   each row, `drafts` drafts, `rounds` verifies, `reading` takes texts in, `fast` those
//!   that the library multiplies; `swap` brings pages to the host and back.
//! - `synthetic` makes weights on the device, for benchmarks.
//! - [`loop_probe`] finds out, in a process of its own, whether a device may be asked for loops.
//!
//! A pass of a round is one copy in, one graph, one copy out, and one wait; so are all drafts of a sequence alone, where
//! the driver has loops and the controller can plan. Without nvcc [`FATBINS`] is empty and
//! [`BUILT_WITH`] says so.

pub(super) mod arena;
mod backend;
pub(super) mod budget;
pub mod coding;
mod drafts;
pub mod driver;
#[cfg(feature = "emulated-kernels")]
pub mod emulator;
mod fast;
mod fatbins;
pub mod gpu;
mod graphs;
mod host;
mod inbox;
pub mod kernels;
mod launches;
pub mod loop_probe;
pub mod matmul;
mod noted;
pub mod pack;
mod pass;
mod reading;
mod rounds;
mod slots;
mod swap;
mod synthetic;
pub mod upload;
mod views;
mod weights;
mod workspace;

pub use budget::Budget;
pub use fatbins::{BUILT_WITH, FATBINS, PTX};

use super::non_finite::NonFinite;
use super::rope::RopeTable;
use super::{Backend, BackendError, KvFormat, Limits};
use crate::kv::PAGE_TOKENS;
use crate::model::{ExitWeights, Geometry, ModelWeights};
use arena::Arena;
use driver::{Driver, Memory};
use graphs::Graphs;
use host::Host;
use pass::Model;
use slots::Slot;
use std::sync::Arc;
use upload::Cargo;
use weights::Weights;
use workspace::{Cache, Rows, Workspace};

/// How prompts are multiplied with the weights.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Prefill {
    /// By the kernels of all other passes, with their bits: a position is the same whichever way it was reached.
    #[default]
    Exact,
    /// By NVIDIA's library of matrix products (cuBLASLt), where more than 128 tokens of a prompt are taken in at a time.
    ///
    /// Its sums are made in another order, so the cache of such a prompt differs in rounding from that of
    /// [`Exact`](Self::Exact), and answers may differ between the two. What the cache holds depends on the prompt,
    /// on [`prefill_rows`](CudaOptions::prefill_rows), on the GPU and on the library's version: not on drafts, on the
    /// controller, or on prompts beside it. So here too speculative decoding writes what plain decoding does, token
    /// for token. Rounds and [`evaluate`](Backend::evaluate) stay exact.
    Fast,
}

/// How much to reserve on a device.
#[derive(Debug, Clone, PartialEq)]
pub struct CudaOptions {
    /// Sequences in one pass.
    pub slots: usize,
    /// Longest sequence, in tokens.
    pub context: usize,
    /// Most drafts in one round.
    pub max_draft: usize,
    /// How keys and values are kept.
    pub kv: KvFormat,
    /// Pages of the KV cache; `None`: enough for `slots` sequences of `context` tokens, or fewer where the
    /// memory ends before.
    pub pages: Option<usize>,
    /// The part of the device's memory that may be used, above 0 and at most 1.
    pub memory_fraction: f64,
    /// Most rows of a prefill pass.
    pub prefill_rows: usize,
    /// How prompts are multiplied with the weights.
    pub prefill: Prefill,
    /// Record passes as graphs. Without, each kernel is launched by itself, and profilers see layers.
    pub graphs: bool,
    /// Draft a sequence alone in a loop on the device, where `graphs` are on and the device makes them: a GPU must have
    /// been told what a probe found ([`loop_probe`], [`Driver::allow_loops`]).
    pub draft_loops: bool,
}

impl Default for CudaOptions {
    fn default() -> Self {
        Self {
            slots: 1,
            context: 8192,
            max_draft: 16,
            kv: KvFormat::Full,
            pages: None,
            memory_fraction: 0.9,
            prefill_rows: 1024,
            prefill: Prefill::Exact,
            graphs: true,
            draft_loops: true,
        }
    }
}

impl CudaOptions {
    fn check(&self) -> Result<(), BackendError> {
        let Self { slots, context, max_draft, prefill_rows, pages, memory_fraction, .. } = *self;
        let counts = [("slots", slots), ("context", context), ("prefill_rows", prefill_rows)];
        if let Some((name, _)) = counts.iter().find(|(_, count)| *count == 0) {
            return Err(BackendError::Device(format!("cuda: {name} 0 (expected at least 1)")));
        }
        // Sizes are products of these and of the geometry's: none leaves 64 bits.
        let drafts = slots.saturating_mul(max_draft.max(1));
        let most = [
            ("pages", pages.unwrap_or(0) as u64, 1u64 << 58),
            ("context", context as u64, 1 << 28),
            ("prefill_rows", prefill_rows as u64, 1 << 20),
            ("slots times max_draft", drafts as u64, 1 << 21),
            ("slots times max_draft times context", drafts.saturating_mul(context) as u64, 1 << 44),
        ];
        if let Some((name, found, most)) = most.into_iter().find(|(_, found, most)| found > most) {
            return Err(BackendError::Device(format!("cuda: {name} {found} (expected at most {most})")));
        }
        if !(memory_fraction > 0.0 && memory_fraction <= 1.0) {
            let found = format!("cuda: memory_fraction {memory_fraction}");
            return Err(BackendError::Device(format!("{found} (expected a number above 0, at most 1)")));
        }
        Ok(())
    }
}

/// Widths of heads that the attention kernels are compiled for.
pub const HEAD_DIMS: [usize; 6] = [32, 64, 80, 96, 128, 256];

/// Most tokens of a vocabulary: the samplers' sums of weights fit in 64 bits up to here (`cuda/common/sampling.cuh`).
const MOST_TOKENS: usize = 1 << 18;

/// A device as a [`Backend`].
pub struct CudaBackend<D: Driver> {
    // Graphs go before the memory that they use.
    graphs: Graphs<D>,
    host: Host<D>,
    model: Model,
    slots: Vec<Slot>,
    limits: Limits,
    rows: Rows,
    non_finite: NonFinite,
    /// A round's drafts may be one graph.
    loops: bool,
    _memory: [Memory<D>; 3],
    driver: Arc<D>,
}

impl<D: Driver> CudaBackend<D> {
    /// Shares out the memory, and brings the weights to the device in the order its kernels read.
    ///
    /// # Errors
    /// If there is too little memory, the kernels do not compute with these weights, weights or exit block do
    /// not fit the geometry, or the device fails.
    #[expect(clippy::new_ret_no_self, reason = "the engine knows no device")]
    pub fn new(
        driver: Arc<D>,
        geometry: &Geometry,
        weights: &ModelWeights<'_>,
        exit: Option<&ExitWeights<'_>>,
        options: &CudaOptions,
    ) -> Result<Box<dyn Backend>, BackendError> {
        weights.check(geometry).map_err(BackendError::Model)?;
        exit.map_or(Ok(()), |exit| exit.check(geometry)).map_err(BackendError::Exit)?;
        let (backend, cargo) = Self::reserve(driver, geometry, weights, exit, options)?;
        // SAFETY: planned for this memory, which is new and so zero.
        unsafe { upload::upload(&backend.driver, &cargo) }?;
        Ok(Box::new(backend))
    }

    /// A backend whose weights, of the geometry's shapes, have still to be brought to it.
    fn reserve<'a>(
        driver: Arc<D>,
        geometry: &Geometry,
        weights: &ModelWeights<'a>,
        exit: Option<&ExitWeights<'a>>,
        options: &CudaOptions,
    ) -> Result<(Self, Vec<Cargo<'a>>), BackendError> {
        options.check()?;
        let format = weights::format_of(weights, exit)?;
        if options.prefill == Prefill::Fast && weights::has_codes(weights, exit) {
            let why = "cuda: --prefill fast multiplies weights of 16 bits, and some of these are codes: leave it out";
            return Err(BackendError::Device(why.into()));
        }
        if !HEAD_DIMS.contains(&geometry.head_dim) {
            let why = format!("cuda: head_dim {} (expected one of {HEAD_DIMS:?})", geometry.head_dim);
            return Err(BackendError::Device(why));
        }
        if geometry.vocab_size > MOST_TOKENS {
            let why = format!("cuda: a vocabulary of {} tokens (expected at most {MOST_TOKENS})", geometry.vocab_size);
            return Err(BackendError::Device(why));
        }
        let CudaOptions { slots, context, max_draft, kv, memory_fraction, prefill_rows, .. } = *options;
        let wanted = options.pages.unwrap_or(slots * context.div_ceil(PAGE_TOKENS));
        let mut limits = Limits { pages: wanted, slots, max_draft, context };
        let rows = Rows::new(&limits, prefill_rows);
        let rotary = RopeTable::new(&geometry.rope, geometry.head_dim, context)?.pairs()?;
        let plan = |base| Weights::plan(base, geometry, weights, exit, rotary.clone());
        // Before the memory is counted: the library takes some.
        let library = match options.prefill {
            Prefill::Exact => None,
            Prefill::Fast => Some(driver.matmul_workspace()?),
        };
        let exit_stream = exit.is_some_and(|exit| exit.input.is_some() || exit.recurrent.is_some());
        let lay_out = |base, limits: &Limits| Workspace::plan(base, geometry, limits, &rows, exit_stream, library);
        let (weight_bytes, (work, work_bytes)) = (plan(Arena::NOWHERE).2, lay_out(Arena::NOWHERE, &limits));
        let page_bytes = Cache::page_bytes(geometry, kv);
        let budget = Budget {
            memory: driver.memory()?,
            fraction: memory_fraction,
            weights: weight_bytes as u64,
            workspace: work_bytes as u64,
            fast_prefill: work.fast.map_or(0, |fast| fast.bytes) as u64,
            page: page_bytes as u64,
            pages_of_context: context.div_ceil(PAGE_TOKENS) as u64,
        };
        limits.pages = budget.pages(wanted)?;
        let memory = [
            Memory::zeroed(&driver, weight_bytes, "weights")?,
            Memory::zeroed(&driver, work_bytes, "workspace")?,
            Memory::zeroed(&driver, limits.pages * page_bytes, "KV cache")?,
        ];
        let (weights, cargo, _) = plan(memory[0].at());
        let model = Model {
            geometry: geometry.clone(),
            format,
            weights,
            cache: Cache::new(memory[2].at(), geometry, kv, limits.pages),
            work: lay_out(memory[1].at(), &limits).0,
            max_draft,
        };
        let backend = Self {
            graphs: Graphs::new(options.graphs),
            host: Host::new(&driver, &limits)?,
            model,
            slots: (0..slots).map(|_| Slot::default()).collect(),
            limits,
            rows,
            non_finite: NonFinite::default(),
            loops: options.graphs && options.draft_loops && driver.loops(),
            _memory: memory,
            driver,
        };
        Ok((backend, cargo))
    }
}
