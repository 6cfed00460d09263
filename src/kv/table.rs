//! One sequence's block table.

use super::{PAGE_TOKENS, PageId, PagePool};

/// The pages of one sequence in order of position, and how many positions of them are complete.
///
/// Rolling a draft back lowers [`len`](Self::len); the pages past it stay with the sequence and are
/// written over by the next round. Complete pages may be held by others too; those are never written.
#[derive(Debug, Default)]
pub struct BlockTable {
    pages: Vec<PageId>,
    len: usize,
}

impl BlockTable {
    /// Makes room for `positions` in all. Takes nothing from the pool where it cannot take enough.
    ///
    /// # Errors
    /// The number of pages missing from the pool.
    pub fn reserve(&mut self, positions: usize, pool: &mut PagePool) -> Result<(), usize> {
        let wanted = self.missing(positions);
        let pages = pool.take(wanted).ok_or_else(|| wanted - pool.free())?;
        self.pages.extend(pages);
        Ok(())
    }

    /// Pages that room for `positions` in all would take from the pool.
    pub fn missing(&self, positions: usize) -> usize {
        positions.div_ceil(PAGE_TOKENS).saturating_sub(self.pages.len())
    }

    /// Gives back the pages that `positions` in all have no need of; returns whether there were any.
    ///
    /// # Panics
    /// If complete positions are among those.
    pub fn trim(&mut self, positions: usize, pool: &mut PagePool) -> bool {
        assert!(self.len <= positions, "{} complete positions where {positions} are needed", self.len);
        let needed = positions.div_ceil(PAGE_TOKENS).min(self.pages.len());
        let spare = self.pages.len() > needed;
        pool.give_back(self.pages.drain(needed..).rev());
        spare
    }

    /// Adds a page after the others; the caller has made the table a holder of it.
    pub fn push(&mut self, page: PageId) {
        self.pages.push(page);
    }

    /// Puts a page that holds the same, or will before it is read, in the place of page `index`; of the new page the
    /// caller has made the table a holder.
    ///
    /// # Panics
    /// If the table has no such page.
    pub fn replace(&mut self, index: usize, page: PageId, pool: &mut PagePool) {
        let old = std::mem::replace(&mut self.pages[index], page);
        pool.give_back([old]);
    }

    /// The pages, first positions first.
    pub fn pages(&self) -> &[PageId] {
        &self.pages
    }

    /// Positions that the pages have room for.
    pub fn capacity(&self) -> usize {
        self.pages.len() * PAGE_TOKENS
    }

    /// Positions whose K and V are complete in every layer, the exit layer included.
    pub fn len(&self) -> usize {
        self.len
    }

    /// No position is complete.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Declares the first `len` positions complete: forward after a pass, backward to roll back.
    ///
    /// # Panics
    /// If the pages have no room for `len` positions.
    pub fn set_len(&mut self, len: usize) {
        assert!(len <= self.capacity(), "{len} positions in pages for {}", self.capacity());
        self.len = len;
    }

    /// Gives every page back; the sequence is empty afterwards.
    pub fn release(&mut self, pool: &mut PagePool) {
        pool.give_back(self.pages.drain(..).rev());
        self.len = 0;
    }
}
