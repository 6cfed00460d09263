//! `eesd-run generate`: continues a prompt on standard output, or serves a file of requests.

use crate::args::{BatchSize, ColorChoice, GenerateArgs, MonitorArgs};
use crate::batch::{self, Desk, Input, Item, Job, Lines, TakenOver};
use crate::constraint;
use crate::drafting::Drafting;
use crate::failure::{Failure, Outcome};
use crate::files::{self, Named};
use crate::interrupt;
use crate::machine::Machine;
use crate::monitor::{Listeners, MetricsTarget, Monitor, Subject};
use crate::openai::seeded;
use crate::output::{AnswerFile, Output};
use crate::prompts;
use crate::report::Reporter;
use crate::settings::{self, Model};
use crate::show_prompt;
use eesd::draft::Source;
use eesd::engine::{Completion, Engine, EngineError, Event, Finish, Request};
use std::io::IsTerminal;
use std::ops::ControlFlow;
use std::path::Path;

/// Decides, loads, generates, reports.
pub fn run(args: GenerateArgs) -> Outcome {
    let reporter = Reporter::new(args.quiet);
    let json = args.json || args.output.is_some() || args.input.is_some();
    check(&args, json)?;
    let listeners = Listeners::open(&args.monitor, reporter)?;
    let input = args.input.as_deref().map(Input::open).transpose()?;
    let text =
        if input.is_some() { String::new() } else { prompts::text(args.prompt.as_deref(), args.file.as_deref())? };

    let model = Model::open(&args.model, reporter)?.with_template(&args.template)?;
    let reporter = reporter.with_quantised(model.scheme);
    spare_model(&args, &model)?;
    if args.input.is_none() && args.system.is_none() {
        model.note_idle_template(&args.template, "add --system TEXT or --input FILE.jsonl", reporter);
    }
    let encoder = model.encoder();
    let sampling = settings::sampling(&args.sampling, &model, reporter)?;
    let mut base = settings::request(args.max_tokens, sampling, &args.sampling, &model);
    base.constraint = constraint::of_flags(args.json_schema.as_deref(), args.grammar.as_deref(), &model.grammars)?;
    let lines = |input| Lines::new(input, &encoder, &model.grammars, base.clone());
    let prompt = model.prompt(text, args.system.as_deref());
    if args.show_prompt {
        return match input {
            Some(input) => show_prompt::of_lines(lines(input)),
            None => show_prompt::of_text(&encoder, &prompt, json),
        };
    }
    // What can be refused is refused before a large model is made ready, which takes its time, and before a file is opened.
    let request = match &input {
        None => Some(Request { prompt: encoder.encode(&prompt)?, ..base.clone() }),
        Some(_) => None,
    };
    let one_owner = args.input.is_some() || args.samples > 1;
    let drafting = Drafting::new(&args.draft, &model, one_owner, reporter)?;
    let batch_size = args.batch_size.unwrap_or(BatchSize::Fixed(1));
    let most = batch_size.most();
    let prefill = args.prefill.prefill.into();
    let mut machine = Machine::new(&args.machine, prefill, &model, most, args.draft.by.draft_max, reporter)?;

    let file = args.output.as_deref().filter(|path| *path != Path::new("-"));
    let file = file.map(|path| AnswerFile::open(path, args.resume)).transpose()?;
    let earlier = match (&args.input, &file) {
        (Some(input), Some(file)) if args.resume => {
            let requests = lines(Input::open(input)?);
            reporter.wait("checking the output", || TakenOver::check(file, requests))?
        }
        _ => TakenOver::default(),
    };
    let answers = args.input.as_deref().map_or(Ok(Some(args.samples)), batch::count)?;
    machine.limit_slots(answers.map_or(most, |answers| answers.saturating_sub(earlier.lines())));
    let backend = machine.backend(&model, drafting.exit.as_ref(), reporter)?;
    let mut engine = drafting.engine(&model, backend);
    if let Some(request) = &request {
        engine.check(request)?;
    }
    let batch = match batch_size {
        BatchSize::Auto => reporter.wait("timing batches", || engine.suggested_batch())?,
        BatchSize::Fixed(_) => machine.slots(),
    };
    let device = engine.backend().describe();
    let name = model.checkpoint.name();
    let subject = Subject { model: name.to_owned(), device, batch, requests: answers };
    let monitor = Monitor::new(subject, listeners, reporter)?;
    interrupt::listen();

    // All that can fail before an answer is there has been done: only now an earlier file is given up.
    let mut output = match file {
        None => Output::stdout(),
        Some(file) if args.resume => {
            if let dropped @ 1.. = earlier.dropped.len() {
                let path = file.path().display();
                reporter
                    .note(&format!("{path}: lines that were cut short are taken out and answered again: {dropped}"));
            }
            file.without(&earlier.dropped)?
        }
        Some(file) => file.overwrite()?,
    };
    let mut items: Box<dyn Iterator<Item = Item>> =
        match (input, request) {
            (Some(input), _) => Box::new(lines(input).only(|index| !earlier.has(index))),
            (None, Some(request)) if !json => {
                if batch_size != BatchSize::Fixed(1) {
                    reporter.note("--batch-size changes nothing for text, which is in order: add --json or --output");
                }
                let echo = if args.echo { encoder.text(&prompt)? } else { None };
                let written = write_text(&mut engine, &request, echo.as_deref(), &args, &mut output, reporter);
                drafting.keep_texts(&model, &engine)?;
                return written;
            }
            // Each sample is an answer of its own, and so has a number of its own.
            (None, request) => {
                Box::new(request.into_iter().flat_map(|request| seeded(request, args.samples)).enumerate().map(
                    |(index, request)| Item::Request { job: Job::sole(index), requests: vec![request], text: None },
                ))
            }
        };
    if args.input.is_some() {
        let requests = answers.map_or("requests".into(), |answers| format!("{answers} requests"));
        reporter.note(&format!("answering {requests}, {batch} side by side"));
    }
    let desk = Desk::new(&mut output, &earlier, name, model.checkpoint.tokenizer(), monitor, reporter);
    let served = batch::serve(&mut engine, &mut *items, desk);
    drafting.keep_texts(&model, &engine)?;
    served
}

