//! The passes: prefill, draft step, verify, evaluate.

use super::super::kept::Kept;
use super::super::{Backend, BackendError, Chunk, Draft, Evaluation, Limits, Reading, SavedPages, Sequence};
use super::CpuBackend;
use super::attention::Span;
use super::layer::{Extent, Pass};
use super::pool::{Pool, Worker};
use super::workspace::PREFILL_ROWS;
use crate::TokenId;
use crate::control::Way;
use crate::kv::PageId;
use crate::model::Geometry;
use crate::sample::{Drafted, History, Verdict};
use std::ops::Range;
use std::sync::OnceLock;

/// What is kept of one sequence between the passes of a round.
#[derive(Default)]
pub struct Slot {
    /// What was drafted in this round, and once it is verified what was proposed.
    pub drafted: Vec<Drafted>,
    /// What the workspace has kept of the round beside them.
    pub kept: Kept,
    /// The rows of the workspace that have its logits, if the last pass was its verification.
    judged: Option<Range<usize>>,
}

impl Backend for CpuBackend {
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
        let threads = match self.pool.workers() {
            1 => "1 thread".to_owned(),
            workers => format!("{workers} threads"),
        };
        format!("cpu, {threads}, {}, {} weights", self.model.simd, self.model.weights.formats)
    }

    fn prefill(&mut self, batch: &[Chunk<'_>]) -> Result<(), BackendError> {
        let Geometry { layers, vocab_size, .. } = self.model.geometry;
        self.limits.check_chunks(batch, vocab_size)?;
        self.pool.check()?;
        for (spans, tokens) in pieces(batch) {
            let pass = Pass::new(&self.model, &self.cache, &self.work, &spans, self.pool.workers());
            self.pool.run(&|worker| {
                pass.embed(worker, &tokens);
                for layer in 0..layers {
                    pass.exit_keys(worker, layer);
                    // Nothing reads what comes after the last layer's keys and values.
                    let extent = if layer + 1 == layers { Extent::KeysAndValues } else { Extent::Whole };
                    pass.model_layer(worker, layer, extent);
                }
            });
        }
        Ok(())
    }

    fn save_pages(&mut self, pages: &[PageId]) -> Result<SavedPages, BackendError> {
        self.limits.check_pages(pages)?;
        let mut bytes = Vec::with_capacity(pages.len() * self.cache.page_bytes());
        for &page in pages {
            // SAFETY: no pass is running.
            bytes.extend_from_slice(unsafe { self.cache.page(page) });
        }
        Ok(SavedPages::new(pages.len(), bytes))
    }

    fn restore_pages(&mut self, saved: &SavedPages, pages: &[PageId]) -> Result<(), BackendError> {
        self.limits.check_pages(pages)?;
        let page_bytes = self.cache.page_bytes();
        saved.check(pages, page_bytes)?;
        self.cache.non_finite().forget_pages(pages);
        for (&page, bytes) in pages.iter().zip(saved.bytes().chunks_exact(page_bytes)) {
            // SAFETY: no pass is running.
            unsafe { self.cache.page(page) }.copy_from_slice(bytes);
        }
        Ok(())
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

    fn verify(&mut self, batch: &[Sequence<'_>]) -> Result<Vec<Verdict>, BackendError> {
        self.check_batch(batch)?;
        self.check_drafted(batch)?;
        if batch.is_empty() {
            return Ok(Vec::new());
        }
        for sequence in batch {
            let proposed = &sequence.tokens[sequence.committed + sequence.sampled()..];
            self.slots[sequence.slot].drafted.extend(proposed.iter().map(|&token| Drafted::certain(token)));
        }
        let layers = self.model.geometry.layers;
        let after = self.exit_layer().unwrap_or(layers);
        let (fresh, tokens) = last_rows(batch, Sequence::fresh);
        let rounds = rounds(batch);
        let first = Pass::new(&self.model, &self.cache, &self.work, &fresh, self.pool.workers());
        let second = Pass::new(&self.model, &self.cache, &self.work, &rounds, self.pool.workers());
        // Where nothing went through the first layers before, the rows of both halves are the same.
        let joins = second.rows > first.rows;
        let keeps = joins || self.continues();
        self.pool.run(&|worker| {
            first.embed(worker, &tokens);
            for layer in 0..after {
                first.model_layer(worker, layer, Extent::Whole);
            }
            first.exit_keys(worker, after);
            if keeps {
                for index in worker.share(batch.len()) {
                    // SAFETY: the residual stream is complete and only read until the next barrier; slots differ.
                    unsafe { first.keep(index, &batch[index]) };
                }
            }
            if joins {
                worker.barrier();
                second.gather(worker, batch, |index| 0..rounds[index].rows);
            }
            for layer in after..layers {
                second.model_layer(worker, layer, Extent::Whole);
            }
            second.logits(worker, &self.work.hidden, &self.model.weights.head);
        });
        for (sequence, span) in batch.iter().zip(&rounds) {
            self.slots[sequence.slot].judged = Some(span.row..span.row + span.rows);
        }
        let (slots, work, verdicts) = (&self.slots, &self.work, outcomes(batch.len()));
        let vocab = self.model.geometry.vocab_size;
        each(&mut self.pool, batch.len(), |index| {
            let (sequence, span) = (&batch[index], &rounds[index]);
            // SAFETY: the pass that wrote the logits is over.
            let logits = |row| unsafe { work.logits.part(span.row + row, 0, vocab) };
            let history = History { tokens: sequence.tokens, prompt: sequence.prompt };
            let drafted = &slots[sequence.slot].drafted;
            let _ = verdicts[index].set(sequence.sampler.accept_rows(history, vocab, logits, drafted));
        });
        let verdicts: Vec<Verdict> = verdicts.into_iter().filter_map(OnceLock::into_inner).collect();
        if keeps {
            for (sequence, verdict) in batch.iter().zip(&verdicts) {
                self.slots[sequence.slot].kept.verified(sequence, verdict.accepted);
            }
        }
        Ok(verdicts)
    }

    fn first_non_finite(&self, pages: &[PageId], positions: Range<usize>) -> Option<usize> {
        self.cache.non_finite().first(pages, positions)
    }

    fn target_logits(&self, slot: usize) -> Result<Vec<f32>, BackendError> {
        match self.slots.get(slot).map(|slot| slot.judged.clone()) {
            Some(Some(rows)) => {
                // SAFETY: no pass is running.
                let row = |row| unsafe { self.work.logits.part(row, 0, self.model.geometry.vocab_size) };
                Ok(rows.flat_map(row).copied().collect())
            }
            Some(None) => Err(BackendError::Device(format!("slot {slot} was not in the last pass, a verification"))),
            None => Err(BackendError::Device(format!("slot {slot} of {}", self.slots.len()))),
        }
    }

    fn evaluate(&mut self, chunk: &Chunk<'_>, tap: usize) -> Result<Evaluation, BackendError> {
        let Reading { mut hidden, logits } = self.read(chunk, &[tap], 0..chunk.tokens.len())?;
        Ok(Evaluation { logits, hidden: hidden.pop().unwrap_or_default() })
    }

    fn read(&mut self, chunk: &Chunk<'_>, taps: &[usize], logits: Range<usize>) -> Result<Reading, BackendError> {
        let Geometry { layers, vocab_size, .. } = self.model.geometry;
        if let Some(tap) = taps.iter().find(|&&tap| tap > layers) {
            return Err(BackendError::Device(format!("hidden states after {tap} layers of {layers}")));
        }
        self.limits.check_chunks(std::slice::from_ref(chunk), vocab_size)?;
        self.pool.check()?;
        self.forget_logits();
        let mut reading = Reading { hidden: vec![Vec::new(); taps.len()], logits: Vec::new() };
        let mut first = 0;
        for (spans, tokens) in pieces(std::slice::from_ref(chunk)) {
            let pass = Pass::new(&self.model, &self.cache, &self.work, &spans, self.pool.workers());
            self.pool.run(&|worker| pass.embed(worker, &tokens));
            let mut through = |layers: Range<usize>, head: bool| {
                self.pool.run(&|worker| {
                    for layer in layers.clone() {
                        pass.exit_keys(worker, layer);
                        pass.model_layer(worker, layer, Extent::Whole);
                    }
                    if head {
                        pass.logits(worker, &self.work.hidden, &self.model.weights.head);
                    }
                });
            };
            let mut done = 0;
            for (&tap, hidden) in taps.iter().zip(&mut reading.hidden) {
                through(done..tap, false);
                done = tap.max(done);
                for row in 0..tokens.len() {
                    // SAFETY: no pass is running.
                    hidden.extend_from_slice(unsafe { pass.hidden(row) });
                }
            }
            let wanted = logits.start.max(first)..logits.end.min(first + tokens.len());
            if !logits.is_empty() {
                // Of every piece: later rows see its keys in all layers.
                through(done..layers, !wanted.is_empty());
                for row in wanted {
                    // SAFETY: no pass is running.
                    let logits = unsafe { self.work.logits.part(row - first, 0, vocab_size) };
                    reading.logits.extend_from_slice(logits);
                }
            }
            first += tokens.len();
        }
        match self.first_non_finite(chunk.pages, chunk.start..chunk.start + chunk.tokens.len()) {
            Some(position) => Err(BackendError::NonFinite { position }),
            None => Ok(reading),
        }
    }
}

impl CpuBackend {
    /// Refuses what does not fit, and any pass once a worker is lost. What a slot drafted beyond the sequence's sampled
    /// drafts is forgotten.
    pub fn check_batch(&mut self, batch: &[Sequence<'_>]) -> Result<(), BackendError> {
        self.limits.check_rounds(batch, self.model.geometry.vocab_size)?;
        self.pool.check()?;
        self.forget_logits();
        for sequence in batch {
            let slot = &mut self.slots[sequence.slot];
            slot.drafted.truncate(sequence.sampled());
            slot.kept.rewind(sequence.sampled());
        }
        Ok(())
    }

    /// Before a pass that writes logits: those of the one before are gone.
    fn forget_logits(&mut self) {
        self.slots.iter_mut().for_each(|slot| slot.judged = None);
    }

    /// Refuses drafts that were not made here, nor proposed, and rows whose `h_N` is not kept: they would be those of
    /// others.
    pub fn check_drafted(&self, batch: &[Sequence<'_>]) -> Result<(), BackendError> {
        for sequence in batch {
            let Slot { drafted, kept, .. } = &self.slots[sequence.slot];
            let sampled = &sequence.tokens[sequence.committed..][..sequence.sampled()];
            let made = drafted.iter().map(|drafted| drafted.token).eq(sampled.iter().copied());
            if !made || !kept.has_hidden(sequence) {
                let found = format!("slot {}: {} drafts", sequence.slot, sequence.sampled());
                return Err(BackendError::Device(format!("{found} (expected those that were drafted there)")));
            }
        }
        Ok(())
    }
}

impl Pass<'_> {
    /// Layer `index` of the model.
    pub fn model_layer(&self, worker: &Worker<'_>, index: usize, extent: Extent) {
        self.layer(worker, &self.work.hidden, index, self.model.geometry.windows[index], extent);
    }

    /// A row of the residual stream.
    ///
    /// # Safety
    /// Nobody writes it meanwhile.
    unsafe fn hidden(&self, row: usize) -> &[f32] {
        // SAFETY: the caller's promise.
        unsafe { self.work.hidden.part(row, 0, self.model.geometry.hidden_size) }
    }

    /// Keeps the `h_N` of a sequence's fresh rows, which are span `index`, with those of its round.
    ///
    /// # Safety
    /// Nobody writes these rows of the residual stream meanwhile, and nobody else touches the rows that the sequence's
    /// slot keeps of them.
    pub unsafe fn keep(&self, index: usize, sequence: &Sequence<'_>) {
        let first = self.spans[index].row;
        for row in 0..sequence.fresh() {
            // SAFETY: the caller's promise.
            unsafe {
                let hidden = self.hidden(first + row);
                self.work.kept_mut(sequence.slot, sequence.hidden() + row, hidden.len()).copy_from_slice(hidden);
            }
        }
    }

    /// Fills the residual stream with rows that were kept of each sequence's round. Starts and ends at a barrier.
    pub fn gather(&self, worker: &Worker<'_>, batch: &[Sequence<'_>], rows: impl Fn(usize) -> Range<usize>) {
        let len = self.model.geometry.hidden_size;
        for index in worker.share(batch.len()) {
            for (row, kept) in (self.spans[index].row..).zip(rows(index)) {
                // SAFETY: the rows are this worker's until the next barrier, and what was kept was written before the
                // last one.
                unsafe {
                    let kept = self.work.kept(batch[index].slot, kept, len);
                    self.work.hidden.part_mut(row, 0, len).copy_from_slice(kept);
                }
            }
        }
        worker.barrier();
    }
}

/// Cuts chunks into passes of at most [`PREFILL_ROWS`] rows: their spans and tokens.
fn pieces<'a>(batch: &[Chunk<'a>]) -> Vec<(Vec<Span<'a>>, Vec<TokenId>)> {
    let mut passes: Vec<(Vec<Span<'a>>, Vec<TokenId>)> = Vec::new();
    for chunk in batch {
        let mut done = 0;
        while done < chunk.tokens.len() {
            if passes.last().is_none_or(|(_, tokens)| tokens.len() == PREFILL_ROWS) {
                passes.push(Default::default());
            }
            let Some((spans, tokens)) = passes.last_mut() else { break };
            let rows = (chunk.tokens.len() - done).min(PREFILL_ROWS - tokens.len());
            spans.push(Span { pages: chunk.pages, start: chunk.start + done, row: tokens.len(), rows });
            tokens.extend_from_slice(&chunk.tokens[done..done + rows]);
            done += rows;
        }
    }
    passes
}

/// So many of each sequence's last rows: their spans and tokens.
pub fn last_rows<'a>(batch: &[Sequence<'a>], count: impl Fn(&Sequence<'a>) -> usize) -> (Vec<Span<'a>>, Vec<TokenId>) {
    let (mut spans, mut tokens) = (Vec::with_capacity(batch.len()), Vec::new());
    for sequence in batch {
        let rows = count(sequence);
        let start = sequence.tokens.len() - rows;
        spans.push(Span { pages: sequence.pages, start, row: tokens.len(), rows });
        tokens.extend_from_slice(&sequence.tokens[start..]);
    }
    (spans, tokens)
}

/// The rows of whole rounds: from the pending token to the last draft.
fn rounds<'a>(batch: &[Sequence<'a>]) -> Vec<Span<'a>> {
    let mut row = 0;
    let span = |sequence: &Sequence<'a>| {
        let span = Span { pages: sequence.pages, start: sequence.committed - 1, row, rows: sequence.drafted() + 1 };
        row += span.rows;
        span
    };
    batch.iter().map(span).collect()
}

pub fn outcomes<T>(count: usize) -> Vec<OnceLock<T>> {
    (0..count).map(|_| OnceLock::new()).collect()
}

/// Calls `work` for `0..count`, on all workers where there is something to share.
pub fn each(pool: &mut Pool, count: usize, work: impl Fn(usize) + Sync) {
    if count == 1 {
        work(0);
    } else {
        pool.run(&|worker| {
            while let Some(index) = worker.claim(count) {
                work(index);
            }
        });
    }
}
