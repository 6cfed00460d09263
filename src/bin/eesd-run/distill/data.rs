//! The documents of a run: the model's answers to prompts, and texts.

use crate::args::DistillArgs;
use crate::failure::{Failure, Outcome};
use crate::interrupt;
use crate::machine::Machine;
use crate::prompts;
use crate::report::Reporter;
use crate::settings::Model;
use eesd::backend::cuda::Prefill;
use eesd::control::ControllerSpec;
use eesd::distill::data::{
    Dataset, Document, Origin, SelectOptions, Source, WriteOptions, read_corpus, select, write_answers,
};
use eesd::sample::SamplingParams;
use std::ops::ControlFlow;
use std::path::Path;

/// Most drafts of a round while answers are written.
const MAX_DRAFT: usize = 16;

/// Everything to learn from, and what is held out; `None` if interrupted before all answers were written.
pub fn gather(args: &DistillArgs, model: &Model, output: &Path, reporter: Reporter) -> Outcome<Option<Dataset>> {
    let data = &args.data;
    if data.prompts.is_none() && data.corpus.is_empty() {
        return Err(Failure::usage("nothing to learn from: give --prompts FILE, --corpus FILE, or both"));
    }
    let mut sources = Vec::new();
    if let Some(path) = &data.prompts {
        let Some(documents) = answers(args, model, path, output, reporter)? else { return Ok(None) };
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

/// The model's answers, as far as they are not in the file yet.
fn answers(
    args: &DistillArgs,
    model: &Model,
    prompts: &Path,
    output: &Path,
    reporter: Reporter,
) -> Outcome<Option<Vec<Document>>> {
    let data = &args.data;
    let prompts = prompts::of_file(prompts, model, data.chat, reporter)?;
    let machine = Machine::new(&args.machine, Prefill::Exact, model, data.batch_size, MAX_DRAFT, reporter)?;
    // Whatever drafts, the answers are the same; so the first block there is will do.
    let exit = model.checkpoint.exit_blocks()?.into_iter().next();
    let backend = machine.backend(model, exit.as_ref(), reporter)?;
    let controller = if exit.is_some() { ControllerSpec::default() } else { ControllerSpec::Off };
    let mut engine = model.engine(backend, &controller);
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
    let path = output.join("answers.jsonl");
    let told = reporter.progress(prompts.len() * data.samples, "answers");
    let fingerprint = &model.fingerprint();
    let written = write_answers(&mut engine, fingerprint, &prompts, &options, &path, &mut |progress| {
        told.set(progress.answers, progress.of);
        told.tell(format!("answers, {:.0} tok/s", progress.tokens_per_second()));
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
    reporter.note(&format!("{}: {} answers, {} of them new", path.display(), written.documents.len(), written.added));
    if !written.complete {
        reporter.note("interrupted: the same command goes on from here");
        return Ok(None);
    }
    Ok(Some(written.documents))
}
