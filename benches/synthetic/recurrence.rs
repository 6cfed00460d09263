//! What makes the exit block of a construction a recurrent one, and lets both ways of drafting be measured with it.

use crate::synthetic::numbers::Numbers;
use eesd::backend::{Backend, BackendError, Chunk, Draft, Evaluation, Limits, Reading, SavedPages, Sequence};
use eesd::control::Way;
use eesd::kv::PageId;
use eesd::model::{Format, Geometry};
use eesd::sample::Verdict;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The recurrent matrix `[0, I]`, `[hidden, 2 · hidden]`: the block reads the embedding of the draft before in place of the
/// hidden state, which is near it where the first layers write little.
pub fn embedding_alone(format: Format, hidden: usize) -> Numbers {
    Numbers::by_pieces(format, hidden, 2 * hidden, |row, numbers| {
        numbers.fill(0.0);
        numbers[hidden + row] = 1.0;
    })
}

/// Which way drafts are made, for as long as a backend with a recurrent block is told so.
#[derive(Clone)]
pub struct Switch(Arc<AtomicBool>);

impl Switch {
    /// A switch that lets a recurrent block be one.
    pub fn new() -> Self {
        Self(Arc::new(AtomicBool::new(true)))
    }

    /// From here on.
    pub fn set(&self, later: Way) {
        self.0.store(later == Way::Recurrent, Ordering::Relaxed);
    }
}

/// A backend whose exit block is a recurrent one only while a switch says so: the same weights, either way.
pub struct Switched {
    /// What runs the passes.
    pub backend: Box<dyn Backend>,
    /// What says so.
    pub switch: Switch,
}

impl Backend for Switched {
    fn geometry(&self) -> &Geometry {
        self.backend.geometry()
    }

    fn exit_layer(&self) -> Option<usize> {
        self.backend.exit_layer()
    }

    fn limits(&self) -> Limits {
        self.backend.limits()
    }

    fn describe(&self) -> String {
        self.backend.describe()
    }

    fn prefill(&mut self, batch: &[Chunk<'_>]) -> Result<(), BackendError> {
        self.backend.prefill(batch)
    }

    fn prefill_is_exact(&self) -> bool {
        self.backend.prefill_is_exact()
    }

    fn save_pages(&mut self, pages: &[PageId]) -> Result<SavedPages, BackendError> {
        self.backend.save_pages(pages)
    }

    fn restore_pages(&mut self, saved: &SavedPages, pages: &[PageId]) -> Result<(), BackendError> {
        self.backend.restore_pages(saved, pages)
    }

    fn draft(&mut self, batch: &[Sequence<'_>]) -> Result<Vec<Draft>, BackendError> {
        self.backend.draft(batch)
    }

    fn is_recurrent(&self) -> bool {
        self.backend.is_recurrent() && self.switch.0.load(Ordering::Relaxed)
    }

    fn continues(&self) -> bool {
        self.backend.continues() && self.is_recurrent()
    }

    fn draft_continued(&mut self, batch: &[Sequence<'_>]) -> Result<Vec<Draft>, BackendError> {
        self.backend.draft_continued(batch)
    }

    fn draft_recurrently(&mut self, batch: &[Sequence<'_>]) -> Result<Vec<Draft>, BackendError> {
        self.backend.draft_recurrently(batch)
    }

    fn verify(&mut self, batch: &[Sequence<'_>]) -> Result<Vec<Verdict>, BackendError> {
        self.backend.verify(batch)
    }

    fn target_logits(&self, slot: usize) -> Result<Vec<f32>, BackendError> {
        self.backend.target_logits(slot)
    }

    fn first_non_finite(&self, pages: &[PageId], positions: Range<usize>) -> Option<usize> {
        self.backend.first_non_finite(pages, positions)
    }

    fn evaluate(&mut self, chunk: &Chunk<'_>, tap: usize) -> Result<Evaluation, BackendError> {
        self.backend.evaluate(chunk, tap)
    }

    fn read(&mut self, chunk: &Chunk<'_>, taps: &[usize], logits: Range<usize>) -> Result<Reading, BackendError> {
        self.backend.read(chunk, taps, logits)
    }
}
