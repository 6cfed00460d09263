//! Names on a profiler's timeline (NVTX): which kernels and waits belong to which part of a round.
//!
//! Ranges cost nanoseconds where nobody records them, and nothing in a build without NVIDIA's header.
//! To see them: `nsys profile -t nvtx,cuda eesd-run generate -p "..."`.

use std::marker::PhantomData;

/// Whether ranges are in this build.
pub const AVAILABLE: bool = cfg!(nvtx);

/// A part of the calling thread's time, until this is dropped. Ranges of a thread nest.
#[derive(Debug)]
#[must_use = "the range ends when this is dropped"]
pub struct Range {
    /// Belongs to the thread that began it.
    thread: PhantomData<*const ()>,
}

/// Begins a range. Names longer than 63 bytes are cut.
#[inline]
pub fn range(name: &str) -> Range {
    begin(name, None)
}

/// Begins a range with a number, as of a layer.
#[inline]
pub fn numbered(name: &str, number: usize) -> Range {
    begin(name, Some(number as u64))
}

#[cfg(nvtx)]
fn begin(name: &str, number: Option<u64>) -> Range {
    let name = terminated(name);
    match number {
        // SAFETY: a terminated string, which a profiler copies.
        None => unsafe { calls::eesd_push_range(name.as_ptr().cast()) },
        // SAFETY: as above.
        Some(number) => unsafe { calls::eesd_push_numbered_range(name.as_ptr().cast(), number) },
    }
    Range { thread: PhantomData }
}

#[cfg(not(nvtx))]
#[inline]
fn begin(_: &str, _: Option<u64>) -> Range {
    Range { thread: PhantomData }
}

impl Drop for Range {
    #[inline]
    fn drop(&mut self) {
        #[cfg(nvtx)]
        // SAFETY: ends the range that this thread began last.
        unsafe {
            calls::eesd_pop_range()
        };
    }
}

/// The name as C wants it, with no allocation: cut at a zero, and where it is too long.
#[cfg(nvtx)]
fn terminated(name: &str) -> [u8; 64] {
    let mut bytes = [0; 64];
    let mut end = name.len().min(bytes.len() - 1);
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    bytes[..end].copy_from_slice(&name.as_bytes()[..end]);
    bytes
}

/// `cuda/ranges.c`.
#[cfg(nvtx)]
mod calls {
    use std::ffi::c_char;
    unsafe extern "C" {
        pub fn eesd_push_range(name: *const c_char);
        pub fn eesd_push_numbered_range(name: *const c_char, number: u64);
        pub fn eesd_pop_range();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_nest() {
        let _round = range("round");
        (0..3).for_each(|layer| drop(numbered("layer", layer)));
        drop(range(&"é".repeat(100)));
    }

    #[cfg(nvtx)]
    #[test]
    fn names_are_terminated_and_cut_between_characters() {
        assert_eq!(&terminated("draft step")[..11], b"draft step\0");
        assert_eq!(terminated(""), [0; 64]);
        let long = terminated(&"é".repeat(100));
        assert_eq!(std::str::from_utf8(&long[..62]).unwrap(), "é".repeat(31));
        assert_eq!(long[62..], [0, 0]);
    }
}
