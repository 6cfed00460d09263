//! One line of a request file: parsed by itself, so that a wrong one fails alone.

use crate::failure::{Failure, Outcome, one_line};
use crate::settings::Model;
use eesd::TokenId;
use eesd::engine::Request;
use eesd::load::{Chat, Message, Prompt, Tokenizer, json_line};
use eesd::sample::VerifyMode;
use serde::Deserialize;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::Path;
use std::sync::Arc;

/// What tells one answer from another.
#[derive(Debug)]
pub struct Job {
    /// The line's own `id`, whatever it is.
    pub id: Option<Value>,
    /// Its number among the input's requests, from 0.
    pub index: usize,
}

impl Job {
    /// How the job's output line begins.
    pub fn head(&self) -> Map<String, Value> {
        let id = self.id.iter().map(|id| ("id".to_string(), id.clone()));
        id.chain([("index".to_string(), self.index.into())]).collect()
    }
}

/// A request, or what is wrong with it.
pub enum Item {
    /// Ready to run.
    Request {
        /// Whose it is.
        job: Job,
        /// The request.
        request: Box<Request>,
    },
    /// Fails by itself.
    Wrong {
        /// Whose it is.
        job: Job,
        /// Why.
        error: String,
    },
    /// The input ends here, before its end.
    Unreadable {
        /// Why.
        error: String,
    },
}

/// The keys of a line.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, expecting = "an object with the keys of a request")]
struct Line {
    id: Option<Value>,
    prompt: Option<String>,
    #[serde(default, deserialize_with = "eesd::load::messages")]
    messages: Option<Vec<Message>>,
    max_tokens: Option<usize>,
    temperature: Option<f64>,
    top_k: Option<usize>,
    top_p: Option<f64>,
    min_p: Option<f64>,
    repetition_penalty: Option<f64>,
    presence_penalty: Option<f64>,
    frequency_penalty: Option<f64>,
    logit_bias: Option<BTreeMap<TokenId, f32>>,
    seed: Option<u64>,
    verify: Option<Verify>,
    stop: Option<Stop>,
    ignore_eos: Option<bool>,
    logprobs: Option<usize>,
    speculate: Option<bool>,
    draft_max: Option<usize>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Verify {
    Rejection,
    Coupled,
}

#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "\"stop\" is a text or a list of texts")]
enum Stop {
    One(String),
    Several(Vec<String>),
}

/// Opens a file of requests; `-` is standard input.
///
/// # Errors
/// If it cannot be opened.
pub fn open_input(path: &Path) -> Outcome<Input> {
    if path == Path::new("-") {
        return Ok(Input { reader: Box::new(io::stdin().lock()), name: "standard input".into() });
    }
    let file = File::open(path).map_err(|e| Failure::file(path, "read", &e))?;
    Ok(Input { reader: Box::new(BufReader::new(file)), name: path.display().to_string() })
}

/// Requests in a file; `None` where they come through a pipe, which can be read only once.
///
/// # Errors
/// If the file cannot be read.
pub fn count(path: &Path) -> Outcome<Option<usize>> {
    if !path.is_file() {
        return Ok(None);
    }
    let io = |error| Failure::file(path, "read", &error);
    let mut reader = BufReader::new(File::open(path).map_err(io)?);
    let (mut requests, mut line) = (0, Vec::new());
    while reader.read_until(b'\n', &mut line).map_err(io)? > 0 {
        requests += usize::from(!is_empty(&line));
        line.clear();
    }
    Ok(Some(requests))
}

/// Whether a line holds no request.
fn is_empty(line: &[u8]) -> bool {
    line.iter().all(u8::is_ascii_whitespace)
}

/// An opened file of requests.
pub struct Input {
    reader: Box<dyn BufRead>,
    name: String,
}

/// Reads requests line by line; empty lines are skipped.
pub struct Lines<'a> {
    input: Input,
    model: &'a Model,
    tokenizer: Arc<Tokenizer>,
    /// What the flags say, for lines that do not.
    base: Request,
    /// Which of the requests are of interest, by index; the others are counted and not looked into.
    wanted: Box<dyn Fn(usize) -> bool + 'a>,
    line: usize,
    requests: usize,
}

