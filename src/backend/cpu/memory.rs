//! Large zeroed buffers that the workers of a pass share.

use super::super::BackendError;
#[cfg(not(heap_buffers))]
use memmap2::MmapMut;

/// Whoever keeps the memory.
#[cfg(not(heap_buffers))]
type Backing = MmapMut;
/// The address sanitizer watches over the heap, not over mappings: `.ci/sanitize` asks for the heap.
#[cfg(heap_buffers)]
type Backing = Vec<Line>;

/// What mappings are aligned to, and more.
#[cfg(heap_buffers)]
#[derive(Clone)]
#[repr(align(64))]
struct Line(#[expect(dead_code, reason = "only its address is used")] [u8; 64]);

/// Zeroed memory straight from the operating system: committed on first touch, in huge pages where
/// there are some (a pass reads all weights once, far more than the TLB spans otherwise).
pub struct Memory<T> {
    /// Keeps the memory that `start` points into.
    _backing: Backing,
    start: *mut T,
    len: usize,
}

// SAFETY: the memory belongs to this value alone; access goes through the unsafe functions below.
unsafe impl<T: Send> Send for Memory<T> {}
// SAFETY: the same.
unsafe impl<T: Sync> Sync for Memory<T> {}

impl<T: bytemuck::Pod> Memory<T> {
    /// `len` zeros.
    ///
    /// # Errors
    /// If the memory cannot be had.
    pub fn zeroed(len: usize, what: &'static str) -> Result<Self, BackendError> {
        let bytes = len.max(1).saturating_mul(size_of::<T>());
        let mut backing = reserve(bytes).ok_or(BackendError::OutOfMemory { what, bytes })?;
        // It starts at a page (or a cache line), which aligns every plain type.
        let start = backing.as_mut_ptr().cast();
        Ok(Self { _backing: backing, start, len })
    }

    /// A pointer to element `at`.
    pub fn at(&self, at: usize) -> *mut T {
        debug_assert!(at <= self.len);
        self.start.wrapping_add(at)
    }

    /// Elements `at..at + len`.
    ///
    /// # Safety
    /// Nobody writes them meanwhile.
    pub unsafe fn slice(&self, at: usize, len: usize) -> &[T] {
        assert!(at + len <= self.len);
        // SAFETY: in bounds, initialised (zeroed), and not written, as the caller promises.
        unsafe { std::slice::from_raw_parts(self.start.add(at), len) }
    }

    /// Elements `at..at + len`, to be written.
    ///
    /// # Safety
    /// Nobody else touches them meanwhile.
    #[expect(clippy::mut_from_ref, reason = "workers write disjoint parts of one buffer")]
    pub unsafe fn slice_mut(&self, at: usize, len: usize) -> &mut [T] {
        assert!(at + len <= self.len);
        // SAFETY: in bounds, initialised (zeroed), and ours alone, as the caller promises.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(at), len) }
    }
}

#[cfg(not(heap_buffers))]
fn reserve(bytes: usize) -> Option<Backing> {
    let map = MmapMut::map_anon(bytes).ok()?;
    #[cfg(target_os = "linux")]
    {
        // Only advice: without huge pages all still works.
        let _ = map.advise(memmap2::Advice::HugePage);
    }
    Some(map)
}

#[cfg(heap_buffers)]
fn reserve(bytes: usize) -> Option<Backing> {
    let lines = bytes.div_ceil(size_of::<Line>());
    let mut backing = Vec::new();
    backing.try_reserve_exact(lines).ok()?;
    backing.resize(lines, Line([0; 64]));
    Some(backing)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_memory_holds_is_an_error() {
        for len in [usize::MAX, usize::MAX / 4, usize::MAX / 8, isize::MAX as usize / 4, 1 << 60] {
            let error = Memory::<f32>::zeroed(len, "test").err().expect("nobody has that much");
            assert!(matches!(error, BackendError::OutOfMemory { what: "test", .. }), "{error}");
        }
    }
}
