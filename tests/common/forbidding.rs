//! Requests that forbid tokens, and plain decoding of them with no engine at all: what must not come next is said here
//! anew, by the text that it would make.

use super::hash_backend::HashBackend;
use eesd::TokenId;
use eesd::constrain::TokenSet;
use eesd::engine::{Finish, Request};
use eesd::sample::{History, Sampler, SamplingParams};
use proptest::prelude::*;

/// What a request may forbid; the minimum is in eighths of what it may generate.
#[derive(Debug, Clone)]
pub struct Forbidding {
    minimum: usize,
    stop_token_ids: Vec<TokenId>,
    suppress_tokens: Vec<TokenId>,
    bad_words: Vec<Vec<TokenId>>,
}

impl Forbidding {
    /// Often several things at once, never all tokens of a vocabulary of more than ten.
    pub fn any(vocab: usize) -> impl Strategy<Value = Self> {
        let tokens = |len| prop::collection::vec(0..vocab as TokenId, len);
        let run = prop_oneof![6 => tokens(2..3), 3 => tokens(3..4)];
        let minimum = prop_oneof![1 => Just(0), 2 => 0usize..=8];
        let runs = (tokens(0..3), prop::collection::vec(run, 0..40));
        (minimum, tokens(0..3), tokens(0..4), runs).prop_map(
            |(minimum, stop_token_ids, suppress_tokens, (single, mut runs))| {
                runs.extend(single.into_iter().map(|token| vec![token]));
                Self { minimum, stop_token_ids, suppress_tokens, bad_words: runs }
            },
        )
    }

    /// The request with all of it.
    pub fn applied_to(self, request: Request) -> Request {
        let Self { minimum, stop_token_ids, suppress_tokens, bad_words } = self;
        let sampling = SamplingParams { suppress_tokens, bad_words, ..request.sampling };
        Request { min_tokens: request.max_tokens * minimum / 8, stop_token_ids, sampling, ..request }
    }
}

/// The answer to a request, token by token, by a model that ends answers with `end`.
pub fn plainly(request: &Request, vocab: usize, end: TokenId, context: usize) -> (Vec<TokenId>, Finish) {
    let SamplingParams { suppress_tokens, bad_words, .. } = &request.sampling;
    let free = SamplingParams { suppress_tokens: vec![], bad_words: vec![], ..request.sampling.clone() };
    let sampler = Sampler::new(free, vocab).unwrap();
    let is_end = |token| request.stop_token_ids.contains(&token) || token == end && !request.ignore_end;
    let prompt = request.prompt.len();
    let mut tokens = request.prompt.clone();
    loop {
        let mut logits = HashBackend::target(vocab, &tokens);
        let lawful = lawful(request, &tokens[prompt..]);
        for (logit, token) in logits.iter_mut().zip(0..) {
            let with_it = [&tokens[..], &[token]].concat();
            let too_early = is_end(token) && with_it.len() <= prompt + request.min_tokens;
            let bad = bad_words.iter().any(|run| with_it.ends_with(run));
            let unlawful = lawful.as_ref().is_some_and(|(content, may_end)| match is_end(token) {
                true => !may_end,
                false => !content.has(token),
            });
            if suppress_tokens.contains(&token) || bad || too_early || unlawful {
                *logit = f32::NEG_INFINITY;
            }
        }
        let next = sampler.accept(History { tokens: &tokens, prompt }, &logits, &[]).next;
        tokens.push(next);
        let generated = tokens.len() - prompt;
        let finish = if is_end(next) {
            Finish::EndToken(next)
        } else if is_complete(request, &tokens[prompt..], is_end) {
            Finish::Complete
        } else if generated == request.max_tokens {
            Finish::Length
        } else if tokens.len() == context {
            Finish::Context
        } else {
            continue;
        };
        return (tokens.split_off(prompt), finish);
    }
}

/// What may follow by the request's constraint, and whether the answer may end: by a walk of its own.
pub fn lawful(request: &Request, output: &[TokenId]) -> Option<(TokenSet, bool)> {
    let mut walk = request.constraint.as_ref()?.start();
    output.iter().for_each(|&token| assert_eq!(walk.push(token), Ok(true), "token {token} after {output:?}"));
    Some((walk.allowed().unwrap(), walk.may_end().unwrap()))
}

/// Nothing but an end may follow.
fn is_complete(request: &Request, output: &[TokenId], is_end: impl Fn(TokenId) -> bool) -> bool {
    let lawful = lawful(request, output);
    lawful.is_some_and(|(content, may_end)| {
        may_end
            && content
                .words()
                .iter()
                .zip(0..)
                .all(|(word, i)| (0..32).all(|bit| word >> bit & 1 == 0 || is_end(32 * i + bit)))
    })
}
