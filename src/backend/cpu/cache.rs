//! The paged KV cache: one more layer than the model, for the exit block.
//!
//! Keys of a (page, layer, head) lie as `[head_dim][64 tokens]`, so that scores fill lanes with tokens
//! and sum over the head in order; values as `[64 tokens][head_dim, padded]`, the other way round. All of them are
//! finite: what is not is noted, and zeros are put in its place (see [`NonFinite`]).
//!
//! They are kept in f32, or in 8 bits with an f32 scale for each [`GROUP`] dimensions of a token: keys' scales as
//! `[groups][64 tokens]`, values' as `[64 tokens][groups]`, behind the codes. What a token is kept as depends on nothing but
//! its own key and value, so that attention gives the same bits in 8 bits too, however sequences are cut and batched.

use super::super::non_finite::NonFinite;
use super::super::{BackendError, KvFormat};
use super::Simd;
use super::lanes::{Kernel, LANES, Lanes, padded};
use super::memory::Memory;
use crate::kv::{PAGE_TOKENS, PageId};
use crate::model::Geometry;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Dimensions of a head that share a scale in 8 bits: a whole number of vectors.
const GROUP: usize = KvFormat::GROUP;

/// K and V of all pages.
pub struct Cache {
    bytes: Memory<u8>,
    format: KvFormat,
    pages: usize,
    layers: usize,
    kv_heads: usize,
    head_dim: usize,
    non_finite: Mutex<NonFinite>,
}

/// Keys or values of a page that are in 8 bits.
#[derive(Clone, Copy)]
struct Codes {
    codes: *mut i8,
    scales: *mut f32,
}

