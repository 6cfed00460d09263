//! `eesd-run generate`: continues a prompt on standard output, or serves a file of requests.

use crate::args::{BatchSize, ColorChoice, GenerateArgs, MonitorArgs};
use crate::batch::{self, Desk, Item, Job, Lines, TakenOver};
use crate::failure::{Failure, Outcome};
use crate::interrupt;
use crate::machine::Machine;
use crate::monitor::{Listeners, MetricsTarget, Monitor, Subject, resolved};
use crate::output::{AnswerFile, Output};
use crate::report::Reporter;
use crate::settings::{self, Model};
use eesd::engine::{Completion, Emission, Engine, Finish, Request};
use eesd::load::{Chat, Message};
use std::io::{IsTerminal, Read};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

/// Most requests side by side where the machine decides: far more than make a processor faster, and enough for rows
/// that a GPU multiplies at the price of one.
const MOST_SIDE_BY_SIDE: usize = 32;

/// Decides, loads, generates, reports.
pub fn run(args: GenerateArgs) -> Outcome {
    let reporter = Reporter::new(args.quiet);
    let json = args.json || args.output.is_some() || args.input.is_some();
    check(&args, json)?;
    let listeners = Listeners::open(&args.monitor, reporter)?;
    let input = args.input.as_deref().map(batch::open_input).transpose()?;
    let prompt = if input.is_some() { String::new() } else { prompt(&args)? };

    let model = Model::open(&args.model, reporter)?;
    let tokenizer = model.tokenizer()?;
    let (exit, controller) = model.drafting(&args.draft, reporter)?;
    let batch_size = args.batch_size.unwrap_or(BatchSize::Fixed(1));
    let most = match batch_size {
        BatchSize::Auto => MOST_SIDE_BY_SIDE,
        BatchSize::Fixed(size) => size,
    };
    let prefill = args.prefill.prefill.into();
    let mut machine = Machine::new(&args.machine, prefill, &model, most, args.draft.draft_max, reporter)?;
    let sampling = settings::sampling(&args.sampling, model.checkpoint.generation(), reporter);
    let base = settings::request(Vec::new(), args.max_tokens, sampling, &args.sampling);

    // What can be refused is refused before a large model is made ready, which takes its time.
    let file = args.output.as_deref().filter(|path| *path != Path::new("-"));
    let file = file.map(|path| AnswerFile::open(path, args.resume)).transpose()?;
    let lines = |input| Lines::new(input, &model, tokenizer.clone(), base.clone());
    let earlier = match (&args.input, &file) {
        (Some(input), Some(file)) if args.resume => {
            let requests = lines(batch::open_input(input)?);
            reporter.wait("checking the output", || TakenOver::check(file, requests))?
        }
        _ => TakenOver::default(),
    };
    let requests = args.input.as_deref().map_or(Ok(Some(args.samples)), batch::count)?;
    machine.limit_slots(requests.map_or(most, |requests| requests.saturating_sub(earlier.lines())));
    let backend = machine.backend(&model, exit.as_ref(), reporter)?;
    let mut engine = model.engine(backend, &controller);
    let batch = match batch_size {
        BatchSize::Auto => reporter.wait("timing batches", || engine.suggested_batch())?,
        BatchSize::Fixed(_) => machine.slots(),
    };
    interrupt::listen();

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
    let mut items: Box<dyn Iterator<Item = Item>> = match input {
        Some(input) => Box::new(lines(input).only(|index| !earlier.has(index))),
        None => {
            let prompt_tokens = match &args.system {
                Some(system) => tokenizer.encode(&templated(&model, system, &prompt)?, false)?,
                None => tokenizer.encode(&prompt, true)?,
            };
            let request = Request { prompt: prompt_tokens, ..base.clone() };
            if !json {
                if batch_size != BatchSize::Fixed(1) {
                    reporter.note("--batch-size changes nothing for text, which is in order: add --json or --output");
                }
                return text(&mut engine, &request, &prompt, &args, &mut output, reporter);
            }
            let item = |(index, request)| Item::Request { job: Job { id: None, index }, request: Box::new(request) };
            Box::new(samples(request, args.samples).enumerate().map(item))
        }
    };
    let device = engine.backend().describe();
    let subject = Subject { model: model.checkpoint.name().to_owned(), device, batch, requests };
    let monitor = Monitor::new(subject, listeners, reporter)?;
    batch::serve(&mut engine, &mut *items, Desk::new(&mut output, &earlier, &tokenizer, monitor, reporter))
}

