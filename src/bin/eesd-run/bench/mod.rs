//! `eesd-run bench`: whoever drafts against plain decoding, in one run, interleaved.
//!
//! 1. Warm-up: each contender answers all prompts. Its tokens must be those of `off`, or nothing is
//!    reported; the costs of its passes are what the predictions are made of.
//! 2. Repetitions: contenders take turns on each batch of prompts (A B A B …), and must keep giving
//!    the same tokens. In each repetition they begin knowing nothing, and learn from turn to turn.
//! 3. Report: a table, and a picture and a trace of the repetitions where asked for.
//!
//! All contenders share one engine with the exit block loaded, so `off` too fills the exit layer's
//! K and V (below one percent of a plain step).

pub mod contender;
pub mod costs;
mod grid;
mod plot;
mod prefill;
mod profiling;
mod set;
mod sets;
mod table;

use crate::args::{BenchArgs, DraftArgs, Drafters, TableFormat};
use crate::drafting::Drafting;
use crate::failure::{Failure, Outcome};
use crate::files::{self, Named};
use crate::interrupt;
use crate::machine::Machine;
use crate::output::Output;
use crate::report::Reporter;
use crate::settings::{self, EVERY_PROMPT, Model};
use contender::Contender;
use eesd::control::ControllerSpec;
use eesd::draft::{Source, Sources};
use eesd::sample::VerifyMode;
use prefill::Prefill;
use profiling::Recording;
use set::Set;
use table::{Row, Subject};

/// Seed of sampled benchmarks where none is given.
const SEED: u64 = 0;
/// Tokens of the prompt whose prefill is timed, where nobody says.
const PREFILL: usize = 256;

