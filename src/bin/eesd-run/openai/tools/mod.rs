//! Calls of tools in an answer's text, for the families of chat templates whose way of writing them is known.
//!
//! A family has a file, which says how a call begins and where it ends, and a line in [`FAMILIES`]. What looks like a call and
//! is none stays text, so nothing that the model said is lost. Where the family is unknown, all of it is text.

mod calls;
mod hermes;
mod json;
mod llama;
mod mistral;

pub use calls::{Calls, Reading, Said};

use eesd::load::{ChatTemplate, Keys};
use serde_json::Value;
use std::fmt::{self, Debug, Formatter};

/// The families that are known; the first that a template is of.
const FAMILIES: [Family; 3] = [mistral::FAMILY, hermes::FAMILY, llama::FAMILY];

/// How templates that go back to one of their kind have calls written.
#[derive(Clone, Copy)]
struct Family {
    /// Whether a template is of this kind.
    has: fn(&ChatTemplate) -> bool,
    /// What a call is told by; where these are special tokens, an answer's text has to spell them.
    marks: &'static [&'static str],
    /// What an answer says next.
    next: fn(&Rest<'_>) -> Next,
}

impl Debug for Family {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "Family({:?})", self.marks)
    }
}

/// What is there of an answer, and has not been told.
struct Rest<'a> {
    text: &'a str,
    /// Nothing of the answer has been told.
    first: bool,
    /// Nothing comes after it.
    last: bool,
    /// The tools that there are.
    tools: &'a [String],
}

/// What the rest of an answer begins with.
enum Next {
    /// So many bytes of text.
    Text(usize),
    /// Calls, which take so many bytes.
    Calls(usize, Vec<Call>),
    /// Nobody knows before more of it is there.
    Unsure,
}

/// A call of a tool.
#[derive(Debug, Clone, PartialEq)]
pub struct Call {
    /// The tool.
    name: String,
    /// A JSON object, as the model wrote it.
    arguments: String,
}

impl Call {
    /// In OpenAI's form, as the answer's call of this number.
    pub fn told(&self, answer_id: &str, answer: usize, number: usize) -> Value {
        let function = serde_json::json!({"name": self.name, "arguments": self.arguments});
        serde_json::json!({"id": id(answer_id, answer, number), "type": "function", "function": function})
    }
}

/// A call's name among others: nine letters and digits, as some templates want it when they get it back.
fn id(answer_id: &str, answer: usize, number: usize) -> String {
    const LETTERS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";
    // FNV-1a, 64 bits: the same in every run, unlike the standard library's.
    let text = format!("{answer_id}/{answer}/{number}");
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    let mut hash = text.bytes().fold(0xcbf2_9ce4_8422_2325, step);
    let mut letter = || {
        let letter = LETTERS[(hash % 36) as usize];
        hash /= 36;
        char::from(letter)
    };
    (0..9).map(|_| letter()).collect()
}

/// Whether tools may be called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ToolChoice {
    /// As the model sees fit.
    Auto,
    /// Not at all.
    Nothing,
}

impl ToolChoice {
    /// Takes `tool_choice` out of a body.
    ///
    /// # Errors
    /// If it asks for a call, which nothing here can promise.
    pub fn take(body: &mut Keys) -> Result<Self, String> {
        match body.take::<Value>("tool_choice")? {
            None => Ok(Self::Auto),
            Some(Value::String(choice)) if choice == "auto" => Ok(Self::Auto),
            Some(Value::String(choice)) if choice == "none" => Ok(Self::Nothing),
            Some(other) => {
                Err(format!("\"tool_choice\": {other} is not supported (expected \"auto\" or \"none\", or nothing)"))
            }
        }
    }
}

/// The names of a body's tools.
///
/// # Errors
/// If they are not in OpenAI's form.
pub fn names(tools: &Value) -> Result<Vec<String>, String> {
    const EXPECTED: &str = "expected {\"type\": \"function\", \"function\": {\"name\": …, …}}";
    let tools = tools.as_array().ok_or(format!("\"tools\" is no list ({EXPECTED}, …)"))?;
    let name = |(number, tool): (usize, &Value)| match (tool["type"].as_str(), tool["function"]["name"].as_str()) {
        (Some("function"), Some(name)) if !name.is_empty() => Ok(name.to_owned()),
        (Some("function"), _) => Err(format!("\"tools\"[{number}] has no name ({EXPECTED})")),
        (Some(other), _) => {
            Err(format!("\"tools\"[{number}] is of type {other:?}, which is not supported ({EXPECTED})"))
        }
        (None, _) => Err(format!("\"tools\"[{number}] has no type ({EXPECTED})")),
    };
    tools.iter().enumerate().map(name).collect()
}

#[cfg(test)]
mod tests;
