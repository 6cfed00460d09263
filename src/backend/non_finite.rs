//! Which positions of a cache were given keys or values that are not finite numbers.
//!
//! Such a number must not lie in the cache: a masked position has weight 0, and 0 · NaN is NaN, so that one refused
//! draft would spoil its whole sequence, and one page kept for its text every request that takes it over. Both backends
//! write zeros in the place of such numbers and note the position here; the engine ends the request that it belongs to.
//! What the exit layer's cache is given is not noted: it changes what is drafted, never what is written.

use crate::kv::{PAGE_TOKENS, PageId};
use std::collections::BTreeSet;
use std::ops::Range;

/// The positions, by page and place in the page. Nearly always there are none.
#[derive(Debug, Default)]
pub(super) struct NonFinite(BTreeSet<(PageId, usize)>);

impl NonFinite {
    /// Notes a position by its page and its place there.
    pub fn add(&mut self, page: PageId, place: usize) {
        self.0.insert((page, place));
    }

    /// These positions of a sequence are about to be computed anew.
    pub fn forget(&mut self, pages: &[PageId], positions: Range<usize>) {
        if !self.0.is_empty() {
            for position in positions {
                self.0.remove(&place_of(pages, position));
            }
        }
    }

    /// These pages get other contents.
    pub fn forget_pages(&mut self, pages: &[PageId]) {
        self.0.retain(|(page, _)| !pages.contains(page));
    }

    /// The first of a sequence's positions that was noted.
    pub fn first(&self, pages: &[PageId], mut positions: Range<usize>) -> Option<usize> {
        if self.0.is_empty() { None } else { positions.find(|&position| self.0.contains(&place_of(pages, position))) }
    }
}

fn place_of(pages: &[PageId], position: usize) -> (PageId, usize) {
    (pages[position / PAGE_TOKENS], position % PAGE_TOKENS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_is_noted_until_it_is_computed_anew() {
        let pages = [7, 2].map(PageId);
        let mut noted = NonFinite::default();
        assert_eq!(noted.first(&pages, 0..128), None);
        noted.add(PageId(2), 5);
        noted.add(PageId(7), 63);
        noted.add(PageId(9), 0);
        assert_eq!(noted.first(&pages, 0..128), Some(63));
        assert_eq!(noted.first(&pages, 64..128), Some(69));
        assert_eq!(noted.first(&pages, 64..69), None);
        noted.forget(&pages, 60..64);
        assert_eq!(noted.first(&pages, 0..128), Some(69));
        noted.forget_pages(&pages[1..]);
        assert_eq!(noted.first(&pages, 0..128), None);
        assert_eq!(noted.first(&[PageId(9)], 0..1), Some(0));
    }
}
