//! GGUF files, as llama.cpp has them: metadata and tensors in one file, versions 2 and 3.
//!
//! ```text
//! "GGUF", u32 version, u64 tensors, u64 values
//! values   text key, u32 kind, value
//! tensors  text name, u32 dimensions, u64 sizes (the first is contiguous), u32 type, u64 offset
//! padding to the alignment, then the tensors' data, each at a multiple of it
//! ```
//!
//! Nothing is copied: values and tensors are ranges of the mapped file, all of which are checked when it is opened.

mod bytes;
mod value;

pub(in super::super) use value::{Metadata, Scalar};

use super::error::short;
use super::limits;
use super::source::Bytes;
use crate::model::BlockType;
use bytes::Reader;
use std::collections::{BTreeMap, HashSet};
use std::ops::Range;
use std::path::{Path, PathBuf};
use value::{Kind, Stored};

const MAGIC: &[u8; 4] = b"GGUF";
/// What tensors' data are aligned to where the file does not say.
const ALIGNMENT: usize = 32;
/// Most dimensions of a tensor.
const DIMENSIONS: usize = 4;

/// How a tensor's numbers are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Format {
    F32,
    F16,
    BF16,
    Blocks(BlockType),
    /// Known to the format, and not to this engine, by its name.
    Other(&'static str),
}

/// Types by their numbers: name, elements and bytes of a block.
const TYPES: [(u32, &str, usize, usize, Format); 34] = [
    (0, "F32", 1, 4, Format::F32),
    (1, "F16", 1, 2, Format::F16),
    (2, "Q4_0", 32, 18, Format::Blocks(BlockType::Q4_0)),
    (3, "Q4_1", 32, 20, Format::Blocks(BlockType::Q4_1)),
    (6, "Q5_0", 32, 22, Format::Blocks(BlockType::Q5_0)),
    (7, "Q5_1", 32, 24, Format::Blocks(BlockType::Q5_1)),
    (8, "Q8_0", 32, 34, Format::Blocks(BlockType::Q8_0)),
    (9, "Q8_1", 32, 36, Format::Other("Q8_1")),
    (10, "Q2_K", 256, 84, Format::Blocks(BlockType::Q2K)),
    (11, "Q3_K", 256, 110, Format::Blocks(BlockType::Q3K)),
    (12, "Q4_K", 256, 144, Format::Blocks(BlockType::Q4K)),
    (13, "Q5_K", 256, 176, Format::Blocks(BlockType::Q5K)),
    (14, "Q6_K", 256, 210, Format::Blocks(BlockType::Q6K)),
    (15, "Q8_K", 256, 292, Format::Other("Q8_K")),
    (16, "IQ2_XXS", 256, 66, Format::Other("IQ2_XXS")),
    (17, "IQ2_XS", 256, 74, Format::Other("IQ2_XS")),
    (18, "IQ3_XXS", 256, 98, Format::Other("IQ3_XXS")),
    (19, "IQ1_S", 256, 50, Format::Other("IQ1_S")),
    (20, "IQ4_NL", 32, 18, Format::Blocks(BlockType::Iq4Nl)),
    (21, "IQ3_S", 256, 110, Format::Other("IQ3_S")),
    (22, "IQ2_S", 256, 82, Format::Other("IQ2_S")),
    (23, "IQ4_XS", 256, 136, Format::Blocks(BlockType::Iq4Xs)),
    (24, "I8", 1, 1, Format::Other("I8")),
    (25, "I16", 1, 2, Format::Other("I16")),
    (26, "I32", 1, 4, Format::Other("I32")),
    (27, "I64", 1, 8, Format::Other("I64")),
    (28, "F64", 1, 8, Format::Other("F64")),
    (29, "IQ1_M", 256, 56, Format::Other("IQ1_M")),
    (30, "BF16", 1, 2, Format::BF16),
    (34, "TQ1_0", 256, 54, Format::Other("TQ1_0")),
    (35, "TQ2_0", 256, 66, Format::Other("TQ2_0")),
    (39, "MXFP4", 32, 17, Format::Other("MXFP4")),
    (40, "NVFP4", 64, 36, Format::Other("NVFP4")),
    (41, "Q1_0", 128, 18, Format::Other("Q1_0")),
];

/// A tensor: its sizes, outermost first, and where it lies.
#[derive(Debug, Clone)]
pub(in super::super) struct Entry {
    pub format: Format,
    pub shape: Vec<usize>,
    /// Bytes of the whole file.
    pub range: Range<usize>,
}

/// An opened file.
pub(in super::super) struct Gguf {
    path: PathBuf,
    bytes: Bytes,
    values: BTreeMap<String, Stored>,
    tensors: Vec<(String, Entry)>,
}

