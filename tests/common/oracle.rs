//! Proposals without a model: from one who knows what is right and says so as often as asked to, beside real sources.

use super::hash_backend::HashBackend;
use eesd::TokenId;
use eesd::draft::{Evidence, Proposal, Proposer, Source, Sources, Text};
use eesd::engine::{Clock, Engine};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Proposes what the checking backend finds likeliest, and something else now and then.
pub struct Oracle {
    vocab: usize,
    /// Chance, in 256ths, that a token is right.
    right: u64,
}

impl Proposer for Oracle {
    fn source(&self) -> Source {
        Source::Lookup
    }

    fn propose(&mut self, text: &Text<'_>, most: usize) -> Proposal {
        let mut tokens = text.tokens.to_vec();
        let mut proposal = Proposal::default();
        let dice = |tokens: &[TokenId], salt| {
            tokens.iter().rev().take(5).fold(salt, |h: u64, &t| (h ^ u64::from(t)).wrapping_mul(0x9E37_79B9_7F4A_7C15))
                >> 40
        };
        let most = dice(&tokens, 3) as usize % (most + 1);
        while proposal.tokens.len() < most {
            let logits = HashBackend::target(self.vocab, &tokens);
            let best = (0..self.vocab).reduce(|a, b| if logits[b] > logits[a] { b } else { a }).unwrap();
            let lies = usize::from(dice(&tokens, 5) % 256 >= self.right);
            let token = ((best + lies) % self.vocab) as TokenId;
            proposal.evidence.push(Evidence { matched: 16, share: 1.0, seen: 5 });
            proposal.tokens.push(token);
            tokens.push(token);
        }
        proposal
    }

    fn end(&mut self, _text: &Text<'_>, _finished: bool) {}
}

/// Proposes nothing, and keeps what it is told of texts that are over.
#[derive(Clone, Default)]
pub struct Listener {
    /// Of those that others may know, the tokens.
    pub finished: Arc<Mutex<Vec<Vec<TokenId>>>>,
}

impl Proposer for Listener {
    fn source(&self) -> Source {
        Source::Shared
    }

    fn propose(&mut self, _text: &Text<'_>, _most: usize) -> Proposal {
        Proposal::default()
    }

    fn end(&mut self, text: &Text<'_>, finished: bool) {
        if finished {
            self.finished.lock().unwrap().push(text.tokens.to_vec());
        }
    }
}

/// The engine with every source there is, an oracle that is right so often, in 256ths, and who listens; on a clock that
/// stands still, so that all that is proposed is worth its time.
pub fn proposing(engine: Engine, vocab: usize, right: u64) -> (Engine, Listener) {
    let listener = Listener::default();
    let mut proposers = Sources::ALL.proposers();
    proposers.push(Box::new(Oracle { vocab, right }));
    proposers.push(Box::new(listener.clone()));
    (engine.with_proposers(proposers).with_clock(standing()), listener)
}

/// A clock that stands still.
pub fn standing() -> Clock {
    Clock::new(|| Duration::ZERO)
}
