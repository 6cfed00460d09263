//! What speculation gains where decoding is bound by memory: `cargo bench --bench speculation`.
//!
//! The weights are random and acceptance is set by construction (see [`construction`]), so this
//! measures the engine and says nothing of how often a trained exit block is right. For each acceptance
//! asked for:
//! 1. find the construction, by its measured acceptance;
//! 2. let every controller answer the first prompt, to learn;
//! 3. let them answer all prompts in turns (A B A B …), and among them a ladder of draft lengths whose
//!    rounds tell what passes cost;
//! 4. print tables of speeds against plain decoding, beside what those costs predict and what bytes alone do.
//!
//! With `--ways` both ways of making drafts are measured with the same weights: all through the first layers, or all of a
//! round but the first by a recurrent exit block. `--model 13b` has the geometry of Llama 2's, 7.5 GB in 4 bits:
//!
//!     cargo bench --bench speculation -- --model 13b --controllers 'fixed:2;fixed:4;goodput-ts' --repetitions 1
//!
//! Every answer must be that of plain decoding, token for token, or nothing is printed and the exit
//! code is 1.

#[path = "synthetic/construction.rs"]
mod construction;
#[path = "synthetic/contender.rs"]
mod contender;
#[path = "synthetic/costs.rs"]
mod costs;
#[path = "synthetic/measure.rs"]
mod measure;
#[path = "synthetic/recurrence.rs"]
mod recurrence;
mod synthetic;
#[path = "synthetic/table.rs"]
mod table;

use clap::{Parser, ValueEnum};
use construction::Construction;
use eesd::TokenId;
use eesd::backend::cpu::probe::Probe;
use eesd::backend::cpu::{CpuBackend, CpuOptions};
use eesd::control::{ControllerSpec, Way};
use eesd::model::cost::DraftCosts;
use eesd::model::{Dtype, Encoder, ExitWeights, Format, Geometry, ModelWeights};
use eesd::sample::SamplingParams;
use measure::{MAX_DRAFT, Measurement, measure};
use recurrence::{Switch, Switched, embedding_alone};
use std::cmp::Ordering;
use std::error::Error;
use std::num::NonZeroUsize;
use synthetic::geometry::llama;
use synthetic::{RandomModel, geometry_330m};

/// Tokens of a prompt.
const PROMPT: usize = 16;
/// Bytes that the sum over memory reads: many times any cache.
const PROBE_BYTES: usize = 512 << 20;
/// What layers before the exit write, over what those after it do: so little that recurrent drafts are accepted about as often
/// as a round's first.
const BEFORE_EXIT: f32 = 0.25;
/// Drafts of a round that acceptance is measured of where a recurrent block makes the later ones.
const RECURRENT_DRAFTS: usize = 3;

/// Measures the speculative loop on a random model.
#[derive(Parser)]
struct Args {
    /// Its size.
    #[arg(long, value_enum, default_value = "330m")]
    model: Size,
    /// How its matrices are stored: f32, f16, bf16, q8_0, q4_0, q4_k, q6_k [default: bf16, of 13b q4_0].
    #[arg(long, value_parser = stored)]
    format: Option<Format>,
    /// How drafts after a round's first are made [default: first-layers, of the other sizes both].
    #[arg(long, value_enum, value_delimiter = ',')]
    ways: Vec<WayOfDrafts>,
    /// Acceptance to construct: the share of positions where draft and model agree.
    #[arg(long, value_delimiter = ',', default_value = "0.6,0.8,0.9")]
    acceptance: Vec<f64>,
    /// The ε that is tried first for each of these: what an earlier run found.
    #[arg(long, value_delimiter = ',', value_parser = scale, allow_negative_numbers = true)]
    scales: Vec<f32>,
    /// Exit layer N.
    #[arg(long, default_value = "3")]
    exit_layer: NonZeroUsize,
    /// Controllers that compete with `off`.
    #[arg(
        long,
        value_delimiter = ';',
        default_value = "fixed:1;fixed:2;fixed:4;fixed:8;threshold:0.6;beta-ts;calibration-ts;goodput-ts"
    )]
    controllers: Vec<ControllerSpec>,
    /// Prompts, one at a time.
    #[arg(long, default_value = "2")]
    prompts: NonZeroUsize,
    /// Tokens of each answer.
    #[arg(long, default_value = "32")]
    tokens: NonZeroUsize,
    /// Times that every controller answers all prompts.
    #[arg(long, default_value = "3")]
    repetitions: NonZeroUsize,
    /// 0 is greedy; above, sampling is coupled by a seed.
    #[arg(long, default_value_t = 0.0)]
    temperature: f64,
    /// Acceptance 0.8 only, and one repetition.
    #[arg(long)]
    quick: bool,
    /// What cargo bench passes.
    #[arg(long, hide = true)]
    bench: bool,
}

