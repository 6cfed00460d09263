//! `eesd-run bench`: every controller against plain decoding, in one run, interleaved.
//!
//! 1. Warm-up: each controller answers all prompts. Its tokens must be those of `off`, or nothing is
//!    reported; the costs of its passes are what the predictions are made of.
//! 2. Repetitions: controllers take turns on each batch of prompts (A B A B …), and must keep giving
//!    the same tokens.
//! 3. Report: a table, and a picture and a trace of the repetitions where asked for.
//!
//! All controllers share one engine with the exit block loaded, so `off` too fills the exit layer's
//! K and V (below one percent of a plain step); what each has learned it keeps from turn to turn.

pub mod contender;
pub mod costs;
mod plot;
mod profiling;
mod table;

use crate::args::BenchArgs;
use crate::failure::{Failure, Outcome};
use crate::files::{self, Named};
use crate::interrupt;
use crate::machine::Machine;
use crate::output::Output;
use crate::progress::Progress;
use crate::prompts;
use crate::report::Reporter;
use crate::settings::{self, EVERY_PROMPT, Model};
use contender::Contender;
use costs::{Costs, Round};
use eesd::TokenId;
use eesd::control::ControllerSpec;
use eesd::engine::{Engine, Request};
use eesd::sample::VerifyMode;
use profiling::Recording;
use std::ops::ControlFlow;
use table::Subject;

/// Seed of sampled benchmarks where none is given.
const SEED: u64 = 0;

/// Decides, warms up, measures, reports.
pub fn run(args: BenchArgs) -> Outcome {
    let reporter = Reporter::new(args.quiet);
    if args.sampling.logprobs.is_some() {
        return Err(Failure::usage("--logprobs has nowhere to go in a benchmark: use `generate --json`"));
    }
    let read: Vec<Named<'_>> = args.input.iter().map(|path| ("--input", path.as_path())).collect();
    let written = [("--plot", &args.plot), ("--trace", &args.trace)];
    let written = written.iter().filter_map(|(flag, path)| Some((*flag, path.as_deref()?)));
    files::all_different(&read, &written.collect::<Vec<_>>())?;
    let model = Model::open(&args.model, reporter)?.with_template(&args.template)?;
    if args.input.is_none() {
        model.note_idle_template(&args.template, "add --input FILE.jsonl", reporter);
    }
    let mut prompts = prompts::of_file_or_bundled(args.input.as_deref(), &model, reporter)?;
    prompts.truncate(args.prompts.unwrap_or(usize::MAX));
    let mut sampling = settings::sampling(&args.sampling, &model, reporter)?;
    if sampling.temperature > 0.0 {
        if sampling.verify == Some(VerifyMode::Rejection) {
            return Err(Failure::usage(
                "--verify rejection: outputs are equal in distribution only, and a benchmark compares tokens: use coupled",
            ));
        }
        sampling.seed.get_or_insert(SEED);
        sampling.verify = Some(VerifyMode::Coupled);
    }
    let exit = model.exit_block(args.exit.as_ref(), reporter)?;
    let controllers = controllers(&args.controllers.0, exit.is_some(), &model)?;
    let machine =
        Machine::new(&args.machine, args.prefill.prefill.into(), &model, args.batch_size, args.draft_max, reporter)?;
    let backend = machine.backend(&model, exit.as_ref(), reporter)?;
    let mut engine = model.engine(backend, &ControllerSpec::Off).with_options(EVERY_PROMPT);
    interrupt::listen();

    let base = settings::request(Some(args.max_tokens), sampling, &args.sampling, &model);
    let requests: Vec<Request> = prompts.into_iter().map(|prompt| Request { prompt, ..base.clone() }).collect();
    let chunks: Vec<&[Request]> = requests.chunks(args.batch_size).collect();
    let mut contenders: Vec<Contender> = controllers.iter().map(Contender::new).collect();
    let prefill = Prefill::new(&requests, args.pp.min(machine.context().saturating_sub(1)));

    let progress = reporter.progress(chunks.len() * contenders.len(), "warm-up");
    let (expected, costs) = warm_up(&mut engine, &chunks, &mut contenders, &progress)?;
    progress.end();

    let recording = Recording::begin(&args, &mut engine, reporter)?;
    let progress = reporter.progress(args.repetitions * chunks.len() * contenders.len(), "measuring");
    let mut prefill_speeds = Vec::new();
    for _ in 0..args.repetitions {
        if let Some(speed) = prefill.measure(&mut engine)? {
            prefill_speeds.push(speed);
        }
        contenders.iter_mut().for_each(Contender::begin_repetition);
        repetition(&mut engine, &chunks, &mut contenders, &expected, &progress)?;
    }
    progress.end();
    recording.end(&mut engine, reporter)?;
    if interrupt::pressed() {
        reporter.note("interrupted: what follows is what was measured so far");
    }

    let subject = Subject {
        model: model.checkpoint.name().to_owned(),
        bytes: model.bytes(),
        parameters: model.checkpoint.parameters(),
        device: engine.backend().describe(),
        exit_layer: engine.backend().exit_layer(),
        batch: args.batch_size,
    };
    let rows = table::rows(&contenders, &costs, &prefill_speeds, prefill.length, args.max_tokens)?;
    if let Some(path) = &args.plot {
        let svg = plot::draw(&subject, &rows)?;
        std::fs::write(path, svg).map_err(|e| Failure::file(path, "written", &e))?;
        reporter.note(&format!("plot written to {}", path.display()));
    }
    Output::stdout().text(&table::print(&subject, &rows, args.output_format)?)
}