impl Gguf {
    /// Reads and checks everything but the tensors' numbers.
    ///
    /// # Errors
    /// What is wrong, without the path.
    pub fn parse(path: &Path, bytes: Bytes) -> Result<Self, String> {
        let mut reader = Reader::new(&bytes);
        if reader.take(MAGIC.len()).ok() != Some(MAGIC) {
            return Err("does not begin with GGUF".into());
        }
        let version = reader.u32()?;
        if version != 2 && version != 3 {
            let swapped = if (2..=3).contains(&version.swap_bytes()) { ", big-endian" } else { "" };
            return Err(format!("version {version}{swapped} (expected 2 or 3, little-endian)"));
        }
        // A tensor takes a name's length, dimensions, a size, type and offset; a value a key's length and a kind.
        let tensors = reader.count(8 + 4 + 8 + 4 + 8, "tensors")?.min(limits::TENSORS + 1);
        if tensors > limits::TENSORS {
            return Err(format!("more than {} tensors", limits::TENSORS));
        }
        let count = reader.count(8 + 4 + 1, "values")?;
        let values = values(&mut reader, count)?;
        let mut gguf = Self { path: path.to_path_buf(), bytes: Bytes::Embedded(&[]), values, tensors: Vec::new() };
        let entries = (0..tensors).map(|_| entry(&mut reader)).collect::<Result<Vec<_>, _>>()?;
        let head = reader.at();
        gguf.bytes = bytes;
        let alignment = gguf.metadata().whole("general.alignment", 1..1 << 20).map_err(|error| error.to_string())?;
        let alignment = alignment.unwrap_or(ALIGNMENT);
        gguf.tensors = place(entries, head.next_multiple_of(alignment), alignment, gguf.bytes.len())?;
        Ok(gguf)
    }

    pub fn metadata(&self) -> Metadata<'_> {
        Metadata::new(self.path.clone(), &self.bytes, &self.values)
    }

    /// The tensors, in the order of their data.
    pub fn tensors(&self) -> &[(String, Entry)] {
        &self.tensors
    }
}

/// Where each value lies.
fn values(reader: &mut Reader<'_>, count: usize) -> Result<BTreeMap<String, Stored>, String> {
    let mut values = BTreeMap::new();
    for _ in 0..count {
        let key = reader.text().map_err(|why| format!("a key: {why}"))?;
        let named = |why: String| format!("`{}`: {why}", short(key));
        let kind = reader.u32().and_then(Kind::of).map_err(named)?;
        let stored = match kind {
            Kind::Array => {
                let kind = reader.u32().and_then(Kind::of).map_err(named)?;
                let count = reader.count(kind.size().unwrap_or(8), "values in a list").map_err(named)?;
                Stored::Many { kind, count, range: reader.skip(kind, count).map_err(named)? }
            }
            kind => Stored::One { kind, range: reader.skip(kind, 1).map_err(named)? },
        };
        if values.insert(key.to_owned(), stored).is_some() {
            return Err(format!("`{}` comes twice", short(key)));
        }
    }
    Ok(values)
}

/// A tensor whose range is counted from the data's start.
fn entry(reader: &mut Reader<'_>) -> Result<(String, Entry), String> {
    let name = reader.text().map_err(|why| format!("a tensor's name: {why}"))?;
    let named = |why: String| format!("tensor `{}`: {why}", short(name));
    let dimensions = reader.u32().map_err(named)? as usize;
    if dimensions > DIMENSIONS {
        return Err(named(format!("{dimensions} dimensions (expected at most {DIMENSIONS})")));
    }
    let size = |reader: &mut Reader<'_>| reader.u64().map(|size| usize::try_from(size).unwrap_or(usize::MAX));
    let mut shape = (0..dimensions).map(|_| size(reader)).collect::<Result<Vec<_>, _>>().map_err(named)?;
    let number = reader.u32().map_err(named)?;
    let offset = size(reader).map_err(named)?;
    let known = TYPES.iter().find(|(of, ..)| *of == number);
    let &(_, type_name, block, bytes, format) =
        known.ok_or_else(|| named(format!("type {number}, which this version does not know")))?;
    let row = shape.first().copied().unwrap_or(1);
    if !row.is_multiple_of(block) {
        return Err(named(format!("rows of {row} in {type_name} (expected whole blocks of {block})")));
    }
    let elements = shape.iter().try_fold(1usize, |product, &size| product.checked_mul(size));
    let range = elements.and_then(|n| (n / block).checked_mul(bytes)).and_then(|n| Some(offset..offset.checked_add(n)?));
    let range = range.ok_or_else(|| named(format!("sizes {shape:?} at {offset}: more than any file has")))?;
    shape.reverse();
    Ok((name.to_owned(), Entry { format, shape, range }))
}

/// Turns offsets into ranges of the file, none of which overlaps another.
fn place(
    mut tensors: Vec<(String, Entry)>,
    start: usize,
    alignment: usize,
    end: usize,
) -> Result<Vec<(String, Entry)>, String> {
    tensors.sort_by_key(|(_, entry)| (entry.range.start, entry.range.end));
    let mut names = HashSet::new();
    let mut before = 0;
    for (name, Entry { range, .. }) in &mut tensors {
        let wrong = |why: String| format!("tensor `{}` {why}", short(&*name));
        if !names.insert(name.clone()) {
            return Err(wrong("comes twice".into()));
        }
        if !range.start.is_multiple_of(alignment) || range.start < before {
            let found = format!("is at {}..{} of the data", range.start, range.end);
            return Err(wrong(format!("{found} (expected a multiple of {alignment}, from {before} on)")));
        }
        before = range.end;
        let placed = start.checked_add(range.start).zip(start.checked_add(range.end));
        let (from, to) = placed.filter(|&(_, to)| to <= end).ok_or_else(|| {
            wrong(format!("ends {} bytes after the start of the data, at {start}, but the file has {end}", range.end))
        })?;
        *range = from..to;
    }
    Ok(tensors)
}
