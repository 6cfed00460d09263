//! What a host passes in, checked before it is believed.
//!
//! Whether a pointer points to what it should cannot be seen. What can be is: NULL, alignment, struct_size, lengths that
//! no memory has, UTF-8.

use super::status::{Failure, Outcome, Status};
use crate::load::{Keys, json_error};
use serde_json::{Map, Value};
use std::ffi::{CStr, c_char};
use std::ptr::NonNull;

/// Longest text, in bytes: 1 GiB. A longer one is a length that was never set.
const LONGEST_TEXT: usize = 1 << 30;

/// A text of known length in UTF-8, which need not end in a zero and may contain some.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Text {
    /// The bytes; may be NULL where length is 0.
    pub data: *const c_char,
    /// How many.
    pub length: usize,
}

/// A structure of the interface.
///
/// # Safety
///
/// `repr(C)`, with `struct_size: usize` as its first field.
pub(super) unsafe trait Versioned {
    /// As in `eesd_request`.
    const NAME: &'static str;
}

/// A structure that hosts fill in.
///
/// # Safety
///
/// Valid whatever bits its fields have: a Rust enumeration among them would not be.
pub(super) unsafe trait Incoming: Versioned {}

/// A host's structure.
///
/// # Safety
///
/// `pointer` is NULL, or good to read for as many bytes as the structure's own first field says, for `'a`.
pub(super) unsafe fn structure<'a, T: Incoming>(pointer: *const T) -> Outcome<&'a T> {
    check(pointer, T::NAME)?;
    // SAFETY: not NULL and aligned; the caller vouches for the rest.
    check_size::<T>(unsafe { pointer.cast::<usize>().read() })?;
    // SAFETY: the same, and of the size of `T`; any bits are a `T`.
    Ok(unsafe { &*pointer })
}

/// That a structure is as large as the host's.
pub(super) fn check_size<T: Versioned>(size: usize) -> Outcome {
    let expected = size_of::<T>();
    if size == expected {
        return Ok(());
    }
    let found =
        format!("{}: struct_size is {size} (expected {expected}: sizeof, by the header of this library)", T::NAME);
    Err(Failure::new(Status::InvalidStructSize, found))
}

/// Where a host wants something written, whatever is there.
#[derive(Clone, Copy)]
pub(super) struct Place<T>(NonNull<T>);

impl<T> Place<T> {
    /// # Safety
    ///
    /// `pointer` is NULL, or good to write a `T` to while this lives.
    pub unsafe fn new(pointer: *mut T, name: &str) -> Outcome<Self> {
        check(pointer, name)?;
        NonNull::new(pointer).map(Self).ok_or_else(|| null(name))
    }

    pub fn write(self, value: T) {
        // SAFETY: not NULL and aligned; the maker vouches for the rest.
        unsafe { self.0.write(value) }
    }
}

impl<T: Versioned> Place<T> {
    /// A structure that the host wants filled: its struct_size is set.
    ///
    /// # Safety
    ///
    /// `pointer` is NULL, or good to read and write for as many bytes as the structure's own first field says, while
    /// this lives.
    pub unsafe fn structure(pointer: *mut T) -> Outcome<Self> {
        // SAFETY: the same is asked of the caller.
        let place = unsafe { Self::new(pointer, T::NAME) }?;
        // SAFETY: not NULL and aligned; the caller vouches for the rest.
        check_size::<T>(unsafe { pointer.cast::<usize>().read() })?;
        Ok(place)
    }
}

/// A text that ends in a zero; `None`: NULL.
///
/// # Safety
///
/// `pointer` is NULL, or good to read up to the first zero, for `'a`.
pub(super) unsafe fn optional_string<'a>(pointer: *const c_char, name: &str) -> Outcome<Option<&'a str>> {
    if pointer.is_null() {
        return Ok(None);
    }
    // SAFETY: not NULL; the caller vouches for the rest.
    let bytes = unsafe { CStr::from_ptr(pointer) }.to_bytes();
    utf8(bytes, name).map(Some)
}

