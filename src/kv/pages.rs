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
    /// Of each page.
    uses: Vec<Use>,
    /// Pages that are kept and held by nobody else.
    idle: usize,
}

#[derive(Debug, Clone, Copy, Default)]
struct Use {
    holders: u32,
    /// One of the holders keeps it only for the text that it holds.
    kept: bool,
}

impl Use {
    fn is_idle(self) -> bool {
        self.kept && self.holders == 1
    }
}

impl PagePool {
    /// A pool of pages `0..total`, all free.
    pub fn new(total: usize) -> Self {
        let last = u32::try_from(total).expect("page ids are 32 bits wide");
        Self { free: (0..last).rev().map(PageId).collect(), uses: vec![Use::default(); total], idle: 0 }
    }

    /// Pages in all.
    pub fn total(&self) -> usize {
        self.uses.len()
    }

    /// Pages nobody holds.
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// Pages that are [kept](Self::keep) and held by nobody else: as good as free.
    pub fn idle(&self) -> usize {
        self.idle
    }

    /// Whether a page is one of them.
    pub fn is_idle(&self, page: PageId) -> bool {
        self.uses[page.0 as usize].is_idle()
    }

    /// Takes `n` pages, or none at all where fewer are free.
    pub fn take(&mut self, n: usize) -> Option<Vec<PageId>> {
        let keep = self.free.len().checked_sub(n)?;
        let mut taken = self.free.split_off(keep);
        taken.reverse();
        taken.iter().for_each(|page| self.uses[page.0 as usize].holders = 1);
        Some(taken)
    }

    /// One more holds a page that somebody holds already.
    pub fn share(&mut self, page: PageId) {
        self.change(page, |page| {
            debug_assert!(page.holders > 0, "a free page cannot be shared");
            page.holders += 1;
        });
    }

    /// One more holds a page that somebody holds already, and only for the text that it holds.
    pub fn keep(&mut self, page: PageId) {
        self.share(page);
        self.change(page, |page| page.kept = true);
    }

    /// Nobody keeps the page for its text any more.
    pub fn forget(&mut self, page: PageId) {
        self.change(page, |page| page.kept = false);
        self.give_back([page]);
    }

    /// One holder less for each of the pages; who has none left is free.
    pub fn give_back(&mut self, pages: impl IntoIterator<Item = PageId>) {
        for page in pages {
            self.change(page, |page| {
                debug_assert!(page.holders > 0, "a page was given back twice");
                page.holders = page.holders.saturating_sub(1);
            });
            if self.uses[page.0 as usize].holders == 0 {
                self.free.push(page);
            }
        }
    }

    /// Changes who uses a page, and keeps count of the idle ones.
    fn change(&mut self, page: PageId, change: impl FnOnce(&mut Use)) {
        let page = &mut self.uses[page.0 as usize];
        let before = page.is_idle();
        change(page);
        self.idle = self.idle + usize::from(page.is_idle()) - usize::from(before);
    }
}