/// Continues a prompt on standard output, each of its samples after the other.
fn write_text(
    engine: &mut Engine,
    request: &Request,
    echo: Option<&str>,
    args: &GenerateArgs,
    output: &mut Output,
    reporter: Reporter,
) -> Outcome {
    let separate = args.samples > 1 || std::io::stdout().is_terminal();
    for (number, request) in seeded(request.clone(), args.samples).enumerate() {
        if args.samples > 1 {
            reporter.note(&format!("sample {} of {}", number + 1, args.samples));
        }
        output.text(echo.unwrap_or_default())?;
        let completion = stream(engine, &request, output, colour(args.show_drafts, args.color))??;
        if separate {
            output.text("\n")?;
        }
        if completion.finish == Finish::Context {
            let context = engine.backend().limits().context;
            reporter.note(&format!("the context of {context} tokens is full: --ctx-size N makes it longer"));
        }
        reporter.statistics(&completion.stats);
        if interrupt::pressed() {
            break;
        }
    }
    Ok(())
}

/// Whether the flags make sense together.
fn check(args: &GenerateArgs, json: bool) -> Outcome {
    if args.sampling.logprobs.is_some() && !json {
        return Err(Failure::usage("--logprobs N is written as JSON: add --json or --output FILE.jsonl"));
    }
    let MonitorArgs { stats, metrics, stats_json } = &args.monitor;
    let watching = [("--stats", *stats), ("--metrics", !metrics.is_empty()), ("--stats-json", stats_json.is_some())];
    if let Some((flag, _)) = watching.iter().find(|(_, given)| *given && !json) {
        let expected = "add --input FILE.jsonl, --output FILE.jsonl or --json";
        return Err(Failure::usage(format!("{flag} tells how JSON answers are going: {expected}")));
    }
    let read = [("--input", &args.input), ("--file", &args.file), ("--chat-template", &args.template.chat_template)];
    let read = read.into_iter().chain([("--json-schema", &args.json_schema), ("--grammar", &args.grammar)]);
    let read = read.filter_map(|(flag, path)| Some((flag, path.as_deref()?)));
    files::all_different(&read.collect::<Vec<_>>(), &written(args))?;
    if args.resume { resumable(args) } else { Ok(()) }
}

