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
    /// Tokens that are never generated, as if their bias were `-inf`.
    pub suppress_tokens: Vec<TokenId>,
    /// Runs of tokens, none of them empty, that are never completed: the last token of each is forbidden where the
    /// prompt and the output so far end in all the others, so a run of one token is forbidden everywhere.
    pub bad_words: Vec<Vec<TokenId>>,
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
            suppress_tokens: Vec::new(),
            bad_words: Vec::new(),
            seed: None,
            verify: None,
            logprobs: None,
        }
    }
}

/// Most tokens that [`SamplingParams::logprobs`] may ask for.
const MOST_LOGPROBS: usize = 100;

impl SamplingParams {
    /// Checks every parameter against its range and a vocabulary of `vocab` tokens.
    ///
    /// # Errors
    /// The first parameter outside its range.
    pub fn check(&self, vocab: usize) -> Result<(), ParamError> {
        let number = |name, found: f64, ok: bool, expected| {
            if ok { Ok(()) } else { Err(ParamError { name, found: found.to_string(), expected }) }
        };
        let Self { temperature, top_p, min_p, repetition_penalty, presence_penalty, frequency_penalty, .. } = *self;
        let not_negative = temperature.is_finite() && temperature >= 0.0;
        number("temperature", temperature, not_negative, "a finite number, at least 0")?;
        number("top_p", top_p, top_p > 0.0 && top_p <= 1.0, "a number above 0, at most 1")?;
        number("min_p", min_p, (0.0..=1.0).contains(&min_p), "a number from 0 to 1")?;
        let positive = repetition_penalty.is_finite() && repetition_penalty > 0.0;
        number("repetition_penalty", repetition_penalty, positive, "a finite number above 0")?;
        number("presence_penalty", presence_penalty, presence_penalty.is_finite(), "a finite number")?;
        number("frequency_penalty", frequency_penalty, frequency_penalty.is_finite(), "a finite number")?;
        for &(token, bias) in &self.logit_bias {
            check_tokens("logit_bias", &[token], vocab)?;
            if bias.is_nan() || bias == f32::INFINITY {
                let found = format!("{bias} for token {token}");
                return Err(ParamError { name: "logit_bias", found, expected: "finite numbers or -inf" });
            }
        }
        check_tokens("suppress_tokens", &self.suppress_tokens, vocab)?;
        for run in &self.bad_words {
            check_tokens("bad_words", run, vocab)?;
            if run.is_empty() {
                let (found, expected) = ("a run of no tokens".to_owned(), "at least one token in each");
                return Err(ParamError { name: "bad_words", found, expected });
            }
        }
        if let Some(n) = self.logprobs.filter(|&n| n > MOST_LOGPROBS.min(vocab)) {
            let found = format!("{n}, vocabulary of {vocab}");
            return Err(ParamError {
                name: "logprobs",
                found,
                expected: "at most 100, and no more than the vocabulary",
            });
        }
        Ok(())
    }

    /// Penalties depend on what was said before.
    pub fn has_penalties(&self) -> bool {
        self.repetition_penalty != 1.0 || self.presence_penalty != 0.0 || self.frequency_penalty != 0.0
    }

    /// The rule that these parameters ask for: greedy at temperature 0, whatever `verify` says.
    pub fn rule(&self) -> Rule {
        let coupled = self.verify.map_or(self.seed.is_some(), |mode| mode == VerifyMode::Coupled);
        match self.temperature {
            0.0 => Rule::Greedy,
            _ if coupled => Rule::Coupled,
            _ => Rule::Rejection,
        }
    }
}

/// Refuses tokens that a vocabulary of `vocab` tokens does not have, for the parameter `name`.
pub(crate) fn check_tokens(name: &'static str, tokens: &[TokenId], vocab: usize) -> Result<(), ParamError> {
    match tokens.iter().find(|&&token| token as usize >= vocab) {
        Some(token) => {
            let found = format!("token {token}, vocabulary of {vocab}");
            Err(ParamError { name, found, expected: "tokens of the vocabulary" })
        }
        None => Ok(()),
    }
}

