//! Names for the parts of a thread's time, on any device: on the timeline of NVIDIA's profilers (NVTX), and in a
//! [`Trace`] that a browser shows.
//!
//! Ranges cost nanoseconds where nobody records them. To see them in Nsight Systems: `nsys profile -t nvtx,cuda eesd-run
//! generate -p "..."`; without a GPU: `eesd-run bench --trace FILE.json`.
//!
//! ```
//! use eesd::profile;
//!
//! profile::start_trace();
//! {
//!     let mut round = profile::range("round");
//!     drop(profile::range("verify"));
//!     round.note("rows", || 5.into());
//! }
//! let trace = profile::end_trace();
//! assert!(trace.to_chrome_json().contains("\"rows\":5"));
//! ```

mod nvtx;
mod trace;

pub use trace::{Trace, end_trace, start_trace};

use std::borrow::Cow;
use std::marker::PhantomData;
use trace::Open;

/// Whether NVTX ranges are in this build: NVIDIA's header was beside nvcc when it was made.
pub const AVAILABLE: bool = cfg!(nvtx);

/// A part of the calling thread's time, until this is dropped. Ranges of a thread nest.
#[derive(Debug)]
#[must_use = "the range ends when this is dropped"]
pub struct Range {
    /// In the trace, while one is being recorded.
    open: Option<Open>,
    /// Belongs to the thread that began it.
    thread: PhantomData<*const ()>,
}

/// Begins a range. NVTX cuts names longer than 63 bytes.
#[inline]
pub fn range(name: impl Into<Cow<'static, str>>) -> Range {
    begin(name.into(), None)
}

/// Begins a range with a number, as of a layer.
#[inline]
pub fn numbered(name: impl Into<Cow<'static, str>>, number: usize) -> Range {
    begin(name.into(), Some(number as u64))
}

#[inline]
fn begin(name: Cow<'static, str>, number: Option<u64>) -> Range {
    nvtx::push(&name, number);
    let mut range = Range { open: Open::begin(name), thread: PhantomData };
    if let Some(number) = number {
        range.note("number", || number.into());
    }
    range
}

impl Range {
    /// Adds something worth knowing to the range in the trace; `value` is asked for only while one is being recorded.
    #[inline]
    pub fn note(&mut self, key: &'static str, value: impl FnOnce() -> serde_json::Value) {
        if let Some(open) = &mut self.open {
            open.note(key, value());
        }
    }
}

impl Drop for Range {
    #[inline]
    fn drop(&mut self) {
        nvtx::pop();
        if let Some(open) = self.open.take() {
            open.end();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_nest() {
        let _round = range("round");
        (0..3).for_each(|layer| drop(numbered("layer", layer)));
        drop(range("é".repeat(100)));
    }
}
