//! Prompts for the teacher.

use super::{DataError, text};
use crate::TokenId;
use crate::load::{Chat, ChatTemplate, Message, Prompt, Tokenizer, json_line};
use serde::Deserialize;
use serde_json::Value;
use std::path::Path;

const EXPECTED: &str = "a JSON object with \"prompt\" or \"messages\", and nothing but an \"id\" beside";

/// The keys of a line. Any other is an error: it would change what is written, or seem to.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "an object with the keys of a prompt")]
struct Line {
    #[serde(rename = "id")]
    _id: Option<Value>,
    prompt: Option<String>,
    #[serde(default, deserialize_with = "crate::load::messages")]
    messages: Option<Vec<Message>>,
}

/// Reads a file of prompts, as tokens.
///
/// `.jsonl` and `.json`: a line is an object with `prompt`, a text to be continued, or `messages`, a conversation to be
/// answered, and at most an `id` beside it. Any other name: plain text, in which blank lines separate prompts (a
/// prompt with blank lines of its own needs JSON). Conversations go through `template`; with `chat`, so does every
/// `prompt` and plain text, as a user's message.
///
/// # Errors
/// At the first line that is no prompt, or for a file without any: with what was found and what was expected.
pub fn read_prompts(
    path: &Path,
    tokenizer: &Tokenizer,
    template: Option<&ChatTemplate>,
    chat: bool,
) -> Result<Vec<Vec<TokenId>>, DataError> {
    let text = text::read(path)?;
    let encode = |line: usize, prompt: Prompt| {
        let messages = match prompt {
            Prompt::Text(text) if chat => Ok(vec![Message::new("user", text)]),
            Prompt::Text(text) => Err(text),
            Prompt::Messages(messages) => Ok(messages),
        };
        let missing = || DataError::NoChatTemplate {
            path: path.to_path_buf(),
            line,
            what: if chat { "a prompt that is put as a user's message" } else { "\"messages\"" },
        };
        let encoded = match messages {
            Ok(messages) => {
                let template = template.ok_or_else(missing)?;
                template.render(&Chat::new(messages)).and_then(|text| tokenizer.encode(&text, false))
            }
            Err(text) => tokenizer.encode(&text, true),
        };
        let tokens = encoded.map_err(|source| DataError::text(path, line, source))?;
        if tokens.is_empty() {
            return Err(DataError::line(path, line, "a prompt without a token", "a text to continue"));
        }
        Ok(tokens)
    };
    let prompts: Vec<Vec<TokenId>> = if text::is_json_lines(path) {
        let parse = |(number, line): (usize, &str)| {
            let wrong = |found| DataError::line(path, number, found, EXPECTED);
            let line: Line = json_line(line.as_bytes()).map_err(wrong)?;
            let prompt = Prompt::of_keys(line.prompt, line.messages).map_err(|error| wrong(error.to_string()))?;
            encode(number, prompt)
        };
        text::lines(&text).map(parse).collect::<Result<_, _>>()?
    } else {
        let paragraphs = text::paragraphs(&text).into_iter();
        paragraphs.map(|(number, text)| encode(number, Prompt::Text(text))).collect::<Result<_, _>>()?
    };
    if prompts.is_empty() {
        return Err(DataError::Empty { found: path.display().to_string(), expected: "at least one prompt" });
    }
    Ok(prompts)
}
