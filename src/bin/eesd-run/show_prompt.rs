//! `generate --show-prompt`: what the model would continue.

use crate::batch::{Item, Lines};
use crate::failure::{Failure, Outcome};
use crate::output::Output;
use crate::tokens::listed;
use eesd::load::{Prompt, PromptEncoder};
use serde_json::json;

/// Shows the prompt of the command line: its text and a line for each token, or both in JSON.
pub fn of_text(encoder: &PromptEncoder<'_>, prompt: &Prompt, json: bool) -> Outcome {
    let (tokens, text) = encoder.encode_with_text(prompt)?;
    let mut output = Output::stdout();
    if json {
        return output.json_line(&json!({"prompt": text, "tokens": tokens}));
    }
    output.text(&format!("{}\n\n", text.unwrap_or_default()))?;
    encoder.tokenizer.map_or(Ok(()), |tokenizer| output.text(&listed(&tokens, tokenizer)))
}

/// Shows the prompts of a file of requests, a JSON line each.
pub fn of_lines(lines: Lines<'_>) -> Outcome {
    let mut output = Output::stdout();
    let mut failed = 0;
    for item in lines {
        match item {
            Item::Request { job, requests, text } => {
                let tokens = requests.first().map(|request| &request.prompt);
                output.json_line(&job.row(json!({"index": job.index, "prompt": text, "tokens": tokens})))?;
            }
            Item::Wrong { job, error } => {
                failed += 1;
                output.json_line(&job.row(json!({"index": job.index, "error": error.message()})))?;
            }
            Item::Unreadable { error } => return Err(Failure::failed(error)),
        }
    }
    match failed {
        0 => Ok(()),
        1 => Err(Failure::failed("1 line holds no prompt: its line in the output says why")),
        n => Err(Failure::failed(format!("{n} lines hold no prompt: their lines in the output say why"))),
    }
}
