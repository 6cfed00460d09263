//! `eesd-run tokenize` and `detokenize`: a model's tokens, and their text.

use crate::args::{DetokenizeArgs, TokenizeArgs};
use crate::failure::{Failure, Outcome};
use crate::output::Output;
use crate::prompts;
use crate::report::Reporter;
use crate::settings::Model;
use eesd::TokenId;
use eesd::load::{Prompt, Tokenizer};
use std::io::Read;

/// Prints each token of a text with its spelling, or all ids as a list.
pub fn tokenize(args: TokenizeArgs) -> Outcome {
    let reporter = Reporter::new(false);
    let text = prompts::text(args.prompt.as_deref(), args.file.as_deref())?;
    let model = Model::open(&args.model, reporter)?.with_template(&args.template)?;
    model.note_idle_quantize(reporter);
    if args.system.is_none() {
        model.note_idle_template(&args.template, "add --system TEXT", reporter);
    }
    let tokenizer = model.tokenizer()?;
    let prompt = model.prompt(text, args.system.as_deref());
    let tokens = match &prompt {
        Prompt::Text(text) if args.no_begin => tokenizer.encode(text, false)?,
        prompt => model.encoder().encode(prompt)?,
    };
    let mut output = Output::stdout();
    if args.ids {
        return output.json_line(&tokens);
    }
    output.text(&listed(&tokens, &tokenizer))
}

/// A line for each token: its id and its spelling in the vocabulary.
pub fn listed(tokens: &[TokenId], tokenizer: &Tokenizer) -> String {
    let line = |&id: &TokenId| format!("{id:>8}  {:?}\n", tokenizer.token(id).unwrap_or_default());
    tokens.iter().map(line).collect()
}

/// Prints the text of tokens.
pub fn detokenize(args: DetokenizeArgs) -> Outcome {
    let ids = if args.ids.is_empty() { piped_ids()? } else { args.ids };
    let reporter = Reporter::new(false);
    let model = Model::open(&args.model, reporter)?;
    model.note_idle_quantize(reporter);
    let tokenizer = model.tokenizer()?;
    let vocab = model.checkpoint.geometry().vocab_size;
    if let Some(id) = ids.iter().find(|&&id| id as usize >= vocab && tokenizer.token(id).is_none()) {
        return Err(Failure::failed(format!("{id} is no token of {} (expected ids below {vocab})", model.place())));
    }
    let mut text = String::new();
    let mut rest = ids.as_slice();
    // Special tokens are part of no text, so the text between them is decoded piece by piece.
    while let Some(place) = rest.iter().position(|&id| args.special && tokenizer.is_special(id)) {
        text += &tokenizer.decode(&rest[..place]);
        text += &tokenizer.token(rest[place]).unwrap_or_default();
        rest = &rest[place + 1..];
    }
    text += &tokenizer.decode(rest);
    Output::stdout().text(&format!("{text}\n"))
}

/// The ids on standard input.
fn piped_ids() -> Outcome<Vec<TokenId>> {
    let mut text = String::new();
    let read = std::io::stdin().read_to_string(&mut text);
    read.map_err(|e| Failure::failed(format!("standard input: could not be read: {e}")))?;
    let words = text.split(|c: char| c.is_whitespace() || ",[]".contains(c)).filter(|word| !word.is_empty());
    let id = |word: &str| {
        let wrong = || Failure::failed(format!("standard input: {word:?} is no token (expected whole numbers)"));
        word.parse().map_err(|_| wrong())
    };
    words.map(id).collect()
}