/// A text that ends in a zero.
///
/// # Safety
///
/// As [`optional_string`].
pub(super) unsafe fn string<'a>(pointer: *const c_char, name: &str) -> Outcome<&'a str> {
    // SAFETY: the same is asked of the caller.
    unsafe { optional_string(pointer, name) }?.ok_or_else(|| null(name))
}

/// A text of known length.
///
/// # Safety
///
/// `data` is NULL, or good to read for `length` bytes, for `'a`.
pub(super) unsafe fn text<'a>(data: *const c_char, length: usize, name: &str) -> Outcome<&'a str> {
    // SAFETY: the same is asked of the caller.
    utf8(unsafe { slice(data.cast::<u8>(), length, LONGEST_TEXT, name) }?, name)
}

/// A JSON object of known length, to be read key by key.
///
/// # Safety
///
/// As [`text`].
pub(super) unsafe fn json(data: *const c_char, length: usize, name: &str) -> Outcome<Keys> {
    // SAFETY: the same is asked of the caller.
    let keys = Keys::parse(unsafe { text(data, length, name) }?.as_bytes());
    keys.whole().map_err(|error| Failure::argument(format!("{name}: {error}")))?;
    Ok(keys)
}

/// A JSON object whose keys are anybody's.
pub(super) fn json_object(text: &str, name: &str) -> Outcome<Map<String, Value>> {
    serde_json::from_str(text)
        .map_err(|error| Failure::argument(format!("{name}: {} (expected a JSON object)", json_error(&error))))
}

/// An array that there is, though it may be empty; `None`: NULL, and no elements.
///
/// # Safety
///
/// As [`slice`].
pub(super) unsafe fn optional_slice<'a, T>(
    pointer: *const T,
    count: usize,
    most: usize,
    name: &str,
) -> Outcome<Option<&'a [T]>> {
    if pointer.is_null() && count == 0 {
        return Ok(None);
    }
    // SAFETY: the same is asked of the caller.
    unsafe { slice(pointer, count, most, name) }.map(Some)
}

/// An array of at most `most` elements.
///
/// # Safety
///
/// `pointer` is NULL, or good to read for `count` elements, for `'a`.
pub(super) unsafe fn slice<'a, T>(pointer: *const T, count: usize, most: usize, name: &str) -> Outcome<&'a [T]> {
    if count == 0 {
        return Ok(&[]);
    }
    check(pointer, name)?;
    if count > most.min(isize::MAX as usize / size_of::<T>()) {
        return Err(Failure::argument(format!("{name}: {count} elements (expected at most {most})")));
    }
    // SAFETY: not NULL, aligned, and no longer than memory; the caller vouches for the rest.
    Ok(unsafe { std::slice::from_raw_parts(pointer, count) })
}

/// A whole number of a parameter structure, within its bounds.
pub(super) fn within(found: usize, least: usize, most: usize, name: &str) -> Outcome<usize> {
    if (least..=most).contains(&found) {
        return Ok(found);
    }
    Err(Failure::argument(format!("{name}: {found} (expected a number from {least} to {most})")))
}

fn utf8<'a>(bytes: &'a [u8], name: &str) -> Outcome<&'a str> {
    std::str::from_utf8(bytes).map_err(|error| {
        let at = error.valid_up_to();
        Failure::new(Status::InvalidUtf8, format!("{name}: no UTF-8 from byte {at} on (of {})", bytes.len()))
    })
}

fn check<T>(pointer: *const T, name: &str) -> Outcome {
    if pointer.is_null() {
        return Err(null(name));
    }
    if !pointer.is_aligned() {
        let found = format!("{name}: {pointer:?} (expected an address that {} divides)", align_of::<T>());
        return Err(Failure::argument(found));
    }
    Ok(())
}

fn null(name: &str) -> Failure {
    Failure::argument(format!("{name}: NULL (expected an address)"))
}

