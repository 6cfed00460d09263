//! Answers: tokens, completions and statistics as C has them, and who keeps what they point to.

use super::argument::{Text, Versioned};
use super::source::{EESD_SOURCES, SourceStats, number};
use super::status::{Failure, Outcome, Status};
use crate::TokenId;
use crate::draft::Source;
use crate::engine;
use crate::sample;
use std::any::Any;
use std::cell::RefCell;
use std::ffi::{CString, c_char};
use std::ptr::null;

/// The log-probability of one token.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Logprob {
    /// The token.
    pub token: TokenId,
    /// Natural logarithm of its probability, by the whole model.
    pub logprob: f32,
}

/// Log-probabilities at one position of an answer.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct TokenLogprobs {
    /// Of the token that was emitted.
    pub logprob: f32,
    /// The most probable tokens, most probable first.
    pub top: *const Logprob,
    /// How many.
    pub top_count: usize,
}

/// One emitted token, handed out when it is certain; where tokens come fast, up to about five milliseconds later.
#[repr(C)]
pub struct Token {
    /// The token.
    pub id: TokenId,
    /// Who drafted it, where the verifier kept a draft: an eesd_source.
    pub drafted: i32,
    /// Text that became certain with it: whole characters in UTF-8, nothing that may still be part of a stop string, often
    /// nothing at all; the texts of an answer's tokens, joined, are the answer's. A zero follows it, which length does not
    /// count.
    pub text: Text,
    /// Its log-probabilities; NaN and none where they were not asked for.
    pub logprobs: TokenLogprobs,
}

/// Why an answer ended.
#[repr(i32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// It has not: in events without a completion.
    None = 0,
    /// max_tokens were generated.
    Length = 1,
    /// The model wrote an end token: end_token says which.
    EndToken = 2,
    /// The text ran into a stop string: stop says which.
    StopString = 3,
    /// The context is full.
    Context = 4,
    /// The host asked for it.
    Cancelled = 5,
    /// The answer is complete by its schema or grammar: nothing may follow.
    Complete = 6,
}

/// The name of a reason, as in "EESD_FINISH_LENGTH"; "unknown finish" for a number that is none.
///
/// Never NULL; a constant.
#[unsafe(no_mangle)]
pub extern "C" fn eesd_finish_name(finish: i32) -> *const c_char {
    let name = match finish {
        0 => c"EESD_FINISH_NONE",
        1 => c"EESD_FINISH_LENGTH",
        2 => c"EESD_FINISH_END_TOKEN",
        3 => c"EESD_FINISH_STOP_STRING",
        4 => c"EESD_FINISH_CONTEXT",
        5 => c"EESD_FINISH_CANCELLED",
        6 => c"EESD_FINISH_COMPLETE",
        _ => c"unknown finish",
    };
    name.as_ptr()
}

/// Counts and times of one answer. Times are in seconds.
///
/// How far to draft is decided by measured times (but with "off", and "fixed:K" with draft "exit"), so rounds, drafted and
/// accepted differ from run to run where the answer does not.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Stats {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens emitted.
    pub generated: usize,
    /// Rounds, that is verification passes.
    pub rounds: usize,
    /// Drafts tested.
    pub drafted: usize,
    /// Drafts accepted.
    pub accepted: usize,
    /// Tokens of the prompt that were found in pages kept of earlier texts.
    pub reused_tokens: usize,
    /// Times that the request was set aside because the cache was full.
    pub preemptions: usize,
    /// Mean accepted length, 1 + accepted / rounds.
    pub mean_accepted_length: f64,
    /// Tokens per second of decoding, prefill left out.
    pub tokens_per_second: f64,
    /// From submission to admission; of a session's first request, with the time in which steps are timed.
    pub queued: f64,
    /// Filling the cache with the prompt.
    pub prefill: f64,
    /// From admission to the first token, prefill included.
    pub first_token: f64,
    /// Draft steps.
    pub draft: f64,
    /// The rest of the rounds: verification and acceptance.
    pub verify: f64,
    /// From the end of prefill to the end.
    pub decode: f64,
    /// `drafted_at[i]`: rounds that drafted and tested a token at draft position i.
    pub drafted_at: *const usize,
    /// `accepted_at[i]`: rounds that accepted it.
    pub accepted_at: *const usize,
    /// Elements of these two.
    pub positions: usize,
    /// `draft_lengths[k]`: rounds that drafted exactly k tokens.
    pub draft_lengths: *const usize,
    /// Elements of it.
    pub draft_lengths_count: usize,
    /// What each source drafted: by_source[EESD_SOURCE_EXIT - 1], ...
    pub by_source: [SourceStats; EESD_SOURCES],
}