/// Decides, warms up, measures, reports.
pub fn run(args: BenchArgs) -> Outcome {
    let reporter = Reporter::new(args.quiet);
    check(&args)?;
    let model = Model::open(&args.model, reporter)?.with_template(&args.template)?;
    if args.input.is_empty() {
        model.note_idle_template(&args.template, "add --input FILE.jsonl", reporter);
    }
    let prompts = set::prompts(&args, &model, reporter)?;
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
    let several = prompts.len() > 1;
    let BenchArgs { draft: by, controllers, .. } = args;
    let (draft_max, drafters) = (by.draft_max, by.draft);
    let controllers = controllers.map(|list| list.0);
    let plain = controllers.as_ref().is_some_and(|list| list.iter().all(|spec| *spec == ControllerSpec::Off));
    let controller = plain.then_some(ControllerSpec::Off);
    let drafting = Drafting::new(&DraftArgs { by, controller, draft_index: None }, &model, false, reporter)?;
    let contending = contending(controllers, drafters, &drafting, several, &model)?;
    let machine =
        Machine::new(&args.machine, args.prefill.prefill.into(), &model, args.batch_size, draft_max, reporter)?;
    let backend = machine.backend(&model, drafting.exit.as_ref(), reporter)?;
    let mut engine = model.engine(backend, &ControllerSpec::Off).with_options(EVERY_PROMPT);
    interrupt::listen();

    let base = settings::request(Some(args.max_tokens), sampling, &args.sampling, &model);
    let contenders = |name: &Option<String>| {
        let new = contending.iter().map(|(spec, sources)| Contender::new(spec, *sources));
        new.map(|contender| name.iter().fold(contender, |contender, name| contender.on(name))).collect()
    };
    let mut sets: Vec<Set> = prompts
        .into_iter()
        .map(|(name, prompts)| Set::new(prompts, &base, args.batch_size, contenders(&name), name))
        .collect();
    let prefill = Prefill::of(&sets, args.pp.unwrap_or(PREFILL).min(machine.context().saturating_sub(1)));
    if several && args.pp.is_some() {
        reporter.note("--pp changes nothing with several files: no prefill is timed");
    }

    let turns: usize = sets.iter().map(Set::turns).sum();
    let progress = reporter.progress(turns, "warm-up");
    for set in &mut sets {
        set.warm_up(&mut engine, &progress)?;
    }
    progress.end();

    let recording = Recording::begin(args.trace.as_deref(), args.profile, &mut engine, reporter)?;
    let progress = reporter.progress(args.repetitions * turns, "measuring");
    let mut prefill_speeds = Vec::new();
    for _ in 0..args.repetitions {
        if !several && let Some(speed) = prefill.measure(&mut engine)? {
            prefill_speeds.push(speed);
        }
        for set in &mut sets {
            set.repetition(&mut engine, &progress)?;
        }
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
    let mut rows: Vec<Row> = Vec::new();
    rows.extend(table::prefill_row(&prefill_speeds, prefill.length));
    for set in sets.iter().filter(|set| set.is_measured()) {
        rows.extend(table::rows(set, args.max_tokens));
    }
    if !sets.iter().any(Set::is_measured) {
        return Err(Failure::failed("interrupted before anything was measured"));
    }
    if let Some(path) = &args.plot {
        let svg = plot::draw(&subject, &rows)?;
        std::fs::write(path, svg).map_err(|e| Failure::file(path, "written", &e))?;
        reporter.note(&format!("plot written to {}", path.display()));
    }
    let format = if args.json { TableFormat::Json } else { args.output_format };
    let means = if several { sets::means(&sets, &rows) } else { Vec::new() };
    Output::stdout().text(&table::print(&subject, &rows, &means, format)?)
}

/// Refuses what makes no sense together.
fn check(args: &BenchArgs) -> Outcome {
    if args.sampling.logprobs.is_some() {
        return Err(Failure::usage("--logprobs has nowhere to go in a benchmark: use `generate --json`"));
    }
    let read: Vec<Named<'_>> = args.input.iter().map(|path| ("--input", path.as_path())).collect();
    let written = [("--plot", &args.plot), ("--trace", &args.trace)];
    let written = written.iter().filter_map(|(flag, path)| Some((*flag, path.as_deref()?)));
    files::all_different(&read, &written.collect::<Vec<_>>())?;
    for (number, path) in args.input.iter().enumerate() {
        if args.input[..number].contains(path) {
            return Err(Failure::usage(format!("--input {}: is there twice", path.display())));
        }
    }
    Ok(())
}

/// Who takes part, each once, plain decoding first: a controller, and the sources that draft beside its exit block.
fn contending(
    asked: Option<Vec<ControllerSpec>>,
    drafters: Drafters,
    drafting: &Drafting,
    several: bool,
    model: &Model,
) -> Outcome<Vec<(ControllerSpec, Sources)>> {
    if let Drafters::Only(sources) = drafters
        && sources.has(Source::Grammar)
    {
        return Err(Failure::usage(format!("--draft {sources}: bench asks for no grammar that could draft")));
    }
    let others = drafting.sources.with(Source::Exit, false).with(Source::Grammar, false);
    let mut contending = vec![(ControllerSpec::Off, Sources::OFF)];
    if drafting.exit.is_some() {
        let controllers = asked.unwrap_or_else(|| if several { vec![ControllerSpec::default()] } else { all() });
        for controller in controllers {
            if !contending.iter().any(|(known, _)| *known == controller) {
                contending.push((controller, others));
            }
        }
    } else if asked.is_some_and(|list| list.iter().any(|controller| *controller != ControllerSpec::Off)) {
        return Err(match drafters {
            Drafters::Only(sources) if !sources.has(Source::Exit) => {
                Failure::usage(format!("--controllers is for --draft exit, not for --draft {sources}"))
            }
            _ => Failure::failed(format!(
                "{}: no exit-N.safetensors to draft with: give one with --exit FILE, or leave --controllers out",
                model.place()
            )),
        });
    } else if !others.is_off() {
        contending.push((ControllerSpec::Off, others));
    }
    Ok(contending)
}

/// One of each kind, and fixed lengths of several sizes.
fn all() -> Vec<ControllerSpec> {
    let fixed = [1, 2, 4, 8].map(ControllerSpec::Fixed);
    let choosing = ["threshold:0.6", "beta-ts", "calibration-ts", "goodput-ts"];
    fixed.into_iter().chain(choosing.iter().filter_map(|name| name.parse().ok())).collect()
}
