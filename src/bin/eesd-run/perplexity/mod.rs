//! `eesd-run perplexity`: how probable a model finds a text, and how far it is from another model.

mod report;
mod scores;
mod windows;

use crate::args::{ModelArgs, PerplexityArgs};
use crate::failure::{Failure, Outcome};
use crate::interrupt;
use crate::machine::Machine;
use crate::output::Output;
use crate::prompts;
use crate::report::Reporter;
use crate::settings::Model;
use eesd::TokenId;
use eesd::backend::cuda::Prefill;
use eesd::kv::PAGE_TOKENS;
use report::Report;
use scores::Scores;
use std::path::Path;
use windows::{Reader, Windows};

/// Tokens of a window where nobody says, as in llama.cpp.
const WINDOW: usize = 512;
/// Tokens that are taken in together: several windows where they are short.
const TOGETHER: usize = 2048;
/// Logits that are looked at together: 64 MB of them.
const LOGITS: usize = 16 << 20;

/// Measures and prints.
pub fn run(args: PerplexityArgs) -> Outcome {
    let reporter = Reporter::new(args.quiet);
    let text = prompts::text(None, Some(&args.file))?;
    let name = args.file.display().to_string();
    let model = Model::open(&args.model, reporter)?;
    let reference =
        args.against.clone().map(|folder| Model::open(&ModelArgs { model: Some(folder), quantize: None }, reporter));
    let reference = reference.transpose()?;
    if let (Some(reference), Some(folder)) = (&reference, &args.against) {
        same_vocabulary(&model, reference, folder)?;
    }
    let windows = windows(&args, &model, reference.as_ref(), &text, &name)?;

    let together = (TOGETHER / windows.size()).clamp(1, windows.count());
    let mut machine_args = args.machine;
    let of_windows = [("--ctx-size", &mut machine_args.ctx_size), ("--cache-tokens", &mut machine_args.cache_tokens)];
    for (flag, size) in of_windows {
        if size.replace(windows.size()).is_some() {
            reporter.note(&format!("{flag} changes nothing here: --window decides"));
        }
    }
    machine_args.cache_tokens = Some(windows.size().next_multiple_of(PAGE_TOKENS) * together);
    let open = |model: &Model| {
        let machine = Machine::new(&machine_args, Prefill::Exact, model, 1, 1, reporter)?;
        Reader::new(machine.backend(model, None, reporter)?, windows.size(), together)
    };
    let mut reader = open(&model)?;
    let mut against = reference.as_ref().map(open).transpose()?;
    interrupt::listen();

    let mut scores = Scores::new(model.checkpoint.geometry().vocab_size, machine_args.threads);
    let progress = reporter.progress(windows.count(), "reading");
    let mut read = 0;
    while read < windows.count() && !interrupt::pressed() {
        let batch: Vec<Vec<TokenId>> =
            (read..windows.count().min(read + together)).map(|number| windows.tokens(number)).collect();
        reader.begin(&batch)?;
        if let Some(against) = &mut against {
            against.begin(&batch)?;
        }
        for (place, tokens) in batch.iter().enumerate() {
            score(&mut reader, against.as_mut(), place, tokens, &mut scores)?;
            read += 1;
            progress.advance();
            if interrupt::pressed() {
                break;
            }
        }
    }
    progress.end();
    if read == 0 {
        return Err(Failure::failed("interrupted before anything was measured"));
    }
    if read < windows.count() {
        reporter.note("interrupted: what follows is what was measured so far");
    }
    let report = Report::of(&scores, &windows, read, &name, &model, &reader, reference.as_ref().zip(against.as_ref()));
    let mut output = Output::stdout();
    if args.json { output.json(&report) } else { output.text(&report.text()) }
}

/// The text's windows.
fn windows(
    args: &PerplexityArgs,
    model: &Model,
    reference: Option<&Model>,
    text: &str,
    name: &str,
) -> Outcome<Windows> {
    let positions = |model: &Model| model.checkpoint.geometry().max_positions;
    let longest = reference.map_or(usize::MAX, positions).min(positions(model));
    let size = args.window.unwrap_or(WINDOW.min(longest));
    if size > longest {
        let found = format!("--window {size}: the model was trained for {longest} positions");
        return Err(Failure::failed(format!("{found} (expected no more)")));
    }
    let tokenizer = model.tokenizer()?;
    let mut tokens = tokenizer.encode(text, true)?;
    tokens.truncate(args.max_tokens.unwrap_or(usize::MAX));
    if tokens.len() < size {
        let found = if text.is_empty() { "it is empty".into() } else { format!("{} tokens to read", tokens.len()) };
        return Err(Failure::failed(format!("{name}: {found} (expected at least a window, which has {size})")));
    }
    Ok(Windows::new(tokens, tokenizer.encode("", true)?, size))
}

/// Scores a window that both models have begun to read in this place.
fn score(
    reader: &mut Reader,
    mut against: Option<&mut Reader>,
    place: usize,
    tokens: &[TokenId],
    scores: &mut Scores,
) -> Outcome {
    let scored = windows::scored(tokens.len());
    let rows = (LOGITS / scores.vocab()).max(1);
    for start in scored.clone().step_by(rows) {
        let part = start..scored.end.min(start + rows);
        let logits = reader.read(place, tokens, part.clone())?;
        let reference = against.as_mut().map(|against| against.read(place, tokens, part.clone())).transpose()?;
        scores.add(&logits, reference.as_deref(), &tokens[part.start + 1..part.end + 1]);
    }
    Ok(())
}

/// Refuses a reference whose tokens are other ones: distributions over different things do not compare.
fn same_vocabulary(model: &Model, reference: &Model, folder: &Path) -> Outcome {
    let wrong = |found: String| {
        let expected = format!("the vocabulary of {}", model.place());
        Err(Failure::failed(format!("--against {}: {found} (expected {expected})", folder.display())))
    };
    let size = |model: &Model| model.checkpoint.geometry().vocab_size;
    if size(model) != size(reference) {
        return wrong(format!("a vocabulary of {} tokens, not {}", size(reference), size(model)));
    }
    let (Some(ours), Some(theirs)) = (model.checkpoint.tokenizer(), reference.checkpoint.tokenizer()) else {
        return Ok(());
    };
    // Ids that one of the two has no token for are padding.
    let differs = |id: &TokenId| matches!((ours.token(*id), theirs.token(*id)), (Some(a), Some(b)) if a != b);
    match (0..size(model) as TokenId).find(differs) {
        Some(id) => {
            let spelled = |token: Option<String>| format!("{:?}", token.unwrap_or_default());
            wrong(format!("token {id} is {}, not {}", spelled(theirs.token(id)), spelled(ours.token(id))))
        }
        None => Ok(()),
    }
}