/// Sizes of models.
#[derive(Debug, Clone, Copy, PartialEq, ValueEnum)]
enum Size {
    /// 24 layers with 330 million parameters.
    #[value(name = "330m")]
    Small,
    /// The geometry of Llama 2's 13B.
    #[value(name = "13b")]
    Thirteen,
    /// A second's work: a test of this program.
    Tiny,
}

impl Size {
    /// In words, its shape, how it is stored where nobody says, and how it drafts then.
    fn table(self) -> (&'static str, Geometry, Format, &'static [WayOfDrafts]) {
        let (bf16, q4_0) = (Format::Float(Dtype::BF16), Format::Blocks(Encoder::Q4_0.blocks()));
        match self {
            Self::Small => ("330 M parameters", geometry_330m(), bf16, &[WayOfDrafts::FirstLayers]),
            Self::Thirteen => (
                "Llama-2-13B's geometry",
                llama(32_000, 5120, 13_824, 40, (40, 40, 128)),
                q4_0,
                WayOfDrafts::value_variants(),
            ),
            Self::Tiny => {
                ("a tiny geometry", llama(2048, 256, 512, 8, (4, 2, 64)), q4_0, WayOfDrafts::value_variants())
            }
        }
    }
}

/// How drafts after a round's first are made.
#[derive(Debug, Clone, Copy, PartialEq, ValueEnum)]
enum WayOfDrafts {
    /// As the first.
    FirstLayers,
    /// By the exit block alone.
    Recurrent,
}

impl From<WayOfDrafts> for Way {
    fn from(way: WayOfDrafts) -> Self {
        match way {
            WayOfDrafts::FirstLayers => Self::FirstLayers,
            WayOfDrafts::Recurrent => Self::Recurrent,
        }
    }
}

/// An ε.
fn scale(given: &str) -> Result<f32, String> {
    let scale = given.parse().ok().filter(|scale: &f32| *scale > 0.0 && scale.is_finite());
    scale.ok_or_else(|| "expected a number above 0".into())
}

/// A format by its name.
fn stored(name: &str) -> Result<Format, String> {
    let numbers = [Dtype::F32, Dtype::F16, Dtype::BF16].map(Format::Float);
    let blocks =
        [Encoder::Q8_0, Encoder::Q4_0, Encoder::Q4K, Encoder::Q6K].map(|encoder| Format::Blocks(encoder.blocks()));
    let mut all = numbers.into_iter().chain(blocks);
    all.find(|format| format.to_string() == name)
        .ok_or_else(|| "expected f32, f16, bf16, q8_0, q4_0, q4_k or q6_k".into())
}

/// What does not change from one construction to the next.
#[derive(Clone)]
struct Plan {
    geometry: Geometry,
    format: Format,
    exit_layer: usize,
    recurrent: bool,
}

impl Plan {
    /// Calls `of` with the model whose layers, but for that which the exit block is a copy of, write `scale` times as much,
    /// and those before it, which a recurrent block knows nothing of, less than that.
    fn with<T>(&self, scale: f32, of: impl FnOnce(&ModelWeights<'_>, &ExitWeights<'_>) -> T) -> T {
        let outputs = |layer: usize| match layer.cmp(&self.exit_layer) {
            Ordering::Less => BEFORE_EXIT * scale,
            Ordering::Equal => 1.0,
            Ordering::Greater => scale,
        };
        let model = RandomModel::new(self.geometry.clone(), self.format, outputs);
        let (weights, hidden) = (model.weights(), self.geometry.hidden_size);
        let recurrent = self.recurrent.then(|| embedding_alone(self.format, hidden));
        let recurrent = recurrent.as_ref().map(|numbers| numbers.window(0, hidden, 2 * hidden));
        let exit = ExitWeights::from_model(&weights, self.exit_layer, self.exit_layer);
        of(&weights, &ExitWeights { recurrent, ..exit })
    }