/// `off` first, then the others, each once.
fn controllers(asked: &[ControllerSpec], can_draft: bool, model: &Model) -> Outcome<Vec<ControllerSpec>> {
    let mut controllers = vec![ControllerSpec::Off];
    for controller in asked {
        if !controllers.contains(controller) {
            controllers.push(controller.clone());
        }
    }
    if controllers.len() > 1 && !can_draft {
        return Err(Failure::failed(format!(
            "{}: no exit-N.safetensors to draft with: give one with --exit FILE, or measure --controllers off",
            model.place()
        )));
    }
    Ok(controllers)
}

/// Every contender over every chunk; returns the tokens that `off` gave for each prompt, and what
/// the passes cost.
fn warm_up(
    engine: &mut Engine,
    chunks: &[&[Request]],
    contenders: &mut [Contender],
    progress: &Progress,
) -> Outcome<(Vec<Vec<TokenId>>, Costs)> {
    let (mut expected, mut rounds): (Vec<Vec<TokenId>>, Vec<Round>) = Default::default();
    for chunk in chunks {
        let first = expected.len();
        for contender in contenders.iter_mut() {
            let Some(turn) = contender.play(engine, chunk, first)? else {
                return Err(Failure::failed("interrupted before anything was measured"));
            };
            rounds.extend(turn.rounds);
            if expected.len() == first {
                expected.extend(turn.tokens);
            } else {
                contender.check(&expected[first..], &turn.tokens, first)?;
            }
            progress.advance();
        }
    }
    Ok((expected, Costs::measured(rounds)))
}

/// Every contender over every chunk, in turns; a chunk counts when all of them have played it.
fn repetition(
    engine: &mut Engine,
    chunks: &[&[Request]],
    contenders: &mut [Contender],
    expected: &[Vec<TokenId>],
    progress: &Progress,
) -> Outcome {
    let mut first = 0;
    for chunk in chunks {
        let mut turns = Vec::new();
        for contender in contenders.iter_mut() {
            let Some(turn) = contender.play(engine, chunk, first)? else { return Ok(()) };
            contender.check(&expected[first..], &turn.tokens, first)?;
            turns.push(turn);
            progress.advance();
        }
        for (contender, turn) in contenders.iter_mut().zip(&turns) {
            contender.count(turn);
        }
        first += chunk.len();
    }
    Ok(())
}

/// The prefill of one prompt of a given length, made of the benchmark's own prompts.
struct Prefill {
    request: Request,
    length: usize,
}

impl Prefill {
    fn new(requests: &[Request], length: usize) -> Self {
        let tokens = requests.iter().flat_map(|request| &request.prompt).copied();
        let prompt: Vec<TokenId> = tokens.clone().cycle().take(length.max(2)).collect();
        Self { length: prompt.len(), request: Request::new(prompt, 1) }
    }

    /// Tokens per second; `None` after an interrupt.
    fn measure(&self, engine: &mut Engine) -> Outcome<Option<f64>> {
        if interrupt::pressed() {
            return Ok(None);
        }
        let done = engine.generate(&self.request, &mut |_| ControlFlow::Continue(()))?;
        // The last prompt token goes through the model with the first round.
        Ok(Some((self.length - 1) as f64 / done.stats.prefill.as_secs_f64()))
    }
}
