//! Where prompts come from: a flag, a file, a pipe. `bench`, `verify` and `distill` read files of them as `generate` does.

use crate::failure::{Failure, Outcome};
use crate::report::Reporter;
use crate::settings::Model;
use eesd::TokenId;
use eesd::load::{PromptFile, encoding, is_json_lines};
use std::io::{IsTerminal, Read};
use std::path::Path;

/// Prompts that the bundled model comes with, in builds without that model too.
const BUNDLED: &str = include_str!("../../../models/pycode-4m/prompts.jsonl");

/// Made-up prompts, for a model without a tokenizer: how many, of how many tokens each.
const MADE_UP: (usize, usize) = (8, 64);

/// The text of `-p`, `-f` or standard input; the latter two lose a byte order mark and one final line break.
///
/// # Errors
/// If it cannot be read, is no text, or there is none.
pub fn text(given: Option<&str>, file: Option<&Path>) -> Outcome<String> {
    if let Some(text) = given {
        return Ok(text.to_owned());
    }
    let mut bytes = Vec::new();
    let name = match file.filter(|path| *path != Path::new("-")) {
        Some(path) => {
            bytes = std::fs::read(path).map_err(|e| Failure::file(path, "read", &e))?;
            path.display().to_string()
        }
        None if file.is_none() && std::io::stdin().is_terminal() => {
            return Err(Failure::usage(
                "no text: give -p TEXT or -f FILE, or pipe it in (`generate` takes --input FILE.jsonl too)",
            ));
        }
        None => {
            let read = std::io::stdin().read_to_end(&mut bytes);
            read.map_err(|e| Failure::failed(format!("standard input: could not be read: {e}")))?;
            "standard input".into()
        }
    };
    let text = encoding::text(bytes).map_err(|error| Failure::failed(format!("{name}: {error}")))?;
    let whole = text.strip_suffix("\r\n").or(text.strip_suffix('\n')).unwrap_or(&text);
    Ok(whole.to_owned())
}

/// The tokens of each prompt: the file's, or the bundled model's own, or made-up ones where there is no tokenizer.
///
/// # Errors
/// If the file cannot be read, or a line of it is no prompt.
pub fn of_file_or_bundled(file: Option<&Path>, model: &Model, reporter: Reporter) -> Outcome<Vec<Vec<TokenId>>> {
    match file {
        Some(path) => of_file(path, model, false, reporter),
        None if model.checkpoint.tokenizer().is_none() => {
            let (count, length) = MADE_UP;
            reporter.note(&format!(
                "{}: no tokenizer.json, so the prompts are {count} of {length} made-up tokens: how often drafts of such \
                 are accepted says nothing about real text",
                model.place()
            ));
            Ok(made_up(count, length, model.checkpoint.geometry().vocab_size))
        }
        None => read("prompts.jsonl".into(), true, BUNDLED.into(), model, false, reporter),
    }
}

/// The tokens of each prompt of a file; `-` is standard input, with JSON lines. `chat`: texts are put as a user's message.
///
/// # Errors
/// As [`of_file_or_bundled`].
pub fn of_file(path: &Path, model: &Model, chat: bool, reporter: Reporter) -> Outcome<Vec<Vec<TokenId>>> {
    let piped = path == Path::new("-");
    let mut bytes = Vec::new();
    match piped {
        true => std::io::stdin().lock().read_to_end(&mut bytes).map(drop),
        false => std::fs::read(path).map(|read| bytes = read),
    }
    .map_err(|e| Failure::file(path, "read", &e))?;
    let name = if piped { "standard input".into() } else { path.display().to_string() };
    read(name, piped || is_json_lines(path), bytes, model, chat, reporter)
}

fn read(
    name: String,
    json_lines: bool,
    bytes: Vec<u8>,
    model: &Model,
    chat: bool,
    reporter: Reporter,
) -> Outcome<Vec<Vec<TokenId>>> {
    let encoder = model.encoder();
    let prompts = PromptFile { name: name.clone(), json_lines, chat, encoder: &encoder }.read(bytes)?;
    if !prompts.unused.is_empty() {
        let keys: Vec<String> = prompts.unused.into_iter().collect();
        reporter.note(&format!("{name}: of no use here, where flags decide: {}", keys.join(", ")));
    }
    Ok(prompts.tokens)
}

/// Tokens drawn from the whole vocabulary, the same ones every time.
fn made_up(count: usize, length: usize, vocab: usize) -> Vec<Vec<TokenId>> {
    // Multiples of the golden ratio, modulo one: spread evenly, and far apart.
    let token = |place: usize| (((place as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) * vocab as u64) >> 32;
    (0..count).map(|n| (0..length).map(|i| token(n * length + i) as TokenId).collect()).collect()
}
