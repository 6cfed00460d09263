//! What a session is asked to be: read, checked, settled with what the model says.

use super::argument::{Incoming, Place, Versioned, check_size, optional_string, structure, within};
use super::device;
use super::drafting::Drafting;
use super::log::{LogLevel, log};
use super::model::Model;
use super::status::{Failure, Outcome, Status, entry};
use crate::backend::KvFormat;
use crate::backend::cuda::{CudaOptions, Prefill};
use crate::backend::{DEFAULT_CONTEXT, Device};
use crate::engine::EngineOptions;
use crate::kv::PAGE_TOKENS;
use std::ffi::c_char;

/// How a session runs. Begin with eesd_session_params_default().
#[repr(C)]
pub struct SessionParams {
    /// sizeof(eesd_session_params).
    pub struct_size: usize,
    /// "auto", "cpu", "cuda" or "cuda:N"; NULL is "auto": the processor, until the CUDA engine is proven on GPUs.
    pub device: *const c_char,
    /// Threads on the processor, the session's own included, at most 1024; 0: one for each core of this process.
    pub threads: usize,
    /// Requests worked on side by side, 1 to 1024; more wait. Default: 8.
    pub slots: usize,
    /// Requests that may wait beside those; more are refused with EESD_STATUS_OVERLOADED. Default: SIZE_MAX, without bound.
    pub max_waiting: usize,
    /// Longest sequence, prompt and answer, in tokens; 0: the model's own, at most 8192.
    pub context: usize,
    /// Tokens that the KV cache holds for all requests together, in pages of 64; 0: slots times context. Where it is
    /// full, the youngest requests are set aside and go on later.
    pub cache_tokens: usize,
    /// How the KV cache is kept: "f32", on the processor only, or "q8", in 8 bits, for less than a third of the memory and
    /// answers that differ a little. NULL is "f32", and on a GPU the 16 bits of the weights.
    pub kv: *const c_char,
    /// How far the exit block drafts, as after eesd-run's --controller: "fixed:4", "goodput-ts", ...; NULL: "goodput-ts" where
    /// the model has an exit block. "off": nobody drafts.
    pub controller: *const c_char,
    /// Who drafts: "off", or of "exit", "lookup" and "shared" those in a list with commas. NULL: "exit,lookup", as far as the
    /// model has an exit block. With "shared" an answer comes faster where another request's was like it, so that whoever
    /// asks may tell what others asked: for sessions of one owner.
    pub draft: *const c_char,
    /// A file of texts that "shared" begins with, as eesd_session_write_draft_index() and eesd-run's --draft-index write it; one
    /// that does not exist yet holds none. With NULL for draft, "shared" is on. NULL: none.
    pub draft_index: *const c_char,
    /// Most drafts in one round, 1 to 1024. Default: 16.
    pub draft_max: usize,
    /// Tokens that a step takes in at most; what it takes to read a long prompt is spread over others' rounds. Default:
    /// 512.
    pub token_budget: usize,
    /// Other than 0: pages of texts are kept, and prompts that begin alike take them. Default: 1.
    pub reuse_prefixes: i32,
    /// How a GPU multiplies prompts with the weights, as after eesd-run's --prefill: "exact", or "fast", through NVIDIA's cuBLASLt.
    /// NULL is "exact".
    pub prefill: *const c_char,
    /// The part of a GPU's memory that may be used, above 0 and at most 1. Default: 0.9.
    pub gpu_memory_fraction: f64,
    /// The path of an eesd-run of this release, or NULL. It is started once, before the session opens the GPU, to try there in
    /// a process of its own what could crash this one: a loop of drafts as one launch. If that works, a request that is
    /// alone is drafted so; else, and with NULL, step by step, which costs a wait for each draft.
    pub loop_probe: *const c_char,
}

// SAFETY: repr(C), struct_size first.
unsafe impl Versioned for SessionParams {
    const NAME: &'static str = "eesd_session_params";
}

// SAFETY: numbers and pointers.
unsafe impl Incoming for SessionParams {}

/// Parameters that were understood.
pub(super) struct Plan {
    pub device: Device,
    pub threads: Option<usize>,
    pub slots: usize,
    pub context: usize,
    pub pages: Option<usize>,
    pub kv: KvFormat,
    pub drafting: Drafting,
    pub max_waiting: usize,
    pub prefill: Prefill,
    pub memory_fraction: f64,
    pub loop_probe: Option<String>,
    pub options: EngineOptions,
}

