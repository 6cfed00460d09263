//! The pool of pages.

/// Positions in one page.
pub const PAGE_TOKENS: usize = 64;

/// Index of a page in the backend's cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PageId(pub u32);

/// Which pages of one cache are free, and how many hold each of the others; the last one given back is the first one
/// handed out (it is the warmest).
#[derive(Debug)]
pub struct PagePool {
    free: Vec<PageId>,
    /// Holders of each page.
    holders: Vec<u32>,
}

impl PagePool {
    /// A pool of pages `0..total`, all free.
    pub fn new(total: usize) -> Self {
        let last = u32::try_from(total).expect("page ids are 32 bits wide");
        Self { free: (0..last).rev().map(PageId).collect(), holders: vec![0; total] }
    }

    /// Pages in all.
    pub fn total(&self) -> usize {
        self.holders.len()
    }

    /// Pages nobody holds.
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// How many hold a page.
    pub fn holders(&self, page: PageId) -> u32 {
        self.holders[page.0 as usize]
    }

    /// Takes `n` pages, or none at all where fewer are free.
    pub fn take(&mut self, n: usize) -> Option<Vec<PageId>> {
        let keep = self.free.len().checked_sub(n)?;
        let mut taken = self.free.split_off(keep);
        taken.reverse();
        taken.iter().for_each(|page| self.holders[page.0 as usize] = 1);
        Some(taken)
    }

    /// One more holds a page that somebody holds already.
    pub fn share(&mut self, page: PageId) {
        let holders = &mut self.holders[page.0 as usize];
        debug_assert!(*holders > 0, "a free page cannot be shared");
        *holders += 1;
    }

    /// One holder less for each of the pages; who has none left is free.
    pub fn give_back(&mut self, pages: impl IntoIterator<Item = PageId>) {
        for page in pages {
            let holders = &mut self.holders[page.0 as usize];
            debug_assert!(*holders > 0, "a page was given back twice");
            *holders = holders.saturating_sub(1);
            if *holders == 0 {
                self.free.push(page);
            }
        }
    }
}
