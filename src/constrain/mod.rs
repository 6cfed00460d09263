//! Constraints: which tokens may come next, whatever the model thinks of them.
//!
//! A [`Constraint`] is a rule about an answer, as "JSON of this schema": a [`Grammar`], or anything else that implements the
//! trait. For each request it starts a [`Walk`], which goes along the answer token by token and says which tokens may follow.
//! The [`Guide`] puts the walk where it is asked about, forward along this round's drafts and back where they were refused,
//! so that what may follow depends on the text before alone. A [`Sampler`](crate::sample::Sampler) asks it for every row of
//! logits, the draft's and the target's alike, and takes the others' logits away before all else.
//!
//! Therefore nothing changes about speculation: the target's constrained distribution at a position is the same whoever
//! drafted the text before it, and what is drafted is judged by it. A proposal that breaks the rule is refused, as any wrong
//! draft is.
//!
//! A new kind of constraint is a file here that implements the two traits.
//!
//! ```
//! use eesd::constrain::Grammars;
//! use eesd::load::Checkpoint;
//! use serde_json::json;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let checkpoint = Checkpoint::open("models/pycode-4m".as_ref())?;
//! let grammars = Grammars::new(checkpoint.tokenizer().cloned(), checkpoint.geometry().vocab_size);
//! let yes_or_no = grammars.json_schema(&json!({"enum": ["yes", "no"]}))?;
//! assert_eq!(yes_or_no.to_string(), "JSON schema");
//! assert!(grammars.lark("start: \"a\" nobody").is_err());
//! # Ok(())
//! # }
//! ```

mod error;
mod grammar;
mod guide;
mod token_set;
mod vocabulary;

pub use error::GrammarError;
pub use grammar::{Grammar, Grammars, MOST_GRAMMAR_BYTES};
pub use guide::{Guide, Standing};
pub use token_set::TokenSet;

use crate::TokenId;
use std::fmt;

/// A rule that answers follow. What [`Display`](fmt::Display) writes names it in errors.
pub trait Constraint: fmt::Debug + fmt::Display + Send + Sync {
    /// The walk along one answer, before its first token.
    fn start(&self) -> Box<dyn Walk>;
}

/// A walk along one answer under a constraint. After an error nothing more may be asked of it.
///
/// What it says must depend on the tokens walked alone, not on the way: on tokens that were taken back, or on what was asked.
pub trait Walk: Send {
    /// Goes on by a token; false, and nothing has changed, if it must not follow.
    ///
    /// # Errors
    /// Why this cannot be said.
    fn push(&mut self, token: TokenId) -> Result<bool, String>;

    /// Takes the last `tokens` back.
    ///
    /// # Errors
    /// Why it cannot.
    fn pop(&mut self, tokens: usize) -> Result<(), String>;

    /// The tokens that may follow. Tokens that end answers are none of its business: see [`may_end`](Self::may_end).
    ///
    /// # Errors
    /// Why this cannot be said.
    fn allowed(&mut self) -> Result<TokenSet, String>;

    /// Whether the answer may end here.
    ///
    /// # Errors
    /// Why this cannot be said.
    fn may_end(&mut self) -> Result<bool, String>;

    /// How many of `tokens` may follow, one after the other. May say too many, never too few.
    ///
    /// # Errors
    /// Why this cannot be said.
    fn accepts(&mut self, tokens: &[TokenId]) -> Result<usize, String>;

    /// Tokens that come next by the rule alone, as far as it is known: nobody need guess them.
    fn forced(&mut self) -> Vec<TokenId>;
}
