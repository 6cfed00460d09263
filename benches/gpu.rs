//! What this engine does on a GPU: `cargo bench --bench gpu`. Prints Markdown; where there is no GPU, no driver
//! or no kernels in this build, it says so and measures nothing.
//!
//! 1. `copy`: a copy inside the GPU's memory, the yardstick of everything else.
//! 2. `kernels`: each kernel of a layer, at the shapes of real models.
//! 3. `sampler`: the sampling of rows of a large vocabulary.
//! 4. `steps`: whole passes, with and without graphs and overlapping kernels.
//! 5. `sources`: rows of a verification with and without `h_N`, recurrent drafts, lookups.
//! 6. `prefill`: prompts into the cache, `exact` and `fast`, beside the rate of one large product of NVIDIA's library.
//! 7. `quantised`: steps of models in 8 and 4 bits, and in 8-bit floating point.
//! 8. `speculation`: tokens per second of controllers against plain decoding, and what the costs of passes
//!    predict. Every answer must be that of plain decoding, token for token, or no speed is printed and the
//!    exit code is 1.
//!
//! Beside each time stands what an H200 is expected to take, by the model of cuda/README.md; `--predictions` prints that alone,
//! without a GPU.
//!
//! Weights are random and made on the GPU, and acceptance is set by construction, so this measures the engine
//! and says nothing of how often a trained exit block is right. With the feature `emulated-kernels`,
//! `--emulated` goes through all of it with a tiny model on the processor: a test of this program.

#[path = "synthetic/construction.rs"]
mod construction;
#[path = "synthetic/contender.rs"]
mod contender;
#[path = "synthetic/costs.rs"]
mod costs;
#[path = "gpu/device.rs"]
mod device;
#[path = "gpu/expected.rs"]
mod expected;
#[path = "synthetic/geometry.rs"]
mod geometry;
#[path = "gpu/kernels.rs"]
mod kernels;
#[path = "synthetic/measure.rs"]
mod measure;
#[path = "synthetic/numbers.rs"]
mod numbers;
#[path = "gpu/predictions.rs"]
mod predictions;
#[path = "gpu/prefill.rs"]
mod prefill;
#[path = "gpu/quantised.rs"]
mod quantised;
#[path = "synthetic/random_model.rs"]
mod random_model;
#[path = "gpu/sampler.rs"]
mod sampler;
#[path = "gpu/sizes.rs"]
mod sizes;
#[path = "gpu/sources.rs"]
mod sources;
#[path = "gpu/steps.rs"]
mod steps;
#[path = "synthetic/table.rs"]
mod table;

use clap::{Parser, ValueEnum};
use construction::Construction;
use device::{CopyProbe, Measurable};
use eesd::TokenId;
use eesd::backend::BackendError;
use eesd::backend::cuda::driver::Driver;
use eesd::backend::cuda::gpu::Gpu;
use eesd::backend::cuda::loop_probe::{self, Loops};
use eesd::backend::cuda::{BUILT_WITH, CudaBackend, CudaOptions};
use eesd::control::{ControllerSpec, Way};
use eesd::sample::SamplingParams;
use measure::{MAX_DRAFT, Measurement, measure};
use sizes::Size;
use std::error::Error;
use std::num::NonZeroUsize;
use std::sync::Arc;

/// Tokens of a prompt.
const PROMPT: usize = 16;
/// Bytes of a copied buffer: many times any cache.
const COPIED_BYTES: usize = 1 << 30;

