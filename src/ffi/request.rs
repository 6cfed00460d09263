//! Requests: what is to be continued, and how tokens are chosen.

use super::argument::{Incoming, Place, Text, Versioned, check_size, optional_string, slice, structure, text};
use super::handle;
use super::model::{self, Model};
use super::session::Session;
use super::status::{Failure, Outcome, Status, entry};
use crate::TokenId;
use crate::draft::Sources;
use crate::engine;
use crate::sample::{SamplingParams, VerifyMode};
use std::ffi::c_char;

/// How drafts are verified at a temperature above 0. Both ways lose nothing.
#[repr(i32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verify {
    /// Coupled with a seed, rejection without.
    Default = 0,
    /// Rejection sampling: exact in distribution, accepts most. A seed does not repeat a text: what is drawn depends on how
    /// long drafts are, and that on the clock.
    Rejection = 1,
    /// Gumbel coupling: for a seed, token for token what plain sampling gives.
    Coupled = 2,
}

/// What is added to the logit of one token.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct LogitBias {
    /// The token.
    pub token: TokenId,
    /// A finite number; -INFINITY forbids the token.
    pub bias: f32,
}

/// A run of tokens.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Tokens {
    /// The tokens; at least one.
    pub tokens: *const TokenId,
    /// How many.
    pub count: usize,
}

/// A text to be continued. Begin with eesd_request_default(). Nothing of it is kept after the call that takes it.
#[repr(C)]
pub struct Request {
    /// sizeof(eesd_request).
    pub struct_size: usize,
    /// The prompt as a text, UTF-8; its tokens begin with what the model wants at a text's start, as those of eesd_tokenize()
    /// with begin 1 do. Either this or tokens; else NULL.
    pub prompt: *const c_char,
    /// Its length in bytes.
    pub prompt_length: usize,
    /// The prompt as tokens, as they are; at least one, and fewer than the session's context.
    pub tokens: *const TokenId,
    /// How many.
    pub token_count: usize,
    /// Most tokens to generate, at least 1. Default: 256.
    pub max_tokens: usize,
    /// Divides the logits; 0 is greedy decoding.
    pub temperature: f64,
    /// Keep the most probable tokens, this many; 0 keeps all.
    pub top_k: usize,
    /// Keep the smallest set of most probable tokens whose probabilities reach this; 1 keeps all.
    pub top_p: f64,
    /// Keep tokens at least this fraction as probable as the most probable one; 0 keeps all.
    pub min_p: f64,
    /// Divides positive and multiplies negative logits of tokens in prompt or answer; 1 is off.
    pub repetition_penalty: f64,
    /// Subtracted from the logit of every token in the answer; 0 is off.
    pub presence_penalty: f64,
    /// Subtracted from a token's logit once per occurrence in the answer; 0 is off.
    pub frequency_penalty: f64,
    /// Biases of single tokens; NULL where there are none.
    pub logit_bias: *const LogitBias,
    /// How many.
    pub logit_bias_count: usize,
    /// Other than 0: seed counts, and but for rejection sampling the same seed gives the same text whatever else runs. 0: one
    /// is drawn.
    pub has_seed: i32,
    /// The seed.
    pub seed: u64,
    /// An eesd_verify.
    pub verify: i32,
    /// Report the log-probability of each token and of this many most probable ones, 0 to 100; -1: of none. Default: -1.
    pub logprobs: i32,
    /// Texts that end the answer and are no part of it; NULL where there are none.
    pub stop: *const Text,
    /// How many.
    pub stop_count: usize,
    /// Other than 0: go on past the model's end tokens. Default: 0.
    pub ignore_end: i32,
    /// 0: decode plainly, whatever the session's controller. Default: 1.
    pub speculate: i32,
    /// Most drafts in one round, if fewer than the session's; 0: the session's.
    pub draft_max: usize,
    /// For eesd_submit(): other than 0 asks for an event for each token, 0 for the last event alone. Default: 1.
    pub stream: i32,
    /// Fewest tokens to generate, at most max_tokens: none of so many is one that ends the answer, and no stop text that is
    /// complete with them ends it. Default: 0.
    pub min_tokens: usize,
    /// Tokens that end the answer as the model's end tokens do, whatever ignore_end; NULL where there are none.
    pub stop_token_ids: *const TokenId,
    /// How many.
    pub stop_token_id_count: usize,
    /// Tokens that are never generated; NULL where there are none.
    pub suppress_tokens: *const TokenId,
    /// How many.
    pub suppress_token_count: usize,
    /// Runs of tokens that are never generated: the last one of a run is forbidden where prompt and answer so far end in the
    /// others; NULL where there are none.
    pub bad_words: *const Tokens,
    /// How many.
    pub bad_word_count: usize,
    /// Who may draft, of those that the session has: as eesd_session_params has it; NULL: all of them. What a request without
    /// "shared" comes to is not told to others.
    pub draft: *const c_char,
}

// SAFETY: repr(C), struct_size first.
unsafe impl Versioned for Request {
    const NAME: &'static str = "eesd_request";
}

// SAFETY: numbers and pointers.
unsafe impl Incoming for Request {}

/// Most stop strings of a request, or runs of tokens.
const MOST_STOPS: usize = 1 << 12;
/// Most biases of a request, or tokens of a list.
const MOST_BIASES: usize = 1 << 20;

