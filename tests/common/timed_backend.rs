//! The checking backend on a machine whose passes take simulated times, and the clock that they move.

use super::hash_backend::HashBackend;
use eesd::backend::{Backend, BackendError, Chunk, Draft, Evaluation, Limits, SavedPages, Sequence};
use eesd::engine::Clock;
use eesd::kv::PageId;
use eesd::model::Geometry;
use eesd::sample::Verdict;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Seconds of a pass over so many rows.
pub type Cost = fn(usize) -> f64;

/// The checking backend that takes its time.
pub struct TimedBackend {
    inner: HashBackend,
    /// Of the whole model; a draft step takes an eighth.
    cost: Cost,
    now: Arc<AtomicU64>,
    /// Pages cannot be saved.
    pub loses_pages: bool,
    /// Rows of each verification, and how many sequences they were of.
    pub verified: Arc<std::sync::Mutex<Vec<(usize, usize)>>>,
}

impl TimedBackend {
    /// Over as many slots as there may be, and the clock of its time.
    pub fn new(limits: Limits, cost: Cost) -> (Self, Clock) {
        let now = Arc::new(AtomicU64::new(0));
        let read = Arc::clone(&now);
        let clock = Clock::new(move || Duration::from_nanos(read.load(Ordering::Relaxed)));
        let inner = HashBackend::new(11, limits, 128);
        (Self { inner, cost, now, loses_pages: false, verified: Arc::default() }, clock)
    }

    fn take(&self, seconds: f64) {
        self.now.fetch_add((seconds * 1e9) as u64, Ordering::Relaxed);
    }
}

impl Backend for TimedBackend {
    fn geometry(&self) -> &Geometry {
        self.inner.geometry()
    }

    fn exit_layer(&self) -> Option<usize> {
        self.inner.exit_layer()
    }

    fn limits(&self) -> Limits {
        self.inner.limits()
    }

    fn describe(&self) -> String {
        self.inner.describe()
    }

    fn prefill(&mut self, batch: &[Chunk<'_>]) -> Result<(), BackendError> {
        self.take((self.cost)(batch.iter().map(|chunk| chunk.tokens.len()).sum()));
        self.inner.prefill(batch)
    }

    fn save_pages(&mut self, pages: &[PageId]) -> Result<SavedPages, BackendError> {
        if self.loses_pages {
            return Err(BackendError::Device("the host's memory is full".into()));
        }
        self.inner.save_pages(pages)
    }

    fn restore_pages(&mut self, saved: &SavedPages, pages: &[PageId]) -> Result<(), BackendError> {
        self.inner.restore_pages(saved, pages)
    }

    fn draft(&mut self, batch: &[Sequence<'_>]) -> Result<Vec<Draft>, BackendError> {
        self.take((self.cost)(batch.len()) / 8.0);
        self.inner.draft(batch)
    }

    fn verify(&mut self, batch: &[Sequence<'_>]) -> Result<Vec<Verdict>, BackendError> {
        let rows = batch.iter().map(|sequence| sequence.drafted() + 1).sum();
        self.take((self.cost)(rows));
        self.verified.lock().unwrap().push((rows, batch.len()));
        self.inner.verify(batch)
    }

    fn target_logits(&self, slot: usize) -> Result<Vec<f32>, BackendError> {
        self.inner.target_logits(slot)
    }

    fn evaluate(&mut self, chunk: &Chunk<'_>, tap: usize) -> Result<Evaluation, BackendError> {
        self.inner.evaluate(chunk, tap)
    }
}
