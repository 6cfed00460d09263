//! The encoding of files that people write: UTF-8, perhaps with a byte order mark in front.

use std::io;

/// What some editors write before the first character.
const UTF8_MARK: &[u8] = b"\xef\xbb\xbf";

/// Why bytes are no text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EncodingError {
    /// UTF-16, as Windows' PowerShell writes into files by default.
    #[error("UTF-16 (expected UTF-8: `iconv -f UTF-16 -t UTF-8` turns one into the other)")]
    Utf16,
    /// Some other encoding, or damage.
    #[error("byte {offset} is 0x{found:02x}, which is no UTF-8 there (expected a file in UTF-8)")]
    NotUtf8 {
        /// Place of the first byte that is wrong.
        offset: usize,
        /// Its value.
        found: u8,
    },
}

impl From<EncodingError> for io::Error {
    fn from(error: EncodingError) -> Self {
        io::Error::new(io::ErrorKind::InvalidData, error)
    }
}

/// The beginning of a file without its byte order mark.
///
/// # Errors
/// If it begins as UTF-16 does: with a mark of its own, or with a character of ASCII in two bytes, one of them zero.
pub fn without_mark(beginning: &[u8]) -> Result<&[u8], EncodingError> {
    match beginning {
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => Err(EncodingError::Utf16),
        [one, other, ..] if (*one == 0) != (*other == 0) => Err(EncodingError::Utf16),
        _ => Ok(beginning.strip_prefix(UTF8_MARK).unwrap_or(beginning)),
    }
}

/// The text of a whole file, without its byte order mark.
///
/// # Errors
/// If it is not UTF-8: what it is instead, or where the first wrong byte is.
pub fn text(bytes: Vec<u8>) -> Result<String, EncodingError> {
    let mark = bytes.len() - without_mark(&bytes)?.len();
    let mut text = String::from_utf8(bytes).map_err(|error| {
        let offset = error.utf8_error().valid_up_to();
        EncodingError::NotUtf8 { offset, found: error.as_bytes()[offset] }
    })?;
    text.drain(..mark);
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_byte_order_mark_is_no_part_of_the_text() {
        for (bytes, expected) in
            [(&b"\xef\xbb\xbfa\xef\xbb\xbf"[..], "a\u{feff}"), (b"\xef\xbb\xbf", ""), (b"", ""), (b"a", "a")]
        {
            assert_eq!(text(bytes.to_vec()).as_deref(), Ok(expected));
        }
    }

    #[test]
    fn other_encodings_are_named() {
        for utf16 in [&b"\xff\xfea\0"[..], b"\xfe\xff\0a", b"{\0\"\0", b"\0{\0\"", b"\xff\xfe"] {
            assert_eq!(text(utf16.to_vec()), Err(EncodingError::Utf16), "{utf16:?}");
        }
        assert_eq!(text(b"caf\xe9".to_vec()), Err(EncodingError::NotUtf8 { offset: 3, found: 0xe9 }));
        assert_eq!(text(b"\xef\xbb\xbfcaf\xe9".to_vec()), Err(EncodingError::NotUtf8 { offset: 6, found: 0xe9 }));
    }
}
