//! The pool of pages.

/// Positions in one page.
pub const PAGE_TOKENS: usize = 64;

/// Index of a page in the backend's cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PageId(pub u32);

/// Free pages of one cache; the last one given back is the first one handed out (it is the warmest).
#[derive(Debug)]
pub struct PagePool {
    free: Vec<PageId>,
    total: usize,
}

impl PagePool {
    /// A pool of pages `0..total`, all free.
    pub fn new(total: usize) -> Self {
        let last = u32::try_from(total).expect("page ids are 32 bits wide");
        Self { free: (0..last).rev().map(PageId).collect(), total }
    }

    /// Pages in all.
    pub fn total(&self) -> usize {
        self.total
    }

    /// Pages nobody holds.
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// Takes `n` pages, or none at all where fewer are free.
    pub fn take(&mut self, n: usize) -> Option<Vec<PageId>> {
        let keep = self.free.len().checked_sub(n)?;
        let mut taken = self.free.split_off(keep);
        taken.reverse();
        Some(taken)
    }

    /// Takes back pages that [`take`](Self::take) gave.
    pub fn give_back(&mut self, pages: impl IntoIterator<Item = PageId>) {
        self.free.extend(pages);
        debug_assert!(self.free.len() <= self.total, "a page was given back twice");
    }
}