impl<'a> Lines<'a> {
    /// The requests of `input`, with `base` for what a line does not say.
    pub fn new(input: Input, model: &'a Model, tokenizer: Arc<Tokenizer>, base: Request) -> Self {
        Self { input, model, tokenizer, base, wanted: Box::new(|_| true), line: 0, requests: 0 }
    }

    /// Leaves out all requests but those whose index is `wanted`.
    pub fn only(self, wanted: impl Fn(usize) -> bool + 'a) -> Self {
        Self { wanted: Box::new(wanted), ..self }
    }

    /// The input, for messages.
    pub fn name(&self) -> &str {
        &self.input.name
    }

    fn request(&self, line: &mut Line) -> Outcome<Request> {
        let prompt = match Prompt::of_keys(line.prompt.take(), line.messages.take())? {
            Prompt::Text(text) => self.tokenizer.encode(&text, true)?,
            Prompt::Messages(messages) => self
                .tokenizer
                .encode(&self.model.chat_template("\"messages\"")?.render(&Chat::new(messages))?, false)?,
        };
        let mut request = Request { prompt, ..self.base.clone() };
        set(&mut request.max_tokens, line.max_tokens);
        set(&mut request.ignore_end, line.ignore_eos);
        set(&mut request.speculate, line.speculate);
        request.draft_max = line.draft_max.or(request.draft_max);
        if let Some(stop) = line.stop.take() {
            request.stop = match stop {
                Stop::One(stop) => vec![stop],
                Stop::Several(stops) => stops,
            };
        }
        if request.max_tokens == 0 {
            return Err(Failure::failed("\"max_tokens\" is 0: expected 1 or more"));
        }
        if request.stop.iter().any(String::is_empty) {
            return Err(Failure::failed("\"stop\" holds an empty text"));
        }
        let sampling = &mut request.sampling;
        set(&mut sampling.temperature, line.temperature);
        set(&mut sampling.top_k, line.top_k);
        set(&mut sampling.top_p, line.top_p);
        set(&mut sampling.min_p, line.min_p);
        set(&mut sampling.repetition_penalty, line.repetition_penalty);
        set(&mut sampling.presence_penalty, line.presence_penalty);
        set(&mut sampling.frequency_penalty, line.frequency_penalty);
        set(&mut sampling.logit_bias, line.logit_bias.take().map(|bias| bias.into_iter().collect()));
        sampling.seed = line.seed.or(sampling.seed);
        sampling.logprobs = line.logprobs.or(sampling.logprobs);
        if let Some(mode) = &line.verify {
            sampling.verify = Some(match mode {
                Verify::Rejection => VerifyMode::Rejection,
                Verify::Coupled => VerifyMode::Coupled,
            });
        }
        Ok(request)
    }

    fn item(&self, bytes: &[u8], index: usize) -> Item {
        let at = |error: &str| format!("{}:{}: {}", self.input.name, self.line, one_line(&error));
        let mut line = match json_line::<Line>(bytes) {
            Ok(line) => line,
            Err(error) => {
                // The id is worth having even where another key is wrong.
                let object: Map<String, Value> = serde_json::from_slice(bytes).unwrap_or_default();
                let id = object.get("id").filter(|id| !id.is_null()).cloned();
                return Item::Wrong { job: Job { id, index }, error: at(&error) };
            }
        };
        let job = Job { id: line.id.take(), index };
        match self.request(&mut line) {
            Ok(request) => Item::Request { job, request: Box::new(request) },
            Err(failure) => Item::Wrong { job, error: at(failure.message()) },
        }
    }
}

impl Iterator for Lines<'_> {
    type Item = Item;

    fn next(&mut self) -> Option<Item> {
        let mut bytes = Vec::new();
        loop {
            bytes.clear();
            self.line += 1;
            let index = self.requests;
            match self.input.reader.read_until(b'\n', &mut bytes) {
                Ok(0) => return None,
                Ok(_) if is_empty(&bytes) => {}
                Ok(_) => {
                    self.requests += 1;
                    if (self.wanted)(index) {
                        return Some(self.item(&bytes, index));
                    }
                }
                Err(error) => {
                    // Nothing can be read after this; the next call must see the end.
                    self.input.reader = Box::new(io::empty());
                    let error = format!("{}:{}: could not be read: {error}", self.input.name, self.line);
                    return Some(Item::Unreadable { error });
                }
            }
        }
    }
}

/// Overwrites a default where the line has a value.
fn set<T>(default: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *default = value;
    }
}
