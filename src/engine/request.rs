//! What goes into the engine and what comes out.

use super::EngineError;
use crate::TokenId;
use crate::constrain::Constraint;
use crate::draft::{Source, Sources};
use crate::sample::{SamplingParams, TokenLogprobs, check_tokens};
use std::sync::Arc;
use std::time::Duration;

/// A text to be continued.
#[derive(Debug, Clone)]
pub struct Request {
    /// The prompt's tokens, begin-of-text included where the model wants one; at least one.
    pub prompt: Vec<TokenId>,
    /// Most tokens to generate.
    pub max_tokens: usize,
    /// Fewest tokens to generate, at most `max_tokens`: none of so many may be one that ends the answer, and a stop
    /// string does not end it where it is complete with them. What is full ends it all the same.
    pub min_tokens: usize,
    /// How tokens are chosen.
    pub sampling: SamplingParams,
    /// What the answer must be like, whatever the model would say. It ends where nothing may follow, and end tokens may only
    /// stand where it may end. `max_tokens`, stop strings and a full context end it all the same.
    pub constraint: Option<Arc<dyn Constraint>>,
    /// Texts that end the answer; they are not part of it. Need a tokenizer.
    pub stop: Vec<String>,
    /// Tokens that end the answer as the model's end tokens do.
    pub stop_token_ids: Vec<TokenId>,
    /// Go on past the model's end tokens.
    pub ignore_end: bool,
    /// Special tokens that the answer's text spells all the same, as a call of a tool may begin with one.
    pub spelled_tokens: Vec<TokenId>,
    /// Who may draft, of the sources that the engine has; [`Sources::OFF`] decodes plainly whatever the controller. What
    /// a request that does without other texts comes to is not told to others either.
    pub sources: Sources,
    /// Most drafts in one round, if fewer than the backend's.
    pub draft_max: Option<usize>,
}

impl Request {
    /// A greedy continuation of `prompt` by at most `max_tokens`, speculation on.
    pub fn new(prompt: Vec<TokenId>, max_tokens: usize) -> Self {
        Self {
            prompt,
            max_tokens,
            min_tokens: 0,
            sampling: SamplingParams::default(),
            constraint: None,
            stop: Vec::new(),
            stop_token_ids: Vec::new(),
            ignore_end: false,
            spelled_tokens: Vec::new(),
            sources: Sources::ALL,
            draft_max: None,
        }
    }

    /// Checks everything but lengths that depend on the engine, against a vocabulary of `vocab` tokens.
    ///
    /// # Errors
    /// The first thing that no engine could do.
    pub fn check(&self, vocab: usize) -> Result<(), EngineError> {
        let Self { max_tokens, min_tokens, .. } = *self;
        if self.prompt.is_empty() {
            return Err(EngineError::EmptyPrompt);
        }
        if let Some(&token) = self.prompt.iter().find(|&&token| token as usize >= vocab) {
            return Err(EngineError::UnknownToken { token, vocab });
        }
        if max_tokens == 0 {
            return Err(EngineError::NothingToGenerate);
        }
        if min_tokens > max_tokens {
            return Err(EngineError::LeastBeyondMost { min_tokens, max_tokens });
        }
        if self.stop.iter().any(String::is_empty) {
            return Err(EngineError::EmptyStop);
        }
        check_tokens("stop_token_ids", &self.stop_token_ids, vocab)?;
        Ok(self.sampling.check(vocab)?)
    }

    /// The tokens that end the answer, where the model's own are `end_tokens`.
    pub(super) fn ends(&self, end_tokens: &[TokenId]) -> Vec<TokenId> {
        let models = if self.ignore_end { &[] } else { end_tokens };
        let mut ends = [models, &self.stop_token_ids].concat();
        ends.sort_unstable();
        ends.dedup();
        ends
    }
}

/// One emitted token, handed out as soon as it is certain.
#[derive(Debug, Clone)]
pub struct Emission {
    /// The token.
    pub token: TokenId,
    /// Text that became certain with it: whole characters, nothing that may still turn out to be
    /// part of a stop string. Empty without a tokenizer.
    pub text: String,
    /// Who drafted it, where the verifier kept a draft.
    pub drafted: Option<Source>,
    /// The target's log-probabilities, where asked for.
    pub logprobs: Option<TokenLogprobs>,
}

/// Why a generation ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finish {
    /// `max_tokens` were generated.
    Length,
    /// The model wrote an end token, or one of the request's own (kept in the tokens, never in the text).
    EndToken(TokenId),
    /// The text ran into this stop string.
    StopString(String),
    /// The answer is complete: its constraint lets nothing follow.
    Complete,
    /// The context is full.
    Context,
    /// The receiver asked to stop.
    Cancelled,
}

