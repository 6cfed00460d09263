//! Many requests through the scheduler: does speculation help or stand aside at every batch size?
//! `cargo bench --bench throughput -- [bundled] [random]` (both by default).
//!
//! For each batch size every controller answers the same requests, in turns (A B A B …): prompts and answers of different
//! lengths, more of them than run side by side, so that sequences join and leave all the time. A speed is all tokens
//! over the whole time, prefill and scheduling included; printed are medians of ratios to `off` in the same turn. The
//! last column is `goodput-ts` against the best of the others, with the half width of the median's 95 % interval (as the
//! notches of box plots: McGill, Tukey and Larsen, The American Statistician 1978). Every answer must be that of plain
//! decoding at batch 1, token for token, or nothing is printed and the exit code is 1.
//!
//! `bundled` is the bundled model with its exit block after layer 2. `random` has 330 M random weights in 24 layers and
//! an exit after 3, whose acceptance is set by construction: it measures the engine and says nothing of how often a
//! trained exit block is right.

#[path = "synthetic/construction.rs"]
#[expect(dead_code, reason = "shared with benches that print more of it")]
mod construction;
mod synthetic;

use clap::Parser;
use construction::Construction;
use eesd::TokenId;
use eesd::backend::Backend;
use eesd::backend::cpu::{CpuBackend, CpuOptions};
use eesd::control::{Controller, ControllerSpec};
use eesd::engine::{Engine, EngineOptions, Event, Request};
use eesd::load::{Checkpoint, bundled_prompts};
use eesd::model::{Dtype, ExitWeights};
use eesd::sample::SamplingParams;
use std::error::Error;
use std::ops::ControlFlow;
use std::time::Instant;
use synthetic::{RandomModel, geometry_330m};

/// Most drafts of a round.
const MAX_DRAFT: usize = 8;
/// Longest sequence.
const CONTEXT: usize = 256;
/// Exit layer of the random model.
const EXIT_LAYER: usize = 3;

/// Measures throughput over batch sizes.
#[derive(Parser)]
struct Args {
    /// Models: bundled, random.
    models: Vec<String>,
    /// Batch sizes.
    #[arg(long, value_delimiter = ',', default_value = "1,2,4,8,16,32")]
    batches: Vec<usize>,
    /// Controllers that compete with `off`; the last one is compared with all others.
    #[arg(long, value_delimiter = ';', default_value = "fixed:1;fixed:2;fixed:4;goodput-ts")]
    controllers: Vec<ControllerSpec>,
    /// Tokens of an answer on average.
    #[arg(long, default_value_t = 48)]
    tokens: usize,
    /// Requests: so many times the batch size.
    #[arg(long, default_value_t = 2.5)]
    load: f64,
    /// Times that every controller answers all requests.
    #[arg(long, default_value_t = 5)]
    repetitions: usize,
    /// Acceptance of the random model's drafts.
    #[arg(long, default_value_t = 0.8)]
    acceptance: f64,
    /// What cargo bench passes.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<(), Box<dyn Error>> {
    let args = Args::parse();
    let wanted = |name: &str| args.models.is_empty() || args.models.iter().any(|model| model == name);
    let most = args.batches.iter().copied().max().unwrap_or(1);
    let options = CpuOptions { slots: most, context: CONTEXT, max_draft: MAX_DRAFT, ..CpuOptions::default() };
    if wanted("bundled") {
        let checkpoint = Checkpoint::bundled()?;
        let tokenizer = checkpoint.tokenizer().ok_or("the bundled model has no tokenizer")?;
        let prompts: Result<Vec<_>, _> = bundled_prompts().iter().map(|text| tokenizer.encode(text, true)).collect();
        let blocks = checkpoint.exit_blocks()?;
        let exit = blocks.iter().find(|block| block.after() == 2).ok_or("no exit block after layer 2")?.weights();
        let backend = CpuBackend::new(checkpoint.geometry(), &checkpoint.weights(), Some(&exit), &options)?;
        measure(&args, "pycode-4m, exit layer 2", backend, &prompts?)?;
    }
    if wanted("random") {
        let prompt = |i: usize| (0..16 + i % 16).map(|j| ((i * 31 + j + 1) * 7919 % 32_000) as TokenId).collect();
        let prompts: Vec<Vec<TokenId>> = (0..32).map(prompt).collect();
        let (tokens, slots) = (16, options.slots.max(4));
        let geometry = geometry_330m();
        let layers = geometry.layers;
        let build = move |scale: f32| {
            let outputs = |layer| if layer == EXIT_LAYER { 1.0 } else { scale };
            let model = RandomModel::new(geometry.clone(), Dtype::BF16.into(), outputs);
            let weights = model.weights();
            let exit = ExitWeights::from_model(&weights, EXIT_LAYER, EXIT_LAYER);
            let options = CpuOptions { slots, ..options.clone() };
            let backend: Box<dyn Backend> = CpuBackend::new(&model.geometry, &weights, Some(&exit), &options)?;
            Ok(backend)
        };
        let mut construction = Construction {
            exit_layer: EXIT_LAYER,
            layers,
            build: Box::new(build),
            drafts: 1,
            prompts: prompts[..4].to_vec(),
            tokens,
            sampling: SamplingParams::default(),
            measured: Vec::new(),
        };
        let constructed = construction.find(args.acceptance, None)?;
        let acceptance = constructed.acceptance[0];
        let name = format!("330 M random weights, exit layer {EXIT_LAYER}, acceptance {acceptance:.2} by construction");
        measure(&args, &name, constructed.backend, &prompts)?;
    }
    Ok(())
}

