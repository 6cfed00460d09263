//! The header of a safetensors file: eight bytes of length, that many bytes of JSON, then the data.
//!
//! Read here rather than by the `safetensors` crate: its errors do not name the tensor, it lets a name
//! come twice, and its size check adds up offsets that a hostile file can make overflow.

use super::limits;
use safetensors::Dtype;
use serde::Deserialize;
use serde::de::{Error, MapAccess, Visitor};
use std::collections::{BTreeMap, HashSet};
use std::ops::Range;

/// A checked header: every range lies in the file, and together they fill it without overlap.
pub(super) struct Header {
    pub(super) metadata: BTreeMap<String, String>,
    pub(super) tensors: Vec<(String, Entry)>,
}

/// Where a tensor lies.
pub(super) struct Entry {
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
    /// Bytes of the whole file; as many as shape and number format need.
    pub(super) range: Range<usize>,
}

impl Header {
    /// Reads and checks the header of a whole file's bytes.
    pub(super) fn parse(file: &[u8]) -> Result<Self, String> {
        let (length, rest) = file.split_first_chunk::<8>().ok_or("shorter than the 8 bytes of a header's length")?;
        let length = u64::from_le_bytes(*length);
        if length > limits::HEADER_BYTES || length > rest.len() as u64 {
            let most = limits::HEADER_BYTES.min(rest.len() as u64);
            return Err(format!("a header of {length} bytes, but at most {most} are possible"));
        }
        let (json, data) = rest.split_at(length as usize);
        let raw: RawHeader = serde_json::from_slice(json).map_err(|error| format!("header: {error}"))?;
        let tensors = place(raw.tensors, file.len() - data.len(), data.len())?;
        Ok(Self { metadata: raw.metadata, tensors })
    }
}

/// Checks sizes and offsets and turns them into ranges of the file.
fn place(mut raw: Vec<(String, RawEntry)>, start: usize, data: usize) -> Result<Vec<(String, Entry)>, String> {
    raw.sort_by_key(|(_, entry)| entry.data_offsets);
    let mut end = 0;
    let mut tensors = Vec::with_capacity(raw.len());
    for (name, RawEntry { dtype, shape, data_offsets: (from, to) }) in raw {
        if from != end || to < from || to > data {
            return Err(format!("tensor `{name}` is at {from}..{to}, expected a start at {end} and an end by {data}"));
        }
        let bits = shape.iter().try_fold(dtype.bitsize(), |product, &size| product.checked_mul(size));
        if bits.is_none_or(|bits| !bits.is_multiple_of(8) || bits / 8 != to - from) {
            return Err(format!("tensor `{name}` has {} bytes, which {dtype} {shape:?} does not fill", to - from));
        }
        end = to;
        tensors.push((name, Entry { dtype, shape, range: start + from..start + to }));
    }
    if end != data {
        return Err(format!("{data} bytes of data, but the header describes {end}"));
    }
    Ok(tensors)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawEntry {
    dtype: Dtype,
    shape: Vec<usize>,
    data_offsets: (usize, usize),
}

struct RawHeader {
    metadata: BTreeMap<String, String>,
    tensors: Vec<(String, RawEntry)>,
}

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct HeaderVisitor;

        impl<'de> Visitor<'de> for HeaderVisitor {
            type Value = RawHeader;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a map of tensor names")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
                let mut header = RawHeader { metadata: BTreeMap::new(), tensors: Vec::new() };
                let mut seen = HashSet::new();
                while let Some(name) = map.next_key::<String>()? {
                    if seen.len() > limits::TENSORS {
                        return Err(A::Error::custom(format!("more than {} tensors", limits::TENSORS)));
                    }
                    if !seen.insert(name.clone()) {
                        return Err(A::Error::custom(format!("`{name}` comes twice")));
                    }
                    let named = |error: A::Error| A::Error::custom(format!("`{name}`: {error}"));
                    if name == "__metadata__" {
                        header.metadata = map.next_value().map_err(named)?;
                    } else {
                        let entry = map.next_value().map_err(named)?;
                        header.tensors.push((name, entry));
                    }
                }
                Ok(header)
            }
        }

        deserializer.deserialize_map(HeaderVisitor)
    }
}
