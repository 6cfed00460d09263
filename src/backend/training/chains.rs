//! The chains of a batch: which rows draft what, and where.
//!
//! In each segment a chain starts at every row from the first that counts to the last. Its first step is the block on that
//! row; step `j` drafts the token `j` places after it, from what step `j - 1` left, if that place is still among those
//! rows: chains that would run over the end have fewer steps. So the rows of a step are the first ones of the step before.

use super::TeacherBatch;
use std::ops::Range;

/// One segment's.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Span {
    /// Its first row in the batch.
    first: usize,
    /// Where chains start, counted within the segment. Rows after the last one are of no use.
    starts: Range<usize>,
}

/// A row of a step that drafts what is scored at some position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Draft {
    /// The step, from 0.
    pub step: usize,
    /// Its row among those of the step.
    pub row: usize,
}

/// The chains of a batch.
pub struct Chains {
    spans: Vec<Span>,
}

impl Chains {
    /// Those that `batch` has positions for.
    pub fn new(batch: &TeacherBatch) -> Self {
        let mut first = 0;
        let mut scored = batch.scored.iter().map(|position| position.row).peekable();
        let span = |&len: &usize| {
            let (begin, end) = (first, first + len);
            first = end;
            let mut mine = std::iter::from_fn(|| scored.next_if(|&row| row < end));
            let starts = mine.next().map_or(0..0, |low| low - begin..mine.last().unwrap_or(low) + 1 - begin);
            Span { first: begin, starts }
        };
        Self { spans: batch.lengths.iter().map(span).collect() }
    }

    /// Rows of each segment that chains see: those up to its last start.
    pub fn seen(&self) -> Vec<usize> {
        self.spans.iter().map(|span| span.starts.end).collect()
    }

    /// The rows of the batch that are seen, one segment after another.
    pub fn seen_rows(&self) -> impl Iterator<Item = usize> {
        self.spans.iter().flat_map(|span| (0..span.starts.end).map(|row| span.first + row))
    }

    /// Their positions.
    pub fn seen_positions(&self) -> Vec<usize> {
        self.spans.iter().flat_map(|span| 0..span.starts.end).collect()
    }

    /// Where chains start, among the rows that are seen.
    pub fn starts(&self) -> Vec<usize> {
        let mut before = 0;
        let mut of_span = |span: &Span| {
            let first = before;
            before += span.starts.end;
            span.starts.clone().map(move |row| first + row)
        };
        self.spans.iter().flat_map(&mut of_span).collect()
    }

    /// The first start of each segment.
    pub fn first_starts(&self) -> Vec<usize> {
        self.spans.iter().map(|span| span.starts.start).collect()
    }

    /// Rows of step `step`, from 0, of each segment.
    pub fn counts(&self, step: usize) -> Vec<usize> {
        self.spans.iter().map(|span| span.starts.len().saturating_sub(step)).collect()
    }

    /// Where each row of step `step` drafts from: its position.
    pub fn positions(&self, step: usize) -> Vec<usize> {
        self.spans.iter().flat_map(|span| (span.starts.start + step).min(span.starts.end)..span.starts.end).collect()
    }

    /// The row of the batch at that position, which has the token that the step before drafted.
    pub fn rows(&self, step: usize) -> impl Iterator<Item = usize> {
        self.spans.iter().flat_map(move |span| {
            ((span.starts.start + step).min(span.starts.end)..span.starts.end).map(|row| span.first + row)
        })
    }

    /// For every chain, where it is in step `step`: the row of the batch and the position; chains that would run over the end stay
    /// at the last row.
    pub fn places(&self, step: usize) -> impl Iterator<Item = (usize, usize)> {
        self.spans.iter().flat_map(move |span| {
            let place = move |start: usize| (start + step).min(span.starts.end - 1);
            span.starts.clone().map(place).map(|position| (span.first + position, position))
        })
    }

    /// For each row of step `step`, above 0, that of the same chain in the step before.
    pub fn before(&self, step: usize) -> Vec<usize> {
        let mut rows = Vec::new();
        let mut first = 0;
        for (now, before) in self.counts(step).into_iter().zip(self.counts(step - 1)) {
            rows.extend(first..first + now);
            first += before;
        }
        rows
    }

    /// For each scored position of the batch, the rows of the first `steps` steps that draft what follows it.
    pub fn drafts(&self, batch: &TeacherBatch, steps: usize) -> Vec<Vec<Draft>> {
        let counts: Vec<Vec<usize>> = (0..steps).map(|step| self.counts(step)).collect();
        let mut begins = vec![0; steps];
        let mut drafts = Vec::with_capacity(batch.scored.len());
        let mut scored = batch.scored.iter().map(|position| position.row).peekable();
        for (index, span) in self.spans.iter().enumerate() {
            let end = span.first + span.starts.end;
            while let Some(row) = scored.next_if(|&row| row < end) {
                let place = row - span.first - span.starts.start;
                let draft = |step: usize| Draft { step, row: begins[step] + place - step };
                drafts.push((0..steps.min(place + 1)).map(draft).collect());
            }
            begins.iter_mut().zip(&counts).for_each(|(begin, counts)| *begin += counts[index]);
        }
        drafts
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::training::Position;

    #[test]
    fn chains_start_at_rows_that_count_and_end_with_them() {
        let scored = [2, 3, 5, 9].map(|row| Position { row, token: 0, weight: 1.0 }).to_vec();
        let batch = TeacherBatch { lengths: vec![7, 2, 3], scored, ..TeacherBatch::default() };
        let chains = Chains::new(&batch);
        assert_eq!(chains.seen(), [6, 0, 1]);
        assert_eq!(chains.seen_rows().collect::<Vec<_>>(), [0, 1, 2, 3, 4, 5, 9]);
        assert_eq!(chains.seen_positions(), [0, 1, 2, 3, 4, 5, 0]);
        assert_eq!(chains.starts(), [2, 3, 4, 5, 6]);
        assert_eq!([chains.counts(0), chains.counts(1), chains.counts(5)], [[4, 0, 1], [3, 0, 0], [0, 0, 0]]);
        assert_eq!([chains.positions(0), chains.positions(2)], [vec![2, 3, 4, 5, 0], vec![4, 5]]);
        assert_eq!(chains.rows(1).collect::<Vec<_>>(), [3, 4, 5]);
        assert_eq!(chains.places(2).collect::<Vec<_>>(), [(4, 4), (5, 5), (5, 5), (5, 5), (9, 0)]);
        assert_eq!(chains.before(1), [0, 1, 2]);
        let drafts = chains.drafts(&batch, 3);
        let pairs = |drafts: &[Draft]| drafts.iter().map(|draft| (draft.step, draft.row)).collect::<Vec<_>>();
        let expected = [vec![(0, 0)], vec![(0, 1), (1, 0)], vec![(0, 3), (1, 2), (2, 1)], vec![(0, 4)]];
        assert_eq!(drafts.iter().map(|drafts| pairs(drafts)).collect::<Vec<_>>(), expected);
    }
}