/// Measures one model and prints its table.
fn measure(args: &Args, name: &str, backend: Box<dyn Backend>, prompts: &[Vec<TokenId>]) -> Result<(), Box<dyn Error>> {
    let device = backend.describe();
    let options = EngineOptions { reuse_prefixes: false, ..EngineOptions::default() };
    let mut engine = Engine::new(backend, ControllerSpec::Off.build(), None, Vec::new()).with_options(options);
    let mut table = format!("#### {name}; {device}\n\n| batch | requests | off, tok/s |");
    args.controllers.iter().for_each(|spec| table += &format!(" {spec} |"));
    table += " last / best of the others |\n|--:|--:|--:|";
    table += &"--:|".repeat(args.controllers.len() + 1);
    for &batch in &args.batches {
        let requests = requests(args, batch, prompts);
        let expected = play(&mut engine, &requests, 1)?.0;
        let mut specs = vec![ControllerSpec::Off];
        specs.extend(args.controllers.iter().cloned());
        let mut contenders: Vec<Option<Box<dyn Controller>>> = specs.iter().map(|spec| Some(spec.build())).collect();
        let mut speeds = vec![Vec::new(); specs.len()];
        // The first turn teaches the controllers what passes cost.
        for turn in 0..=args.repetitions {
            // Another one begins each turn: what comes first would run on a rested machine every time.
            for i in (0..specs.len()).map(|i| (turn + i) % specs.len()) {
                let controller = contenders[i].take().ok_or("a controller is missing")?;
                engine.set_controller(controller);
                let (found, speed) = play(&mut engine, &requests, batch)?;
                contenders[i] = Some(engine.set_controller(ControllerSpec::Off.build()));
                if found != expected {
                    let spec = &specs[i];
                    return Err(format!("not lossless: {spec}, {batch} at a time, differs from off alone").into());
                }
                if turn > 0 {
                    speeds[i].push(speed);
                }
            }
        }
        let ratio = |i: usize, to: usize| Quartiles::of(std::iter::zip(&speeds[i], &speeds[to]).map(|(a, b)| a / b));
        let last = specs.len() - 1;
        let best = (0..last).max_by(|&a, &b| ratio(a, 0).median.total_cmp(&ratio(b, 0).median)).unwrap_or(0);
        table +=
            &format!("\n| {batch} | {} | {:.1} |", requests.len(), Quartiles::of(speeds[0].iter().copied()).median);
        (1..specs.len()).for_each(|i| table += &format!(" {:.2}x |", ratio(i, 0).median));
        let gain = ratio(last, best);
        table += &format!(" {:.3} ± {:.3} |", gain.median, gain.notch());
        eprintln!("{}", table.lines().last().unwrap_or_default());
    }
    println!("{table}\n");
    Ok(())
}

/// More requests than run side by side, with answers of half to one and a half times the mean length.
fn requests(args: &Args, batch: usize, prompts: &[Vec<TokenId>]) -> Vec<Request> {
    let count = ((batch as f64 * args.load) as usize).max(4);
    let tokens = |i: usize| (args.tokens / 2 + args.tokens * (i * 7 % 16) / 16).max(1);
    (0..count).map(|i| Request::new(prompts[i % prompts.len()].clone(), tokens(i))).collect()
}

/// The answers, and tokens per second.
type Played = (Vec<Vec<TokenId>>, f64);

/// Answers all requests, `batch` at a time.
fn play(engine: &mut Engine, requests: &[Request], batch: usize) -> Result<Played, Box<dyn Error>> {
    let mut answers = vec![Vec::new(); requests.len()];
    let mut failed = None;
    let begun = Instant::now();
    engine.run(&mut requests.iter().cloned(), batch, &mut |i, event| {
        match event {
            Event::Prefilled { .. } | Event::Token(_) => {}
            Event::Done(completion) => answers[i] = completion.tokens,
            Event::Failed(error) => failed = Some(error),
        }
        ControlFlow::Continue(())
    })?;
    let seconds = begun.elapsed().as_secs_f64();
    match failed {
        Some(error) => Err(error.into()),
        None => {
            let tokens: usize = answers.iter().map(Vec::len).sum();
            Ok((answers, tokens as f64 / seconds))
        }
    }
}

/// Of some numbers.
struct Quartiles {
    low: f64,
    median: f64,
    high: f64,
    count: usize,
}

impl Quartiles {
    fn of(values: impl Iterator<Item = f64>) -> Self {
        let mut sorted: Vec<f64> = values.collect();
        sorted.sort_by(f64::total_cmp);
        let at = |quarter: usize| sorted.get(sorted.len() * quarter / 4).copied().unwrap_or(f64::NAN);
        Self { low: at(1), median: at(2), high: at(3), count: sorted.len() }
    }

    /// Half of the width of the median's 95 % interval.
    fn notch(&self) -> f64 {
        1.57 * (self.high - self.low) / (self.count as f64).sqrt()
    }
}
