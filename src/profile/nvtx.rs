//! Ranges on the timeline of NVIDIA's profilers (NVTX 3), by `cuda/ranges.c`.

#[cfg(nvtx)]
pub fn push(name: &str, number: Option<u64>) {
    let name = terminated(name);
    match number {
        // SAFETY: a terminated string, which a profiler copies.
        None => unsafe { calls::eesd_push_range(name.as_ptr().cast()) },
        // SAFETY: as above.
        Some(number) => unsafe { calls::eesd_push_numbered_range(name.as_ptr().cast(), number) },
    }
}

/// Nobody to tell in this build.
#[cfg(not(nvtx))]
#[inline]
pub fn push(_: &str, _: Option<u64>) {}

#[inline]
pub fn pop() {
    #[cfg(nvtx)]
    // SAFETY: ends the range that this thread began last.
    unsafe {
        calls::eesd_pop_range()
    };
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

#[cfg(nvtx)]
mod calls {
    use std::ffi::c_char;
    unsafe extern "C" {
        pub fn eesd_push_range(name: *const c_char);
        pub fn eesd_push_numbered_range(name: *const c_char, number: u64);
        pub fn eesd_pop_range();
    }
}

#[cfg(all(test, nvtx))]
mod tests {
    use super::*;

    #[test]
    fn names_are_terminated_and_cut_between_characters() {
        assert_eq!(&terminated("draft step")[..11], b"draft step\0");
        assert_eq!(terminated(""), [0; 64]);
        let long = terminated(&"é".repeat(100));
        assert_eq!(std::str::from_utf8(&long[..62]).unwrap(), "é".repeat(31));
        assert_eq!(long[62..], [0, 0]);
    }
}