/// The files that are written.
fn written(args: &GenerateArgs) -> Vec<Named<'_>> {
    let MonitorArgs { metrics, stats_json, .. } = &args.monitor;
    let metrics = metrics.iter().filter_map(|target| match target {
        MetricsTarget::File(path) => Some(("--metrics", path.as_path())),
        MetricsTarget::Address(_) => None,
    });
    let named = [("--output", &args.output), ("--stats-json", stats_json)];
    named.into_iter().filter_map(|(flag, path)| Some((flag, path.as_deref()?))).chain(metrics).collect()
}

/// Refuses to write over a file of the model.
fn spare_model(args: &GenerateArgs, model: &Model) -> Outcome {
    let files = files::of_model(model.folder.as_deref(), model.checkpoint.file().is_some());
    let read: Vec<Named<'_>> = files.iter().map(|path| ("--model", path.as_path())).collect();
    files::all_different(&read, &written(args))
}

/// Whether a run with these flags can go on where another one stopped.
fn resumable(args: &GenerateArgs) -> Outcome {
    let refused = |found: &str, expected: &str| Err(Failure::usage(format!("--resume {found} (expected {expected})")));
    let Some(input) = &args.input else {
        return refused("without --input: only a file of requests is gone on with", "--input FILE.jsonl");
    };
    if input == Path::new("-") {
        return refused("with --input -: a pipe cannot be read from its beginning again", "--input FILE.jsonl");
    }
    if std::fs::metadata(input).is_ok_and(|kind| !kind.is_file()) {
        let found = format!("with --input {}: it cannot be read from its beginning again", input.display());
        return refused(&found, "a regular file");
    }
    if args.output.as_deref() == Some(Path::new("-")) {
        return refused("with --output -: standard output keeps nothing to go on with", "--output FILE.jsonl");
    }
    Ok(())
}

/// Generates and writes each piece of text as it becomes certain; an interrupt ends it early. Where the request or a pass
/// fails, the engine is ready for another one.
///
/// # Errors
/// If the text cannot be written.
pub fn stream(
    engine: &mut Engine,
    request: &Request,
    output: &mut Output,
    colour: bool,
) -> Outcome<Result<Completion, EngineError>> {
    let mut written = Ok(());
    let mut length = 0;
    let mut last = None;
    let ran = engine.run(&mut std::iter::once(request.clone()), 1, &mut |_, event| {
        match event {
            // Nothing to write, but a moment to stop at.
            Event::Prefilled { .. } => {}
            Event::Token(emission) => {
                length += emission.text.len();
                written = match emission.drafted.filter(|_| colour && !emission.text.is_empty()) {
                    Some(Source::Exit) => output.text(&format!("\x1b[32m{}\x1b[0m", emission.text)),
                    Some(Source::Lookup | Source::Shared | Source::Grammar) => {
                        output.text(&format!("\x1b[36m{}\x1b[0m", emission.text))
                    }
                    None => output.text(&emission.text),
                };
            }
            Event::Done(completion) => last = Some(Ok(completion)),
            Event::Failed(error) => last = Some(Err(error)),
        }
        if written.is_err() || interrupt::pressed() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    written?;
    let ended = || last.expect("a submitted request is done or failed when nothing runs any more");
    let completion = match ran.and_then(|()| ended()) {
        Ok(completion) => completion,
        Err(error) => return Ok(Err(error)),
    };
    // What was held back because it might have begun a stop string, or an unfinished character.
    output.text(completion.text.get(length..).unwrap_or_default())?;
    Ok(Ok(completion))
}

/// Colour the drafts?
pub fn colour(asked: bool, choice: ColorChoice) -> bool {
    let auto = || std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    asked
        && match choice {
            ColorChoice::Always => true,
            ColorChoice::Never => false,
            ColorChoice::Auto => auto(),
        }
}
