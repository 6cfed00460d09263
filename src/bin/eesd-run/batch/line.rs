//! One line of a request file: parsed by itself, so that a wrong one fails alone.

use super::job::{Form, Job};
use super::openai;
use crate::failure::{Failure, Outcome};
use crate::openai::{ApiError, Asked, Shape, seeded};
use eesd::constrain::Grammars;
use eesd::engine::{Request, settings};
use eesd::load::{JsonLines, Keys, Prompt, PromptEncoder, REQUEST_KEYS};
use serde_json::value::RawValue;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::Path;

/// A request, or what is wrong with it.
pub enum Item {
    /// Ready to run.
    Request {
        /// Whose it is.
        job: Job,
        /// One for each of its answers, in their order.
        requests: Vec<Request>,
        /// The text of its first prompt, where that is no list of tokens.
        text: Option<String>,
    },
    /// Fails by itself.
    Wrong {
        /// Whose it is.
        job: Job,
        /// Why.
        error: ApiError,
    },
    /// The input ends here, before its end.
    Unreadable {
        /// Why.
        error: String,
    },
}

/// An opened file of requests.
pub struct Input {
    lines: JsonLines<Box<dyn BufRead>>,
    name: String,
}

impl Input {
    /// Opens a file; `-` is standard input.
    ///
    /// # Errors
    /// If it cannot be opened.
    pub fn open(path: &Path) -> Outcome<Self> {
        let (reader, name): (Box<dyn BufRead>, _) = match path == Path::new("-") {
            true => (Box::new(io::stdin().lock()), "standard input".into()),
            false => {
                let file = File::open(path).map_err(|e| Failure::file(path, "read", &e))?;
                (Box::new(BufReader::new(file)), path.display().to_string())
            }
        };
        Ok(Self { lines: JsonLines::new(reader), name })
    }
}

/// Answers that a file asks for; `None` where it comes through a pipe, which can be read only once.
///
/// # Errors
/// If the file cannot be read.
pub fn count(path: &Path) -> Outcome<Option<usize>> {
    if !path.is_file() {
        return Ok(None);
    }
    let mut input = Input::open(path)?;
    let mut samples = 0;
    while let Some((_, line)) = input.lines.next_line().map_err(|e| Failure::file(path, "read", &e))? {
        let mut keys = Keys::parse(line);
        // What is wrong with a line is told where it is answered.
        let mut prompts = 1;
        if let Ok(Some(mut body)) = keys.take_object("body") {
            prompts = openai::prompts(&mut body);
            keys = body;
        }
        let each = keys.take::<usize>("n").ok().flatten().unwrap_or(1).clamp(1, settings::MOST_SAMPLES);
        samples += prompts.saturating_mul(each).min(settings::MOST_SAMPLES);
    }
    Ok(Some(samples))
}

/// Reads requests line by line; empty lines are skipped.
pub struct Lines<'a> {
    input: Input,
    encoder: &'a PromptEncoder<'a>,
    grammars: &'a Grammars,
    base: Request,
    wanted: Box<dyn Fn(usize) -> bool + 'a>,
    requests: usize,
    ended: bool,
}

impl<'a> Lines<'a> {
    /// The requests of `input`, with `base` for what a line does not say.
    pub fn new(input: Input, encoder: &'a PromptEncoder<'a>, grammars: &'a Grammars, base: Request) -> Self {
        Self { input, encoder, grammars, base, wanted: Box::new(|_| true), requests: 0, ended: false }
    }

    /// Leaves out all requests but those whose index is `wanted`.
    pub fn only(self, wanted: impl Fn(usize) -> bool + 'a) -> Self {
        Self { wanted: Box::new(wanted), ..self }
    }

    /// The input, for messages.
    pub fn name(&self) -> &str {
        &self.input.name
    }
}

impl Iterator for Lines<'_> {
    type Item = Item;

    fn next(&mut self) -> Option<Item> {
        while !self.ended {
            let index = self.requests;
            match self.input.lines.next_line() {
                Ok(None) => self.ended = true,
                Ok(Some(_)) if !(self.wanted)(index) => self.requests += 1,
                Ok(Some((number, line))) => {
                    self.requests += 1;
                    let asking = Asking { base: &self.base, encoder: self.encoder, grammars: self.grammars };
                    return Some(asking.item(line, index, &format!("{}:{number}", self.input.name)));
                }
                Err(error) => {
                    self.ended = true;
                    let (name, number) = (&self.input.name, self.input.lines.number() + 1);
                    return Some(Item::Unreadable { error: format!("{name}:{number}: could not be read: {error}") });
                }
            }
        }
        None
    }
}

/// What a line is read with: what it does not say, and what makes tokens and grammars of what it says.
pub struct Asking<'a> {
    pub base: &'a Request,
    pub encoder: &'a PromptEncoder<'a>,
    pub grammars: &'a Grammars,
}

impl Asking<'_> {
    /// What the line at `place` asks.
    fn item(&self, line: &[u8], index: usize, place: &str) -> Item {
        let keys = Keys::parse(line);
        let openai = openai::is_one(&keys);
        let id = keys.raw(if openai { "custom_id" } else { "id" }).map(on_one_line);
        let read = if openai { openai::read(keys, self) } else { self.read(keys) };
        match read {
            Ok(Asked { requests, text, shape, .. }) => {
                let form = if openai { Form::OpenAi(Box::new(shape)) } else { Form::Lines };
                Item::Request { job: Job { id, index, samples: requests.len(), form }, requests, text }
            }
            Err(error) => {
                let form = if openai { Form::OpenAi(Box::default()) } else { Form::Lines };
                Item::Wrong { job: Job { id, index, samples: 1, form }, error: error.at(place) }
            }
        }
    }

    /// What the keys of one of this program's own lines ask.
    fn read(&self, mut keys: Keys) -> Result<Asked, ApiError> {
        let mut read = || -> Result<_, String> {
            keys.whole()?;
            keys.forget("id");
            let prompt = Prompt::of_keys(&mut keys)?;
            let (mut request, tokenizer) = (self.base.clone(), self.encoder.tokenizer);
            let expected = || format!("id, {}, {}", Prompt::NAMES.join(", "), REQUEST_KEYS.join(", "));
            let keys = std::mem::take(&mut keys);
            let samples = settings::take(keys, &mut request, tokenizer, self.grammars, &expected)?;
            let (tokens, text) = self.encoder.encode_with_text(&prompt).map_err(|error| error.to_string())?;
            request.prompt = tokens;
            Ok((request, text, samples))
        };
        let (request, text, samples) = read().map_err(|error| ApiError::of_body(&[], &error))?;
        let shape = Shape { samples, ..Shape::default() };
        Ok(Asked { requests: seeded(request, samples).collect(), text, shape, stream: None })
    }
}

/// An id as it is spelled, but for line ends within, which JSON has between values only: an answer is one line for whoever
/// takes a carriage return for an end, too.
fn on_one_line(id: &RawValue) -> Box<RawValue> {
    RawValue::from_string(id.get().replace('\r', " ")).unwrap_or_else(|_| id.to_owned())
}

#[cfg(test)]
mod tests;
