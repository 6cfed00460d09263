//! What a user may ask of sampling.

use crate::TokenId;

/// Sampling parameters of one request; they apply to the draft and to the target alike.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplingParams {
    /// Divides the logits; 0 is greedy decoding.
    pub temperature: f64,
    /// Keep the `k` most probable tokens; 0 keeps all. Ties at the edge go to the lowest ids.
    pub top_k: usize,
    /// Keep the smallest set of most probable tokens whose probability reaches this; 1 keeps all.
    pub top_p: f64,
    /// Keep tokens at least this fraction as probable as the most probable one; 0 keeps all.
    pub min_p: f64,
    /// Divides positive and multiplies negative logits of tokens in prompt or output; 1 is off.
    pub repetition_penalty: f64,
    /// Subtracted from the logit of every token in the output; 0 is off.
    pub presence_penalty: f64,
    /// Subtracted from a token's logit once per occurrence in the output; 0 is off.
    pub frequency_penalty: f64,
    /// Added to the logits of single tokens; `-inf` forbids one.
    pub logit_bias: Vec<(TokenId, f32)>,
    /// Same seed, same text (see [`Rule::Coupled`]); `None` draws one from the operating system.
    pub seed: Option<u64>,
    /// How drafts are verified at temperature > 0; `None`: coupled with a seed, rejection without.
    pub verify: Option<VerifyMode>,
    /// Report the target's log-probability of each emitted token and of this many most probable ones.
    pub logprobs: Option<usize>,
}

impl Default for SamplingParams {
    /// Greedy decoding, everything else off.
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: None,
            verify: None,
            logprobs: None,
        }
    }
}

/// The user's choice between the two sampling rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VerifyMode {
    /// Rejection sampling: exact in distribution, accepts most.
    Rejection,
    /// Gumbel coupling: exact token for token under a seed.
    Coupled,
}

/// The rule that decides what is accepted; all three are lossless.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// Accept while the draft is the target's argmax.
    Greedy,
    /// Accept with probability `min(1, p/q)`, else sample the residual `max(p - q, 0)`.
    Rejection,
    /// Draft and target take the argmax of logits plus the same Gumbel noise; accept while equal.
    Coupled,
}

/// A sampling parameter outside its range.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{name}: {found} (expected {expected})")]
pub struct ParamError {
    /// The parameter's name.
    pub name: &'static str,
    /// What was given.
    pub found: String,
    /// What is allowed.
    pub expected: &'static str,
}