/// Copies `from` to a caller's buffer and its length to `needed`, which may be NULL.
///
/// # Safety
///
/// `buffer` is NULL, or good to write for `capacity` elements; `needed` is NULL or good to write.
pub(super) unsafe fn fill<T: Copy>(from: &[T], buffer: *mut T, capacity: usize, needed: *mut usize) -> Outcome {
    if !needed.is_null() {
        // SAFETY: the same is asked of the caller.
        unsafe { Place::new(needed, "needed") }?.write(from.len());
    }
    if from.len() > capacity {
        let found = format!("buffer: room for {capacity} elements (expected {})", from.len());
        return Err(Failure::new(Status::BufferTooSmall, found));
    }
    if !from.is_empty() {
        check(buffer, "buffer")?;
        // SAFETY: not NULL and aligned, of at least this length by the caller's word; `from` is this library's own.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), buffer, from.len()) };
    }
    Ok(())
}

/// `text` with a zero at its end, as [`fill`] hands it out.
pub(super) fn terminated(text: String) -> Vec<u8> {
    let mut bytes = text.into_bytes();
    bytes.push(0);
    bytes
}

/// `text` in an array of fixed size: cut between characters where it is too long, and zeros after it.
pub(super) fn fixed<const N: usize>(text: &str) -> [c_char; N] {
    let mut array = [0; N];
    let whole = (0..N.min(text.len() + 1)).rfind(|&end| text.is_char_boundary(end)).unwrap_or(0);
    array.iter_mut().zip(&text.as_bytes()[..whole]).for_each(|(to, &from)| *to = from as c_char);
    array
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_memory_has_is_refused_unread() {
        let token = 7u32;
        let misaligned = (&raw const token).cast::<u8>().wrapping_add(1).cast::<u32>();
        let none = std::ptr::null::<u32>();
        // SAFETY: what is refused is not read, and `token` is one element.
        unsafe {
            assert_eq!(slice(&token, 1, 10, "tokens").unwrap(), [7]);
            assert!(slice(none, 0, 10, "tokens").unwrap().is_empty());
            for (pointer, count) in [(none, 1), (&raw const token, 11), (&raw const token, usize::MAX), (misaligned, 1)]
            {
                let failure = slice(pointer, count, 10, "tokens").unwrap_err();
                assert_eq!(failure.status, Status::InvalidArgument, "{count}");
            }
            assert!(slice(&raw const token, usize::MAX, usize::MAX, "tokens").is_err());
        }
    }

    #[test]
    fn texts_are_utf8_and_say_where_not() {
        let bytes = b"ab\xffc";
        // SAFETY: as long as it says.
        let failure = unsafe { text(bytes.as_ptr().cast(), bytes.len(), "prompt") }.unwrap_err();
        assert_eq!(
            (failure.status, &*failure.message),
            (Status::InvalidUtf8, "prompt: no UTF-8 from byte 2 on (of 4)")
        );
    }

    #[test]
    fn fixed_texts_end_between_characters() {
        let text = |array: &[c_char]| array.iter().map(|&byte| byte as u8).collect::<Vec<u8>>();
        assert_eq!(text(&fixed::<4>("abc")), b"abc\0");
        assert_eq!(text(&fixed::<4>("ab\u{e9}")), b"ab\0\0");
        assert_eq!(text(&fixed::<4>("")), b"\0\0\0\0");
    }

    #[test]
    fn a_buffer_is_filled_whole_or_not_at_all() {
        let mut buffer = [9u32; 3];
        let mut needed = 0;
        // SAFETY: as long as they say.
        unsafe {
            let failure = fill(&[1, 2, 3], buffer.as_mut_ptr(), 2, &mut needed).unwrap_err();
            assert_eq!((failure.status, needed, buffer), (Status::BufferTooSmall, 3, [9; 3]));
            fill(&[1, 2], buffer.as_mut_ptr(), 3, &mut needed).unwrap();
            assert_eq!((needed, buffer), (2, [1, 2, 9]));
            assert!(fill(&[1], std::ptr::null_mut(), 1, &mut needed).is_err());
            assert!(fill(&[0u8; 0], std::ptr::null_mut(), 0, std::ptr::null_mut()).is_ok());
        }
    }
}