/// A finished answer. What it points to is this library's: see eesd_generate() and eesd_next_event() for how long.
#[repr(C)]
pub struct Completion {
    /// sizeof(eesd_completion); to be set before eesd_generate().
    pub struct_size: usize,
    /// Every emitted token, the end token included, or the one that completed a stop string: they may spell more than text
    /// says.
    pub tokens: *const TokenId,
    /// How many.
    pub token_count: usize,
    /// The text, cut before the stop string. A zero follows it, which length does not count.
    pub text: Text,
    /// Log-probabilities of the tokens, as many; NULL where they were not asked for.
    pub logprobs: *const TokenLogprobs,
    /// Why it ended.
    pub finish: Finish,
    /// The end token, where that is why.
    pub end_token: TokenId,
    /// The stop string, where that is why.
    pub stop: Text,
    /// Other than 0: seed repeats the answer. 0: no seed does, as by rejection sampling, or nothing was drawn.
    pub has_seed: i32,
    /// The seed, given or drawn, that repeats a sampled answer whatever else runs; 0 where has_seed is.
    pub seed: u64,
    /// Counts and times.
    pub stats: Stats,
}

// SAFETY: repr(C), struct_size first; only written here.
unsafe impl Versioned for Completion {
    const NAME: &'static str = "eesd_completion";
}

/// Bytes with a zero after them, that a host can look at.
struct KeptText(Vec<u8>);

impl KeptText {
    fn new(text: String) -> Self {
        Self(super::argument::terminated(text))
    }

    fn view(&self) -> Text {
        Text { data: self.0.as_ptr().cast(), length: self.0.len() - 1 }
    }
}

const NO_TEXT: Text = Text { data: c"".as_ptr(), length: 0 };
const NO_LOGPROBS: TokenLogprobs = TokenLogprobs { logprob: f32::NAN, top: null(), top_count: 0 };

fn top(logprobs: Option<&sample::TokenLogprobs>) -> Vec<Logprob> {
    let pair = |&(token, logprob): &(TokenId, f32)| Logprob { token, logprob };
    logprobs.map(|logprobs| logprobs.top.iter().map(pair).collect()).unwrap_or_default()
}

fn at_position(logprobs: &sample::TokenLogprobs, top: &[Logprob]) -> TokenLogprobs {
    TokenLogprobs { logprob: logprobs.logprob, top: top.as_ptr(), top_count: top.len() }
}

/// A token and what its C form points to.
pub(super) struct KeptToken {
    id: TokenId,
    drafted: Option<Source>,
    text: KeptText,
    logprobs: Option<sample::TokenLogprobs>,
    top: Vec<Logprob>,
}

impl KeptToken {
    pub fn new(emission: engine::Emission) -> Self {
        let engine::Emission { token, text, drafted, logprobs } = emission;
        Self { id: token, drafted, text: KeptText::new(text), top: top(logprobs.as_ref()), logprobs }
    }

    /// Good while this lives.
    pub fn view(&self) -> Token {
        let logprobs = self.logprobs.as_ref().map_or(NO_LOGPROBS, |logprobs| at_position(logprobs, &self.top));
        Token { id: self.id, drafted: number(self.drafted), text: self.text.view(), logprobs }
    }
}

impl Token {
    pub(super) const NONE: Self = Self { id: 0, drafted: 0, text: NO_TEXT, logprobs: NO_LOGPROBS };
}

/// A completion and what its C form points to.
pub(super) struct KeptCompletion {
    completion: engine::Completion,
    text: KeptText,
    stop: Option<KeptText>,
    logprobs: Vec<TokenLogprobs>,
    /// What `logprobs` points to.
    _top: Vec<Vec<Logprob>>,
}

impl KeptCompletion {
    pub fn new(mut completion: engine::Completion) -> Self {
        let tops: Vec<_> = completion.logprobs.iter().map(|logprobs| top(Some(logprobs))).collect();
        let logprobs = completion.logprobs.iter().zip(&tops).map(|(logprobs, top)| at_position(logprobs, top));
        Self {
            text: KeptText::new(std::mem::take(&mut completion.text)),
            stop: match &completion.finish {
                engine::Finish::StopString(stop) => Some(KeptText::new(stop.clone())),
                _ => None,
            },
            logprobs: logprobs.collect(),
            _top: tops,
            completion,
        }
    }

