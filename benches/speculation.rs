//! What speculation gains where decoding is bound by memory: `cargo bench --bench speculation`.
//!
//! The weights are random and acceptance is set by construction (see [`construction`]), so this
//! measures the engine and says nothing of how often a trained exit block is right. For each acceptance
//! asked for:
//! 1. find the construction, by its measured acceptance;
//! 2. let every controller answer the first prompt, to learn;
//! 3. let them answer all prompts in turns (A B A B …), and among them a ladder of draft lengths whose
//!    rounds tell what passes cost;
//! 4. print a table of speeds against plain decoding, beside what those costs predict.
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
mod synthetic;
#[path = "synthetic/table.rs"]
mod table;

use clap::Parser;
use construction::Construction;
use eesd::TokenId;
use eesd::backend::Backend;
use eesd::backend::cpu::probe::Probe;
use eesd::backend::cpu::{CpuBackend, CpuOptions};
use eesd::control::ControllerSpec;
use eesd::model::{Dtype, ExitWeights};
use eesd::sample::SamplingParams;
use measure::{MAX_DRAFT, Measurement, measure};
use std::error::Error;
use std::num::NonZeroUsize;
use synthetic::RandomModel;

/// Tokens of a prompt.
const PROMPT: usize = 16;
/// Bytes that the sum over memory reads: many times any cache.
const PROBE_BYTES: usize = 512 << 20;

/// Measures the speculative loop on a random model of 330 million parameters.
#[derive(Parser)]
struct Args {
    /// Acceptance to construct: the share of positions where draft and model agree.
    #[arg(long, value_delimiter = ',', default_value = "0.6,0.8,0.9")]
    acceptance: Vec<f64>,
    /// Exit layer N, of 24.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..24))]
    exit_layer: u8,
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

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = Args::parse();
    if args.quick {
        (args.acceptance, args.repetitions) = (vec![0.8], NonZeroUsize::MIN);
    }
    let (prompts, tokens) = (args.prompts.get(), args.tokens.get());
    let options =
        CpuOptions { slots: prompts, context: PROMPT + tokens, max_draft: MAX_DRAFT, ..CpuOptions::default() };
    let prompt = |i: usize| (0..PROMPT).map(|j| ((i * PROMPT + j + 1) * 7919 % 32_000) as TokenId).collect();
    let sampling = SamplingParams { temperature: args.temperature, seed: Some(0), ..SamplingParams::default() };
    let prompts = (0..prompts).map(prompt).collect();
    let exit_layer = usize::from(args.exit_layer);
    let build = move |scale: f32| {
        let model = RandomModel::new(Dtype::BF16, |layer| if layer < exit_layer { 1.0 } else { scale });
        let weights = model.weights();
        let exit = ExitWeights::from_model(&weights, exit_layer, exit_layer);
        let backend: Box<dyn Backend> = CpuBackend::new(&model.geometry, &weights, Some(&exit), &options)?;
        Ok(backend)
    };
    let mut construction = Construction::new(exit_layer, Box::new(build), prompts, tokens, sampling);
    let mut probe = Probe::new(std::thread::available_parallelism().map_or(1, |cores| cores.get()), PROBE_BYTES)?;
    let measurement = Measurement {
        model: "330 M parameters".to_owned(),
        controllers: args.controllers,
        repetitions: args.repetitions.get(),
        yardstick: "a sum over memory",
    };
    for &wanted in &args.acceptance {
        let (scale, acceptance) = construction.find(wanted)?;
        let measured = measure(&measurement, &construction, scale, acceptance, &mut || Ok(probe.read()))?;
        println!("{}", table::markdown(&measured));
    }
    Ok(())
}
