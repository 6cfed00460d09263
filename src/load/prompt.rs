//! Prompts as users write them into JSON lines.

use super::chat::Message;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// What the model is to continue.
#[derive(Debug, Clone, PartialEq)]
pub enum Prompt {
    /// A text as it is; to be encoded with a begin token.
    Text(String),
    /// A conversation to be answered, at least one message; the chat template makes a text of it.
    Messages(Vec<Message>),
}

impl Prompt {
    /// The prompt of a line's keys `prompt` and `messages`.
    ///
    /// # Errors
    /// If not exactly one of them is there, or there is no message.
    pub fn of_keys(prompt: Option<String>, messages: Option<Vec<Message>>) -> Result<Self, PromptError> {
        match (prompt, messages) {
            (Some(prompt), None) => Ok(Self::Text(prompt)),
            (None, Some(messages)) if messages.is_empty() => Err(PromptError::NoMessages),
            (None, Some(messages)) => Ok(Self::Messages(messages)),
            (None, None) => Err(PromptError::Neither),
            (Some(_), Some(_)) => Err(PromptError::Both),
        }
    }
}

/// Why a line holds no prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PromptError {
    /// Nothing to continue.
    #[error("neither \"prompt\" nor \"messages\"")]
    Neither,
    /// Two things to continue.
    #[error("both \"prompt\" and \"messages\": one of them is enough")]
    Both,
    /// A conversation in which nobody speaks.
    #[error("\"messages\" is empty")]
    NoMessages,
}

/// Reads one line of a JSON-lines file as a `T`, all of whose keys are optional.
///
/// # Errors
/// What is wrong with it, in words for users: with the key, which the parser alone does not always name, and
/// without Rust's names of numbers.
pub fn json_line<T: DeserializeOwned>(line: &[u8]) -> Result<T, String> {
    let error = match serde_json::from_slice(line) {
        Ok(value) => return Ok(value),
        Err(error) => error,
    };
    let of_key = |(key, value): (String, Value)| {
        let error = serde_json::from_value::<T>(Map::from_iter([(key.clone(), value)]).into()).err()?.to_string();
        Some(if error.contains(&key) { error } else { format!("\"{key}\": {error}") })
    };
    let object: Map<String, Value> = serde_json::from_slice(line).unwrap_or_default();
    let mut message = object.into_iter().find_map(of_key).unwrap_or_else(|| json_error(&error));
    for (rust, plain) in
        [("usize", "whole number, 0 or more"), ("u64", "whole number, 0 or more"), ("f64", "number"), ("f32", "number")]
    {
        message = message.replace(&format!("expected {rust}"), &format!("expected a {plain}"));
    }
    Err(message)
}

/// What a JSON parser says about one line of a file, without its own count of lines, which is always 1.
pub fn json_error(error: &serde_json::Error) -> String {
    error.to_string().replace(" at line 1 column ", " at column ")
}
