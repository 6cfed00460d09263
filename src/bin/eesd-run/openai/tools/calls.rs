//! Text and calls of an answer, told apart as the text comes.

use super::{Call, FAMILIES, Family, Next, Rest};
use eesd::TokenId;
use eesd::load::{ChatTemplate, Tokenizer};
use std::sync::Arc;

/// How the answers to a request call its tools.
#[derive(Debug, Clone)]
pub struct Calls {
    family: Family,
    /// The names of the tools.
    tools: Arc<[String]>,
}

/// A piece of an answer.
#[derive(Debug, Clone, PartialEq)]
pub enum Said {
    /// Words.
    Text(String),
    /// A call of a tool.
    Call(Call),
}

impl Calls {
    /// Of these tools, in the way of the template; `None` where that is not known.
    pub fn of(template: &ChatTemplate, tools: Vec<String>) -> Option<Self> {
        let family = FAMILIES.into_iter().find(|family| (family.has)(template))?;
        Some(Self { family, tools: tools.into() })
    }

    /// The special tokens without which a text does not tell its calls.
    pub fn spelled_tokens(&self, tokenizer: &Tokenizer) -> Vec<TokenId> {
        let special = |mark: &&str| tokenizer.id(mark).filter(|&token| tokenizer.is_special(token));
        self.family.marks.iter().filter_map(special).collect()
    }

    /// All that a whole text says.
    pub fn all(&self, text: &str) -> Vec<Said> {
        let mut reading = self.reading();
        let mut said = reading.push(text);
        said.extend(reading.finish());
        said
    }

    /// Reads the text of an answer as it comes.
    pub fn reading(&self) -> Reading {
        Reading {
            calls: self.clone(),
            held: String::new(),
            lead: String::new(),
            first: true,
            after_call: false,
            called: false,
        }
    }
}

/// An answer whose text is coming.
pub struct Reading {
    calls: Calls,
    /// What has not been told.
    held: String,
    /// White space at the beginning, which says nothing if a call follows.
    lead: String,
    /// Nothing has been told.
    first: bool,
    /// White space that comes now separates a call from what follows, and says nothing.
    after_call: bool,
    /// A tool has been called.
    called: bool,
}

impl Reading {
    /// Takes the next piece of the text; returns what has become certain.
    pub fn push(&mut self, text: &str) -> Vec<Said> {
        self.held += text;
        self.take(false)
    }

    /// The text has ended; returns the rest.
    pub fn finish(&mut self) -> Vec<Said> {
        self.take(true)
    }

    /// Whether a tool has been called.
    pub fn called(&self) -> bool {
        self.called
    }

    fn take(&mut self, last: bool) -> Vec<Said> {
        let mut said = Vec::new();
        loop {
            if self.after_call {
                let white = self.held.len() - self.held.trim_start().len();
                self.held.drain(..white);
            }
            if self.held.is_empty() {
                if last && !self.lead.is_empty() {
                    said.push(Said::Text(std::mem::take(&mut self.lead)));
                }
                return said;
            }
            let rest = Rest { text: &self.held, first: self.first, last, tools: &self.calls.tools };
            let end = match (self.calls.family.next)(&rest) {
                // At the end all is certain; a family that says otherwise is not waited for.
                Next::Unsure if !last => return said,
                Next::Unsure => self.held.len(),
                Next::Text(end) => end,
                Next::Calls(end, calls) => {
                    said.extend(calls.into_iter().map(Said::Call));
                    self.held.drain(..end);
                    self.lead.clear();
                    (self.first, self.after_call, self.called) = (false, true, true);
                    continue;
                }
            };
            let mut text = std::mem::take(&mut self.lead);
            text.extend(self.held.drain(..end));
            if self.first && text.trim().is_empty() {
                self.lead = text;
                continue;
            }
            match said.last_mut() {
                Some(Said::Text(before)) => *before += &text,
                _ => said.push(Said::Text(text)),
            }
            (self.first, self.after_call) = (false, false);
        }
    }
}