/// The user's choice between the two sampling rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VerifyMode {
    /// Rejection sampling: exact in distribution, accepts most. A seed repeats an answer only where drafts are as long as
    /// they were and the request has the same number in its engine.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edges_of_every_range() {
        let off = SamplingParams::default;
        let inf = f64::INFINITY;
        let good = [
            off(),
            SamplingParams { temperature: 1e300, top_p: 1e-300, min_p: 1.0, top_k: usize::MAX, ..off() },
            SamplingParams { repetition_penalty: 1e-9, presence_penalty: -2.0, frequency_penalty: 5.0, ..off() },
            SamplingParams { logit_bias: vec![(7, f32::NEG_INFINITY), (7, -1.0)], logprobs: Some(8), ..off() },
            SamplingParams { suppress_tokens: vec![0, 7, 7], bad_words: vec![vec![7], vec![0, 7, 0]], ..off() },
        ];
        for params in good {
            assert_eq!(params.check(8), Ok(()), "{params:?}");
        }
        let bad = [
            ("temperature", SamplingParams { temperature: -0.1, ..off() }),
            ("temperature", SamplingParams { temperature: inf, ..off() }),
            ("temperature", SamplingParams { temperature: f64::NAN, ..off() }),
            ("top_p", SamplingParams { top_p: 0.0, ..off() }),
            ("top_p", SamplingParams { top_p: 1.001, ..off() }),
            ("top_p", SamplingParams { top_p: f64::NAN, ..off() }),
            ("min_p", SamplingParams { min_p: -0.1, ..off() }),
            ("min_p", SamplingParams { min_p: 1.1, ..off() }),
            ("min_p", SamplingParams { min_p: f64::NAN, ..off() }),
            ("repetition_penalty", SamplingParams { repetition_penalty: 0.0, ..off() }),
            ("repetition_penalty", SamplingParams { repetition_penalty: inf, ..off() }),
            ("presence_penalty", SamplingParams { presence_penalty: -inf, ..off() }),
            ("frequency_penalty", SamplingParams { frequency_penalty: f64::NAN, ..off() }),
            ("logit_bias", SamplingParams { logit_bias: vec![(8, 0.0)], ..off() }),
            ("logit_bias", SamplingParams { logit_bias: vec![(0, f32::NAN)], ..off() }),
            ("logit_bias", SamplingParams { logit_bias: vec![(0, f32::INFINITY)], ..off() }),
            ("suppress_tokens", SamplingParams { suppress_tokens: vec![7, 8], ..off() }),
            ("bad_words", SamplingParams { bad_words: vec![vec![1], vec![2, 8, 1]], ..off() }),
            ("bad_words", SamplingParams { bad_words: vec![vec![1], vec![]], ..off() }),
            ("logprobs", SamplingParams { logprobs: Some(9), ..off() }),
        ];
        for (name, params) in bad {
            assert_eq!(params.check(8).map_err(|e| e.name), Err(name), "{params:?}");
        }
        assert!(SamplingParams { logprobs: Some(100), ..off() }.check(1000).is_ok());
        assert!(SamplingParams { logprobs: Some(101), ..off() }.check(1000).is_err());
        let error = SamplingParams { top_p: 2.0, ..off() }.check(8).map_err(|e| e.to_string());
        assert_eq!(error, Err("top_p: 2 (expected a number above 0, at most 1)".into()));
    }

    #[test]
    fn the_rule_follows_temperature_choice_and_seed() {
        let rule =
            |temperature, verify, seed| SamplingParams { temperature, verify, seed, ..Default::default() }.rule();
        for verify in [None, Some(VerifyMode::Rejection), Some(VerifyMode::Coupled)] {
            assert_eq!(rule(0.0, verify, Some(1)), Rule::Greedy);
        }
        assert_eq!(rule(1.0, None, None), Rule::Rejection);
        assert_eq!(rule(1.0, None, Some(1)), Rule::Coupled);
        assert_eq!(rule(1.0, Some(VerifyMode::Rejection), Some(1)), Rule::Rejection);
        assert_eq!(rule(1.0, Some(VerifyMode::Coupled), None), Rule::Coupled);
    }
}
