//! What a host's request asks of the engine: its fields, and over them what it says in JSON.

use super::argument::{Text, json, optional_slice, optional_string, slice, structure, text, within};
use super::request::{LogitBias, Request, Tokens};
use super::session::Session;
use super::status::{Failure, Outcome, Status};
use crate::TokenId;
use crate::draft::Sources;
use crate::engine::settings::{self, MOST_SAMPLES};
use crate::engine::{self, EngineError};
use crate::load::{GenerationDefaults, Keys, Prompt, REQUEST_KEYS};
use crate::sample::{SamplingParams, VerifyMode};

/// Most stop strings of a request, or runs of tokens.
const MOST_STOPS: usize = 1 << 12;
/// Most biases of a request, or tokens of a list.
const MOST_BIASES: usize = 1 << 20;

/// What is asked.
pub(super) struct Asked {
    /// One for each answer.
    pub requests: Vec<engine::Request>,
    /// Tokens are wanted as events.
    pub stream: bool,
}

impl Asked {
    /// The only request there is.
    pub fn alone(mut self) -> Outcome<(engine::Request, bool)> {
        let n = self.requests.len();
        match (n, self.requests.pop()) {
            (1, Some(request)) => Ok((request, self.stream)),
            _ => Err(Failure::argument(format!("n: {n} (expected 1, or eesd_submit_n())"))),
        }
    }
}

/// Reads a request for a session; what can be said against it at once is.
///
/// # Safety
///
/// `request` is NULL or as its struct_size says, with arrays as long as their counts say.
pub(super) unsafe fn read(session: &Session, request: *const Request) -> Outcome<Asked> {
    // SAFETY: the same is asked of the caller.
    let request = unsafe { structure(request) }?;
    let model = &session.model;
    // SAFETY: the same.
    let mut read = unsafe { fields(request, model.checkpoint.generation(), model.checkpoint.tokenizer().is_some()) }?;
    let mut answers = within(request.n, 1, MOST_SAMPLES, "n")?;
    let mut keys = match request.json.is_null() && request.json_length == 0 {
        true => Keys::default(),
        // SAFETY: the same.
        false => unsafe { json(request.json, request.json_length, "json") }?,
    };
    // SAFETY: the same.
    let prompt = unsafe { prompt(session, request, &mut keys) }?;
    keys.forget("id");
    let has_n = keys.raw("n").is_some();
    let expected = || format!("id, {}, {}", Prompt::NAMES.join(", "), REQUEST_KEYS.join(", "));
    let tokenizer = model.checkpoint.tokenizer().map(|tokenizer| &**tokenizer);
    let asked = settings::take(keys, &mut read, tokenizer, &model.grammars, &expected);
    let asked = asked.map_err(|error| Failure::argument(format!("json: {error}")))?;
    if has_n {
        answers = asked;
    }
    read.prompt = tokens(session, prompt)?;
    read.check(model.checkpoint.geometry().vocab_size)?;
    if !read.stop.is_empty() && model.checkpoint.tokenizer().is_none() {
        return Err(EngineError::StopNeedsTokenizer.into());
    }
    let each = (0..answers as u64).map(|answer| {
        let mut request = read.clone();
        request.sampling.seed = request.sampling.seed.map(|seed| seed.wrapping_add(answer));
        request
    });
    Ok(Asked { requests: each.collect(), stream: request.stream != 0 })
}

/// What the fields ask, but for the prompt.
///
/// # Safety
///
/// As [`read`].
unsafe fn fields(request: &Request, of_model: &GenerationDefaults, has_text: bool) -> Outcome<engine::Request> {
    // SAFETY: the same is asked of the caller.
    let sampling = unsafe { sampling(request, of_model) }?;
    let read = |stop: &Text| {
        // SAFETY: the same.
        unsafe { text(stop.data, stop.length, "stop") }.map(str::to_owned)
    };
    // SAFETY: the same.
    let stop = match unsafe { optional_slice(request.stop, request.stop_count, MOST_STOPS, "stop") }? {
        Some(stops) => stops.iter().map(read).collect::<Outcome<_>>()?,
        // Text that ends an answer can be met only where there is text.
        None if has_text => of_model.stop_strings.clone(),
        None => Vec::new(),
    };
    // SAFETY: the same.
    let ids = unsafe { slice(request.stop_token_ids, request.stop_token_id_count, MOST_BIASES, "stop_token_ids") }?;
    // SAFETY: the same.
    let sources = match unsafe { optional_string(request.draft, "draft") }? {
        Some(list) => list.parse()?,
        None => Sources::ALL,
    };
    Ok(engine::Request {
        sampling,
        min_tokens: request.min_tokens,
        stop_token_ids: ids.to_vec(),
        stop,
        ignore_end: request.ignore_end != 0,
        sources: if request.speculate == 0 { Sources::OFF } else { sources },
        draft_max: (request.draft_max > 0).then_some(request.draft_max),
        ..engine::Request::new(Vec::new(), request.max_tokens)
    })
}

