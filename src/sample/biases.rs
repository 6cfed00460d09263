//! Which biases a position has: those that were asked for, and `-inf` for every token that must not come next.
//!
//! What is forbidden depends on the text before the position alone, this round's drafts included. So a draft is drawn
//! under the biases that it is judged by, and speculation loses nothing.

use super::{History, Sampler};
use crate::TokenId;

impl Sampler {
    /// The same sampler, which does not let any of `tokens` be among the first `count` ones of the output: what ends an
    /// answer, before it has the length asked for.
    #[must_use]
    pub fn forbidding_among_first(mut self, count: usize, tokens: Vec<TokenId>) -> Self {
        self.not_among_first = (tokens, count);
        self
    }

    /// What is added to the logits of single tokens where the token that follows `history` is decided; of several for
    /// one token, all. Tokens need not be in a draft's vocabulary.
    pub fn biases<'a>(&'a self, history: History<'a>) -> impl Iterator<Item = (TokenId, f32)> + 'a {
        let params = self.params();
        let (ends, count) = &self.not_among_first;
        let early = history.tokens.len() < history.prompt + count;
        let completing = |run: &'a Vec<TokenId>| {
            let (last, before) = run.split_last()?;
            history.tokens.ends_with(before).then_some(last)
        };
        let bad_words = params.bad_words.iter().filter_map(completing);
        let forbidden = params.suppress_tokens.iter().chain(bad_words).chain(ends.iter().filter(move |_| early));
        params.logit_bias.iter().copied().chain(forbidden.map(|&token| (token, f32::NEG_INFINITY)))
    }

    /// Whether the biases after `history` are also those of the next `further` positions, whatever comes there. Never under a
    /// constraint.
    pub fn biases_stay(&self, history: History<'_>, further: usize) -> bool {
        let (ends, count) = &self.not_among_first;
        let (next, first) = (history.tokens.len(), history.prompt + count);
        let one_stretch = ends.is_empty() || next >= first || next + further < first;
        further == 0
            || self.guide().is_none() && one_stretch && self.params().bad_words.iter().all(|run| run.len() == 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::SamplingParams;

    const VOCAB: usize = 10;

    fn sampler(params: SamplingParams) -> Sampler {
        Sampler::new(params, VOCAB).unwrap()
    }

    /// The tokens forbidden after a text whose first two tokens are the prompt, each once.
    fn forbidden(sampler: &Sampler, tokens: &[TokenId]) -> Vec<TokenId> {
        let biases = sampler.biases(History { tokens, prompt: 2 });
        let mut forbidden: Vec<_> = biases.filter(|&(_, bias)| bias == f32::NEG_INFINITY).map(|(t, _)| t).collect();
        forbidden.sort_unstable();
        forbidden.dedup();
        forbidden
    }

    #[test]
    fn suppressed_tokens_are_forbidden_everywhere_beside_the_biases() {
        let params = SamplingParams {
            logit_bias: vec![(4, 1.5), (5, f32::NEG_INFINITY)],
            suppress_tokens: vec![7, 4],
            ..Default::default()
        };
        let sampler = sampler(params);
        let all: Vec<_> = sampler.biases(History { tokens: &[0, 0], prompt: 2 }).collect();
        assert_eq!(all[..2], [(4, 1.5), (5, f32::NEG_INFINITY)]);
        for text in [&[0, 0][..], &[7, 4, 7, 4]] {
            assert_eq!(forbidden(&sampler, text), [4, 5, 7]);
        }
        assert!(sampler.biases_stay(History { tokens: &[0, 0], prompt: 2 }, 100));
    }

    #[test]
    fn the_last_token_of_a_run_is_forbidden_after_the_others() {
        let bad_words = vec![vec![9], vec![1, 2], vec![3, 1, 5], vec![1, 1, 1]];
        let sampler = sampler(SamplingParams { bad_words, ..Default::default() });
        for (text, expected) in [
            (&[0, 0][..], &[9][..]),
            (&[0, 1], &[2, 9]),    // the prompt counts
            (&[3, 1], &[2, 5, 9]), // two runs go on here
            (&[0, 3, 1, 1], &[1, 2, 9]),
            (&[0, 3, 1, 0], &[9]), // only the end of the text counts
            (&[1], &[2, 9]),       // shorter than a run
        ] {
            assert_eq!(forbidden(&sampler, text), expected, "{text:?}");
        }
        assert!(!sampler.biases_stay(History { tokens: &[0, 0], prompt: 2 }, 1));
        assert!(sampler.biases_stay(History { tokens: &[0, 0], prompt: 2 }, 0));
    }

    #[test]
    fn ends_are_forbidden_among_the_first_tokens_of_the_output() {
        let sampler = sampler(SamplingParams::default()).forbidding_among_first(3, vec![6, 8]);
        for (len, expected) in [(2, &[6, 8][..]), (3, &[6, 8]), (4, &[6, 8]), (5, &[]), (6, &[])] {
            assert_eq!(forbidden(&sampler, &vec![0; len]), expected, "after {} tokens of output", len - 2);
            // Of the next positions, which are as this one?
            for further in 0..6 {
                let same = (len..=len + further).all(|len| forbidden(&sampler, &vec![0; len]) == expected);
                let history = &vec![0; len];
                assert_eq!(sampler.biases_stay(History { tokens: history, prompt: 2 }, further), same);
            }
        }
    }
}
