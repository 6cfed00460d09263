//! What the history and the user add to a row of logits before it becomes a distribution.
//!
//! Which biases there are at a position is the [`Sampler`](super::Sampler)'s to say.

use super::{History, SamplingParams};
use crate::TokenId;
use crate::model::DraftVocab;
use std::borrow::Cow;

/// Penalties and biases at one position: repetition penalty, then presence and frequency, then bias.
#[derive(Debug)]
pub struct Penalties<'a> {
    params: &'a SamplingParams,
    vocab: DraftVocab<'a>,
    /// `None` where nothing depends on the history.
    history: Option<Occurrences>,
}

/// How often each token has occurred, by its column in a row of logits.
#[derive(Debug)]
struct Occurrences {
    /// Tokens of prompt and output, each once.
    distinct: Vec<usize>,
    /// Is it in `distinct`?
    seen: Vec<bool>,
    /// How often it is in the output.
    output: Vec<u32>,
}

impl<'a> Penalties<'a> {
    /// The penalties of the token that follows `history`, for rows of logits of this vocabulary.
    pub fn new(params: &'a SamplingParams, history: History<'_>, vocab: DraftVocab<'a>) -> Self {
        let history = params.has_penalties().then(|| {
            let (seen, output) = (vec![false; vocab.size], vec![0; vocab.size]);
            let mut past = Occurrences { distinct: Vec::new(), seen, output };
            for (position, &token) in history.tokens.iter().enumerate() {
                past.add(vocab.column(token), position >= history.prompt);
            }
            past
        });
        Self { params, vocab, history }
    }

    /// Moves to the next position: `token` has become the output's last.
    pub fn advance(&mut self, token: TokenId) {
        if let Some(past) = &mut self.history {
            past.add(self.vocab.column(token), true);
        }
    }

    /// The row with the penalties and `biases`, which are this position's, applied; the row itself where nothing is on.
    pub fn apply<'l>(&self, logits: &'l [f32], biases: impl Iterator<Item = (TokenId, f32)>) -> Cow<'l, [f32]> {
        let mut biases = biases.peekable();
        if self.history.is_none() && biases.peek().is_none() {
            return Cow::Borrowed(logits);
        }
        let mut logits = logits.to_vec();
        if let Some(past) = &self.history {
            for &column in &past.distinct {
                let logit = &mut logits[column];
                *logit = self.penalised(f64::from(*logit), past.output[column]) as f32;
            }
        }
        for (token, bias) in biases {
            if let Some(column) = self.vocab.column(token) {
                logits[column] += bias;
            }
        }
        Cow::Owned(logits)
    }

    /// The logit of a token that occurred, `output` times in the output.
    fn penalised(&self, logit: f64, output: u32) -> f64 {
        let by = self.params.repetition_penalty;
        let repeated = if logit > 0.0 { logit / by } else { logit * by };
        let presence = if output > 0 { self.params.presence_penalty } else { 0.0 };
        repeated - presence - f64::from(output) * self.params.frequency_penalty
    }
}

impl Occurrences {
    fn add(&mut self, column: Option<usize>, output: bool) {
        let Some(column) = column else {
            return; // not in the vocabulary, so without a logit to penalise
        };
        if !self.seen[column] {
            self.seen[column] = true;
            self.distinct.push(column);
        }
        self.output[column] += u32::from(output);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::iter;

    const TOKENS: [TokenId; 5] = [0, 1, 2, 2, 99];
    const HISTORY: History<'static> = History { tokens: &TOKENS, prompt: 2 };
    const VOCAB: DraftVocab<'static> = DraftVocab { size: 4, ids: None };
    const LOGITS: [f32; 4] = [4.0, -4.0, 4.0, 4.0];

    fn applied(params: &SamplingParams) -> Vec<f32> {
        Penalties::new(params, HISTORY, VOCAB).apply(&LOGITS, params.logit_bias.iter().copied()).into_owned()
    }

    #[test]
    fn nothing_on_borrows_the_row() {
        let params = SamplingParams::default();
        assert!(matches!(Penalties::new(&params, HISTORY, VOCAB).apply(&LOGITS, iter::empty()), Cow::Borrowed(_)));
    }

    #[test]
    fn repetition_counts_the_prompt_the_others_do_not() {
        let off = SamplingParams::default();
        assert_eq!(applied(&SamplingParams { repetition_penalty: 2.0, ..off.clone() }), [2.0, -8.0, 2.0, 4.0]);
        assert_eq!(applied(&SamplingParams { presence_penalty: 1.5, ..off.clone() }), [4.0, -4.0, 2.5, 4.0]);
        assert_eq!(applied(&SamplingParams { frequency_penalty: 1.5, ..off.clone() }), [4.0, -4.0, 1.0, 4.0]);
        let both = SamplingParams { repetition_penalty: 2.0, presence_penalty: 0.5, frequency_penalty: 0.25, ..off };
        assert_eq!(applied(&both), [2.0, -8.0, 1.0, 4.0]);
    }

    #[test]
    fn advancing_equals_a_longer_history() {
        let params = SamplingParams { frequency_penalty: 1.0, repetition_penalty: 1.5, ..Default::default() };
        let mut short = Penalties::new(&params, History { tokens: &TOKENS[..3], prompt: 2 }, VOCAB);
        short.advance(2);
        short.advance(99);
        assert_eq!(short.apply(&LOGITS, iter::empty()), applied(&params));
    }

    #[test]
    fn bias_comes_last_and_can_forbid() {
        let logit_bias = vec![(0, 1.0), (3, f32::NEG_INFINITY), (0, 0.5)];
        let params = SamplingParams { repetition_penalty: 2.0, logit_bias, ..Default::default() };
        assert_eq!(applied(&params), [3.5, -8.0, 2.0, f32::NEG_INFINITY]);
    }
}
