//! The full model reads what the student is to learn from.

use super::data::Segment;
use super::error::DistillError;
use super::plan::TrainPlan;
use crate::backend::training::{Position, TeacherBatch};
use crate::backend::{Backend, Chunk};
use crate::kv::{BlockTable, PAGE_TOKENS, PagePool};

/// A model that reads texts of at most a window.
pub struct Teacher {
    backend: Box<dyn Backend>,
    table: BlockTable,
    after: usize,
}

impl Teacher {
    /// Hidden states after `after` layers come from `backend`.
    ///
    /// # Errors
    /// If the backend has no room for a window of tokens.
    pub fn new(backend: Box<dyn Backend>, after: usize, window: usize) -> Result<Self, DistillError> {
        let limits = backend.limits();
        let room = limits.context.min(limits.pages * PAGE_TOKENS);
        let mut table = BlockTable::default();
        if window > room || table.reserve(window, &mut PagePool::new(limits.pages)).is_err() {
            let expected = format!("at most {room}, which the teacher has room for");
            return Err(DistillError::Option { option: "window", found: window.to_string(), expected });
        }
        Ok(Self { backend, table, after })
    }

    /// What the model says of each segment, which is read on its own. `plan` weighs positions.
    ///
    /// # Errors
    /// If the device fails.
    pub fn read(&mut self, segments: &[Segment], plan: &TrainPlan) -> Result<TeacherBatch, DistillError> {
        let vocab = self.backend.geometry().vocab_size;
        let mut batch = TeacherBatch::default();
        for Segment { tokens, scored, scored_before } in segments {
            let first: usize = batch.lengths.iter().sum();
            let chunk = Chunk { pages: self.table.pages(), start: 0, tokens };
            let read = self.backend.evaluate(&chunk, self.after)?;
            batch.lengths.push(tokens.len());
            batch.hidden.extend_from_slice(&read.hidden);
            batch.logits.extend_from_slice(&read.logits[scored.start * vocab..scored.end * vocab]);
            let position = |(index, row): (usize, usize)| Position {
                row: first + row,
                token: tokens[row + 1],
                weight: plan.weight_of(scored_before + index),
            };
            batch.scored.extend(scored.clone().enumerate().map(position));
        }
        Ok(batch)
    }

    /// The model.
    pub fn backend(&self) -> &dyn Backend {
        &*self.backend
    }
}
