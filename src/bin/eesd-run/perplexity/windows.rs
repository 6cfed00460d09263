//! A text in windows, and a model that reads them.

use crate::failure::Outcome;
use eesd::TokenId;
use eesd::backend::{Backend, BackendError, Chunk};
use eesd::kv::{BlockTable, PAGE_TOKENS, PagePool};
use std::ops::Range;

/// Positions of a window of `size` tokens whose next token is scored: the second half, whose last has no next one.
pub fn scored(size: usize) -> Range<usize> {
    size / 2..size - 1
}

/// A text cut into windows of one size; what is left over at its end is dropped.
pub struct Windows {
    tokens: Vec<TokenId>,
    begin: Vec<TokenId>,
    size: usize,
}

impl Windows {
    /// Windows of `size` of the text's tokens, each of which begins with `begin` in place of its own.
    pub fn new(tokens: Vec<TokenId>, begin: Vec<TokenId>, size: usize) -> Self {
        Self { tokens, begin, size }
    }

    /// Tokens of one.
    pub fn size(&self) -> usize {
        self.size
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.tokens.len() / self.size
    }

    /// The tokens of one. Those that are scored are the text's, whatever it begins with.
    pub fn tokens(&self, number: usize) -> Vec<TokenId> {
        let mut tokens = self.tokens[number * self.size..][..self.size].to_vec();
        tokens[..=scored(self.size).start].iter_mut().zip(&self.begin).for_each(|(token, begin)| *token = *begin);
        tokens
    }
}

/// A model that reads a few windows side by side.
pub struct Reader {
    backend: Box<dyn Backend>,
    tables: Vec<BlockTable>,
}

impl Reader {
    /// Room for `together` windows of `size` tokens.
    ///
    /// # Errors
    /// If the backend has less.
    pub fn new(backend: Box<dyn Backend>, size: usize, together: usize) -> Outcome<Self> {
        let mut pool = PagePool::new(backend.limits().pages);
        let mut tables: Vec<BlockTable> = (0..together).map(|_| BlockTable::default()).collect();
        for table in &mut tables {
            if table.reserve(size, &mut pool).is_err() {
                let positions = size.next_multiple_of(PAGE_TOKENS) * together;
                return Err(BackendError::Device(format!("no room for {positions} positions")).into());
            }
        }
        Ok(Self { backend, tables })
    }

    /// The device and how it is used.
    pub fn describe(&self) -> String {
        self.backend.describe()
    }

    /// Reads what is not scored of windows, each in its place.
    ///
    /// # Errors
    /// If the device fails, or the model gives numbers that are not finite.
    pub fn begin(&mut self, windows: &[Vec<TokenId>]) -> Outcome {
        let Self { backend, tables } = self;
        let chunks: Vec<Chunk<'_>> = tables
            .iter()
            .zip(windows)
            .map(|(table, tokens)| Chunk {
                pages: table.pages(),
                start: 0,
                tokens: &tokens[..scored(tokens.len()).start],
            })
            .collect();
        backend.prefill(&chunks)?;
        match chunks.iter().find_map(|chunk| backend.first_non_finite(chunk.pages, 0..chunk.tokens.len())) {
            Some(position) => Err(BackendError::NonFinite { position }.into()),
            None => Ok(()),
        }
    }

    /// Logits `[rows, vocab]` of these positions of the window that was begun in this place; all before them have been
    /// read.
    ///
    /// # Errors
    /// As [`begin`](Self::begin).
    pub fn read(&mut self, place: usize, tokens: &[TokenId], rows: Range<usize>) -> Outcome<Vec<f32>> {
        let chunk = Chunk { pages: self.tables[place].pages(), start: rows.start, tokens: &tokens[rows] };
        Ok(self.backend.evaluate(&chunk, 0)?.logits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_begin_alike_and_score_the_texts_own_tokens() {
        let windows = Windows::new((10..31).collect(), vec![1], 5);
        assert_eq!(windows.count(), 4);
        assert_eq!(windows.tokens(0), [1, 11, 12, 13, 14]);
        assert_eq!(windows.tokens(3), [1, 26, 27, 28, 29]);
        assert_eq!(scored(5), 2..4);
        assert_eq!(scored(512), 256..511);
        // However much a tokenizer puts before a text.
        assert_eq!(Windows::new((10..20).collect(), vec![1; 9], 5).tokens(0), [1, 1, 1, 13, 14]);
    }
}
