//! Texts into the cache: prefill, and the teacher's reading.

use super::CudaBackend;
use super::driver::Driver;
use super::fast::{FastPrefill, LEAST_ROWS};
use super::inbox::{Inbox, Kind, Shape};
use super::kernels::HeadPartial;
use super::pack::TILE_ROWS;
use super::pass::{Done, Pass};
use super::rounds::{first_rows, row_of_table};
use super::workspace::chunks_of;
use crate::backend::{BackendError, Chunk, Said};
use crate::model::Geometry;
use std::ops::Range;

impl<D: Driver> CudaBackend<D> {
    /// Fills the cache.
    pub(super) fn fill(&mut self, batch: &[Chunk<'_>]) -> Result<(), BackendError> {
        self.forget_chunks(batch);
        let fast = self.model.work.fast;
        let (long, short) = if fast.is_some() { parted(batch, self.rows.any) } else { (Vec::new(), batch.to_vec()) };
        // Ascending positions: what is left of a text follows its long pieces.
        for piece in long {
            self.fill_piece(&[piece], fast)?;
        }
        for piece in self.pieces(&short, self.rows.any) {
            self.fill_piece(&piece, None)?;
        }
        self.collect_noted_by_text()
    }

    /// Fills the cache in one pass.
    fn fill_piece(&mut self, piece: &[Chunk<'_>], fast: Option<FastPrefill>) -> Result<(), BackendError> {
        let (shape, inbox) = self.tell_text(piece)?;
        let pass = Pass { on: &*self.driver, model: &self.model, inbox: &inbox, shape };
        // SAFETY: `tell_text` has filled the inbox with a pass of this shape and within the limits.
        let filled = unsafe { pass.prefill(fast) };
        // Even after a failure: what is queued reads the inbox.
        self.driver.wait().and(filled)
    }

    /// Fills the cache as far as layers run, and returns hidden states after each of the ascending `taps` layers. `with_logits`
    /// is called when those of some of `rows` are there: in the workspace's rows that it is told.
    pub(super) fn read_text(
        &mut self,
        chunk: &Chunk<'_>,
        taps: &[usize],
        rows: Range<usize>,
        mut with_logits: impl FnMut(&Self, Range<usize>) -> Done,
    ) -> Result<Vec<Vec<f32>>, BackendError> {
        let Geometry { hidden_size, layers, .. } = self.model.geometry;
        self.forget_chunks(std::slice::from_ref(chunk));
        let mut tapped = vec![Vec::new(); taps.len()];
        let mut first = 0;
        let room = if rows.is_empty() { self.rows.any } else { self.rows.logits };
        for piece in self.pieces(std::slice::from_ref(chunk), room) {
            let (shape, inbox) = self.tell_text(&piece)?;
            let pass = Pass { on: &*self.driver, model: &self.model, inbox: &inbox, shape };
            // SAFETY: `tell_text` has filled the inbox with a pass of this shape and within the limits; so below, where the
            // residual stream is where it was left.
            let begun = unsafe { pass.begin_reading() };
            self.driver.wait().and(begun)?;
            let mut done = 0;
            for (&tap, hidden) in taps.iter().zip(&mut tapped) {
                // SAFETY: as above.
                let through = unsafe { pass.read_layers(done..tap) };
                self.driver.wait().and(through)?;
                hidden.extend(self.floats(self.model.work.residual, 0, shape.rows * hidden_size)?);
                done = tap.max(done);
            }
            if !rows.is_empty() {
                // Of every piece: later rows see its keys in all layers.
                // SAFETY: as above.
                let through = unsafe { pass.read_layers(done..layers) };
                self.driver.wait().and(through)?;
            }
            let wanted = rows.start.max(first)..rows.end.min(first + shape.rows);
            if !wanted.is_empty() {
                // SAFETY: as above.
                let said = unsafe { pass.read_logits() };
                self.driver.wait().and(said)?;
                with_logits(self, wanted.start - first..wanted.end - first)?;
            }
            first += shape.rows;
        }
        self.collect_noted_by_text()?;
        match self.non_finite.first(chunk.pages, chunk.start..chunk.start + chunk.tokens.len()) {
            Some(position) => Err(BackendError::NonFinite { position }),
            None => Ok(tapped),
        }
    }

    /// What the logits in some rows of the workspace say: from what the kernel of the head keeps of each 32 of them.
    pub(super) fn said(&self, rows: Range<usize>) -> Result<Vec<Said>, BackendError> {
        let tiles = self.model.geometry.vocab_size.div_ceil(TILE_ROWS);
        let words = tiles * size_of::<HeadPartial>() / size_of::<f32>();
        let partials = self.floats(self.model.work.partials, rows.start * words, rows.len() * words)?;
        Ok(bytemuck::cast_slice(&partials).chunks_exact(tiles).map(said_of).collect())
    }

    /// Cuts chunks into passes of at most `rows` rows.
    fn pieces<'a>(&self, batch: &[Chunk<'a>], rows: usize) -> Vec<Vec<Chunk<'a>>> {
        let mut pieces: Vec<Vec<Chunk<'a>>> = Vec::new();
        let mut room = 0;
        for chunk in batch {
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
        pieces
    }

