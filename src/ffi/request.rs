//! Requests: what is to be continued, and how tokens are chosen.

use super::argument::{Incoming, Place, Text, Versioned, check_size};
use super::handle;
use super::model::Model;
use super::status::{Status, entry};
use crate::TokenId;
use crate::engine::settings::MAX_TOKENS;
use crate::load::GenerationDefaults;
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

/// A text to be continued, or a conversation. Begin with eesd_request_default(). Nothing of it is kept after the call that takes
/// it. What is to be continued is said by one of prompt, tokens and json.
#[repr(C)]
pub struct Request {
    /// sizeof(eesd_request).
    pub struct_size: usize,
    /// The prompt as a text, UTF-8; its tokens begin with what the model wants at a text's start, as those of eesd_tokenize()
    /// with begin 1 do. Else NULL.
    pub prompt: *const c_char,
    /// Its length in bytes.
    pub prompt_length: usize,
    /// The prompt as tokens, as they are; at least one, and fewer than the session's context. Else NULL.
    pub tokens: *const TokenId,
    /// How many.
    pub token_count: usize,
    /// A request in JSON, UTF-8, as in a line for `eesd-run generate`: an object with "messages", a conversation for the chat
    /// template (and "tools", "documents", "chat_template_kwargs"; see eesd_apply_chat_template_json()), or with "prompt", a
    /// text or a list of tokens; and with settings, which go before the fields here. Without "messages" and "prompt", settings
    /// alone. docs/requests.md has all keys; others are refused by name, but for "id", which is passed over. NULL: none.
    pub json: *const c_char,
    /// Its length in bytes.
    pub json_length: usize,
    /// Answers, 1 to 1024, the first with this seed, the next with the one after it, ...; more than one by eesd_submit_n()
    /// alone. Default: 1.
    pub n: usize,
    /// Most tokens to generate, at least 1. Default: the model's own wish (max_new_tokens of its generation_config.json), or 256.
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
    /// Texts that end the answer and are no part of it. NULL: the model's own, as generation_config.json has them; an address
    /// and no elements: none.
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
    /// complete with them ends it. Default: the model's own wish (min_new_tokens), or 0.
    pub min_tokens: usize,
    /// Tokens that end the answer as the model's end tokens do, whatever ignore_end; NULL where there are none.
    pub stop_token_ids: *const TokenId,
    /// How many.
    pub stop_token_id_count: usize,
    /// Tokens that are never generated; NULL and no elements as for stop.
    pub suppress_tokens: *const TokenId,
    /// How many.
    pub suppress_token_count: usize,
    /// Runs of tokens that are never generated: the last one of a run is forbidden where prompt and answer so far end in the
    /// others; NULL and no elements as for stop. (json takes them as texts too.)
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

/// Fills in the defaults: no prompt, and lengths and sampling as the model's generation_config.json asks for; where it does not
/// (as for the model inside the library), 256 tokens, greedily. NULL for the model: 256 tokens, greedily. These are eesd-run's
/// defaults too.
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
        let asked = match model.is_null() {
            true => GenerationDefaults::default(),
            false => handle::find(model)?.checkpoint.generation().clone(),
        };
        let (sampling, max_tokens) = (asked.sampling(), asked.max_new_tokens.unwrap_or(MAX_TOKENS));
        place.write(Request {
            struct_size,
            prompt: std::ptr::null(),
            prompt_length: 0,
            tokens: std::ptr::null(),
            token_count: 0,
            json: std::ptr::null(),
            json_length: 0,
            n: 1,
            max_tokens,
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
            min_tokens: asked.min_new_tokens.unwrap_or(0).min(max_tokens),
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