/// Measures kernels, passes and speculation on a GPU.
#[derive(Parser)]
struct Args {
    /// Number of the GPU.
    #[arg(long, default_value_t = 0)]
    device: usize,
    /// What to measure; all of it unless given.
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Section>,
    /// Models of the kernels, passes and prompts.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "7b,13b")]
    geometry: Vec<Name>,
    /// Models with quantised weights.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "13b,70b")]
    quantised_geometry: Vec<Name>,
    /// Leave out drafts that are made in a loop on the device.
    #[arg(long)]
    no_loops: bool,
    /// Print what is expected, and measure nothing.
    #[arg(long)]
    predictions: bool,
    /// Try loops on the device, and say on standard output how that went: what this program starts itself for.
    #[arg(long, hide = true)]
    loop_probe: bool,
    /// Models of the speculation.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "7b")]
    speculation_geometry: Vec<Name>,
    /// Acceptance to construct: the share of positions where draft and model agree.
    #[arg(long, value_delimiter = ',', default_value = "0.6,0.8,0.9")]
    acceptance: Vec<f64>,
    /// Controllers that compete with `off`.
    #[arg(long, value_delimiter = ';', default_value = "fixed:2;fixed:4;fixed:8;goodput-ts")]
    controllers: Vec<ControllerSpec>,
    /// Prompts, one at a time.
    #[arg(long, default_value = "4")]
    prompts: NonZeroUsize,
    /// Tokens of each answer.
    #[arg(long, default_value = "64")]
    tokens: NonZeroUsize,
    /// Times that every controller answers all prompts.
    #[arg(long, default_value = "3")]
    repetitions: NonZeroUsize,
    /// A tiny model on the processor, to test this program; its times mean nothing.
    #[cfg(feature = "emulated-kernels")]
    #[arg(long)]
    emulated: bool,
    /// What cargo bench passes.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Section {
    Copy,
    Kernels,
    Sampler,
    Steps,
    Sources,
    Prefill,
    Quantised,
    Speculation,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Name {
    #[value(name = "7b")]
    Seven,
    #[value(name = "13b")]
    Thirteen,
    #[value(name = "70b")]
    Seventy,
}

impl Name {
    fn size(self) -> Size {
        match self {
            Name::Seven => Size::seven(),
            Name::Thirteen => Size::thirteen(),
            Name::Seventy => Size::seventy(),
        }
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let args = Args::parse();
    if args.predictions {
        predictions::predictions();
        return Ok(());
    }
    #[cfg(feature = "emulated-kernels")]
    if args.emulated {
        return emulated(args);
    }
    let number = args.device;
    if args.loop_probe {
        return Ok(loop_probe::answer(Gpu::open(number).map(Arc::new), &mut std::io::stdout().lock())?);
    }
    let sizes = |names: &[Name]| names.iter().map(|name| name.size()).collect::<Vec<_>>();
    let (measured, speculated) = (sizes(&args.geometry), sizes(&args.speculation_geometry));
    let quantised = sizes(&args.quantised_geometry);
    let loops = if args.no_loops { Loops::None } else { probed_loops(number)? };
    if let Err(why) = Gpu::open(number) {
        println!("{why}: nothing measured");
        return Ok(());
    }
    let open = Arc::new(move |overlap| {
        let gpu = Gpu::open(number)?.with_overlap(overlap);
        gpu.allow_loops(loops);
        Ok(Arc::new(gpu))
    });
    all(&args, open, COPIED_BYTES, &Models { measured, quantised, speculated })
}

/// What a probe says of loops, in a process of its own.
fn probed_loops(number: usize) -> Result<Loops, Box<dyn Error>> {
    let mut probe = std::process::Command::new(std::env::current_exe()?);
    probe.args(["--loop-probe", "--device", &number.to_string()]);
    let probed = loop_probe::ask(probe, loop_probe::TIME_LIMIT);
    probed.note().iter().for_each(|note| println!("{note}\n"));
    Ok(probed.loops)
}

/// What is measured with which models.
struct Models {
    measured: Vec<Size>,
    quantised: Vec<Size>,
    speculated: Vec<Size>,
}

/// The same on the processor, with a tiny model and few repetitions.
#[cfg(feature = "emulated-kernels")]
fn emulated(args: Args) -> Result<(), Box<dyn Error>> {
    use eesd::backend::cuda::emulator::{EmulatedDevice, Emulator};
    println!("Emulated on the processor: a test of this program, whose times mean nothing.\n");
    let few = NonZeroUsize::MIN;
    let tokens = args.tokens.min(NonZeroUsize::new(12).unwrap_or(few));
    let args = Args { acceptance: vec![0.8], prompts: few, tokens, repetitions: few, ..args };
    let loops = if args.no_loops { Loops::None } else { Loops::Overlapping };
    let open = Arc::new(move |_| {
        let device = EmulatedDevice::new(Emulator::new(0), 1 << 30);
        device.allow_loops(loops);
        Ok(Arc::new(device))
    });
    let [measured, quantised, speculated] = [(); 3].map(|()| vec![Size::tiny()]);
    all(&args, open, 1 << 16, &Models { measured, quantised, speculated })
}

/// Opens the device, with kernels that overlap or without.
type Open<D> = dyn Fn(bool) -> Result<Arc<D>, Box<dyn Error>>;

fn all<D: Measurable>(
    args: &Args,
    open: Arc<Open<D>>,
    copied_bytes: usize,
    models: &Models,
) -> Result<(), Box<dyn Error>> {
    let wanted = |section| args.only.is_empty() || args.only.contains(&section);
    let driver = open(true)?;
    let probe = CopyProbe::new(&driver, copied_bytes)?;
    probe.warm_up()?;
    let copy_rate = probe.rate()?;
    println!("## {}\n\nKernels by {}.\n", driver.describe(), BUILT_WITH.map_or("the host's compiler", |built| built.0));
    // Everything else is told in parts of this, so it is always measured.
    println!(
        "A copy of {} MB inside the device's memory: {:.0} GB/s, bytes read and written.\n",
        probe.bytes() / 1_000_000,
        copy_rate * 1e-9
    );
    if let Some(size) = models.measured.first().filter(|_| wanted(Section::Sampler)) {
        unless_too_large(size, sampler::sampler(&driver, size))?;
    }
    for size in &models.measured {
        if wanted(Section::Kernels) {
            unless_too_large(size, kernels::kernels(&driver, size, copy_rate))?;
        }
        if wanted(Section::Steps) {
            unless_too_large(size, steps::steps(&*open, size, copy_rate))?;
        }
        if wanted(Section::Sources) {
            unless_too_large(size, sources::sources(&*open, size))?;
        }
        if wanted(Section::Prefill) {
            unless_too_large(size, prefill::prefill(&*open, size))?;
        }
    }
    if wanted(Section::Quantised) {
        quantised::quantised(&*open, &models.quantised)?;
    }
    if wanted(Section::Speculation) {
        for size in &models.speculated {
            unless_too_large(size, speculation(args, &open, size, &probe))?;
        }
    }
    Ok(())
}

/// Says that a model does not fit the device; any other failure stays one.
fn unless_too_large(size: &Size, result: Result<(), Box<dyn Error>>) -> Result<(), Box<dyn Error>> {
    match result {
        Err(error) if error.downcast_ref::<BackendError>().is_some_and(is_of_memory) => {
            println!("\n{} left out: {error}\n", size.name);
            Ok(())
        }
        other => other,
    }
}

fn is_of_memory(error: &BackendError) -> bool {
    matches!(error, BackendError::OutOfMemory { .. } | BackendError::DeviceMemory(_))
}

/// Plays controllers against plain decoding at each acceptance, and prints a table each.
fn speculation<D: Measurable>(
    args: &Args,
    open: &Arc<Open<D>>,
    size: &Size,
    probe: &CopyProbe<D>,
) -> Result<(), Box<dyn Error>> {
    let (prompts, tokens) = (args.prompts.get(), args.tokens.get());
    let geometry = size.geometry.clone();
    let vocab = geometry.vocab_size;
    let prompt = |i: usize| (0..PROMPT).map(|j| ((i * PROMPT + j + 1) * 7919 % vocab) as TokenId).collect();
    let prompts: Vec<Vec<TokenId>> = (0..prompts).map(prompt).collect();
    let options = CudaOptions {
        slots: prompts.len(),
        context: PROMPT + tokens,
        max_draft: MAX_DRAFT,
        prefill_rows: 64,
        ..CudaOptions::default()
    };
    let model = format!("{}'s geometry ({} layers of {})", size.name, geometry.layers, geometry.hidden_size);
    let (open, exit_layer, layers) = (open.clone(), size.exit_after, geometry.layers);
    let mut construction = Construction {
        exit_layer,
        layers,
        build: Box::new(move |scale| Ok(CudaBackend::synthetic(open(true)?, &geometry, exit_layer, scale, &options)?)),
        drafts: 1,
        prompts,
        tokens,
        sampling: SamplingParams::default(),
        measured: Vec::new(),
    };
    let measurement = Measurement {
        model,
        step_bytes: size.step_bytes(),
        ways: vec![(Way::FirstLayers, size.draft_costs())],
        select: Box::new(|_| ()),
        controllers: args.controllers.clone(),
        repetitions: args.repetitions.get(),
        yardstick: "a copy inside its memory",
    };
    for &wanted in &args.acceptance {
        let constructed = construction.find(wanted, None)?;
        let measured = measure(&measurement, &construction, constructed, &mut || Ok(probe.rate()?))?;
        println!("{}", table::markdown(&measurement, &measured));
    }
    Ok(())
}
