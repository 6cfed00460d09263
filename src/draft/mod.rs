//! Who drafts beside the exit block: proposers, which know texts and no model.
//!
//! A [`Proposer`] is asked before every round how a sequence's text may go on. What it says costs no pass, and is verified
//! with the rest of the round. It is no sample of any distribution but certain of itself, so that rejection sampling keeps
//! a proposed token with the target's own chance of it, and otherwise draws from what is left. How far a proposal is to be
//! trusted is told by its [`Evidence`], and learned from every text that goes on in one way or another
//! ([`SourceTs`](crate::control::SourceTs)).
//!
//! A new source is a file here and a line in [`Sources::proposers`].

mod forced;
mod index;
mod lookup;
mod shared;
mod sources;

pub use forced::Forced;
pub use index::TEXT_END;
pub use lookup::Lookup;
pub use shared::Shared;
pub use sources::{SourceError, Sources};

use crate::TokenId;
use std::fmt;

/// Who drafted a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Source {
    /// The exit block.
    Exit,
    /// The sequence's own text.
    Lookup,
    /// Other texts.
    Shared,
    /// The answer's grammar, where only one text may follow.
    Grammar,
}

impl Source {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Exit, Self::Lookup, Self::Shared, Self::Grammar];

    /// Its name, as in `--draft`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Exit => "exit",
            Self::Lookup => "lookup",
            Self::Shared => "shared",
            Self::Grammar => "grammar",
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A sequence's text.
#[derive(Debug, Clone, Copy)]
pub struct Text<'a> {
    /// The sequence, by a number that no other has.
    pub sequence: u64,
    /// Prompt and answer, and then this round's drafts.
    pub tokens: &'a [TokenId],
    /// How many of the tokens are certain.
    pub committed: usize,
    /// Tokens that come next by the answer's constraint alone, as far as that is known.
    pub forced: &'a [TokenId],
}

/// What a proposed token rests on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Evidence {
    /// Tokens before it that stand before it also where it was found, counted up to some length; of those proposed with it
    /// each counts.
    pub matched: usize,
    /// Share of the places found that go on with it.
    pub share: f32,
    /// How many these are.
    pub seen: usize,
}

/// How a text may go on.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Proposal {
    /// The tokens; none: nothing is known.
    pub tokens: Vec<TokenId>,
    /// What each of them rests on.
    pub evidence: Vec<Evidence>,
}

impl Proposal {
    /// Drops what comes after the first token of which this holds.
    pub fn cut_after(&mut self, holds: impl FnMut(&TokenId) -> bool) {
        if let Some(last) = self.tokens.iter().position(holds) {
            self.truncate(last + 1);
        }
    }

    /// Leaves the first so many tokens.
    pub fn truncate(&mut self, tokens: usize) {
        self.tokens.truncate(tokens);
        self.evidence.truncate(tokens);
    }
}

/// Somebody who proposes how texts go on.
pub trait Proposer: Send {
    /// Its name.
    fn source(&self) -> Source;

    /// How a text may go on, for up to `most` tokens.
    fn propose(&mut self, text: &Text<'_>, most: usize) -> Proposal;

    /// A sequence is over: `finished`, or cancelled or failed, so that nobody else may learn what it said.
    fn end(&mut self, text: &Text<'_>, finished: bool);

    /// The texts that another one has to begin with to know what this one knows now, each ended by [`TEXT_END`]; `None`: it
    /// starts afresh.
    fn kept(&self) -> Option<Vec<TokenId>> {
        None
    }
}
