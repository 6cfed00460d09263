//! The device as a [`Backend`]: what each pass is told, and what comes back of it.

use super::CudaBackend;
use super::driver::Driver;
use super::inbox::{Inbox, Kind, Layout, Shape};
use super::kernels::{
    Address, Attention, CountTokens, JudgedRow, Params, RowChoice, TokenBias, Verdict, VerifiedSequence,
    sampling_kernel,
};
use super::pass::Pass;
use super::workspace::padded_rows;
use crate::TokenId;
use crate::backend::{Backend, BackendError, Chunk, Draft, Evaluation, Limits, Sequence};
use crate::kv::PageId;
use crate::model::Geometry;
use crate::sample;
use std::iter;

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
        format!("cuda, {}, {} weights", self.driver.describe(), self.model.format)
    }

    fn prefill(&mut self, batch: &[Chunk<'_>]) -> Result<(), BackendError> {
        for piece in self.pieces(batch, self.rows.any)? {
            let (shape, inbox) = self.read(&piece)?;
            let pass = Pass { on: &*self.driver, model: &self.model, inbox: &inbox, shape };
            // SAFETY: `read` has filled the inbox with a pass of this shape and within the limits.
            unsafe { pass.prefill() }?;
            self.driver.wait()?;
        }
        Ok(())
    }

    fn draft(&mut self, batch: &[Sequence<'_>]) -> Result<Vec<Draft>, BackendError> {
        if self.model.weights.exit.is_none() {
            return Err(BackendError::Exit("none was given, so nothing can be drafted".to_owned()));
        }
        for sequence in batch {
            self.check(sequence)?;
            if sequence.drafted() >= self.limits.max_draft {
                return Err(BackendError::Device(format!("more than {} drafts in a round", self.limits.max_draft)));
            }
        }
        if batch.is_empty() {
            return Ok(Vec::new());
        }
        self.count(batch)?;
        let shape = self.shape(Kind::Draft, batch, batch.len());
        let max_draft = self.limits.max_draft;
        let row_of_draft = |sequence: &Sequence<'_>| sequence.slot * max_draft + sequence.drafted();
        let judged: Vec<_> = batch
            .iter()
            .enumerate()
            .map(|(index, sequence)| judged(index, sequence, sequence.drafted(), row_of_draft(sequence)))
            .collect();
        let inbox = self.tell(&shape, batch, |layout, inbox| layout.judged.put(inbox, judged))?;
        let bytes = self.limits.slots * max_draft * size_of::<RowChoice>();
        // SAFETY: the inbox holds a pass of this shape within the limits.
        unsafe { self.round(shape, &inbox, self.model.work.draft_choices, bytes) }?;
        let choices: &[RowChoice] = bytemuck::cast_slice(&self.host.outbox.contents()[..bytes]);
        let drafts: Vec<_> = batch.iter().map(|sequence| choices[row_of_draft(sequence)]).collect();
        for (sequence, choice) in batch.iter().zip(&drafts) {
            self.slots[sequence.slot].drafted.push(choice.token);
        }
        Ok(drafts.iter().map(|choice| Draft { token: choice.token, confidence: choice.confidence }).collect())
    }

    fn verify(&mut self, batch: &[Sequence<'_>]) -> Result<Vec<sample::Verdict>, BackendError> {
        batch.iter().try_for_each(|sequence| self.check(sequence))?;
        if batch.is_empty() {
            return Ok(Vec::new());
        }
        self.count(batch)?;
        let rows = batch.iter().map(|sequence| sequence.drafted() + 1).sum();
        let shape = self.shape(Kind::Verify, batch, padded_rows(rows));
        let first_rows: Vec<usize> = first_rows(batch.iter().map(|sequence| sequence.drafted() + 1));
        let of_round = |(index, sequence): (usize, &Sequence<'_>)| {
            let first = first_rows[index];
            (0..=sequence.drafted()).map(|j| judged(index, sequence, j, first + j)).collect::<Vec<_>>()
        };
        let mut judged: Vec<JudgedRow> = batch.iter().enumerate().flat_map(of_round).collect();
        // Rows of no sequence are sampled from too, greedily, to where nobody looks.
        let idle = |row| JudgedRow { sequence: batch.len() as u32, position: 0, drafted: 0, slot: 0, destination: row };
        judged.extend((rows as u32..shape.rows as u32).map(idle));
        let kept = |sequence: &Sequence<'_>| {
            let first = sequence.slot * self.rows.round;
            (first..=first + sequence.drafted()).map(|row| row as u32).collect::<Vec<_>>()
        };
        let gather: Vec<u32> = batch.iter().flat_map(kept).collect();
        let verified: Vec<_> =
            batch.iter().zip(&first_rows).map(|(sequence, &first)| verified(sequence, first)).collect();
        let inbox = self.tell(&shape, batch, |layout, inbox| {
            layout.gather.put(inbox, gather);
            layout.judged.put(inbox, judged);
            layout.verified.put(inbox, verified);
        })?;
        let bytes = batch.len() * size_of::<Verdict>();
        // SAFETY: the inbox holds a pass of this shape within the limits.
        unsafe { self.round(shape, &inbox, self.model.work.verdicts, bytes) }?;
        let verdicts: Vec<Verdict> = bytemuck::cast_slice(&self.host.outbox.contents()[..bytes]).to_vec();
        self.slots.iter_mut().for_each(|slot| slot.logits = None);
        let mut found = Vec::with_capacity(batch.len());
        for ((sequence, verdict), &first) in batch.iter().zip(verdicts).zip(&first_rows) {
            self.slots[sequence.slot].logits = Some((first, sequence.drafted() + 1));
            found.push(self.verdict(sequence, verdict, first)?);
        }
        Ok(found)
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
        let Geometry { layers, vocab_size, hidden_size, .. } = self.model.geometry;
        if tap > layers {
            return Err(BackendError::Device(format!("hidden states after {tap} layers of {layers}")));
        }
        let mut result = Evaluation { logits: Vec::new(), hidden: Vec::new() };
        for piece in self.pieces(std::slice::from_ref(chunk), self.rows.logits)? {
            let (shape, inbox) = self.read(&piece)?;
            let pass = Pass { on: &*self.driver, model: &self.model, inbox: &inbox, shape };
            // SAFETY: `read` has filled the inbox with a pass of this shape and within the limits.
            unsafe { pass.read_until(tap) }?;
            result.hidden.extend(self.floats(self.model.work.residual, 0, shape.rows * hidden_size)?);
            // SAFETY: as above; the residual stream is where it was left.
            unsafe { pass.read_from(tap) }?;
            result.logits.extend(self.floats(self.model.work.logits, 0, shape.rows * vocab_size)?);
        }
        Ok(result)
    }
}

impl<D: Driver> CudaBackend<D> {
    /// Refuses what does not fit, and drafts that the device has not made.
    fn check(&mut self, sequence: &Sequence<'_>) -> Result<(), BackendError> {
        self.limits.check(sequence)?;
        let slot = &mut self.slots[sequence.slot];
        slot.drafted.truncate(sequence.drafted());
        if slot.drafted != sequence.tokens[sequence.committed..] {
            let found = format!("slot {}: {} drafts", sequence.slot, sequence.drafted());
            return Err(BackendError::Device(format!("{found} (expected those that were drafted there)")));
        }
        Ok(())
    }

    /// The shape of a pass of rounds with `rows` rows after the exit layer.
    fn shape(&self, kind: Kind, batch: &[Sequence<'_>], rows: usize) -> Shape {
        let longest = batch.iter().map(|sequence| sequence.tokens.len()).max().unwrap_or(1);
        let most_drafts = batch.iter().map(Sequence::drafted).max().unwrap_or(0);
        let adjusts = |sequence: &Sequence<'_>| {
            let params = sequence.sampler.params();
            params.has_penalties() || !params.logit_bias.is_empty()
        };
        let biases: usize = batch.iter().map(|sequence| sequence.sampler.params().logit_bias.len()).sum();
        Shape {
            kind,
            batch: batch.len(),
            fresh: batch.len(),
            rows,
            most_rows: if kind == Kind::Draft { 1 } else { most_drafts + 1 },
            chunks: chunks_of(longest),
            biases: batch.iter().any(adjusts).then(|| biases.next_power_of_two()),
        }
    }

    /// Writes what rounds' passes have in common into the inbox, and the rest by `more`.
    fn tell(
        &mut self,
        shape: &Shape,
        batch: &[Sequence<'_>],
        more: impl FnOnce(&Layout, &mut [u8]),
    ) -> Result<Inbox, BackendError> {
        let inbox = self.host.inbox(&self.driver, shape, self.limits.max_draft, &mut self.graphs)?;
        let (layout, room) = (&inbox.layout, self.host.inbox.contents_mut());
        let ends = |rows: Vec<usize>| rows.into_iter().map(|row| row as i32);
        layout.ids.put(room, batch.iter().map(|sequence| sequence.tokens[sequence.tokens.len() - 1]));
        layout.fresh_begin.put(room, 0..=batch.len() as i32);
        layout.fresh_start.put(room, batch.iter().map(|sequence| sequence.tokens.len() as i32 - 1));
        layout.begin.put(room, ends(first_rows(batch.iter().map(|sequence| sequence.drafted() + 1))));
        layout.start.put(room, batch.iter().map(|sequence| sequence.committed as i32 - 1));
        layout.table.put(room, batch.iter().flat_map(|sequence| row_of_table(sequence.pages, shape)));
        let kept = |sequence: &Sequence<'_>| (sequence.slot * self.rows.round + sequence.drafted()) as u32;
        layout.keep.put(room, batch.iter().map(kept));
        layout.params.put(room, batch.iter().map(|sequence| Params::new(sequence.sampler)).chain([idle_params()]));
        if shape.biases.is_some() {
            let biases = |sequence: &Sequence<'_>| sequence.sampler.params().logit_bias.clone();
            let bias = |(token, bias)| TokenBias { token, bias };
            let begin = first_rows(batch.iter().map(|sequence| biases(sequence).len()));
            let all = *begin.last().unwrap_or(&0);
            layout.bias_begin.put(room, ends(begin).chain([all as i32]));
            layout.biases.put(room, batch.iter().flat_map(biases).map(bias));
            layout
                .recent
                .put(room, batch.iter().flat_map(|sequence| self::recent(sequence, shape, self.limits.max_draft)));
        }
        more(layout, room);
        Ok(inbox)
    }

    /// Runs a pass of a round and waits for what it writes at `from`, which is in the outbox then.
    ///
    /// # Safety
    /// The inbox holds a pass of this shape within the limits.
    unsafe fn round(&mut self, shape: Shape, inbox: &Inbox, from: Address, bytes: usize) -> Result<(), BackendError> {
        let Self { driver, model, host, graphs, .. } = self;
        let pass = Pass { on: &**driver, model, inbox, shape };
        let all = || {
            // SAFETY: all sides have room, the outbox for the largest of answers; inbox and outbox are left alone
            // until the pass is waited for; the rest is the caller's promise.
            unsafe {
                driver.copy_to_device(inbox.at, host.inbox.at(), inbox.layout.bytes)?;
                match shape.kind {
                    Kind::Draft => pass.draft()?,
                    _ => pass.verify()?,
                }
                driver.copy_to_host(host.outbox.at(), from, bytes)
            }
        };
        // SAFETY: the same addresses serve every pass of a shape.
        unsafe { graphs.run(driver, shape, &all) }?;
        driver.wait()
    }

    /// Brings the device's counts of tokens in line with sequences that have penalties.
    fn count(&mut self, batch: &[Sequence<'_>]) -> Result<(), BackendError> {
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
            unsafe {
                if recount.from_zero {
                    self.driver.zero(counts, row_bytes)?;
                }
                self.driver.copy_to_device(work.counted, self.host.outbox.at(), bytes.len())?;
                sampling_kernel(&*self.driver, 1, &arguments)?;
            }
            self.driver.wait()?;
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

    /// Cuts chunks into passes of at most `rows` rows.
    fn pieces<'a>(&self, batch: &[Chunk<'a>], rows: usize) -> Result<Vec<Vec<Chunk<'a>>>, BackendError> {
        let mut pieces: Vec<Vec<Chunk<'a>>> = Vec::new();
        let mut room = 0;
        for chunk in batch {
            self.limits.check_room(chunk.pages, chunk.start + chunk.tokens.len())?;
            let (mut start, mut tokens) = (chunk.start, chunk.tokens);
            while !tokens.is_empty() {
                if room == 0 || pieces.last().is_none_or(|piece| piece.len() == self.limits.slots) {
                    pieces.push(Vec::new());
                    room = rows;
                }
                let (now, later) = tokens.split_at(tokens.len().min(room));
                pieces.last_mut().expect("just made").push(Chunk { pages: chunk.pages, start, tokens: now });
                (start, tokens, room) = (start + now.len(), later, room - now.len());
            }
        }
        Ok(pieces)
    }

    /// Tells the device of a piece of text.
    fn read(&mut self, piece: &[Chunk<'_>]) -> Result<(Shape, Inbox), BackendError> {
        let rows = piece.iter().map(|chunk| chunk.tokens.len()).sum();
        let longest = piece.iter().map(|chunk| chunk.start + chunk.tokens.len()).max().unwrap_or(1);
        let shape = Shape {
            kind: Kind::Read,
            batch: piece.len(),
            fresh: rows,
            rows,
            most_rows: piece.iter().map(|chunk| chunk.tokens.len()).max().unwrap_or(1),
            chunks: chunks_of(longest),
            biases: None,
        };
        let inbox = self.host.inbox(&self.driver, &shape, self.limits.max_draft, &mut self.graphs)?;
        let (layout, room) = (&inbox.layout, self.host.inbox.contents_mut());
        layout.ids.put(room, piece.iter().flat_map(|chunk| chunk.tokens.iter().copied()));
        let begin = first_rows(piece.iter().map(|chunk| chunk.tokens.len()));
        layout.fresh_begin.put(room, begin.into_iter().map(|row| row as i32));
        layout.fresh_start.put(room, piece.iter().map(|chunk| chunk.start as i32));
        layout.table.put(room, piece.iter().flat_map(|chunk| row_of_table(chunk.pages, &shape)));
        layout.gather.put(room, 0..rows as u32);
        // SAFETY: both sides have room; the inbox is left alone until the pass is waited for.
        unsafe { self.driver.copy_to_device(inbox.at, self.host.inbox.at(), layout.bytes) }?;
        self.slots.iter_mut().for_each(|slot| slot.logits = None);
        Ok((shape, inbox))
    }

    /// Numbers `at .. at + count` of an array on the device.
    fn floats(&self, array: Address, at: usize, count: usize) -> Result<Vec<f32>, BackendError> {
        self.host.download(&self.driver, Address(array.0 + 4 * at as u64), count)
    }
}

/// Parameters of rows that belong to no sequence: greedy, so that nothing but their choice is written.
fn idle_params() -> Params {
    Params { top_p: 1.0, repetition_penalty: 1.0, ..bytemuck::Zeroable::zeroed() }
}

/// The first row of each sequence, and the end of all.
fn first_rows(rows: impl Iterator<Item = usize>) -> Vec<usize> {
    let ends = rows.scan(0, |end, rows| {
        *end += rows;
        Some(*end)
    });
    iter::once(0).chain(ends).collect()
}

/// Chunks of 256 positions for a sequence of `len` tokens, rounded up to few different numbers.
fn chunks_of(len: usize) -> usize {
    len.div_ceil(Attention::CHUNK_TOKENS as usize).next_power_of_two()
}

/// One sequence's row of the block table.
fn row_of_table<'a>(pages: &'a [PageId], shape: &Shape) -> impl Iterator<Item = u32> + use<'a> {
    pages.iter().map(|page| page.0).chain(iter::repeat(0)).take(shape.max_pages())
}

/// The row that decides the token after `drafted` drafts of sequence `index`.
fn judged(index: usize, sequence: &Sequence<'_>, drafted: usize, destination: usize) -> JudgedRow {
    JudgedRow {
        sequence: index as u32,
        position: (sequence.committed + drafted) as u32,
        drafted: drafted as u32,
        slot: sequence.slot as u32,
        destination: destination as u32,
    }
}

fn verified(sequence: &Sequence<'_>, first_row: usize) -> VerifiedSequence {
    VerifiedSequence {
        slot: sequence.slot as u32,
        first_row: first_row as u32,
        committed: sequence.committed as u32,
        drafts: sequence.drafted() as u32,
    }
}

/// The drafts that a sequence's rows follow, a run of `max_draft` for each row.
fn recent(sequence: &Sequence<'_>, shape: &Shape, max_draft: usize) -> Vec<TokenId> {
    let rows = if shape.kind == Kind::Draft { 1 } else { sequence.drafted() + 1 };
    let mut drafts = sequence.tokens[sequence.committed..].to_vec();
    drafts.resize(max_draft, 0);
    drafts.repeat(rows)
}
