//! What the sampling tests compare with: a toy language model, and the pipeline from logits to
//! probabilities written as naively as its documentation reads.

use eesd::TokenId;
use eesd::sample::{History, Philox, Purpose, SamplingParams};

/// A language model of `vocab` tokens whose logits depend on the last two tokens only.
#[derive(Debug, Clone)]
pub struct ToyModel {
    vocab: usize,
    /// `[vocab, vocab, vocab]`: token before last, last token, logit of the next.
    table: Vec<f32>,
}

impl ToyModel {
    /// Uniform random logits in `±spread`.
    pub fn new(seed: u64, vocab: usize, spread: f64) -> Self {
        let mut random = Philox::new(seed, 0, Purpose::Controller, 0);
        let table = (0..vocab.pow(3)).map(|_| ((2.0 * random.uniform() - 1.0) * spread) as f32).collect();
        Self { vocab, table }
    }

    /// A model that agrees with this one up to `±error` a logit: what an exit block is to its model.
    pub fn approximation(&self, seed: u64, error: f64) -> Self {
        let noise = Self::new(seed, self.vocab, error);
        let table = self.table.iter().zip(&noise.table).map(|(a, b)| a + b).collect();
        Self { vocab: self.vocab, table }
    }

    /// The logits `[vocab]` of the token that follows `tokens` (at least two).
    pub fn logits(&self, tokens: &[TokenId]) -> &[f32] {
        let [.., before, last] = *tokens else { panic!("a toy model needs two tokens of context") };
        &self.table[(before as usize * self.vocab + last as usize) * self.vocab..][..self.vocab]
    }
}

/// The probability of every token after `history`, at a temperature above 0.
pub fn probabilities(params: &SamplingParams, history: History<'_>, logits: &[f32]) -> Vec<f64> {
    let logits = adjusted(params, history, logits);
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
    let largest = f64::from(logits[order[0]]);
    let weight = |token: usize| ((f64::from(logits[token]) - largest) / params.temperature).exp();

    let mut allowed = vec![true; logits.len()];
    if params.top_k > 0 {
        order.iter().skip(params.top_k).for_each(|&token| allowed[token] = false);
    }
    if params.top_p < 1.0 {
        let total: f64 = (0..logits.len()).filter(|&t| allowed[t]).map(weight).sum();
        let mut mass = 0.0;
        for &token in order.iter().take(if params.top_k > 0 { params.top_k } else { logits.len() }) {
            allowed[token] = mass < params.top_p * total;
            mass += weight(token);
        }
    }
    let weights: Vec<f64> = (0..logits.len())
        .map(|token| if allowed[token] && weight(token) >= params.min_p { weight(token) } else { 0.0 })
        .collect();
    let total: f64 = weights.iter().sum();
    weights.iter().map(|weight| weight / total).collect()
}

/// The logits after penalties and biases, and `-inf` where a token must not come.
pub fn adjusted(params: &SamplingParams, history: History<'_>, logits: &[f32]) -> Vec<f32> {
    let output = &history.tokens[history.prompt..];
    let adjusted = logits.iter().zip(0..).map(|(&logit, token)| {
        let mut logit = f64::from(logit);
        if history.tokens.contains(&token) {
            logit = if logit > 0.0 { logit / params.repetition_penalty } else { logit * params.repetition_penalty };
        }
        let count = output.iter().filter(|&&t| t == token).count();
        if count > 0 {
            logit -= params.presence_penalty;
        }
        logit -= count as f64 * params.frequency_penalty;
        let biases = params.logit_bias.iter().filter(|&&(t, _)| t == token);
        let bad = params.bad_words.iter().any(|run| [history.tokens, &[token]].concat().ends_with(run));
        if bad || params.suppress_tokens.contains(&token) {
            return f32::NEG_INFINITY;
        }
        biases.fold(logit as f32, |logit, (_, bias)| logit + bias)
    });
    adjusted.collect()
}
