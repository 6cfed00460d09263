//! What a user types after `--draft`.

use super::{Forced, Lookup, Proposer, Shared, Source};
use crate::TokenId;
use std::fmt;
use std::str::FromStr;

/// A set of sources of drafts: `exit,lookup`, or `off`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sources {
    /// By [`Source`].
    has: [bool; Source::ALL.len()],
}

/// A list of sources that cannot be understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("source of drafts {found:?} is unknown: expected off, or a list of {}", Sources::ALL)]
pub struct SourceError {
    /// What was given.
    found: String,
}

impl Sources {
    /// None: plain decoding.
    pub const OFF: Self = Self { has: [false; Source::ALL.len()] };
    /// Every source.
    pub const ALL: Self = Self { has: [true; Source::ALL.len()] };

    /// Whether a source is among them.
    pub fn has(self, source: Source) -> bool {
        self.has[source as usize]
    }

    /// With a source, or without it.
    #[must_use]
    pub fn with(mut self, source: Source, has: bool) -> Self {
        self.has[source as usize] = has;
        self
    }

    /// Those that are among both.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self { has: std::array::from_fn(|i| self.has[i] && other.has[i]) }
    }

    /// There is none.
    pub fn is_off(self) -> bool {
        self == Self::OFF
    }

    /// Those that propose, knowing nothing yet.
    pub fn proposers(self) -> Vec<Box<dyn Proposer>> {
        self.proposers_with(&[])
    }

    /// Those that propose, where others' texts begin with those that were [kept](Proposer::kept).
    pub fn proposers_with(self, kept: &[TokenId]) -> Vec<Box<dyn Proposer>> {
        let shared = Shared::new(Shared::TOKENS).with(kept);
        let all: [Box<dyn Proposer>; 3] = [Box::new(Lookup::default()), Box::new(shared), Box::new(Forced)];
        all.into_iter().filter(|proposer| self.has(proposer.source())).collect()
    }
}

impl FromStr for Sources {
    type Err = SourceError;

    fn from_str(text: &str) -> Result<Self, SourceError> {
        if text == "off" {
            return Ok(Self::OFF);
        }
        text.split(',').try_fold(Self::OFF, |sources, name| {
            let source = Source::ALL.into_iter().find(|source| source.name() == name);
            source.map(|source| sources.with(source, true)).ok_or_else(|| SourceError { found: name.into() })
        })
    }
}

impl fmt::Display for Sources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = Source::ALL.into_iter().filter(|&s| self.has(s)).map(Source::name).collect();
        f.write_str(if names.is_empty() { "off".into() } else { names.join(",") }.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_set_reads_and_writes_itself() {
        for text in ["off", "exit", "lookup", "shared", "exit,lookup", "lookup,shared", "exit,lookup,shared,grammar"] {
            assert_eq!(text.parse::<Sources>().unwrap().to_string(), text);
        }
        assert_eq!("shared,exit,exit".parse(), Ok(Sources::OFF.with(Source::Exit, true).with(Source::Shared, true)));
    }

    #[test]
    fn what_is_no_source_is_refused_with_what_was_expected() {
        for text in ["", "on", "exit,", "exit lookup", "off,exit"] {
            let error = text.parse::<Sources>().unwrap_err().to_string();
            assert!(error.contains("expected off, or a list of exit,lookup,shared,grammar"), "{text}: {error}");
        }
    }

    #[test]
    fn those_that_propose_are_those_asked_for() {
        let names = |sources: Sources| sources.proposers().iter().map(|p| p.source()).collect::<Vec<_>>();
        assert_eq!(names(Sources::ALL), [Source::Lookup, Source::Shared, Source::Grammar]);
        assert_eq!(names(Sources::OFF.with(Source::Exit, true)), []);
    }
}