    /// Good while this lives.
    pub fn view(&self) -> Completion {
        let (finish, end_token) = match self.completion.finish {
            engine::Finish::Length => (Finish::Length, 0),
            engine::Finish::EndToken(token) => (Finish::EndToken, token),
            engine::Finish::StopString(_) => (Finish::StopString, 0),
            engine::Finish::Context => (Finish::Context, 0),
            engine::Finish::Complete => (Finish::Complete, 0),
            engine::Finish::Cancelled => (Finish::Cancelled, 0),
        };
        Completion {
            struct_size: size_of::<Completion>(),
            tokens: self.completion.tokens.as_ptr(),
            token_count: self.completion.tokens.len(),
            text: self.text.view(),
            logprobs: if self.logprobs.is_empty() { null() } else { self.logprobs.as_ptr() },
            finish,
            end_token,
            stop: self.stop.as_ref().map_or(NO_TEXT, KeptText::view),
            has_seed: self.completion.seed.is_some().into(),
            seed: self.completion.seed.unwrap_or_default(),
            stats: Stats::of(&self.completion.stats),
        }
    }
}

impl Completion {
    pub(super) const NONE: Self = Self {
        struct_size: size_of::<Completion>(),
        tokens: null(),
        token_count: 0,
        text: NO_TEXT,
        logprobs: null(),
        finish: Finish::None,
        end_token: 0,
        stop: NO_TEXT,
        has_seed: 0,
        seed: 0,
        stats: Stats::NONE,
    };
}

impl Stats {
    const NONE: Self = Self {
        prompt_tokens: 0,
        generated: 0,
        rounds: 0,
        drafted: 0,
        accepted: 0,
        reused_tokens: 0,
        preemptions: 0,
        mean_accepted_length: 0.0,
        tokens_per_second: 0.0,
        queued: 0.0,
        prefill: 0.0,
        first_token: 0.0,
        draft: 0.0,
        verify: 0.0,
        decode: 0.0,
        drafted_at: null(),
        accepted_at: null(),
        positions: 0,
        draft_lengths: null(),
        draft_lengths_count: 0,
        by_source: [SourceStats::NONE; EESD_SOURCES],
    };

    /// Good while `stats` lives.
    fn of(stats: &engine::Stats) -> Self {
        Self {
            prompt_tokens: stats.prompt_tokens,
            generated: stats.generated,
            rounds: stats.rounds,
            drafted: stats.drafted(),
            accepted: stats.accepted(),
            reused_tokens: stats.reused_tokens,
            preemptions: stats.preemptions,
            mean_accepted_length: stats.mean_accepted_length(),
            tokens_per_second: if stats.generated == 0 { 0.0 } else { stats.tokens_per_second() },
            queued: stats.queued.as_secs_f64(),
            prefill: stats.prefill.as_secs_f64(),
            first_token: stats.first_token.as_secs_f64(),
            draft: stats.draft.as_secs_f64(),
            verify: stats.verify.as_secs_f64(),
            decode: stats.decode.as_secs_f64(),
            drafted_at: stats.drafted_at.as_ptr(),
            accepted_at: stats.accepted_at.as_ptr(),
            positions: stats.drafted_at.len(),
            draft_lengths: stats.lengths.as_ptr(),
            draft_lengths_count: stats.lengths.len(),
            by_source: SourceStats::of(&stats.by_source),
        }
    }
}

thread_local! {
    /// What the thread's last answer points to.
    static KEPT: RefCell<Option<Box<dyn Any>>> = const { RefCell::new(None) };
}

/// Keeps what an answer points to until this thread's next one.
pub(super) fn keep(kept: Box<dyn Any>) -> Outcome {
    let ending = |_| Failure::new(Status::Closed, "this thread is ending: nothing can be kept for it");
    KEPT.try_with(|place| drop(place.replace(Some(kept)))).map_err(ending)
}

/// A failure's message as C has it.
pub(super) fn message(failure: &Failure) -> CString {
    CString::new(failure.message.replace('\0', "")).unwrap_or_default()
}

/// No message.
pub(super) const NO_MESSAGE: *const c_char = c"".as_ptr();
