//! Where passes run, and how much is reserved there.

use crate::args::{Device, KvChoice, MachineArgs};
use crate::failure::{Failure, Outcome};
use crate::report::Reporter;
use crate::settings::Model;
use eesd::backend::cpu::{CpuBackend, CpuOptions, system};
use eesd::backend::cuda::driver::Driver;
use eesd::backend::cuda::gpu::Gpu;
use eesd::backend::cuda::loop_probe::{self, Loops, Probed};
use eesd::backend::cuda::{CudaBackend, CudaOptions, Prefill};
use eesd::backend::{Backend, DEFAULT_CONTEXT, KvFormat};
use eesd::kv::PAGE_TOKENS;
use eesd::load::ExitBlock;
use std::sync::Arc;

/// What is to be reserved on which device.
pub enum Machine {
    /// On the processor.
    Cpu(CpuOptions),
    /// On the GPU of this number.
    Cuda(usize, CudaOptions),
}

impl Machine {
    /// Decides for `slots` sequences side by side.
    ///
    /// # Errors
    /// If fast prefill is asked of the processor, or keys and values in f32 of a GPU.
    pub fn new(
        args: &MachineArgs,
        prefill: Prefill,
        model: &Model,
        slots: usize,
        max_draft: usize,
        reporter: Reporter,
    ) -> Outcome<Self> {
        let trained = model.checkpoint.geometry().max_positions;
        let context = match args.ctx_size {
            None => trained.min(DEFAULT_CONTEXT),
            Some(0) => trained,
            Some(context) => context,
        };
        if context > trained {
            reporter.note(&format!("--ctx-size {context}: the model was trained for {trained} positions"));
        }
        let max_draft = max_draft.min(context);
        let pages = args.cache_tokens.map(|tokens| tokens.div_ceil(PAGE_TOKENS));
        let kv = args.kv.map(KvFormat::from).unwrap_or_default();
        match args.device {
            Device::Cuda(_) if args.kv == Some(KvChoice::F32) => Err(Failure::usage(
                "--kv f32: a GPU keeps keys and values in the model's 16 bits, or in 8 (expected --kv q8, or no --kv)",
            )),
            Device::Cuda(number) => {
                if args.threads.is_some() {
                    reporter.note("--threads changes nothing on a GPU");
                }
                let defaults = CudaOptions::default();
                let memory_fraction = args.gpu_memory_fraction.unwrap_or(defaults.memory_fraction);
                let (graphs, draft_loops) = (!args.no_graphs, !args.no_draft_loops);
                let cache = CudaOptions { slots, context, max_draft, kv, pages, ..defaults };
                let options = CudaOptions { memory_fraction, prefill, graphs, draft_loops, ..cache };
                Ok(Machine::Cuda(number, options))
            }
            Device::Cpu | Device::Auto if prefill == Prefill::Fast => {
                let found = "--prefill fast: the processor multiplies prompts in one way only";
                Err(Failure::usage(format!("{found} (expected --prefill exact, or --device cuda)")))
            }
            // Until the CUDA engine has been run on a GPU, it has to be asked for.
            Device::Cpu | Device::Auto => {
                let cores = std::thread::available_parallelism().map_or(1, usize::from);
                if let Some(threads) = args.threads.filter(|&threads| threads > cores) {
                    let most = format!("slower than {cores}, which is what this process may use");
                    reporter.note(&format!("--threads {threads}: {most}"));
                }
                let of_gpus = [
                    ("--gpu-memory-fraction", args.gpu_memory_fraction.is_some()),
                    ("--no-graphs", args.no_graphs),
                    ("--no-draft-loops", args.no_draft_loops),
                ];
                for (flag, _) in of_gpus.iter().filter(|(_, given)| *given) {
                    reporter.note(&format!("{flag} changes nothing on the processor"));
                }
                let threads = args.threads;
                Ok(Machine::Cpu(CpuOptions { threads, slots, context, max_draft, kv, pages, ..CpuOptions::default() }))
            }
        }
    }

    /// Reserves room for no more than `most` sequences side by side.
    pub fn limit_slots(&mut self, most: usize) {
        let slots = match self {
            Machine::Cpu(options) => &mut options.slots,
            Machine::Cuda(_, options) => &mut options.slots,
        };
        *slots = most.clamp(1, *slots);
    }

    /// Sequences side by side that there is room for.
    pub fn slots(&self) -> usize {
        match self {
            Machine::Cpu(options) => options.slots,
            Machine::Cuda(_, options) => options.slots,
        }
    }

    /// Longest sequence, in tokens.
    pub fn context(&self) -> usize {
        match self {
            Machine::Cpu(options) => options.context,
            Machine::Cuda(_, options) => options.context,
        }
    }

    /// The passes of a model there.
    ///
    /// # Errors
    /// If there is no such device, or memory cannot be had.
    pub fn backend(&self, model: &Model, exit: Option<&ExitBlock>, reporter: Reporter) -> Outcome<Box<dyn Backend>> {
        let exit = exit.map(ExitBlock::weights);
        let (geometry, weights) = (model.checkpoint.geometry(), model.weights(reporter)?);
        match self {
            Machine::Cpu(options) => {
                let pages = options.pages.or_else(|| Some(affordable_pages(model, options, system::free()?)));
                if let Some(positions) =
                    pages.map(|pages| pages.saturating_mul(PAGE_TOKENS)).filter(|&n| n < options.context)
                {
                    reporter.note(&format!(
                        "the KV cache has room for {positions} positions: a request that needs more of its context of \
                         {} fails (--cache-tokens N makes room)",
                        options.context
                    ));
                }
                let options = CpuOptions { pages, ..options.clone() };
                Ok(reporter
                    .wait("preparing the weights", || CpuBackend::new(geometry, &weights, exit.as_ref(), &options))?)
            }
            Machine::Cuda(number, options) => {
                // Before this process has the GPU, which may be one process's at a time.
                let loops = exit.is_some() && options.graphs && options.draft_loops;
                let probed = loops.then(|| reporter.wait("trying loops of drafts", || probe(*number)));
                let gpu = Arc::new(reporter.wait("opening the GPU", || Gpu::open(*number))?);
                if let Some(probed) = probed {
                    gpu.allow_loops(probed.loops);
                    probed.note().iter().for_each(|note| reporter.note(note));
                }
                reporter.note("the CUDA engine has not been run on a GPU yet: `eesd-run verify` checks it on yours");
                Ok(reporter.wait("loading the weights", || {
                    CudaBackend::new(gpu, geometry, &weights, exit.as_ref(), options)
                })?)
            }
        }
    }
}

/// Has this program try loops in a process of its own.
fn probe(number: usize) -> Probed {
    let failed = |error| Probed { loops: Loops::None, trouble: Some(format!("this program was not found: {error}")) };
    std::env::current_exe().map_or_else(failed, |program| loop_probe::ask_program(program, number))
}

/// Pages for every sequence at its longest, but for no more than half of what the weights leave of the free memory.
fn affordable_pages(model: &Model, options: &CpuOptions, free: u64) -> usize {
    let wanted = options.slots * options.context.div_ceil(PAGE_TOKENS);
    let page = CpuBackend::page_bytes(model.checkpoint.geometry(), options.kv).max(1) as u64;
    let affordable = free.saturating_sub(model.bytes()) / 2 / page;
    wanted.min(affordable as usize).max(1)
}
