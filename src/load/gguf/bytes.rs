//! Little-endian values one after the other; nothing is read past the end.

use super::value::{Kind, Scalar};
use std::ops::Range;

/// Reads from the front.
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// Bytes read so far.
    pub fn at(&self) -> usize {
        self.at
    }

    /// The next `count` bytes.
    pub fn take(&mut self, count: usize) -> Result<&'a [u8], String> {
        let rest = &self.bytes[self.at..];
        if count > rest.len() {
            return Err(format!("the file ends at byte {}, where {count} bytes were to come", self.bytes.len()));
        }
        self.at += count;
        Ok(&rest[..count])
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    pub fn u32(&mut self) -> Result<u32, String> {
        self.array().map(u32::from_le_bytes)
    }

    pub fn u64(&mut self) -> Result<u64, String> {
        self.array().map(u64::from_le_bytes)
    }

    /// A number of things to come, each of at least so many bytes: no more than `most`, and than there is room for.
    pub fn count(&mut self, least_bytes: usize, most: usize, of: &str) -> Result<usize, String> {
        let count = self.u64()?;
        let room = (self.bytes.len() - self.at) / least_bytes;
        let fits = usize::try_from(count).ok().filter(|&count| count <= most.min(room));
        fits.ok_or_else(|| match most < room {
            true => format!("{count} {of} (at most {most})"),
            false => format!("{count} {of} (the bytes that are left have room for {room})"),
        })
    }

    fn text_bytes(&mut self) -> Result<&'a [u8], String> {
        let length = self.count(1, usize::MAX, "bytes of a text")?;
        self.take(length)
    }

    /// A text with its length before it.
    pub fn text(&mut self) -> Result<&'a str, String> {
        let bytes = self.text_bytes()?;
        std::str::from_utf8(bytes).map_err(|error| format!("a text that is not UTF-8: {error}"))
    }

    /// A value that is no list.
    pub fn scalar(&mut self, kind: Kind) -> Result<Scalar<'a>, String> {
        Ok(match kind {
            Kind::U8 => Scalar::Whole(self.array().map(u8::from_le_bytes)?.into()),
            Kind::I8 => Scalar::Whole(self.array().map(i8::from_le_bytes)?.into()),
            Kind::U16 => Scalar::Whole(self.array().map(u16::from_le_bytes)?.into()),
            Kind::I16 => Scalar::Whole(self.array().map(i16::from_le_bytes)?.into()),
            Kind::U32 => Scalar::Whole(self.u32()?.into()),
            Kind::I32 => Scalar::Whole(self.array().map(i32::from_le_bytes)?.into()),
            Kind::U64 => Scalar::Whole(self.u64()?.into()),
            Kind::I64 => Scalar::Whole(self.array().map(i64::from_le_bytes)?.into()),
            Kind::F32 => Scalar::Number(shortest(self.array().map(f32::from_le_bytes)?)),
            Kind::F64 => Scalar::Number(self.array().map(f64::from_le_bytes)?),
            Kind::Bool => match self.take(1)? {
                [0] => Scalar::Truth(false),
                [1] => Scalar::Truth(true),
                [other] => return Err(format!("a truth of {other} (expected 0 or 1)")),
                _ => unreachable!("one byte was taken"),
            },
            Kind::Text => Scalar::Text(self.text()?),
            Kind::Array => return Err("a list within a list".into()),
        })
    }

    /// Passes over values of a kind; where they lie.
    pub fn skip(&mut self, kind: Kind, count: usize) -> Result<Range<usize>, String> {
        let start = self.at;
        match kind.size() {
            Some(size) => drop(self.take(count.checked_mul(size).ok_or("a list longer than any file")?)?),
            None => (0..count).try_for_each(|_| match kind {
                Kind::Text => self.text_bytes().map(drop),
                _ => Err("a list within a list".into()),
            })?,
        }
        Ok(start..self.at)
    }
}

/// The number of fewest digits that the stored one is nearest to: what it was before it was stored, mostly.
fn shortest(number: f32) -> f64 {
    number.to_string().parse().expect("a number as it is written")
}