    /// Tells the device of a piece of text.
    fn tell_text(&mut self, piece: &[Chunk<'_>]) -> Result<(Shape, Inbox), BackendError> {
        let rows = piece.iter().map(|chunk| chunk.tokens.len()).sum();
        let longest = piece.iter().map(|chunk| chunk.start + chunk.tokens.len()).max().unwrap_or(1);
        let most_rows = piece.iter().map(|chunk| chunk.tokens.len()).max().unwrap_or(1);
        let shape = Shape {
            kind: Kind::Read,
            batch: piece.len(),
            fresh: rows,
            most_fresh: most_rows,
            rows,
            most_rows,
            chunks: chunks_of(longest, self.limits.context),
            views: 0,
            biases: None,
            mask_words: 0,
            weighs: false,
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
        self.forget_logits();
        Ok((shape, inbox))
    }
}

/// What a row's logits say, of which these are kept, by ascending columns.
fn said_of(partials: &[HeadPartial]) -> Said {
    let above = |best: HeadPartial, next: &HeadPartial| if next.max > best.max { *next } else { best };
    let none = HeadPartial { max: f32::NEG_INFINITY, column: 0, sum: 0.0 };
    let best = partials.iter().fold(none, above);
    let sum: f64 = partials.iter().map(|part| f64::from(part.sum) * f64::from(part.max - best.max).exp()).sum();
    Said { log_total: (f64::from(best.max) + sum.ln()) as f32, likeliest: best.column }
}

/// Runs of at most `rows` tokens that are long enough for fast prefill, in order, and what is left of each chunk.
///
/// A run is a pass of its own, so that its bits depend on its chunk alone: the library's sums depend on how many rows
/// they share a product with, and which prompts come together is a matter of chance. What is left is read exactly,
/// where neighbours change nothing.
fn parted<'a>(batch: &[Chunk<'a>], rows: usize) -> (Vec<Chunk<'a>>, Vec<Chunk<'a>>) {
    let (mut long, mut short) = (Vec::new(), Vec::new());
    for &Chunk { pages, mut start, mut tokens } in batch {
        while tokens.len().min(rows) >= LEAST_ROWS {
            let (run, rest) = tokens.split_at(tokens.len().min(rows));
            long.push(Chunk { pages, start, tokens: run });
            (start, tokens) = (start + run.len(), rest);
        }
        if !tokens.is_empty() {
            short.push(Chunk { pages, start, tokens });
        }
    }
    (long, short)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_runs_go_alone_and_neighbours_change_nothing_about_them() {
        let tokens: Vec<u32> = (0..700).collect();
        let chunk = |start: usize, len: usize| Chunk { pages: &[], start, tokens: &tokens[start..start + len] };
        let runs = |batch: &[Chunk<'_>], rows| {
            let (long, short) = parted(batch, rows);
            [long, short].map(|runs| runs.iter().map(|run| (run.start, run.tokens.len())).collect::<Vec<_>>())
        };
        assert_eq!(runs(&[chunk(0, 700)], 256), [vec![(0, 256), (256, 256), (512, 188)], vec![]]);
        assert_eq!(runs(&[chunk(0, 600)], 256), [vec![(0, 256), (256, 256)], vec![(512, 88)]]);
        assert_eq!(runs(&[chunk(5, 128), chunk(0, 129), chunk(9, 0)], 256), [vec![(0, 129)], vec![(5, 128)]]);
        assert_eq!(runs(&[chunk(0, 300)], 100), [vec![], vec![(0, 300)]], "no pass is long enough");
    }
}
