//! A request's sampler: drafts tokens from the exit block's logits, judges drafts by the target's.

use super::distribution::{pick, probability, residual, softmax};
use super::filters::Candidates;
use super::gumbel::noisy_argmax;
use super::penalties::Penalties;
use super::softmax::{argmax, confidence, logprobs, total};
use super::{ParamError, Philox, Purpose, Rule, SamplingParams};
use crate::TokenId;
use crate::constrain::{Constraint, Guide};
use crate::model::DraftVocab;
use std::borrow::Cow;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The tokens that a distribution follows.
#[derive(Debug, Clone, Copy)]
pub struct History<'a> {
    /// Prompt and output so far; the token to decide has position `tokens.len()`.
    pub tokens: &'a [TokenId],
    /// How many of them are the prompt.
    pub prompt: usize,
}

impl<'a> History<'a> {
    /// The output so far.
    pub fn output(self) -> &'a [TokenId] {
        &self.tokens[self.prompt..]
    }
}

/// A drafted token and what it was drawn from.
#[derive(Debug, Clone)]
pub struct Drafted {
    /// The token.
    pub token: TokenId,
    /// The draft distribution's largest probability, at temperature 1 before any filter, of the tokens that a constraint
    /// leaves.
    pub confidence: f32,
    /// The filtered draft distribution `q` as (token, probability), ascending in tokens, where the
    /// rule needs it ([`Rule::Rejection`]); else empty.
    pub q: Vec<(TokenId, f64)>,
}

impl Drafted {
    /// A token that somebody proposes who is certain of it: no sample, but all of its distribution.
    pub fn certain(token: TokenId) -> Self {
        Self { token, confidence: 1.0, q: vec![(token, 1.0)] }
    }
}

/// Log-probabilities at one position: the target's own, before temperature, penalties and filters.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLogprobs {
    /// Natural logarithm of the emitted token's probability.
    pub logprob: f32,
    /// The most probable tokens, most probable first, ties to the lowest id; impossible ones are
    /// left out.
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

/// Checked parameters, the rule they ask for, and the seed that every draw is keyed by.
///
/// Rows of logits may hold `-inf` (forbidden) and even NaN, which counts as `-inf`; where a row
/// forbids every token, the first one is drawn.
#[derive(Debug, Clone)]
pub struct Sampler {
    params: SamplingParams,
    rule: Rule,
    seed: u64,
    /// Number of the request, among those that share a controller.
    request: u64,
    /// Tokens that may not be among the first ones of the output, and how many those are.
    pub(super) not_among_first: (Vec<TokenId>, usize),
    /// Says which tokens may follow, where there is a constraint.
    guide: Option<Arc<Mutex<Guide>>>,
}

impl Sampler {
    /// Checks `params` against a vocabulary of `vocab` tokens and settles rule and seed.
    ///
    /// # Errors
    /// The first parameter outside its range.
    pub fn new(params: SamplingParams, vocab: usize) -> Result<Self, ParamError> {
        params.check(vocab)?;
        let rule = params.rule();
        // Hash keys are the standard library's way to the operating system's randomness.
        let seed = params.seed.unwrap_or_else(|| RandomState::new().hash_one(()));
        Ok(Self { params, rule, seed, request: 0, not_among_first: (Vec::new(), 0), guide: None })
    }

    /// The same sampler, for the request of this number among those that share a controller. What a controller has
    /// learned from one request's draws it uses in deciding about others: by rejection sampling none of them may be drawn
    /// with the same random numbers, though their seeds were the same, or drafting where they are lucky would bias them.
    #[must_use]
    pub fn of_request(self, request: u64) -> Self {
        Self { request, ..self }
    }

    /// The same sampler, of whose tokens only those are left that `constraint` allows, and of `ends`, which end the answer,
    /// only where it may end.
    #[must_use]
    pub fn constrained(mut self, constraint: Arc<dyn Constraint>, ends: Vec<TokenId>) -> Self {
        self.guide = Some(Arc::new(Mutex::new(Guide::new(constraint, ends))));
        self
    }

