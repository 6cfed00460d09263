//! The paged KV cache: one more layer than the model, for the exit block.
//!
//! Keys of a (page, layer, head) lie as `[head_dim][64 tokens]`, so that scores fill lanes with tokens
//! and sum over the head in order; values as `[64 tokens][head_dim, padded]`, the other way round. All of them are
//! finite: what is not is noted, and zeros are put in its place (see [`NonFinite`]).

use super::super::BackendError;
use super::super::non_finite::NonFinite;
use super::lanes::padded;
use super::memory::Memory;
use crate::kv::{PAGE_TOKENS, PageId};
use crate::model::Geometry;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// K and V of all pages.
pub struct Cache {
    numbers: Memory<f32>,
    pages: usize,
    layers: usize,
    kv_heads: usize,
    head_dim: usize,
    non_finite: Mutex<NonFinite>,
}

impl Cache {
    /// `pages` pages of zeros; memory is committed as pages are first used.
    ///
    /// # Errors
    /// If the address space cannot be had.
    pub fn new(geometry: &Geometry, pages: usize) -> Result<Self, BackendError> {
        let Geometry { kv_heads, head_dim, .. } = *geometry;
        Ok(Self {
            numbers: Memory::zeroed(pages.saturating_mul(page_floats(geometry)), "KV cache")?,
            pages,
            layers: geometry.layers + 1,
            kv_heads,
            head_dim,
            non_finite: Mutex::default(),
        })
    }

    /// The positions that were given what is not finite.
    pub fn non_finite(&self) -> MutexGuard<'_, NonFinite> {
        // What a panic may have interrupted is the adding of one position.
        self.non_finite.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keys `[head_dim][64]` of one page, layer and head.
    pub fn keys(&self, page: PageId, layer: usize, kv_head: usize) -> *mut f32 {
        let page = page.0 as usize;
        assert!(page < self.pages && layer < self.layers && kv_head < self.kv_heads);
        let block = (page * self.layers + layer) * self.kv_heads + kv_head;
        self.numbers.at(block * 2 * padded(self.head_dim) * PAGE_TOKENS)
    }

    /// All numbers of one page: every layer and head.
    ///
    /// # Safety
    /// Nobody else touches the page meanwhile.
    #[expect(clippy::mut_from_ref, reason = "as the cache's other accesses, which are to disjoint parts")]
    pub unsafe fn page(&self, page: PageId) -> &mut [f32] {
        let len = self.page_floats();
        // SAFETY: the caller's promise.
        unsafe { self.numbers.slice_mut(page.0 as usize * len, len) }
    }

    /// Floats of one page.
    pub fn page_floats(&self) -> usize {
        self.layers * self.kv_heads * 2 * padded(self.head_dim) * PAGE_TOKENS
    }

    /// Values `[64][head_dim, padded]` of one page, layer and head.
    pub fn values(&self, page: PageId, layer: usize, kv_head: usize) -> *mut f32 {
        self.keys(page, layer, kv_head).wrapping_add(padded(self.head_dim) * PAGE_TOKENS)
    }

    /// Puts the key of a position in its place.
    ///
    /// # Safety
    /// Only this thread touches that position of this layer and head.
    pub unsafe fn put_key(&self, pages: &[PageId], position: usize, layer: usize, kv_head: usize, key: &[f32]) {
        let column = self.keys(pages[position / PAGE_TOKENS], layer, kv_head).wrapping_add(position % PAGE_TOKENS);
        let mut finite = true;
        for (dim, &number) in key[..self.head_dim].iter().enumerate() {
            finite &= number.is_finite();
            // SAFETY: inside the block of keys; nobody else touches this position.
            unsafe { column.add(dim * PAGE_TOKENS).write(or_zero(number)) };
        }
        self.note(finite, pages, position, layer);
    }

    /// Puts the value of a position in its place.
    ///
    /// # Safety
    /// Only this thread touches that position of this layer and head.
    pub unsafe fn put_value(&self, pages: &[PageId], position: usize, layer: usize, kv_head: usize, value: &[f32]) {
        let row = self.values(pages[position / PAGE_TOKENS], layer, kv_head);
        let row = row.wrapping_add(position % PAGE_TOKENS * padded(self.head_dim));
        let mut finite = true;
        for (dim, &number) in value[..self.head_dim].iter().enumerate() {
            finite &= number.is_finite();
            // SAFETY: inside the block of values; nobody else touches this position.
            unsafe { row.add(dim).write(or_zero(number)) };
        }
        self.note(finite, pages, position, layer);
    }

    /// Notes a position that was given what is not finite, unless by the exit layer.
    fn note(&self, finite: bool, pages: &[PageId], position: usize, layer: usize) {
        if !finite && layer + 1 < self.layers {
            self.non_finite().add(pages[position / PAGE_TOKENS], position % PAGE_TOKENS);
        }
    }
}

/// Floats that one page takes: K and V of all layers, the exit layer included, with heads padded to whole vectors.
pub fn page_floats(geometry: &Geometry) -> usize {
    let factors = [geometry.layers + 1, geometry.kv_heads, 2 * padded(geometry.head_dim)];
    factors.iter().fold(PAGE_TOKENS, |product, &factor| product.saturating_mul(factor))
}

fn or_zero(number: f32) -> f32 {
    if number.is_finite() { number } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::super::attention::tests::geometry;
    use super::*;

    #[test]
    fn sizes_whose_product_no_memory_holds_are_an_error() {
        let (layers, kv_heads, head_dim) = (4096, 256, 4096);
        let geometry = Geometry { layers, kv_heads, head_dim, ..geometry() };
        for pages in [1 << 22, usize::MAX] {
            let error = Cache::new(&geometry, pages).err().expect("nobody has that much");
            assert!(matches!(error, BackendError::OutOfMemory { what: "KV cache", .. }), "{error}");
        }
    }
}
