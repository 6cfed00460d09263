//! From text to batches.
//!
//! ```text
//! prompts -> teacher writes -> documents \
//!                                         select -> training and held-out set -> batches
//! corpus  -----------------> documents /
//! ```
//!
//! Prompts are read by [`PromptFile`](crate::load::PromptFile), texts by [`read_corpus`]; [`write_answers`] lets the teacher continue prompts and keeps what
//! it wrote in a file that a later run goes on with; [`select`] drops, splits and mixes; [`Batches`] says what each
//! step of training sees, [`Frequencies`] what a small draft vocabulary should have. Every stage is a function of its
//! inputs and a seed: the same run gives the same data, whatever the batch size of the writing, interruptions, and the
//! time of day.

mod answers;
mod batches;
mod corpus;
mod error;
mod frequency;
mod select;
mod write;

pub use answers::{ReadAnswers, read_answers};
pub use batches::Batches;
pub use corpus::read_corpus;
pub use error::DataError;
pub use frequency::Frequencies;
pub use select::{Amount, Origin, Report, SelectOptions, Source, SourceReport, select};
pub use write::{Progress, WriteOptions, Written, write_answers};

use crate::TokenId;
use std::ops::Range;

/// A text to learn from, as tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// All of it, context first.
    pub tokens: Vec<TokenId>,
    /// How many of them are only context: the prompt of an answer, the first token of other text.
    pub prompt: usize,
}

impl Document {
    /// Positions to train at: those whose next token is here and is not context, `prompt - 1 .. tokens - 1`.
    pub fn scored(&self) -> Range<usize> {
        let end = self.tokens.len().saturating_sub(1);
        self.prompt.saturating_sub(1).min(end)..end
    }
}

/// A piece of a document that goes through the model at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// Its tokens; the first one is at position 0.
    pub tokens: Vec<TokenId>,
    /// Positions to train at; the next token of each is in `tokens`.
    pub scored: Range<usize>,
    /// How many positions of its document to train at are before these, in earlier pieces.
    pub scored_before: usize,
}

/// What is trained on, and what training is measured on and never sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dataset {
    /// To train on.
    pub train: Vec<Document>,
    /// To measure on.
    pub held_out: Vec<Document>,
}