    /// What says which tokens may follow; `None`: there is no constraint.
    pub fn guide(&self) -> Option<MutexGuard<'_, Guide>> {
        // Whatever a panic has left in it, it begins anew where it cannot go on.
        Some(self.guide.as_ref()?.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The row of logits of the token that follows `history`, without those that a constraint does not allow there.
    fn permitted<'l>(&self, history: History<'_>, logits: &'l [f32], vocab: DraftVocab<'_>) -> Cow<'l, [f32]> {
        match self.guide().and_then(|mut guide| guide.allowed(history.output())) {
            Some(allowed) => Cow::Owned(allowed.mask(logits, vocab)),
            None => Cow::Borrowed(logits),
        }
    }

    /// The parameters.
    pub fn params(&self) -> &SamplingParams {
        &self.params
    }

    /// The acceptance rule in force.
    pub fn rule(&self) -> Rule {
        self.rule
    }

    /// The seed, given or drawn, with which the same request gets the same answer, whatever else runs, if there is one.
    pub fn seed(&self) -> Option<u64> {
        (self.rule == Rule::Coupled).then_some(self.seed)
    }

    /// What keys every draw.
    pub fn key(&self) -> u64 {
        match self.rule {
            // Any odd number would do: no two requests' keys are the same.
            Rule::Rejection => self.seed.wrapping_add(self.request.wrapping_mul(0x9E37_79B9_7F4A_7C15)),
            Rule::Greedy | Rule::Coupled => self.seed,
        }
    }

    /// Draws the token that follows `history` from the draft's `logits` `[draft vocabulary]`: of `ids`, ascending, or,
    /// without, of the first tokens.
    ///
    /// The last `drafted` tokens of the history are this round's own drafts. They number the draw: a
    /// position that an earlier round drafted in vain is drawn anew, because a controller that learns
    /// across rounds has seen the effects of the first draw, and choosing whether to draft by them
    /// would bias what is drafted.
    pub fn draft(&self, history: History<'_>, drafted: usize, logits: &[f32], ids: Option<&[TokenId]>) -> Drafted {
        let (position, vocab) = (history.tokens.len(), DraftVocab { size: logits.len(), ids });
        let permitted = &self.permitted(history, logits, vocab);
        let confidence = confidence(permitted);
        let logits = &Penalties::new(&self.params, history, vocab).apply(permitted, self.biases(history));
        let (token, q) = match self.rule {
            Rule::Greedy => (vocab.token(argmax(logits) as usize), Vec::new()),
            Rule::Coupled => (self.coupled(position, logits, vocab), Vec::new()),
            Rule::Rejection => {
                let q = self.distribution(logits, vocab);
                let mut random = Philox::new(self.key(), position, Purpose::Draft, drafted as u32);
                (pick(&q, 1.0, random.fine_uniform()).unwrap_or(0), q)
            }
        };
        Drafted { token, confidence, q }
    }

    /// Judges `drafted` (the last `drafted.len()` of `history.tokens`) by the target's `logits`
    /// `[drafted.len() + 1, vocab]`, row `i` being the distribution after `i` of them. Without drafts
    /// this is plain decoding.
    pub fn accept(&self, history: History<'_>, logits: &[f32], drafted: &[Drafted]) -> Verdict {
        let vocab = logits.len() / (drafted.len() + 1);
        self.accept_rows(history, vocab, |row| &logits[row * vocab..][..vocab], drafted)
    }

    /// The same of logits `[vocab]` wherever each row lies.
    pub(crate) fn accept_rows<'a>(
        &self,
        history: History<'_>,
        vocab: usize,
        logits: impl Fn(usize) -> &'a [f32],
        drafted: &[Drafted],
    ) -> Verdict {
        let start = history.tokens.len() - drafted.len();
        let committed = History { tokens: &history.tokens[..start], ..history };
        let vocab = DraftVocab { size: vocab, ids: None };
        let mut penalties = Penalties::new(&self.params, committed, vocab);
        let mut reported = Vec::new();
        let mut accepted = 0;
        loop {
            let row = logits(accepted);
            let draft = drafted.get(accepted);
            let before = History { tokens: &history.tokens[..start + accepted], ..history };
            let permitted = self.permitted(before, row, vocab);
            let token = self.emit(start + accepted, &penalties.apply(&permitted, self.biases(before)), draft);
            reported.extend(self.logprobs(row, token));
            if draft.is_none_or(|draft| draft.token != token) {
                return Verdict { accepted, next: token, logprobs: reported };
            }
            penalties.advance(token);
            accepted += 1;
        }
    }

    /// What is reported of a `token` that follows from the target's raw `logits` `[vocab]`; `None`: nothing
    /// was asked for.
    pub fn logprobs(&self, logits: &[f32], token: TokenId) -> Option<TokenLogprobs> {
        self.params.logprobs.map(|n| logprobs(logits, token, n))
    }

    /// The token that the target emits at `position`: `draft`'s own where it is accepted.
    fn emit(&self, position: usize, logits: &[f32], draft: Option<&Drafted>) -> TokenId {
        let vocab = DraftVocab { size: logits.len(), ids: None };
        match self.rule {
            Rule::Greedy => argmax(logits),
            Rule::Coupled => self.coupled(position, logits, vocab),
            Rule::Rejection => self.reject_or_keep(position, &self.distribution(logits, vocab), draft),
        }
    }

    /// Rejection sampling (Leviathan et al. 2023; Chen et al. 2023) from the target's `p` by way of
    /// the draft's `q`; without a draft, a plain draw from `p`.
    fn reject_or_keep(&self, position: usize, p: &[(TokenId, f64)], draft: Option<&Drafted>) -> TokenId {
        let random = |purpose| Philox::new(self.key(), position, purpose, 0);
        let Some(Drafted { token, q, .. }) = draft else {
            return pick(p, 1.0, random(Purpose::Bonus).fine_uniform()).unwrap_or(0);
        };
        let (p_token, q_token) = (probability(p, *token), probability(q, *token));
        if p_token > 0.0 && random(Purpose::Accept).uniform() * q_token <= p_token {
            return *token;
        }
        let uniform = random(Purpose::Residual).fine_uniform();
        // No residual at all means that p and q differ by rounding only: then p will do.
        let beyond = residual(p, q);
        let total = total(&beyond, |(_, weight)| weight);
        pick(&beyond, total, uniform).or_else(|| pick(p, 1.0, uniform)).unwrap_or(0)
    }

    /// The argmax of scores plus the position's Gumbel noise, the same for draft and target.
    fn coupled(&self, position: usize, logits: &[f32], vocab: DraftVocab<'_>) -> TokenId {
        let noise = Philox::new(self.key(), position, Purpose::Gumbel, 0);
        noisy_argmax(&Candidates::new(logits, &self.params).of(vocab), &noise)
    }

    /// The filtered distribution of `logits`, ascending in tokens.
    fn distribution(&self, logits: &[f32], vocab: DraftVocab<'_>) -> Vec<(TokenId, f64)> {
        softmax(Candidates::new(logits, &self.params).of(vocab))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::VerifyMode;

    fn sampler(temperature: f64, verify: VerifyMode) -> Sampler {
        let params = SamplingParams { temperature, verify: Some(verify), seed: Some(42), ..Default::default() };
        Sampler::new(params, 4).unwrap()
    }

    fn history(tokens: &[TokenId]) -> History<'_> {
        History { tokens, prompt: 1 }
    }

    fn drafted(token: TokenId, q: &[(TokenId, f64)]) -> Drafted {
        Drafted { token, confidence: 0.5, q: q.to_vec() }
    }

    #[test]
    fn seeds_come_from_the_request_or_differ() {
        assert_eq!(sampler(1.0, VerifyMode::Coupled).seed(), Some(42));
        let fresh = || Sampler::new(SamplingParams::default(), 4).unwrap().key();
        assert_ne!(fresh(), fresh());
    }

    #[test]
    fn greedy_accepts_while_the_argmax_agrees() {
        let logits = [0.0, 1.0, 1.0, 0.0, 5.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 9.0];
        let greedy = sampler(0.0, VerifyMode::Rejection);
        let judge = |a, b| greedy.accept(history(&[3, a, b]), &logits, &[drafted(a, &[]), drafted(b, &[])]);
        assert_eq!(judge(1, 0), Verdict { accepted: 2, next: 3, logprobs: vec![] });
        assert_eq!(judge(1, 2), Verdict { accepted: 1, next: 0, logprobs: vec![] });
        assert_eq!(judge(2, 0), Verdict { accepted: 0, next: 1, logprobs: vec![] });
        let draft = greedy.draft(history(&[3]), 0, &logits[..4], None);
        assert_eq!((draft.token, draft.q.len()), (1, 0));
        assert!((draft.confidence - 0.365_53).abs() < 1e-4);
    }

    #[test]
    fn a_draft_outside_the_target_is_never_kept() {
        let rejecting = sampler(1.0, VerifyMode::Rejection);
        let none = f32::NEG_INFINITY;
        // Even with an accept draw times q that underflows to zero.
        for q in [1.0, 1e-323] {
            let verdict = rejecting.accept(
                history(&[0, 2]),
                &[0.0, none, none, none, 0.0, 0.0, 0.0, 0.0],
                &[drafted(2, &[(2, q)])],
            );
            assert_eq!((verdict.accepted, verdict.next), (0, 0));
        }
    }

    #[test]
    fn equal_distributions_accept_everything() {
        let rejecting = sampler(0.8, VerifyMode::Rejection);
        let logits = [0.3, -1.0, 2.0, 0.0];
        for position in 1..200 {
            let mut tokens = vec![0; position];
            let draft = rejecting.draft(history(&tokens), 0, &logits, None);
            tokens.push(draft.token);
            let verdict = rejecting.accept(history(&tokens), &[logits, logits].concat(), &[draft]);
            assert_eq!(verdict.accepted, 1);
        }
    }

    #[test]
    fn a_round_of_its_own_draws_anew() {
        let rejecting = sampler(1.0, VerifyMode::Rejection);
        let logits = vec![0.0; 1000];
        let tokens = [1, 2, 3];
        let draws: Vec<_> = (0..3).map(|j| rejecting.draft(history(&tokens), j, &logits, None).token).collect();
        assert!(draws[0] != draws[1] && draws[1] != draws[2] && draws[0] != draws[2]);
    }

    #[test]
    fn logprobs_are_the_raw_targets_one_per_token() {
        let params = SamplingParams {
            temperature: 0.5,
            top_k: 1,
            logit_bias: vec![(3, 100.0)],
            logprobs: Some(1),
            ..Default::default()
        };
        let sampler = Sampler::new(params, 4).unwrap();
        let verdict = sampler.accept(history(&[0, 3]), &[0.0; 8], &[drafted(3, &[(3, 1.0)])]);
        let quarter = 0.25f32.ln();
        let expected = TokenLogprobs { logprob: quarter, top: vec![(0, quarter)] };
        assert_eq!(verdict, Verdict { accepted: 1, next: 3, logprobs: vec![expected.clone(), expected] });
    }
}
