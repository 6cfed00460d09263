//! Files of prompts that are read as a whole.

use super::Message;
use super::chat::Chat;
use super::encoding::{self, EncodingError};
use super::lines::{JsonLines, Keys};
use super::prompt::{Prompt, PromptEncoder, PromptError};
use crate::TokenId;
use std::collections::BTreeSet;
use std::io;
use std::path::Path;

/// Keys of a line that say how it is answered, and nothing of its prompt.
pub const REQUEST_KEYS: [&str; 25] = [
    "max_tokens",
    "min_tokens",
    "n",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "suppress_tokens",
    "bad_words",
    "seed",
    "verify",
    "stop",
    "stop_token_ids",
    "ignore_eos",
    "json_schema",
    "grammar",
    "response_format",
    "logprobs",
    "speculate",
    "draft",
    "draft_max",
];

/// The prompts of a file.
#[derive(Debug, Default, PartialEq)]
pub struct Prompts {
    /// The tokens of each, at least one.
    pub tokens: Vec<Vec<TokenId>>,
    /// Keys that some line has for its answer, and that say nothing of its prompt.
    pub unused: BTreeSet<String>,
}

/// Why a file holds no prompts.
#[derive(Debug, thiserror::Error)]
pub enum PromptsError {
    /// It cannot be read.
    #[error("{file}: could not be read: {source}")]
    Io {
        /// The file.
        file: String,
        /// What the system said.
        source: io::Error,
    },
    /// It is no text.
    #[error("{file}: {source}")]
    Encoding {
        /// The file.
        file: String,
        /// What it is instead.
        source: EncodingError,
    },
    /// A line holds no prompt, or none for this model.
    #[error("{file}:{line}: {found} (expected {expected})")]
    Line {
        /// The file.
        file: String,
        /// The line, from 1.
        line: usize,
        /// What is wrong with it.
        found: String,
        /// What it should hold.
        expected: String,
    },
    /// A prompt that this model cannot take.
    #[error("{file}:{line}: {source}")]
    Prompt {
        /// The file.
        file: String,
        /// The line where it begins, from 1.
        line: usize,
        /// Why.
        source: Box<PromptError>,
    },
    /// There is nothing in it.
    #[error("{file}: no prompts (expected at least one)")]
    Empty {
        /// The file.
        file: String,
    },
}

/// How a file of prompts is read.
pub struct PromptFile<'a> {
    /// Its name in errors.
    pub name: String,
    /// Whether each line is a JSON object; else it is text, in which empty lines separate prompts.
    pub json_lines: bool,
    /// Whether texts are put as a user's message.
    pub chat: bool,
    /// What makes tokens of them.
    pub encoder: &'a PromptEncoder<'a>,
}

/// Whether a file's name says that its lines are JSON objects: `.jsonl` or `.json`.
pub fn is_json_lines(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "jsonl" || extension == "json")
}

impl PromptFile<'_> {
    /// Reads the prompts of `bytes`, the file's content.
    ///
    /// A JSON line is one that `generate` answers: with a prompt as [`Prompt::of_keys`] reads it, and keys of a request,
    /// which are of no use here. (A prompt with empty lines in it needs JSON.)
    ///
    /// # Errors
    /// At the first line that is no prompt, or for a file without any: with what was found and what was expected.
    pub fn read(&self, bytes: Vec<u8>) -> Result<Prompts, PromptsError> {
        let prompts = if self.json_lines { self.read_lines(&bytes)? } else { self.read_text(bytes)? };
        if prompts.tokens.is_empty() {
            return Err(PromptsError::Empty { file: self.name.clone() });
        }
        Ok(prompts)
    }

    fn read_lines(&self, bytes: &[u8]) -> Result<Prompts, PromptsError> {
        let io = |source| PromptsError::Io { file: self.name.clone(), source };
        let mut lines = JsonLines::new(bytes);
        let mut prompts = Prompts::default();
        while let Some((number, line)) = lines.next_line().map_err(io)? {
            let wrong = |found| self.wrong(number, found, &format!("a JSON object with {}", Prompt::KEYS));
            let mut keys = Keys::parse(line);
            keys.whole().map_err(wrong)?;
            // OpenAI's batches have the request in an object of its own, with many more keys.
            let body = keys.take_object("body").map_err(wrong)?;
            let in_body = body.is_some();
            let mut keys = body.unwrap_or(keys);
            let prompt = Prompt::of_keys(&mut keys).map_err(wrong)?;
            // It tells a line from others.
            keys.forget("id");
            if let Some(key) = keys.rest().find(|key| !in_body && !REQUEST_KEYS.contains(key)) {
                return Err(wrong(format!("unknown key {key:?}")));
            }
            prompts.unused.extend(keys.rest().map(str::to_owned));
            prompts.tokens.push(self.encode(number, prompt)?);
        }
        Ok(prompts)
    }

    fn read_text(&self, bytes: Vec<u8>) -> Result<Prompts, PromptsError> {
        let encoding = |source| PromptsError::Encoding { file: self.name.clone(), source };
        let text = encoding::text(bytes).map_err(encoding)?;
        let paragraphs = paragraphs(&text).into_iter();
        let tokens =
            paragraphs.map(|(number, text)| self.encode(number, Prompt::Text(text))).collect::<Result<_, _>>()?;
        Ok(Prompts { tokens, ..Prompts::default() })
    }

    fn encode(&self, line: usize, prompt: Prompt) -> Result<Vec<TokenId>, PromptsError> {
        let prompt = match prompt {
            Prompt::Text(text) if self.chat => Prompt::Chat(Box::new(Chat::new([Message::new("user", text)]))),
            prompt => prompt,
        };
        let refused = |source| PromptsError::Prompt { file: self.name.clone(), line, source: Box::new(source) };
        let tokens = self.encoder.encode(&prompt).map_err(refused)?;
        if tokens.is_empty() {
            return Err(self.wrong(line, "a prompt without a token".into(), "something to continue"));
        }
        Ok(tokens)
    }

    fn wrong(&self, line: usize, found: String, expected: &str) -> PromptsError {
        PromptsError::Line { file: self.name.clone(), line, found, expected: expected.into() }
    }
}

/// Runs of lines that are not empty, with the number of the first one, from 1. Line ends within become `\n`.
fn paragraphs(text: &str) -> Vec<(usize, String)> {
    let mut paragraphs: Vec<(usize, String)> = Vec::new();
    let mut last = None;
    for (number, line) in (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty()) {
        match paragraphs.last_mut() {
            Some((_, paragraph)) if last == Some(number - 1) => {
                paragraph.push('\n');
                paragraph.push_str(line);
            }
            _ => paragraphs.push((number, line.to_owned())),
        }
        last = Some(number);
    }
    paragraphs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blank_lines_separate_paragraphs() {
        let text = "\n \none\r\n  two  \n\n\t\n\nthree\n";
        assert_eq!(paragraphs(text), [(3, "one\n  two  ".to_owned()), (8, "three".to_owned())]);
        assert_eq!(paragraphs(" \n\n"), []);
    }

    #[test]
    fn names_decide_what_a_file_is() {
        for (name, json) in [("a.jsonl", true), ("a.b/c.json", true), ("a.txt", false), ("jsonl", false), ("", false)] {
            assert_eq!(is_json_lines(Path::new(name)), json, "{name}");
        }
    }
}
