//! Who has which pages of the cache, and who gives them up where they run out.

use super::Engine;
use super::running::Running;
use crate::TokenId;
use crate::backend::{BackendError, SavedPages};
use crate::kv::{BlockTable, PAGE_TOKENS, PagePool, PrefixCache};
use crate::profile;

/// The cache's pages: free, held by sequences, or kept for what texts they hold.
pub(super) struct Pages {
    pool: PagePool,
    prefixes: PrefixCache,
}

/// A preempted sequence, and what its complete positions hold.
pub(super) struct SwappedOut {
    pub sequence: Running,
    saved: SavedPages,
}

impl Pages {
    pub fn new(total: usize) -> Self {
        Self { pool: PagePool::new(total), prefixes: PrefixCache::default() }
    }

    /// Pages in all.
    pub fn total(&self) -> usize {
        self.pool.total()
    }

    /// Pages that no sequence holds.
    pub fn available(&self) -> usize {
        self.pool.free() + self.pool.idle()
    }

    /// Pages kept for their texts.
    pub fn kept(&self) -> usize {
        self.prefixes.len()
    }

    /// Makes room for `positions` in all, and leaves `spare` pages for others; takes nothing where it cannot.
    pub fn reserve(&mut self, table: &mut BlockTable, positions: usize, spare: usize) -> bool {
        let missing = table.missing(positions);
        if missing == 0 {
            return true;
        }
        let short = (missing + spare).saturating_sub(self.pool.free());
        if short > 0 && missing + spare > self.available() {
            return false;
        }
        self.prefixes.evict(short, &mut self.pool);
        table.reserve(positions, &mut self.pool).is_ok()
    }

    /// Gives back those pages of a table that `positions` in all have no need of; whether there were any.
    pub fn trim(&mut self, table: &mut BlockTable, positions: usize) -> bool {
        table.trim(positions, &mut self.pool)
    }

    /// Gives a table's pages back.
    pub fn release(&mut self, table: &mut BlockTable) {
        table.release(&mut self.pool);
    }

    /// Takes pages kept of a prompt's beginning into a table, in place of incomplete ones or as its first; returns the
    /// positions that are complete with them and were not before. Of `tokens` every position may be taken.
    pub fn adopt(&mut self, table: &mut BlockTable, tokens: &[TokenId]) -> usize {
        let before = table.len();
        let found = self.prefixes.find(tokens);
        let complete = found.len() * PAGE_TOKENS;
        if complete <= before {
            return 0;
        }
        for (index, page) in found.into_iter().enumerate().skip(before / PAGE_TOKENS) {
            self.pool.share(page);
            if index < table.pages().len() {
                table.replace(index, page, &mut self.pool);
            } else {
                table.push(page);
            }
        }
        table.set_len(complete);
        complete - before
    }

    /// Keeps a sequence's complete pages from page `from` on for others; returns the first page that is not complete.
    /// Where one of the same text is kept already the sequence goes on with that one.
    pub fn keep(&mut self, table: &mut BlockTable, tokens: &[TokenId], from: usize) -> usize {
        let complete = table.len() / PAGE_TOKENS;
        for index in from..complete {
            let page = table.pages()[index];
            let kept = self.prefixes.keep(&tokens[..(index + 1) * PAGE_TOKENS], page, &mut self.pool);
            if kept != page {
                self.pool.share(kept);
                table.replace(index, kept, &mut self.pool);
            }
        }
        complete.max(from)
    }

    /// Keeps no page for its text any more.
    pub fn forget_prefixes(&mut self) {
        self.prefixes.clear(&mut self.pool);
    }
}

impl Engine {
    /// Sees to it that every running sequence has room for its next round: first for its pending token, then, those that
    /// came first first, for all the drafts that it may make, or else as many as its pages hold. Where a pending token has
    /// no room, pages for drafts of earlier rounds are given up, and where there are none, the sequence that came last is
    /// preempted.
    pub(super) fn secure_pages(&mut self) -> Result<(), BackendError> {
        let limits = self.backend.limits();
        let mut i = 0;
        while i < self.running.len() {
            let sequence = &mut self.running[i];
            let pending = sequence.committed();
            match self.pages.reserve(&mut sequence.table, pending, 0) {
                true => i += 1,
                false if self.give_up_drafts() => {}
                false => self.preempt_last()?,
            }
        }
        for sequence in &mut self.running {
            let wanted = sequence.committed() + sequence.most_drafts(&limits);
            self.pages.reserve(&mut sequence.table, wanted, 0);
        }
        Ok(())
    }

    /// Takes back pages that running sequences hold only for drafts; false if there are none.
    fn give_up_drafts(&mut self) -> bool {
        let mut spare = false;
        for sequence in &mut self.running {
            let pending = sequence.committed();
            spare |= self.pages.trim(&mut sequence.table, pending);
        }
        spare
    }

    /// Moves the sequence that came last to the host's memory.
    fn preempt_last(&mut self) -> Result<(), BackendError> {
        let _range = profile::range("swap out");
        let last = |sequences: &[Running]| sequences.last().map(|sequence| sequence.arrival);
        let from = if last(&self.prefilling) > last(&self.running) { &mut self.prefilling } else { &mut self.running };
        let Some(sequence) = from.last() else { return Ok(()) };
        let complete = sequence.table.len().div_ceil(PAGE_TOKENS);
        // Where this fails the sequence is one of those that fail with it.
        let saved = self.backend.save_pages(&sequence.table.pages()[..complete])?;
        let Some(mut sequence) = from.pop() else { return Ok(()) };
        let len = sequence.table.len();
        self.pages.release(&mut sequence.table);
        self.free_slots.push(sequence.slot);
        sequence.swapped_out(len);
        self.totals.preemptions += 1;
        self.totals.swapped_pages += complete;
        self.swapped_out.push_front(SwappedOut { sequence, saved });
        Ok(())
    }

    /// Brings the preempted sequence that came first back, into `slot`; false where there are too few pages.
    pub(super) fn swap_in(&mut self, slot: usize) -> Result<bool, BackendError> {
        let fits = self.reserve_for_swapped_out() || self.give_up_drafts() && self.reserve_for_swapped_out();
        if !fits {
            return Ok(false);
        }
        let _range = profile::range("swap in");
        let Some(SwappedOut { mut sequence, saved }) = self.swapped_out.pop_front() else { return Ok(false) };
        self.free_slots.pop();
        sequence.slot = slot;
        self.controller.start(slot);
        self.proposing.choice.start(slot);
        let restored = self.backend.restore_pages(&saved, &sequence.table.pages()[..saved.pages()]);
        sequence.swapped_in();
        if restored.is_ok() && self.reuses_prefixes() {
            sequence.kept = self.pages.keep(&mut sequence.table, &sequence.tokens, 0);
        }
        let to = if sequence.is_prefilled() { &mut self.running } else { &mut self.prefilling };
        to.push(sequence);
        restored.map(|()| true)
    }

    /// Makes room for the preempted sequence that came first, if there is enough.
    fn reserve_for_swapped_out(&mut self) -> bool {
        let spare = self.pages_to_spare();
        self.swapped_out.front_mut().is_some_and(|SwappedOut { sequence, .. }| {
            let wanted = sequence.committed();
            self.pages.reserve(&mut sequence.table, wanted, spare)
        })
    }

    /// Pages that an admission leaves to those who are there: each will soon want one more.
    pub(super) fn pages_to_spare(&self) -> usize {
        self.running.len() + self.prefilling.len()
    }
}