impl Finish {
    /// Its name in JSON.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Length => "length",
            Self::EndToken(_) => "end_token",
            Self::StopString(_) => "stop_string",
            Self::Complete => "complete",
            Self::Context => "context",
            Self::Cancelled => "cancelled",
        }
    }
}

/// A finished generation.
#[derive(Debug, Clone)]
pub struct Completion {
    /// Every emitted token. After a stop string: up to the token that completed it.
    pub tokens: Vec<TokenId>,
    /// The answer's text, cut before the stop string.
    pub text: String,
    /// Log-probabilities of `tokens`, where asked for, else empty.
    pub logprobs: Vec<TokenLogprobs>,
    /// Why it ended.
    pub finish: Finish,
    /// The seed, given or drawn, that repeats a sampled answer whatever else runs. `None` where none does, as by rejection
    /// sampling, or where nothing was drawn.
    pub seed: Option<u64>,
    /// Counts and times.
    pub stats: Stats,
}

/// Counts and times of one generation, or of several added up.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Stats {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens emitted.
    pub generated: usize,
    /// Rounds, i.e. verification passes.
    pub rounds: usize,
    /// `drafted_at[i]`: rounds that drafted and tested a token at draft position `i` (0-based).
    pub drafted_at: Vec<usize>,
    /// `accepted_at[i]`: rounds that accepted it.
    pub accepted_at: Vec<usize>,
    /// `lengths[k]`: rounds that drafted exactly `k` tokens.
    pub lengths: Vec<usize>,
    /// By source of drafts, in the order of [`Source::ALL`].
    pub by_source: [SourceStats; Source::ALL.len()],
    /// Tokens of the prompt that were found in pages kept of earlier texts.
    pub reused_tokens: usize,
    /// Times that it was preempted.
    pub preemptions: usize,
    /// From submission to admission.
    pub queued: Duration,
    /// Filling the cache with the prompt: the passes that a part of it was in.
    pub prefill: Duration,
    /// From admission to the first emitted token, prefill included.
    pub first_token: Duration,
    /// Draft steps that the sequence took part in.
    pub draft: Duration,
    /// The rest of its rounds: verification and acceptance, and in a batch the others' longer drafts.
    pub verify: Duration,
    /// From the end of prefill to the end.
    pub decode: Duration,
}

/// What one source of drafts did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SourceStats {
    /// Rounds that it drafted.
    pub rounds: usize,
    /// Its drafts that were tested.
    pub drafted: usize,
    /// Those that were accepted.
    pub accepted: usize,
}

impl SourceStats {
    /// Adds another's counts.
    pub fn add(&mut self, other: Self) {
        self.rounds += other.rounds;
        self.drafted += other.drafted;
        self.accepted += other.accepted;
    }
}

impl Stats {
    /// Drafted tokens tested.
    pub fn drafted(&self) -> usize {
        self.drafted_at.iter().sum()
    }

    /// Drafted tokens accepted.
    pub fn accepted(&self) -> usize {
        self.accepted_at.iter().sum()
    }

    /// Mean accepted length, `1 + accepted / rounds`; 0 before the first round.
    pub fn mean_accepted_length(&self) -> f64 {
        if self.rounds == 0 { 0.0 } else { 1.0 + self.accepted() as f64 / self.rounds as f64 }
    }

    /// Fraction of tested drafts accepted, per draft position.
    pub fn acceptance_by_position(&self) -> Vec<f64> {
        self.drafted_at.iter().zip(&self.accepted_at).map(|(&d, &a)| a as f64 / d.max(1) as f64).collect()
    }

    /// Emitted tokens per second of decoding, prefill left out.
    pub fn tokens_per_second(&self) -> f64 {
        self.generated as f64 / self.decode.as_secs_f64().max(f64::MIN_POSITIVE)
    }

    /// Adds another generation's counts and times; the first-token time is averaged by the caller.
    pub fn add(&mut self, other: &Stats) {
        fn add_at(sum: &mut Vec<usize>, other: &[usize]) {
            sum.resize(sum.len().max(other.len()), 0);
            sum.iter_mut().zip(other).for_each(|(a, b)| *a += b);
        }
        self.prompt_tokens += other.prompt_tokens;
        self.generated += other.generated;
        self.rounds += other.rounds;
        add_at(&mut self.drafted_at, &other.drafted_at);
        add_at(&mut self.accepted_at, &other.accepted_at);
        add_at(&mut self.lengths, &other.lengths);
        self.by_source.iter_mut().zip(other.by_source).for_each(|(sum, other)| sum.add(other));
        self.reused_tokens += other.reused_tokens;
        self.preemptions += other.preemptions;
        self.queued += other.queued;
        self.prefill += other.prefill;
        self.first_token += other.first_token;
        self.draft += other.draft;
        self.verify += other.verify;
        self.decode += other.decode;
    }
}
