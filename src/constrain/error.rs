//! Why a grammar cannot be used.

/// Why a grammar cannot be used: what was found, and what was expected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{found} (expected {expected})")]
pub struct GrammarError {
    found: String,
    expected: String,
}

impl GrammarError {
    pub(super) fn new(found: impl Into<String>, expected: impl Into<String>) -> Self {
        Self { found: found.into(), expected: expected.into() }
    }
}
