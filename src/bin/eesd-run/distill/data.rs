//! The documents of a run: the model's answers to prompts, and texts.

use crate::args::DistillArgs;
use crate::failure::{Failure, Outcome};
use crate::interrupt;
use crate::machine::Machine;
use crate::prompts;
use crate::report::Reporter;
use crate::settings::Model;
use eesd::TokenId;
use eesd::backend::cuda::Prefill;
use eesd::control::ControllerSpec;
use eesd::distill::data::{
    Dataset, Document, Origin, SelectOptions, Source, WriteOptions, read_corpus, select, write_answers,
};
use eesd::engine::Engine;
use eesd::load::{Chat, Message, Prompt, UserTurn};
use eesd::sample::SamplingParams;
use std::collections::HashSet;
use std::ops::ControlFlow;
use std::path::Path;

/// Most drafts of a round while answers are written.
const MAX_DRAFT: usize = 16;
/// Most tokens of a prompt that the model makes up, and its temperature: below 1, where small models wander off.
const MADE_UP_TOKENS: usize = 128;
const MADE_UP_TEMPERATURE: f64 = 0.8;

/// Everything to learn from, and what is held out; `None` if interrupted before all answers were written.
pub fn gather(args: &DistillArgs, model: &Model, output: &Path, reporter: Reporter) -> Outcome<Option<Dataset>> {
    let data = &args.data;
    let asks = data.prompts.is_some() || data.make_up.is_some();
    if !asks && data.corpus.is_empty() {
        return Err(Failure::usage(
            "nothing to learn from: give --prompts FILE, --make-up COUNT, --corpus FILE, or several of them",
        ));
    }
    let mut sources = Vec::new();
    if asks {
        let Some(documents) = answers(args, model, output, reporter)? else { return Ok(None) };
        sources.push(Source { name: "answers".into(), origin: Origin::Answers, documents, weight: None });
    }
    if !data.corpus.is_empty() {
        let tokenizer = model.tokenizer()?;
        let documents = reporter.wait("reading the corpus", || read_corpus(&data.corpus, &tokenizer))?;
        sources.push(Source { name: "corpus".into(), origin: Origin::Corpus, documents, weight: None });
    }
    let options = SelectOptions {
        shortest: data.shortest,
        longest: data.longest.unwrap_or(usize::MAX),
        held_out: data.held_out,
        seed: data.seed,
    };
    let (dataset, report) = select(sources, &options)?;
    reporter.note(&report.to_string());
    Ok(Some(dataset))
}

/// The model's answers to the prompts of a file, and to those that it has made up itself; `None` if interrupted.
fn answers(args: &DistillArgs, model: &Model, output: &Path, reporter: Reporter) -> Outcome<Option<Vec<Document>>> {
    let data = &args.data;
    let mut prompts = match &data.prompts {
        Some(path) => prompts::of_file(path, model, data.chat, reporter)?,
        None => Vec::new(),
    };
    // Before anything is loaded: there may be no chat template.
    let turn = data.make_up.map(|_| model.encoder().user_turn()).transpose()?;
    let machine = Machine::new(&args.machine, Prefill::Exact, model, data.batch_size, MAX_DRAFT, reporter)?;
    // Whatever drafts, the answers are the same; so the first block there is will do.
    let exit = model.checkpoint.exit_blocks()?.into_iter().next();
    let backend = machine.backend(model, exit.as_ref(), reporter)?;
    let controller = if exit.is_some() { ControllerSpec::default() } else { ControllerSpec::Off };
    let mut writer = Writer { engine: model.engine(backend, &controller), fingerprint: model.fingerprint(), reporter };
    if let (Some(count), Some(turn)) = (data.make_up, turn) {
        let options = WriteOptions {
            sampling: SamplingParams {
                temperature: MADE_UP_TEMPERATURE,
                seed: Some(data.seed),
                ..SamplingParams::default()
            },
            max_tokens: MADE_UP_TOKENS,
            samples: count,
            batch: data.batch_size,
        };
        let path = output.join("prompts.made-up.jsonl");
        let opening = turn.opening.len();
        let Some(written) = writer.write(std::slice::from_ref(&turn.opening), &options, &path, "prompts")? else {
            return Ok(None);
        };
        let made_up = asked(model, &turn, written.iter().map(|document| &document.tokens[opening..]))?;
        reporter.note(&format!(
            "{} of {count} made-up prompts are of use: the others say nothing, have no end, or have been made up before",
            made_up.len()
        ));
        prompts.extend(made_up);
    }
    let options = WriteOptions {
        sampling: SamplingParams {
            temperature: data.temp,
            top_k: data.top_k,
            top_p: data.top_p,
            seed: Some(data.seed),
            ..SamplingParams::default()
        },
        max_tokens: data.max_tokens,
        samples: data.samples,
        batch: data.batch_size,
    };
    writer.write(&prompts, &options, &output.join("answers.jsonl"), "answers")
}

/// What the model has written in a user's place, each once, as prompts.
fn asked<'a>(
    model: &Model,
    turn: &UserTurn,
    written: impl Iterator<Item = &'a [TokenId]>,
) -> Outcome<Vec<Vec<TokenId>>> {
    let (tokenizer, encoder) = (model.tokenizer()?, model.encoder());
    let (mut seen, mut prompts) = (HashSet::new(), Vec::new());
    for words in written.filter_map(|tokens| turn.words(&tokenizer, tokens)) {
        if seen.insert(words.clone()) {
            let chat = Chat::new([Message::new("user", words)]);
            prompts.push(encoder.encode(&Prompt::Chat(Box::new(chat)))?);
        }
    }
    Ok(prompts)
}

/// The model at its desk.
struct Writer {
    engine: Engine,
    fingerprint: String,
    reporter: Reporter,
}

impl Writer {
    /// Answers, as far as they are not in the file yet, told as `what`; `None` if interrupted.
    fn write(
        &mut self,
        prompts: &[Vec<TokenId>],
        options: &WriteOptions,
        path: &Path,
        what: &str,
    ) -> Outcome<Option<Vec<Document>>> {
        let reporter = self.reporter;
        let told = reporter.progress(prompts.len() * options.samples, what);
        let (engine, fingerprint) = (&mut self.engine, &self.fingerprint);
        let written = write_answers(engine, fingerprint, prompts, options, path, &mut |progress| {
            told.set(progress.answers, progress.of);
            told.tell(format!("{what}, {:.0} tok/s", progress.tokens_per_second()));
            if interrupt::pressed() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        told.end();
        let written = written?;
        if written.cut > 0 {
            reporter.note(&format!("{}: an unfinished line was cut off ({} bytes)", path.display(), written.cut));
        }
        if written.too_long > 0 {
            reporter.note(&format!("{} prompts leave no room for an answer and were left out", written.too_long));
        }
        let (all, new) = (written.documents.len(), written.added);
        reporter.note(&format!("{}: {all} {what}, {new} of them new", path.display()));
        if !written.complete {
            reporter.note("interrupted: the same command goes on from here");
            return Ok(None);
        }
        Ok(Some(written.documents))
    }
}
