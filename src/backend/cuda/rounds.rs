//! Rounds: what passes of a round are told, and what comes back of verification.

use super::CudaBackend;
use super::driver::Driver;
use super::inbox::{Inbox, Kind, Layout, Shape};
use super::kernels::{Address, CountTokens, JudgedRow, Params, TokenBias, Verdict, VerifiedSequence, sampling_kernel};
use super::pass::Pass;
use super::views::Views;
use super::workspace::{chunks_of, padded_fresh, padded_rows};
use crate::TokenId;
use crate::backend::{BackendError, Sequence};
use crate::kv::PageId;
use crate::sample::{self, Rule};
use std::iter;

impl<D: Driver> CudaBackend<D> {
    /// The rest of a round for all sequences.
    pub(super) fn verify_all(&mut self, batch: &[Sequence<'_>]) -> Result<Vec<sample::Verdict>, BackendError> {
        self.forget_fresh(batch);
        self.count(batch)?;
        let rows = batch.iter().map(|sequence| sequence.drafted() + 1).sum();
        let views = Views::new(Kind::Verify, batch);
        let shape = self.shape(Kind::Verify, batch, &views, padded_rows(rows), 0);
        let first_rows: Vec<usize> = first_rows(batch.iter().map(|sequence| sequence.drafted() + 1));
        let of_round = |(index, sequence): (usize, &Sequence<'_>)| {
            let first = first_rows[index];
            let row = |j| judged(views.of_row(index, j), sequence, j, first + j);
            (0..=sequence.drafted()).map(row).collect::<Vec<_>>()
        };
        let mut judged: Vec<JudgedRow> = batch.iter().enumerate().flat_map(of_round).collect();
        // Rows of no sequence are sampled from too, greedily, to where nobody looks.
        let idle =
            |row| JudgedRow { sequence: views.count() as u32, position: 0, drafted: 0, slot: 0, destination: row };
        judged.extend((rows as u32..shape.rows as u32).map(idle));
        let kept = |sequence: &Sequence<'_>| {
            let first = sequence.slot * self.rows.round;
            (first..=first + sequence.drafted()).map(|row| row as u32).collect::<Vec<_>>()
        };
        let gather: Vec<u32> = batch.iter().flat_map(kept).collect();
        let firsts = first_rows.iter().zip(first_fresh(Kind::Verify, batch));
        let verified: Vec<_> =
            batch.iter().zip(firsts).map(|(sequence, (&first, fresh))| verified(sequence, first, fresh)).collect();
        let inbox = self.tell(&shape, batch, &views, |layout, inbox| {
            layout.gather.put(inbox, gather);
            layout.judged.put(inbox, judged);
            layout.verified.put(inbox, verified);
        })?;
        let flag_bytes = size_of::<Verdict>();
        let bytes = flag_bytes + batch.len() * size_of::<Verdict>();
        // SAFETY: the inbox holds a pass of this shape within the limits.
        unsafe { self.round(shape, &inbox, self.model.work.any_non_finite, bytes) }?;
        let (flag, verdicts) = self.host.outbox.contents()[..bytes].split_at(flag_bytes);
        let flag: u32 = bytemuck::pod_read_unaligned(&flag[..size_of::<u32>()]);
        let verdicts: Vec<Verdict> = bytemuck::cast_slice(verdicts).to_vec();
        self.collect_noted(flag)?;
        let mut found = Vec::with_capacity(batch.len());
        for ((sequence, verdict), &first) in batch.iter().zip(verdicts).zip(&first_rows) {
            self.slots[sequence.slot].logits = Some((first, sequence.drafted() + 1));
            let verdict = self.verdict(sequence, verdict, first)?;
            self.slots[sequence.slot].kept.verified(sequence, verdict.accepted);
            found.push(verdict);
        }
        Ok(found)
    }

