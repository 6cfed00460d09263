//! Who drafts, by number and name, and how far each came.

use crate::draft;
use crate::engine;
use std::ffi::c_char;

/// Who drafted a token.
#[repr(i32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// Nobody: it is the whole model's own.
    None = 0,
    /// The exit block.
    Exit = 1,
    /// A lookup in the same text.
    Lookup = 2,
    /// A lookup in others' texts.
    Shared = 3,
    /// The grammar or schema of the answer, where it leaves nothing else.
    Grammar = 4,
}

/// Those that draft: elements of a by_source, which begins with EESD_SOURCE_EXIT.
pub const EESD_SOURCES: usize = 4;

const _: () = assert!(EESD_SOURCES == draft::Source::ALL.len());

/// What one source of drafts did.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct SourceStats {
    /// Rounds that it drafted, of each request.
    pub rounds: usize,
    /// Its drafts that were tested.
    pub drafted: usize,
    /// Those that were accepted.
    pub accepted: usize,
}

impl SourceStats {
    pub(super) const NONE: Self = Self { rounds: 0, drafted: 0, accepted: 0 };

    pub(super) fn of(stats: &[engine::SourceStats; EESD_SOURCES]) -> [Self; EESD_SOURCES] {
        stats.map(|engine::SourceStats { rounds, drafted, accepted }| Self { rounds, drafted, accepted })
    }
}

/// The number of who drafted a token.
pub(super) fn number(source: Option<draft::Source>) -> i32 {
    source.map_or(Source::None as i32, |source| 1 + source as i32)
}

/// The name of an eesd_source as in lists of draft: "exit", "lookup", "shared" or "grammar"; "nobody" for EESD_SOURCE_NONE, "unknown source"
/// for a number that is none.
///
/// Never NULL; a constant.
#[unsafe(no_mangle)]
pub extern "C" fn eesd_source_name(source: i32) -> *const c_char {
    let name = match source {
        0 => c"nobody",
        1 => c"exit",
        2 => c"lookup",
        3 => c"shared",
        4 => c"grammar",
        _ => c"unknown source",
    };
    name.as_ptr()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::CStr;

    #[test]
    fn sources_have_the_numbers_and_names_of_the_engines() {
        let numbers = [Source::Exit, Source::Lookup, Source::Shared, Source::Grammar].map(|source| source as i32);
        // SAFETY: constants that end in zeros.
        let name = |number| unsafe { CStr::from_ptr(eesd_source_name(number)) }.to_str().unwrap();
        for (source, expected) in draft::Source::ALL.into_iter().zip(numbers) {
            assert_eq!((number(Some(source)), name(expected)), (expected, source.name()));
        }
        assert_eq!((number(None), name(0)), (Source::None as i32, "nobody"));
        assert_eq!(name(1 + EESD_SOURCES as i32), "unknown source");
    }
}
