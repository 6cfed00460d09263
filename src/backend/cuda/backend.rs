//! The device as a [`Backend`]: what is refused, and what is left behind when a pass fails.

use super::CudaBackend;
use super::driver::Driver;
use super::kernels::Address;
use super::workspace::Cache;
use crate::TokenId;
use crate::backend::{
    Backend, BackendError, Chunk, Draft, Evaluation, Limits, Reading, Said, SavedPages, Sequence, draft_step_by_step,
};
use crate::control::{DraftPlan, Way};
use crate::kv::PageId;
use crate::model::Geometry;
use crate::sample::Verdict;
use std::ops::Range;

impl<D: Driver> Backend for CudaBackend<D> {
    fn geometry(&self) -> &Geometry {
        &self.model.geometry
    }

    fn exit_layer(&self) -> Option<usize> {
        self.model.weights.exit.as_ref().map(|exit| exit.after)
    }

    fn limits(&self) -> Limits {
        self.limits
    }

    fn describe(&self) -> String {
        let prefill = if self.model.work.fast.is_some() { ", fast prefill" } else { "" };
        format!("cuda, {}, {} weights{prefill}", self.driver.describe(), self.model.format)
    }

    fn prefill(&mut self, batch: &[Chunk<'_>]) -> Result<(), BackendError> {
        self.limits.check_chunks(batch, self.model.geometry.vocab_size)?;
        self.fill(batch)
    }

    fn prefill_is_exact(&self) -> bool {
        self.model.work.fast.is_none()
    }

    fn save_pages(&mut self, pages: &[PageId]) -> Result<SavedPages, BackendError> {
        self.limits.check_pages(pages)?;
        self.save(pages)
    }

    fn restore_pages(&mut self, saved: &SavedPages, pages: &[PageId]) -> Result<(), BackendError> {
        self.limits.check_pages(pages)?;
        saved.check(pages, Cache::page_bytes(&self.model.geometry, self.model.cache.format()))?;
        self.non_finite.forget_pages(pages);
        self.restore(saved, pages)
    }

    fn draft(&mut self, batch: &[Sequence<'_>]) -> Result<Vec<Draft>, BackendError> {
        self.draft_step(Way::FirstLayers, batch)
    }

    fn is_recurrent(&self) -> bool {
        self.model.weights.exit.as_ref().is_some_and(|exit| exit.recurrent.is_some())
    }

    fn draft_recurrently(&mut self, batch: &[Sequence<'_>]) -> Result<Vec<Draft>, BackendError> {
        self.draft_step(Way::Recurrent, batch)
    }

    fn continues(&self) -> bool {
        self.is_recurrent()
    }

    fn draft_continued(&mut self, batch: &[Sequence<'_>]) -> Result<Vec<Draft>, BackendError> {
        self.draft_step(Way::Continued, batch)
    }

    fn follows_plans(&self) -> bool {
        self.loops && self.model.weights.exit.is_some()
    }

    fn draft_planned(
        &mut self,
        sequence: &Sequence<'_>,
        plan: &DraftPlan,
        ends: &[TokenId],
    ) -> Result<Vec<Draft>, BackendError> {
        if plan.limit == 0 {
            return Ok(Vec::new());
        }
        self.check_drafts(plan.way(sequence.drafted()), &[*sequence], plan.limit)?;
        let drafts = self.draft_in_a_loop(sequence, plan, ends);
        match self.settle(&[*sequence], drafts)? {
            Some(drafts) => Ok(drafts),
            None => draft_step_by_step(self, sequence, plan, ends),
        }
    }

    fn verify(&mut self, batch: &[Sequence<'_>]) -> Result<Vec<Verdict>, BackendError> {
        self.check_batch(batch)?;
        if batch.is_empty() {
            return Ok(Vec::new());
        }
        let verdicts = self.verify_all(batch);
        self.settle(batch, verdicts)
    }

    fn set_profiling(&mut self, on: bool) -> Result<bool, BackendError> {
        self.driver.set_profiling(on)
    }

    fn first_non_finite(&self, pages: &[PageId], positions: Range<usize>) -> Option<usize> {
        self.non_finite.first(pages, positions)
    }

    fn target_logits(&self, slot: usize) -> Result<Vec<f32>, BackendError> {
        let vocab = self.model.geometry.vocab_size;
        match self.slots.get(slot).map(|slot| slot.logits) {
            Some(Some((first, rows))) => self.floats(self.model.work.logits, first * vocab, rows * vocab),
            Some(None) => Err(BackendError::Device(format!("slot {slot} was not in the last pass, a verification"))),
            None => Err(BackendError::Device(format!("slot {slot} of {}", self.slots.len()))),
        }
    }

    fn evaluate(&mut self, chunk: &Chunk<'_>, tap: usize) -> Result<Evaluation, BackendError> {
        let mut read = self.read(chunk, &[tap], 0..chunk.tokens.len())?;
        Ok(Evaluation { hidden: read.hidden.pop().unwrap_or_default(), logits: read.logits })
    }

    fn read(&mut self, chunk: &Chunk<'_>, taps: &[usize], logits: Range<usize>) -> Result<Reading, BackendError> {
        self.check_reading(chunk, taps)?;
        let (vocab, mut all) = (self.model.geometry.vocab_size, Vec::new());
        let hidden = self.read_text(chunk, taps, logits, |of, rows| {
            all.extend(of.floats(of.model.work.logits, rows.start * vocab, rows.len() * vocab)?);
            Ok(())
        })?;
        Ok(Reading { hidden, logits: all })
    }

    fn read_said(
        &mut self,
        chunk: &Chunk<'_>,
        taps: &[usize],
        rows: Range<usize>,
    ) -> Result<(Vec<Vec<f32>>, Vec<Said>), BackendError> {
        self.check_reading(chunk, taps)?;
        let mut said = Vec::new();
        let hidden = self.read_text(chunk, taps, rows, |of, rows| {
            said.extend(of.said(rows)?);
            Ok(())
        })?;
        Ok((hidden, said))
    }
}

impl<D: Driver> CudaBackend<D> {
    fn check_reading(&self, chunk: &Chunk<'_>, taps: &[usize]) -> Result<(), BackendError> {
        let Geometry { layers, vocab_size, .. } = self.model.geometry;
        if let Some(tap) = taps.iter().find(|&&tap| tap > layers) {
            return Err(BackendError::Device(format!("hidden states after {tap} layers of {layers}")));
        }
        self.limits.check_chunks(std::slice::from_ref(chunk), vocab_size)
    }

    /// One draft for each sequence, all of them made one way.
    fn draft_step(&mut self, way: Way, batch: &[Sequence<'_>]) -> Result<Vec<Draft>, BackendError> {
        self.check_drafts(way, batch, 1)?;
        if batch.is_empty() {
            return Ok(Vec::new());
        }
        let drafts = self.draft_each(way, batch);
        self.settle(batch, drafts)
    }

    /// Refuses what [`check_batch`](Self::check_batch) refuses, what has no room for `more` drafts, and what cannot be
    /// drafted this way.
    fn check_drafts(&mut self, way: Way, batch: &[Sequence<'_>], more: usize) -> Result<(), BackendError> {
        if self.model.weights.exit.is_none() {
            return Err(BackendError::Exit("none was given, so nothing can be drafted".to_owned()));
        }
        self.check_batch(batch)?;
        self.limits.check_drafts(batch, more)?;
        match way {
            Way::Continued | Way::Recurrent if !self.is_recurrent() => Err(BackendError::not_recurrent()),
            Way::Continued => {
                batch.iter().try_for_each(|sequence| self.slots[sequence.slot].kept.row_before(sequence).map(|_| ()))
            }
            Way::Recurrent => {
                batch.iter().try_for_each(|sequence| self.slots[sequence.slot].kept.check_state(sequence))
            }
            Way::FirstLayers => match batch.iter().find(|sequence| sequence.recurrent > 0) {
                Some(Sequence { slot, recurrent, .. }) => Err(BackendError::Device(format!(
                    "cuda: slot {slot}: a draft through the first layers after {recurrent} recurrent ones (expected none: \
                     its kernels take one row of each sequence)"
                ))),
                None => Ok(()),
            },
        }
    }

    /// Refuses what does not fit, and drafts that the device has not made, nor were proposed.
    fn check_batch(&mut self, batch: &[Sequence<'_>]) -> Result<(), BackendError> {
        self.limits.check_rounds(batch, self.model.geometry.vocab_size)?;
        for sequence in batch {
            let number = sequence.slot;
            let slot = &mut self.slots[number];
            slot.drafted.truncate(sequence.sampled());
            slot.kept.rewind(sequence.sampled());
            let sampled = &sequence.tokens[sequence.committed..][..sequence.sampled()];
            if slot.drafted != sampled || !slot.kept.has_hidden(sequence) {
                let found = format!("slot {number}: {} drafts", sequence.sampled());
                return Err(BackendError::Device(format!("{found} (expected those that were drafted there)")));
            }
        }
        Ok(())
    }

    /// After a failure nobody knows how far the device came: what it has counted and its logits are forgotten.
    fn settle<T>(&mut self, batch: &[Sequence<'_>], result: Result<T, BackendError>) -> Result<T, BackendError> {
        if result.is_err() {
            self.forget_logits();
            batch.iter().for_each(|sequence| self.slots[sequence.slot].forget_counts());
        }
        result
    }

    /// Logits of an earlier verification are about to be written over.
    pub(super) fn forget_logits(&mut self) {
        self.slots.iter_mut().for_each(|slot| slot.logits = None);
    }

    /// Numbers `at .. at + count` of an array on the device.
    pub(super) fn floats(&self, array: Address, at: usize, count: usize) -> Result<Vec<f32>, BackendError> {
        self.host.download(&self.driver, Address(array.0 + 4 * at as u64), count)
    }
}
