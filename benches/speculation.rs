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
mod synthetic;
#[path = "synthetic/table.rs"]
mod table;

use clap::Parser;
use construction::Construction;
use contender::{Contender, Ladder};
use eesd::TokenId;
use eesd::backend::cpu::CpuOptions;
use eesd::backend::cpu::probe::Probe;
use eesd::control::ControllerSpec;
use eesd::engine::{Engine, Request};
use eesd::sample::SamplingParams;
use std::error::Error;
use std::num::NonZeroUsize;

/// Most drafts of a round.
const MAX_DRAFT: usize = 8;
/// Draft lengths of the rounds that measure costs.
const LADDER: [usize; 7] = [0, 1, 2, 3, 4, 6, MAX_DRAFT];
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
    let options = CpuOptions {
        threads: None,
        simd: None,
        slots: prompts,
        context: PROMPT + tokens,
        max_draft: MAX_DRAFT,
        pages: None,
    };
    let prompt = |i: usize| (0..PROMPT).map(|j| ((i * PROMPT + j + 1) * 7919 % 32_000) as TokenId).collect();
    let sampling = SamplingParams { temperature: args.temperature, seed: Some(0), ..SamplingParams::default() };
    let prompts = (0..prompts).map(prompt).collect();
    let mut construction = Construction::new(usize::from(args.exit_layer), options, prompts, tokens, sampling);
    for &wanted in &args.acceptance {
        let (scale, acceptance) = construction.find(wanted)?;
        let measured = measure(&args, &construction, scale, acceptance)?;
        println!("{}", table::markdown(&measured));
    }
    Ok(())
}

/// What was measured with one construction.
pub struct Measured {
    /// The device, in the backend's words.
    pub device: String,
    /// N.
    pub exit_layer: usize,
    /// ε.
    pub scale: f32,
    /// Share of positions where the draft is the model's own token.
    pub acceptance: f64,
    /// Greedy or sampled.
    pub temperature: f64,
    /// Answers, and different tokens in them.
    pub texts: (usize, usize),
    /// Rates of the sum over memory, bytes per second.
    pub reads: Vec<f64>,
    /// Bytes of the matrices that a plain step reads.
    pub step_bytes: usize,
    /// `off` first, the ladder last.
    pub contenders: Vec<Contender>,
}

fn measure(args: &Args, construction: &Construction, scale: f32, acceptance: f64) -> Result<Measured, Box<dyn Error>> {
    let backend = construction.build(scale)?;
    let mut probe = Probe::new(std::thread::available_parallelism().map_or(1, |cores| cores.get()), PROBE_BYTES)?;
    let mut engine = Engine::new(backend, ControllerSpec::Off.build(), None, Vec::new());
    let requests: Vec<Request> = construction
        .prompts
        .iter()
        .map(|prompt| Request {
            sampling: construction.sampling.clone(),
            ..Request::new(prompt.clone(), construction.tokens)
        })
        .collect();

    let mut contenders = vec![Contender::new(ControllerSpec::Off.build())];
    contenders.extend(args.controllers.iter().map(|spec| Contender::new(spec.build())));
    contenders.push(Contender::new(Box::new(Ladder { lengths: &LADDER, round: 0 })));
    let mut answers: Vec<Vec<TokenId>> = Vec::new();
    for request in &requests {
        answers.push(contenders[0].play(&mut engine, request, None)?);
    }
    let mut turns = |contenders: &mut [Contender], prompts: usize| -> Result<(), Box<dyn Error>> {
        contenders.iter_mut().for_each(|contender| contender.repetitions.push((0, 0.0)));
        for (request, answer) in std::iter::zip(&requests, &answers).take(prompts) {
            for contender in contenders.iter_mut() {
                contender.play(&mut engine, request, Some(answer))?;
            }
        }
        Ok(())
    };
    turns(&mut contenders, 1)?;
    contenders.iter_mut().for_each(Contender::reset);
    let mut reads = Vec::new();
    for _ in 0..args.repetitions.get() {
        reads.push(probe.read());
        turns(&mut contenders, requests.len())?;
    }
    let mut different: Vec<TokenId> = answers.concat();
    let all = different.len();
    different.sort_unstable();
    different.dedup();
    Ok(Measured {
        device: engine.backend().describe(),
        exit_layer: construction.exit_layer,
        scale,
        acceptance,
        temperature: args.temperature,
        texts: (all, different.len()),
        reads,
        step_bytes: construction::step_bytes(engine.backend().geometry()),
        contenders,
    })
}
