//! `eesd-run generate`: continues a prompt on standard output, or serves a file of requests.

use crate::args::{ColorChoice, GenerateArgs};
use crate::batch::{self, Item, Job, Lines, TakenOver};
use crate::failure::{Failure, Outcome};
use crate::interrupt;
use crate::machine::Machine;
use crate::output::{AnswerFile, Output};
use crate::report::Reporter;
use crate::settings::{self, Model};
use eesd::engine::{Completion, Emission, Engine, Finish, Request};
use eesd::load::Message;
use std::io::{IsTerminal, Read};
use std::ops::ControlFlow;
use std::path::Path;

/// Decides, loads, generates, reports.
pub fn run(args: GenerateArgs) -> Outcome {
    let reporter = Reporter::new(args.quiet);
    let json = args.json || args.output.is_some() || args.input.is_some();
    if args.sampling.logprobs.is_some() && !json {
        return Err(Failure::usage("--logprobs N is written as JSON: add --json or --output FILE.jsonl"));
    }
    if let (Some(input), Some(output)) = (args.input.as_ref().or(args.file.as_ref()), &args.output)
        && input.canonicalize().is_ok_and(|input| output.canonicalize().is_ok_and(|output| input == output))
    {
        return Err(Failure::usage(format!("--output {}: would overwrite the input", output.display())));
    }
    if args.resume {
        resumable(&args)?;
    }
    let input = args.input.as_deref().map(batch::open_input).transpose()?;
    let prompt = if input.is_some() { String::new() } else { prompt(&args)? };

    let model = Model::open(&args.model, reporter)?;
    let tokenizer = model.tokenizer()?;
    let (exit, controller) = model.drafting(&args.draft, reporter)?;
    let machine = Machine::new(
        &args.machine,
        args.prefill.prefill.into(),
        &model,
        args.batch_size,
        args.draft.draft_max,
        reporter,
    )?;
    let sampling = settings::sampling(&args.sampling, model.checkpoint.generation(), reporter);
    let request = settings::request(Vec::new(), args.max_tokens, sampling, &args.sampling);
    // What can be refused is refused before a large model is made ready, which takes its time.
    let file = args.output.as_deref().filter(|path| *path != Path::new("-"));
    let file = file.map(|path| AnswerFile::open(path, args.resume)).transpose()?;
    let lines = |input| Lines::new(input, &model, tokenizer.clone(), request.clone());
    let earlier = match (&args.input, &file) {
        (Some(input), Some(file)) if args.resume => {
            let requests = lines(batch::open_input(input)?);
            reporter.wait("checking the output", || TakenOver::check(file, requests))?
        }
        _ => TakenOver::default(),
    };
    let backend = machine.backend(&model, exit.as_ref(), reporter)?;
    let mut engine = model.engine(backend, &controller);
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
    if let Some(input) = input {
        let mut requests = lines(input).only(|index| !earlier.has(index));
        return batch::serve(&mut engine, args.batch_size, &mut requests, &tokenizer, &mut output, &earlier, reporter);
    }

    let tokens = match &args.system {
        Some(system) => tokenizer.encode(&templated(&model, system, &prompt)?, false)?,
        None => tokenizer.encode(&prompt, true)?,
    };
    let request = Request { prompt: tokens, ..request };
    if json {
        let mut items = samples(&request, args.samples).enumerate().map(|(index, request)| {
            let request = Box::new(request);
            Item::Request { job: Job { id: None, index }, request }
        });
        return batch::serve(&mut engine, args.batch_size, &mut items, &tokenizer, &mut output, &earlier, reporter);
    }

    if args.batch_size > 1 {
        reporter.note("--batch-size changes nothing for text, which is written in order: add --json or --output");
    }
    let separate = args.samples > 1 || std::io::stdout().is_terminal();
    for (number, request) in samples(&request, args.samples).enumerate() {
        if args.samples > 1 {
            reporter.note(&format!("sample {} of {}", number + 1, args.samples));
        }
        if args.echo {
            output.text(&prompt)?;
        }
        let completion = stream(&mut engine, &request, &mut output, colour(args.show_drafts, args.color))?;
        if separate {
            output.text("\n")?;
        }
        if completion.finish == Finish::Context {
            reporter
                .note(&format!("the context of {} tokens is full: --ctx-size N makes it longer", machine.context()));
        }
        reporter.statistics(&completion.stats);
        if interrupt::pressed() {
            break;
        }
    }
    Ok(())
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
fn samples(request: &Request, count: usize) -> impl Iterator<Item = Request> {
    (0..count as u64).map(|sample| {
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
    Ok(template.render(&[Message::new("system", system), Message::new("user", prompt)])?)
}