/// Continues a prompt on standard output, each of its samples after the other.
fn text(
    engine: &mut Engine,
    request: &Request,
    prompt: &str,
    args: &GenerateArgs,
    output: &mut Output,
    reporter: Reporter,
) -> Outcome {
    let separate = args.samples > 1 || std::io::stdout().is_terminal();
    for (number, request) in samples(request.clone(), args.samples).enumerate() {
        if args.samples > 1 {
            reporter.note(&format!("sample {} of {}", number + 1, args.samples));
        }
        if args.echo {
            output.text(prompt)?;
        }
        let completion = stream(engine, &request, output, colour(args.show_drafts, args.color))?;
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
    let files = metrics.iter().filter_map(|target| match target {
        MetricsTarget::File(path) => Some(("--metrics", path)),
        MetricsTarget::Address(_) => None,
    });
    // Those that are read, then those that are written.
    let named =
        [("--input", &args.input), ("--file", &args.file), ("--output", &args.output), ("--stats-json", stats_json)];
    let named = named.iter().filter_map(|(flag, path)| Some((*flag, path.as_ref()?)));
    let all: Vec<(&str, &PathBuf)> = named.chain(files).collect();
    for (i, (flag, path)) in all.iter().enumerate().filter(|(_, (_, path))| **path != Path::new("-")) {
        if let Some((before, _)) = all[..i].iter().find(|(_, other)| resolved(other) == resolved(path)) {
            return Err(Failure::usage(format!("{flag} {}: would overwrite the file of {before}", path.display())));
        }
    }
    if args.resume { resumable(args) } else { Ok(()) }
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

/// Generates and writes each piece of text as it becomes certain; an interrupt ends it early.
///
/// # Errors
/// If a pass fails or the text cannot be written.
pub fn stream(engine: &mut Engine, request: &Request, output: &mut Output, colour: bool) -> Outcome<Completion> {
    let mut written = Ok(());
    let mut length = 0;
    let mut on_token = |emission: &Emission| {
        length += emission.text.len();
        written = if emission.drafted && colour && !emission.text.is_empty() {
            output.text(&format!("\x1b[32m{}\x1b[0m", emission.text))
        } else {
            output.text(&emission.text)
        };
        if written.is_err() || interrupt::pressed() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let completion = engine.generate(request, &mut on_token)?;
    written?;
    // What was held back because it might have begun a stop string, or an unfinished character.
    output.text(completion.text.get(length..).unwrap_or_default())?;
    Ok(completion)
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

/// The request once per sample, each with a seed of its own.
fn samples(request: Request, count: usize) -> impl Iterator<Item = Request> {
    (0..count as u64).map(move |sample| {
        let mut request = request.clone();
        request.sampling.seed = request.sampling.seed.map(|seed| seed.wrapping_add(sample));
        request
    })
}

/// The prompt of `-p`, `-f` or standard input; the latter two lose one final line break.
fn prompt(args: &GenerateArgs) -> Outcome<String> {
    if let Some(prompt) = &args.prompt {
        return Ok(prompt.clone());
    }
    let mut text = String::new();
    match &args.file {
        Some(path) if path != Path::new("-") => {
            text = std::fs::read_to_string(path).map_err(|e| Failure::file(path, "read", &e))?;
        }
        _ if std::io::stdin().is_terminal() => {
            return Err(Failure::usage("no prompt: give -p TEXT, -f FILE or --input FILE.jsonl, or pipe the text in"));
        }
        _ => {
            std::io::stdin()
                .read_to_string(&mut text)
                .map_err(|e| Failure::failed(format!("standard input: could not be read: {e}")))?;
        }
    }
    let whole = text.strip_suffix("\r\n").or(text.strip_suffix('\n')).unwrap_or(&text);
    Ok(whole.to_owned())
}

/// The prompt as a user's message after a system message, in the model's chat format.
fn templated(model: &Model, system: &str, prompt: &str) -> Outcome<String> {
    let template = model.chat_template("--system")?;
    Ok(template.render(&Chat::new([Message::new("system", system), Message::new("user", prompt)]))?)
}