impl Cache {
    /// `pages` pages of zeros; memory is committed as pages are first used.
    ///
    /// # Errors
    /// If the address space cannot be had.
    pub fn new(geometry: &Geometry, format: KvFormat, pages: usize) -> Result<Self, BackendError> {
        let Geometry { kv_heads, head_dim, .. } = *geometry;
        Ok(Self {
            bytes: Memory::zeroed(pages.saturating_mul(page_bytes(geometry, format)), "KV cache")?,
            format,
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

    /// All bytes of one page: every layer and head.
    ///
    /// # Safety
    /// Nobody else touches the page meanwhile.
    #[expect(clippy::mut_from_ref, reason = "as the cache's other accesses, which are to disjoint parts")]
    pub unsafe fn page(&self, page: PageId) -> &mut [u8] {
        let len = self.page_bytes();
        // SAFETY: the caller's promise.
        unsafe { self.bytes.slice_mut(page.0 as usize * len, len) }
    }

    /// Bytes of one page.
    pub fn page_bytes(&self) -> usize {
        self.layers * self.kv_heads * 2 * self.half_bytes()
    }

    /// Bytes of the keys, and of the values, of one page, layer and head.
    fn half_bytes(&self) -> usize {
        half_bytes(self.head_dim, self.format)
    }

    /// Keys of one page, layer and head.
    fn keys_at(&self, page: PageId, layer: usize, kv_head: usize) -> *mut u8 {
        let page = page.0 as usize;
        assert!(page < self.pages && layer < self.layers && kv_head < self.kv_heads);
        let block = (page * self.layers + layer) * self.kv_heads + kv_head;
        self.bytes.at(block * 2 * self.half_bytes())
    }

    /// Values of one page, layer and head.
    fn values_at(&self, page: PageId, layer: usize, kv_head: usize) -> *mut u8 {
        self.keys_at(page, layer, kv_head).wrapping_add(self.half_bytes())
    }

    fn codes(&self, half: *mut u8) -> Codes {
        Codes { codes: half.cast(), scales: half.wrapping_add(padded(self.head_dim) * PAGE_TOKENS).cast() }
    }

    /// Keys `[head_dim][64]` of one page, layer and head: where they lie, or widened into `scratch`, which has room for
    /// them all; the first `tokens` of them at least.
    ///
    /// # Safety
    /// Nobody writes the keys of those tokens meanwhile, and `scratch` is this thread's.
    pub unsafe fn keys(
        &self,
        simd: Simd,
        (page, layer, kv_head): (PageId, usize, usize),
        tokens: usize,
        scratch: *mut f32,
    ) -> *const f32 {
        let at = self.keys_at(page, layer, kv_head);
        match self.format {
            KvFormat::Full => at.cast_const().cast(),
            KvFormat::Eight => {
                simd.run(WidenKeys { from: self.codes(at), head_dim: self.head_dim, tokens, out: scratch });
                scratch
            }
        }
    }

    /// Values `[64][head_dim, padded]` of one page, layer and head, likewise; those of the tokens of a range at least.
    ///
    /// # Safety
    /// As [`keys`](Self::keys).
    pub unsafe fn values(
        &self,
        simd: Simd,
        (page, layer, kv_head): (PageId, usize, usize),
        tokens: std::ops::Range<usize>,
        scratch: *mut f32,
    ) -> *const f32 {
        let at = self.values_at(page, layer, kv_head);
        match self.format {
            KvFormat::Full => at.cast_const().cast(),
            KvFormat::Eight => {
                simd.run(WidenValues { from: self.codes(at), head_dim: self.head_dim, tokens, out: scratch });
                scratch
            }
        }
    }

    /// Puts the key of a position in its place.
    ///
    /// # Safety
    /// Only this thread touches that position of this layer and head.
    pub unsafe fn put_key(&self, pages: &[PageId], position: usize, layer: usize, kv_head: usize, key: &[f32]) {
        let (page, at) = (pages[position / PAGE_TOKENS], position % PAGE_TOKENS);
        let (keys, key) = (self.keys_at(page, layer, kv_head), &key[..self.head_dim]);
        match self.format {
            KvFormat::Full => {
                let column = keys.cast::<f32>().wrapping_add(at);
                for (dim, &number) in key.iter().enumerate() {
                    // SAFETY: inside the block of keys; nobody else touches this position.
                    unsafe { column.add(dim * PAGE_TOKENS).write(or_zero(number)) };
                }
            }
            KvFormat::Eight => {
                let Codes { codes, scales } = self.codes(keys);
                for (group, numbers) in key.chunks(GROUP).enumerate() {
                    let (scale, factor) = scale_of(numbers);
                    // SAFETY: as above.
                    unsafe { scales.add(group * PAGE_TOKENS + at).write(scale) };
                    for (dim, &number) in (group * GROUP..).zip(numbers) {
                        // SAFETY: as above.
                        unsafe { codes.add(dim * PAGE_TOKENS + at).write(code_of(number, factor)) };
                    }
                }
            }
        }
        self.note(key, pages, position, layer);
    }

    /// Puts the value of a position in its place.
    ///
    /// # Safety
    /// Only this thread touches that position of this layer and head.
    pub unsafe fn put_value(&self, pages: &[PageId], position: usize, layer: usize, kv_head: usize, value: &[f32]) {
        let (page, at) = (pages[position / PAGE_TOKENS], position % PAGE_TOKENS);
        let (values, value) = (self.values_at(page, layer, kv_head), &value[..self.head_dim]);
        let first = at * padded(self.head_dim);
        match self.format {
            KvFormat::Full => {
                let row = values.cast::<f32>().wrapping_add(first);
                for (dim, &number) in value.iter().enumerate() {
                    // SAFETY: inside the block of values; nobody else touches this position.
                    unsafe { row.add(dim).write(or_zero(number)) };
                }
            }
            KvFormat::Eight => {
                let Codes { codes, scales } = self.codes(values);
                let groups = self.head_dim.div_ceil(GROUP);
                for (group, numbers) in value.chunks(GROUP).enumerate() {
                    let (scale, factor) = scale_of(numbers);
                    // SAFETY: as above.
                    unsafe { scales.add(at * groups + group).write(scale) };
                    for (dim, &number) in (group * GROUP..).zip(numbers) {
                        // SAFETY: as above.
                        unsafe { codes.add(first + dim).write(code_of(number, factor)) };
                    }
                }
            }
        }
        self.note(value, pages, position, layer);
    }

    /// Notes a position that was given what is not finite, unless by the exit layer.
    fn note(&self, numbers: &[f32], pages: &[PageId], position: usize, layer: usize) {
        if layer + 1 < self.layers && !numbers.iter().all(|number| number.is_finite()) {
            self.non_finite().add(pages[position / PAGE_TOKENS], position % PAGE_TOKENS);
        }
    }
}

/// Bytes that one page takes: K and V of all layers, the exit layer included, with heads padded to whole vectors.
pub fn page_bytes(geometry: &Geometry, format: KvFormat) -> usize {
    let factors = [geometry.layers + 1, geometry.kv_heads, 2];
    factors.iter().fold(half_bytes(geometry.head_dim, format), |product, &factor| product.saturating_mul(factor))
}

/// Bytes of the keys, and of the values, of one page, layer and head.
fn half_bytes(head_dim: usize, format: KvFormat) -> usize {
    let bytes = match format {
        KvFormat::Full => padded(head_dim).saturating_mul(size_of::<f32>()),
        KvFormat::Eight => padded(head_dim).saturating_add(head_dim.div_ceil(GROUP) * size_of::<f32>()),
    };
    bytes.saturating_mul(PAGE_TOKENS)
}

fn or_zero(number: f32) -> f32 {
    if number.is_finite() { number } else { 0.0 }
}

/// The scale of some numbers, of which those that are not finite do not count, and what takes them to codes.
fn scale_of(numbers: &[f32]) -> (f32, f32) {
    const SMALLEST: f32 = 1e-30;
    let largest = numbers.iter().fold(0.0f32, |largest, &number| largest.max(or_zero(number).abs()));
    if largest < SMALLEST { (0.0, 0.0) } else { (largest / 127.0, 127.0 / largest) }
}

fn code_of(number: f32, factor: f32) -> i8 {
    (or_zero(number) * factor).round_ties_even() as i8
}

/// Widens keys of a page, `[head_dim][64]`.
struct WidenKeys {
    from: Codes,
    head_dim: usize,
    tokens: usize,
    out: *mut f32,
}

impl Kernel for WidenKeys {
    type Output = ();

    #[inline(always)]
    fn run<V: Lanes>(self) {
        let Self { from: Codes { codes, scales }, head_dim, tokens, out } = self;
        for token in (0..tokens).step_by(LANES) {
            for group in 0..head_dim.div_ceil(GROUP) {
                // SAFETY: the page has all of these codes and scales, and the result all of these places.
                unsafe {
                    let scale = V::load(scales.add(group * PAGE_TOKENS + token));
                    for dim in group * GROUP..head_dim.min((group + 1) * GROUP) {
                        let at = dim * PAGE_TOKENS + token;
                        V::load_i8(codes.add(at)).mul(scale).store(out.add(at));
                    }
                }
            }
        }
    }
}

/// Widens values of a page, `[64][head_dim, padded]`.
struct WidenValues {
    from: Codes,
    head_dim: usize,
    tokens: std::ops::Range<usize>,
    out: *mut f32,
}

impl Kernel for WidenValues {
    type Output = ();

    #[inline(always)]
    fn run<V: Lanes>(self) {
        let Self { from: Codes { codes, scales }, head_dim, tokens, out } = self;
        let (width, groups) = (padded(head_dim), head_dim.div_ceil(GROUP));
        for token in tokens {
            for first in (0..width).step_by(LANES) {
                let at = token * width + first;
                // SAFETY: the page has all of these codes and scales, and the result all of these places.
                unsafe {
                    let scale = V::splat(*scales.add(token * groups + first / GROUP));
                    V::load_i8(codes.add(at)).mul(scale).store(out.add(at));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::attention::tests::geometry;
    use super::*;

    #[test]
    fn sizes_whose_product_no_memory_holds_are_an_error() {
        let (layers, kv_heads, head_dim) = (4096, 256, 4096);
        let geometry = Geometry { layers, kv_heads, head_dim, ..geometry() };
        for (pages, format) in [(1 << 22, KvFormat::Full), (1 << 24, KvFormat::Eight), (usize::MAX, KvFormat::Eight)] {
            let error = Cache::new(&geometry, format, pages).err().expect("nobody has that much");
            assert!(matches!(error, BackendError::OutOfMemory { what: "KV cache", .. }), "{error}");
        }
    }
}
