//! What an engine has done and is doing, for people and for monitoring.

use super::{Engine, SourceStats};
use crate::draft::Source;

/// Counts since the engine was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Requests answered to their end.
    pub finished: usize,
    /// Requests that were malformed, had numbers that are not finite, or were dropped because a pass failed.
    pub failed: usize,
    /// Requests cancelled.
    pub cancelled: usize,
    /// Tokens of all prompts admitted.
    pub prompt_tokens: usize,
    /// Those of them that were found in pages kept.
    pub reused_tokens: usize,
    /// Tokens taken in by prefill passes.
    pub prefilled_tokens: usize,
    /// Tokens emitted.
    pub generated: usize,
    /// Rounds, each of all sequences then running.
    pub rounds: usize,
    /// Sequences in all rounds.
    pub sequences: usize,
    /// Rows of all verification passes.
    pub rows: usize,
    /// Draft steps, each of all sequences then drafting.
    pub draft_steps: usize,
    /// Drafts tested.
    pub drafted: usize,
    /// Drafts accepted.
    pub accepted: usize,
    /// The same by source of drafts, in the order of [`Source::ALL`]; rounds count once for each sequence.
    pub by_source: [SourceStats; Source::ALL.len()],
    /// Sequences preempted, each time.
    pub preemptions: usize,
    /// Pages copied out of the cache for it.
    pub swapped_pages: usize,
}

impl Totals {
    /// Tokens per sequence and round: `1 + accepted / sequences`; 0 before the first round.
    pub fn mean_accepted_length(&self) -> f64 {
        if self.sequences == 0 { 0.0 } else { 1.0 + self.accepted as f64 / self.sequences as f64 }
    }
}

/// An engine between two steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Snapshot {
    /// Requests not admitted yet.
    pub waiting: usize,
    /// Requests whose prompts are being taken in.
    pub prefilling: usize,
    /// Requests in the rounds.
    pub decoding: usize,
    /// Requests preempted, their pages in the host's memory.
    pub swapped_out: usize,
    /// Pages of the cache.
    pub pages: usize,
    /// Pages that no sequence holds, those kept for their texts among them.
    pub free_pages: usize,
    /// Pages kept for their texts, those that sequences hold among them.
    pub kept_pages: usize,
    /// Counts so far.
    pub totals: Totals,
}

impl Engine {
    /// What the engine is doing now, and has done.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            waiting: self.waiting.len(),
            prefilling: self.prefilling.len(),
            decoding: self.running.len(),
            swapped_out: self.swapped_out.len(),
            pages: self.pages.total(),
            free_pages: self.pages.available(),
            kept_pages: self.pages.kept(),
            totals: self.totals,
        }
    }

    /// Slots and ids of the sequences in the rounds, in the order of the passes' batch.
    pub fn running(&self) -> impl Iterator<Item = (usize, usize)> {
        self.running.iter().map(|sequence| (sequence.slot, sequence.id))
    }

    /// Pages that no sequence holds.
    pub fn free_pages(&self) -> usize {
        self.pages.available()
    }
}