/// Reads parameters.
///
/// # Safety
///
/// `params` is NULL or as its struct_size says, its texts end in zeros.
pub(super) unsafe fn plan(model: &Model, params: *const SessionParams) -> Outcome<Plan> {
    // SAFETY: the same is asked of the caller.
    let params = unsafe { structure(params) }?;
    // SAFETY: the same.
    let device = unsafe { device::read(params.device) }?;
    // SAFETY: the same.
    let kv = match unsafe { optional_string(params.kv, "kv") }? {
        Some("f32") if matches!(device, Device::Cuda(_)) => {
            let found = "kv: \"f32\", but a GPU keeps keys and values in the model's 16 bits, or in 8";
            return Err(Failure::argument(format!("{found} (expected \"q8\" or NULL, or device \"cpu\")")));
        }
        None | Some("f32") => KvFormat::Full,
        Some("q8") => KvFormat::Eight,
        Some(other) => {
            return Err(Failure::argument(format!("kv: {other:?} (expected \"f32\", \"q8\" or NULL)")));
        }
    };
    // SAFETY: the same.
    let prefill = match unsafe { optional_string(params.prefill, "prefill") }? {
        None | Some("exact") => Prefill::Exact,
        Some("fast") => Prefill::Fast,
        Some(other) => {
            return Err(Failure::argument(format!("prefill: {other:?} (expected \"exact\", \"fast\" or NULL)")));
        }
    };
    if prefill == Prefill::Fast && !matches!(device, Device::Cuda(_)) {
        let found = "prefill: \"fast\", but the processor multiplies prompts in one way only";
        return Err(Failure::argument(format!("{found} (expected \"exact\", or device \"cuda\")")));
    }
    // SAFETY: the same.
    let drafting = unsafe { Drafting::of(model, params) }?;
    // SAFETY: the same.
    let loop_probe = unsafe { optional_string(params.loop_probe, "loop_probe") }?;
    let trained = model.checkpoint.geometry().max_positions;
    let context = match within(params.context, 0, 1 << 24, "context")? {
        0 => trained.min(DEFAULT_CONTEXT),
        context => context,
    };
    if context > trained {
        log(LogLevel::Warning, || {
            format!("context: {context}, but {} was trained for {trained} positions", model.checkpoint.name())
        });
    }
    let threads = within(params.threads, 0, 1024, "threads")?;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    if threads > cores && !matches!(device, Device::Cuda(_)) {
        log(LogLevel::Warning, || format!("threads: {threads}: slower than {cores}, which this process may use"));
    }
    let cache = within(params.cache_tokens, 0, 1 << 36, "cache_tokens")?;
    let memory_fraction = params.gpu_memory_fraction;
    if !(memory_fraction > 0.0 && memory_fraction <= 1.0) {
        let found = format!("gpu_memory_fraction: {memory_fraction} (expected a number above 0, at most 1)");
        return Err(Failure::argument(found));
    }
    Ok(Plan {
        device,
        threads: (threads > 0).then_some(threads),
        slots: within(params.slots, 1, 1024, "slots")?,
        context,
        pages: (cache > 0).then(|| cache.div_ceil(PAGE_TOKENS)),
        kv,
        drafting,
        max_waiting: params.max_waiting,
        prefill,
        memory_fraction,
        loop_probe: loop_probe.map(str::to_owned),
        options: EngineOptions {
            token_budget: within(params.token_budget, 1, 1 << 24, "token_budget")?,
            reuse_prefixes: params.reuse_prefixes != 0,
        },
    })
}

/// Fills in the defaults, as the fields' comments have them.
///
/// struct_size: sizeof(eesd_session_params).
///
/// # Safety
///
/// `params` is NULL or good to write for `struct_size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eesd_session_params_default(params: *mut SessionParams, struct_size: usize) -> Status {
    entry(|| {
        check_size::<SessionParams>(struct_size)?;
        let EngineOptions { token_budget, reuse_prefixes } = EngineOptions::default();
        // SAFETY: as large as a `SessionParams` by the check; the caller vouches for the rest.
        unsafe { Place::new(params, SessionParams::NAME) }?.write(SessionParams {
            struct_size,
            device: std::ptr::null(),
            threads: 0,
            slots: 8,
            max_waiting: usize::MAX,
            context: 0,
            cache_tokens: 0,
            kv: std::ptr::null(),
            controller: std::ptr::null(),
            draft: std::ptr::null(),
            draft_index: std::ptr::null(),
            draft_max: 16,
            token_budget,
            reuse_prefixes: reuse_prefixes.into(),
            prefill: std::ptr::null(),
            gpu_memory_fraction: CudaOptions::default().memory_fraction,
            loop_probe: std::ptr::null(),
        });
        Ok(())
    })
}
