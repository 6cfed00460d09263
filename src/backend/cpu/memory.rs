//! Large zeroed buffers that the workers of a pass share.

use super::super::BackendError;
use memmap2::MmapMut;

/// Zeroed memory straight from the operating system: committed on first touch, in huge pages where
/// there are some (a pass reads all weights once, far more than the TLB spans otherwise).
pub struct Memory<T> {
    /// Keeps the memory that `start` points into.
    _map: MmapMut,
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
        let mut map = MmapMut::map_anon(bytes).map_err(|_| BackendError::OutOfMemory { what, bytes })?;
        #[cfg(target_os = "linux")]
        {
            // Only advice: without huge pages all still works.
            let _ = map.advise(memmap2::Advice::HugePage);
        }
        // A mapping starts at a page, which aligns every plain type.
        let start = map.as_mut_ptr().cast();
        Ok(Self { _map: map, start, len })
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