/// Fills in the defaults: no prompt, 256 tokens, and sampling as the model's generation_config.json asks for, which is
/// greedy where it does not (as for the model inside the library); NULL for the model: greedy. These are eesd-run's defaults
/// too.
///
/// struct_size: sizeof(eesd_request).
///
/// # Safety
///
/// `request` is NULL or good to write for `struct_size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eesd_request_default(
    model: *const Model,
    request: *mut Request,
    struct_size: usize,
) -> Status {
    entry(|| {
        check_size::<Request>(struct_size)?;
        // SAFETY: as large as a `Request` by the check; the caller vouches for the rest.
        let place = unsafe { Place::new(request, Request::NAME) }?;
        let sampling = match model.is_null() {
            true => SamplingParams::default(),
            false => handle::find(model)?.checkpoint.generation().sampling(),
        };
        place.write(Request {
            struct_size,
            prompt: std::ptr::null(),
            prompt_length: 0,
            tokens: std::ptr::null(),
            token_count: 0,
            max_tokens: 256,
            temperature: sampling.temperature,
            top_k: sampling.top_k,
            top_p: sampling.top_p,
            min_p: sampling.min_p,
            repetition_penalty: sampling.repetition_penalty,
            presence_penalty: sampling.presence_penalty,
            frequency_penalty: sampling.frequency_penalty,
            logit_bias: std::ptr::null(),
            logit_bias_count: 0,
            has_seed: 0,
            seed: 0,
            verify: Verify::Default as i32,
            logprobs: -1,
            stop: std::ptr::null(),
            stop_count: 0,
            ignore_end: 0,
            speculate: 1,
            draft_max: 0,
            stream: 1,
            min_tokens: 0,
            stop_token_ids: std::ptr::null(),
            stop_token_id_count: 0,
            suppress_tokens: std::ptr::null(),
            suppress_token_count: 0,
            bad_words: std::ptr::null(),
            bad_word_count: 0,
            draft: std::ptr::null(),
        });
        Ok(())
    })
}

/// Reads a request for a session; what can be said against it at once is. Also whether it asks for tokens as events.
///
/// # Safety
///
/// `request` is NULL or as its struct_size says, with arrays as long as their counts say.
pub(super) unsafe fn read(session: &Session, request: *const Request) -> Outcome<(engine::Request, bool)> {
    // SAFETY: the same is asked of the caller.
    let request = unsafe { structure(request) }?;
    // SAFETY: the same.
    let prompt = unsafe { prompt(session, request) }?;
    // SAFETY: the same.
    let sampling = unsafe { sampling(request) }?;
    // SAFETY: the same.
    let stops = unsafe { slice(request.stop, request.stop_count, MOST_STOPS, "stop") }?;
    let read = |stop: &Text| {
        // SAFETY: the same.
        unsafe { text(stop.data, stop.length, "stop") }.map(str::to_owned)
    };
    // SAFETY: the same.
    let ids = unsafe { slice(request.stop_token_ids, request.stop_token_id_count, MOST_BIASES, "stop_token_ids") }?;
    // SAFETY: the same.
    let sources = match unsafe { optional_string(request.draft, "draft") }? {
        Some(list) => list.parse()?,
        None => Sources::ALL,
    };
    let read = engine::Request {
        sampling,
        min_tokens: request.min_tokens,
        stop_token_ids: ids.to_vec(),
        stop: stops.iter().map(read).collect::<Outcome<_>>()?,
        ignore_end: request.ignore_end != 0,
        sources: if request.speculate == 0 { Sources::OFF } else { sources },
        draft_max: (request.draft_max > 0).then_some(request.draft_max),
        ..engine::Request::new(prompt, request.max_tokens)
    };
    read.check(session.model.checkpoint.geometry().vocab_size)?;
    if !read.stop.is_empty() && session.model.checkpoint.tokenizer().is_none() {
        return Err(engine::EngineError::StopNeedsTokenizer.into());
    }
    Ok((read, request.stream != 0))
}

/// # Safety
///
/// As [`read`].
unsafe fn prompt(session: &Session, request: &Request) -> Outcome<Vec<TokenId>> {
    let context = session.limits.context;
    let prompt = match (request.prompt.is_null(), request.tokens.is_null()) {
        (false, true) => {
            // SAFETY: the same is asked of the caller.
            let text = unsafe { text(request.prompt, request.prompt_length, "prompt") }?;
            model::tokenizer(&session.model)?.encode(text, true)?
        }
        (true, false) => {
            if request.token_count >= context {
                return Err(too_long(request.token_count, context));
            }
            // SAFETY: the same.
            unsafe { slice(request.tokens, request.token_count, context, "tokens") }?.to_vec()
        }
        (true, true) => return Err(Failure::argument("prompt and tokens: both NULL (expected one of them)")),
        (false, false) => return Err(Failure::argument("prompt and tokens: both given (expected one of them)")),
    };
    if prompt.len() >= context {
        return Err(too_long(prompt.len(), context));
    }
    Ok(prompt)
}

fn too_long(prompt: usize, context: usize) -> Failure {
    let found = format!("the prompt has {prompt} tokens (expected fewer than the session's context of {context})");
    Failure::new(Status::TooLong, found)
}

/// # Safety
///
/// As [`read`].
unsafe fn sampling(request: &Request) -> Outcome<SamplingParams> {
    // SAFETY: the same is asked of the caller.
    let biases = unsafe { slice(request.logit_bias, request.logit_bias_count, MOST_BIASES, "logit_bias") }?;
    let (ids, count) = (request.suppress_tokens, request.suppress_token_count);
    // SAFETY: the same.
    let suppressed = unsafe { slice(ids, count, MOST_BIASES, "suppress_tokens") }?;
    // SAFETY: the same.
    let runs = unsafe { slice(request.bad_words, request.bad_word_count, MOST_STOPS, "bad_words") }?;
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
        logit_bias: biases.iter().map(|bias| (bias.token, bias.bias)).collect(),
        suppress_tokens: suppressed.to_vec(),
        bad_words: runs.iter().map(run).collect::<Outcome<_>>()?,
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