    /// The shape of a pass of rounds with `rows` rows after the exit layer, which goes on by `further` positions.
    pub(super) fn shape(
        &self,
        kind: Kind,
        batch: &[Sequence<'_>],
        views: &Views<'_>,
        rows: usize,
        further: usize,
    ) -> Shape {
        let longest = batch.iter().map(|sequence| sequence.tokens.len()).max().unwrap_or(1) + further;
        let most_drafts = batch.iter().map(Sequence::drafted).max().unwrap_or(0);
        let most_fresh = batch.iter().map(|sequence| fresh(kind, sequence)).max().unwrap_or(1);
        // Few different numbers here too; query tiles too many have no rows.
        let most_rows = |drafts: usize| (drafts + 1).next_power_of_two().min(self.rows.round);
        let fresh = batch.iter().map(|sequence| fresh(kind, sequence)).sum();
        let others = views.count() - batch.len();
        Shape {
            kind,
            batch: batch.len(),
            fresh: if fresh > batch.len() { padded_fresh(fresh) } else { fresh },
            most_fresh: most_rows(most_fresh - 1),
            rows,
            most_rows: if kind == Kind::Verify { most_rows(most_drafts) } else { 1 },
            chunks: chunks_of(longest, self.limits.context),
            views: batch.len() + if others > 0 { others.next_power_of_two() } else { 0 },
            biases: views.adjusted().map(usize::next_power_of_two),
            mask_words: if views.masked() { self.model.geometry.vocab_size.div_ceil(u32::BITS as usize) } else { 0 },
            weighs: batch.iter().any(|sequence| sequence.sampler.rule() != Rule::Greedy),
        }
    }

    /// Writes what rounds' passes have in common into the inbox, and the rest by `more`.
    pub(super) fn tell(
        &mut self,
        shape: &Shape,
        batch: &[Sequence<'_>],
        views: &Views<'_>,
        more: impl FnOnce(&Layout, &mut [u8]),
    ) -> Result<Inbox, BackendError> {
        let inbox = self.host.inbox(&self.driver, shape, self.limits.max_draft, &mut self.graphs)?;
        let (layout, room) = (&inbox.layout, self.host.inbox.contents_mut());
        let ends = |rows: Vec<usize>| rows.into_iter().map(|row| row as i32);
        let fresh_start = |sequence: &Sequence<'_>| sequence.tokens.len() - fresh(shape.kind, sequence);
        layout.ids.put(room, batch.iter().flat_map(|sequence| &sequence.tokens[fresh_start(sequence)..]).copied());
        layout.fresh_begin.put(room, ends(first_fresh(shape.kind, batch)));
        layout.fresh_start.put(room, batch.iter().map(|sequence| fresh_start(sequence) as i32));
        match shape.kind {
            Kind::Verify => {
                layout.begin.put(room, ends(first_rows(batch.iter().map(|sequence| sequence.drafted() + 1))));
                layout.start.put(room, batch.iter().map(|sequence| sequence.committed as i32 - 1));
            }
            Kind::Continued => {
                layout.begin.put(room, ends(first_rows(batch.iter().map(|_| 1))));
                layout.start.put(room, batch.iter().map(|sequence| sequence.committed as i32 - 2));
            }
            _ => {}
        }
        layout.table.put(room, batch.iter().flat_map(|sequence| row_of_table(sequence.pages, shape)));
        let kept = |sequence: &Sequence<'_>| {
            let first = sequence.slot * self.rows.round + sequence.hidden();
            first..first + fresh(shape.kind, sequence)
        };
        // Rows of no sequence go behind all rounds.
        let kept = batch.iter().flat_map(kept).chain(self.limits.slots * self.rows.round..);
        layout.keep.put(room, kept.take(shape.fresh).map(|row| row as u32));
        if shape.drafts() {
            layout.states.put(room, batch.iter().map(|sequence| sequence.slot as u32));
        }
        layout.params.put(room, views.params().chain([idle_params()]));
        if shape.biases.is_some() {
            let bias = |&(token, bias): &(TokenId, f32)| TokenBias { token, bias };
            let begin = first_rows(views.biases().map(<[_]>::len));
            let all = *begin.last().unwrap_or(&0);
            layout.bias_begin.put(room, ends(begin).chain([all as i32]));
            layout.biases.put(room, views.biases().flatten().map(bias));
            layout
                .recent
                .put(room, batch.iter().flat_map(|sequence| self::recent(sequence, shape, self.limits.max_draft)));
        }
        if shape.mask_words > 0 {
            views.write_masks(layout.masks.room(room), shape.mask_words);
        }
        more(layout, room);
        Ok(inbox)
    }

    /// Runs a pass of a round and waits for what it writes at `from`, which is in the outbox then.
    ///
    /// # Safety
    /// The inbox holds a pass of this shape within the limits.
    pub(super) unsafe fn round(
        &mut self,
        shape: Shape,
        inbox: &Inbox,
        from: Address,
        bytes: usize,
    ) -> Result<(), BackendError> {
        self.forget_logits();
        let Self { driver, model, host, graphs, .. } = self;
        let pass = Pass { on: &**driver, model, inbox, shape };
        let all = || {
            // SAFETY: all sides have room, the outbox for the largest of answers; inbox and outbox are left alone
            // until the pass is waited for; the rest is the caller's promise.
            unsafe {
                driver.copy_to_device(inbox.at, host.inbox.at(), inbox.layout.bytes)?;
                match shape.kind {
                    Kind::Draft => pass.draft()?,
                    Kind::Continued => pass.draft_continued()?,
                    Kind::Recurrent => pass.draft_recurrently()?,
                    _ => pass.verify()?,
                }
                driver.copy_to_host(host.outbox.at(), from, bytes)
            }
        };
        // SAFETY: the same addresses serve every pass of a shape.
        let queued = unsafe { graphs.run(driver, shape, &all) };
        // Even after a failure: what is queued reads the inbox.
        driver.wait().and(queued)
    }

    /// Brings the device's counts of tokens in line with sequences that have penalties.
    pub(super) fn count(&mut self, batch: &[Sequence<'_>]) -> Result<(), BackendError> {
        for sequence in batch {
            let slot = &mut self.slots[sequence.slot];
            if !sequence.sampler.params().has_penalties() {
                // A batch in which others have them counts here too, and nobody looks at it.
                slot.forget_counts();
                continue;
            }
            let Some(recount) = slot.recount(sequence) else { continue };
            let work = &self.model.work;
            let row_bytes = self.model.geometry.vocab_size * size_of::<u32>();
            let counts = Address(work.counts.0 + (sequence.slot * row_bytes) as u64);
            let tokens = &sequence.tokens[recount.from..sequence.committed];
            let bytes: &[u8] = bytemuck::cast_slice(tokens);
            self.host.outbox.contents_mut()[..bytes.len()].copy_from_slice(bytes);
            let arguments =
                CountTokens { tokens: work.counted, counts, count: tokens.len() as i32, prompt: recount.prompt as i32 };
            // SAFETY: a row of the counts; room for a context of tokens on both sides, free until waited for.
            let queued = unsafe {
                let zeroed = if recount.from_zero { self.driver.zero(counts, row_bytes) } else { Ok(()) };
                zeroed
                    .and_then(|()| self.driver.copy_to_device(work.counted, self.host.outbox.at(), bytes.len()))
                    .and_then(|()| sampling_kernel(&*self.driver, 1, &arguments))
            };
            self.driver.wait().and(queued)?;
        }
        Ok(())
    }

    /// What verification decided, with the log-probabilities asked for.
    fn verdict(
        &mut self,
        sequence: &Sequence<'_>,
        verdict: Verdict,
        first: usize,
    ) -> Result<sample::Verdict, BackendError> {
        let vocab = self.model.geometry.vocab_size;
        let accepted = verdict.accepted as usize;
        if accepted > sequence.drafted() || verdict.next as usize >= vocab {
            return Err(BackendError::Device(format!("a verdict of {verdict:?} on {} drafts", sequence.drafted())));
        }
        let mut logprobs = Vec::new();
        if sequence.sampler.params().logprobs.is_some() {
            let emitted = sequence.tokens[sequence.committed..][..accepted].iter().copied().chain([verdict.next]);
            for (row, token) in emitted.enumerate() {
                let logits = self.floats(self.model.work.logits, (first + row) * vocab, vocab)?;
                logprobs.extend(sequence.sampler.logprobs(&logits, token));
            }
        }
        let verdict = sample::Verdict { accepted, next: verdict.next, logprobs };
        self.slots[sequence.slot].count(sequence, &verdict);
        Ok(verdict)
    }
}

/// Parameters of rows that belong to no sequence: greedy, so that nothing but their choice is written.
fn idle_params() -> Params {
    Params { top_p: 1.0, repetition_penalty: 1.0, ..bytemuck::Zeroable::zeroed() }
}

/// The first row of each sequence, and the end of all.
pub(super) fn first_rows(rows: impl Iterator<Item = usize>) -> Vec<usize> {
    let ends = rows.scan(0, |end, rows| {
        *end += rows;
        Some(*end)
    });
    iter::once(0).chain(ends).collect()
}

/// Rows of a sequence that a pass begins with: those that come without `h_N`, or, of recurrent drafts, the last one.
fn fresh(kind: Kind, sequence: &Sequence<'_>) -> usize {
    if kind.is_recurrent() { 1 } else { sequence.fresh() }
}

/// The first of each sequence's rows that a pass begins with, and the end of all.
fn first_fresh(kind: Kind, batch: &[Sequence<'_>]) -> Vec<usize> {
    first_rows(batch.iter().map(|sequence| fresh(kind, sequence)))
}

/// One sequence's row of the block table.
pub(super) fn row_of_table<'a>(pages: &'a [PageId], shape: &Shape) -> impl Iterator<Item = u32> + use<'a> {
    pages.iter().map(|page| page.0).chain(iter::repeat(0)).take(shape.max_pages())
}

/// The row that decides the token after `drafted` drafts, under the parameters, biases and mask of number `view`.
pub(super) fn judged(view: usize, sequence: &Sequence<'_>, drafted: usize, destination: usize) -> JudgedRow {
    JudgedRow {
        sequence: view as u32,
        position: (sequence.committed + drafted) as u32,
        drafted: drafted as u32,
        slot: sequence.slot as u32,
        destination: destination as u32,
    }
}

fn verified(sequence: &Sequence<'_>, first_row: usize, first_fresh: usize) -> VerifiedSequence {
    VerifiedSequence {
        slot: sequence.slot as u32,
        first_row: first_row as u32,
        committed: sequence.committed as u32,
        drafts: sequence.drafted() as u32,
        sampled: sequence.sampled() as u32,
        // Before them come the last sampled draft, or the pending token, and drafts that were made recurrently.
        proposed: (first_fresh + sequence.fresh() - sequence.proposed) as u32,
    }
}

/// The drafts that a sequence's rows follow, a run of `max_draft` for each row.
fn recent(sequence: &Sequence<'_>, shape: &Shape, max_draft: usize) -> Vec<TokenId> {
    let rows = if shape.drafts() { 1 } else { sequence.drafted() + 1 };
    let mut drafts = sequence.tokens[sequence.committed..].to_vec();
    drafts.resize(max_draft, 0);
    drafts.repeat(rows)
}