    /// Bytes that a plain step reads, and what drafts cost by theirs, made one way or the other.
    fn by_bytes(&self, ways: &[Way]) -> (u64, Vec<(Way, DraftCosts)>) {
        self.with(0.0, |model, exit| {
            let layers = model.layers.iter().map(eesd::model::cost::layer_bytes).sum::<u64>();
            let costs = |way: &Way| {
                let recurrent = exit.recurrent.filter(|_| *way == Way::Recurrent);
                (*way, DraftCosts::of(model, &ExitWeights { recurrent, ..*exit }))
            };
            (layers + model.head.bytes.len() as u64, ways.iter().map(costs).collect())
        })
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = Args::parse();
    if args.quick {
        (args.acceptance, args.repetitions) = (vec![0.8], NonZeroUsize::MIN);
    }
    let (scales, acceptances) = (args.scales.len(), args.acceptance.len());
    if scales > acceptances {
        return Err(format!("{scales} --scales (expected one for each --acceptance, {acceptances} at most)").into());
    }
    let (name, geometry, format, ways) = args.model.table();
    let (layers, exit_layer) = (geometry.layers, args.exit_layer.get());
    if exit_layer >= layers {
        return Err(format!("--exit-layer {exit_layer} (expected 1 to {})", layers - 1).into());
    }
    let ways = if args.ways.is_empty() { ways } else { &args.ways };
    let ways: Vec<Way> = ways.iter().map(|&way| way.into()).collect();
    let plan =
        Plan { geometry, format: args.format.unwrap_or(format), exit_layer, recurrent: ways.contains(&Way::Recurrent) };
    let drafts = if plan.recurrent { RECURRENT_DRAFTS } else { 1 };
    let (prompts, tokens) = (args.prompts.get(), args.tokens.get());
    let context = PROMPT + tokens + drafts;
    let options = CpuOptions { slots: prompts, context, max_draft: MAX_DRAFT, ..CpuOptions::default() };
    let vocab = plan.geometry.vocab_size;
    let prompt = |i: usize| (0..PROMPT).map(|j| ((i * PROMPT + j + 1) * 7919 % vocab) as TokenId).collect();
    let (step_bytes, ways) = plan.by_bytes(&ways);
    let switch = Switch::new();
    let mut construction = Construction {
        exit_layer,
        layers,
        build: {
            let switch = switch.clone();
            Box::new(move |scale| {
                switch.set(Way::Recurrent);
                let backend =
                    plan.with(scale, |model, exit| CpuBackend::new(&plan.geometry, model, Some(exit), &options))?;
                Ok(Box::new(Switched { backend, switch: switch.clone() }))
            })
        },
        drafts,
        prompts: (0..prompts).map(prompt).collect(),
        tokens,
        sampling: SamplingParams { temperature: args.temperature, seed: Some(0), ..SamplingParams::default() },
        measured: Vec::new(),
    };
    let mut probe = Probe::new(std::thread::available_parallelism().map_or(1, |cores| cores.get()), PROBE_BYTES)?;
    let measurement = Measurement {
        model: name.to_owned(),
        step_bytes,
        ways,
        select: Box::new(move |way| switch.set(way)),
        controllers: args.controllers,
        repetitions: args.repetitions.get(),
        yardstick: "a sum over memory",
    };
    for (i, &wanted) in args.acceptance.iter().enumerate() {
        let constructed = construction.find(wanted, args.scales.get(i).copied())?;
        let measured = measure(&measurement, &construction, constructed, &mut || Ok(probe.read()))?;
        println!("{}", table::markdown(&measurement, &measured));
    }
    Ok(())
}