/// What is to be continued, by whichever of the three says it.
///
/// # Safety
///
/// As [`read`].
unsafe fn prompt(session: &Session, request: &Request, keys: &mut Keys) -> Outcome<Prompt> {
    let in_json = ["prompt", "messages"].iter().any(|key| keys.raw(key).is_some());
    match (!request.prompt.is_null(), !request.tokens.is_null(), in_json) {
        (true, false, false) => {
            // SAFETY: the same is asked of the caller.
            let text = unsafe { text(request.prompt, request.prompt_length, "prompt") }?;
            Ok(Prompt::Text(text.to_owned()))
        }
        (false, true, false) => {
            let context = session.limits.context;
            if request.token_count >= context {
                return Err(too_long(request.token_count, context));
            }
            // SAFETY: the same.
            let tokens = unsafe { slice(request.tokens, request.token_count, context, "tokens") }?;
            Ok(Prompt::Tokens(tokens.to_vec()))
        }
        (false, false, true) => Prompt::of_keys(keys).map_err(|error| Failure::argument(format!("json: {error}"))),
        (false, false, false) => Err(Failure::argument(
            "prompt and tokens: both NULL, and no \"messages\" or \"prompt\" in json (expected one of them)",
        )),
        (prompt, tokens, in_json) => {
            let given = [("prompt", prompt), ("tokens", tokens), ("\"messages\" or \"prompt\" of json", in_json)];
            let given: Vec<&str> = given.iter().filter(|(_, given)| *given).map(|(name, _)| *name).collect();
            Err(Failure::argument(format!("{}: all given (expected one of them)", given.join(" and "))))
        }
    }
}

/// The prompt's tokens, as many as fit.
fn tokens(session: &Session, prompt: Prompt) -> Outcome<Vec<TokenId>> {
    let tokens = session.model.encode(prompt)?;
    match tokens.len() >= session.limits.context {
        true => Err(too_long(tokens.len(), session.limits.context)),
        false => Ok(tokens),
    }
}

fn too_long(prompt: usize, context: usize) -> Failure {
    let found = format!("the prompt has {prompt} tokens (expected fewer than the session's context of {context})");
    Failure::new(Status::TooLong, found)
}

/// # Safety
///
/// As [`read`].
unsafe fn sampling(request: &Request, of_model: &GenerationDefaults) -> Outcome<SamplingParams> {
    // SAFETY: the same is asked of the caller.
    let biases = unsafe { slice(request.logit_bias, request.logit_bias_count, MOST_BIASES, "logit_bias") }?;
    let (ids, count) = (request.suppress_tokens, request.suppress_token_count);
    // SAFETY: the same.
    let suppressed = unsafe { optional_slice(ids, count, MOST_BIASES, "suppress_tokens") }?;
    // SAFETY: the same.
    let runs = unsafe { optional_slice(request.bad_words, request.bad_word_count, MOST_STOPS, "bad_words") }?;
    let run = |run: &Tokens| {
        // SAFETY: the same.
        unsafe { slice(run.tokens, run.count, MOST_BIASES, "bad_words") }.map(<[TokenId]>::to_vec)
    };
    Ok(SamplingParams {
        temperature: request.temperature,
        top_k: request.top_k,
        top_p: request.top_p,
        min_p: request.min_p,
        repetition_penalty: request.repetition_penalty,
        presence_penalty: request.presence_penalty,
        frequency_penalty: request.frequency_penalty,
        logit_bias: biases.iter().map(|bias: &LogitBias| (bias.token, bias.bias)).collect(),
        suppress_tokens: suppressed.unwrap_or(&of_model.suppress_tokens).to_vec(),
        bad_words: match runs {
            Some(runs) => runs.iter().map(run).collect::<Outcome<_>>()?,
            None => of_model.bad_words.clone(),
        },
        seed: (request.has_seed != 0).then_some(request.seed),
        verify: match request.verify {
            0 => None,
            1 => Some(VerifyMode::Rejection),
            2 => Some(VerifyMode::Coupled),
            found => return Err(Failure::argument(format!("verify: {found} (expected an eesd_verify, 0 to 2)"))),
        },
        logprobs: match request.logprobs {
            -1 => None,
            n => {
                let wrong = || Failure::argument(format!("logprobs: {n} (expected a number from 0 to 100, or -1)"));
                Some(usize::try_from(n).map_err(|_| wrong())?)
            }
        },
    })
}
