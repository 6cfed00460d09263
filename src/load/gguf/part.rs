//! One GGUF file: where its values and tensors lie. Versions 2 and 3 of the format, little-endian.
//!
//! ```text
//! "GGUF", u32 version, u64 tensors, u64 values
//! values   text key, u32 kind, value
//! tensors  text name, u32 dimensions, u64 sizes (the first is contiguous), u32 type, u64 offset
//! padding to the alignment, then the tensors' data, each at a multiple of it
//! ```
//!
//! Nothing is copied: values and tensors are ranges of the mapped file, all of which are checked when it is opened.

use super::super::error::short;
use super::super::limits;
use super::super::source::Bytes;
use super::super::tensors::Kind;
use super::bytes::Reader;
use super::value::{self, Metadata, Stored};
use crate::model::{BlockType, Dtype, Format};
use std::collections::{BTreeMap, HashSet};
use std::ops::Range;
use std::path::{Path, PathBuf};

const MAGIC: &[u8; 4] = b"GGUF";
/// What tensors' data are aligned to where the file does not say.
const ALIGNMENT: usize = 32;
const MOST_ALIGNMENT: usize = 1 << 20;
/// Most dimensions of a tensor.
const DIMENSIONS: usize = 4;

/// Types that this engine computes with, by their numbers in the file.
const NUMBERS: [(u32, Format); 15] = [
    (0, Format::Float(Dtype::F32)),
    (1, Format::Float(Dtype::F16)),
    (2, Format::Blocks(BlockType::Q4_0)),
    (3, Format::Blocks(BlockType::Q4_1)),
    (6, Format::Blocks(BlockType::Q5_0)),
    (7, Format::Blocks(BlockType::Q5_1)),
    (8, Format::Blocks(BlockType::Q8_0)),
    (10, Format::Blocks(BlockType::Q2K)),
    (11, Format::Blocks(BlockType::Q3K)),
    (12, Format::Blocks(BlockType::Q4K)),
    (13, Format::Blocks(BlockType::Q5K)),
    (14, Format::Blocks(BlockType::Q6K)),
    (20, Format::Blocks(BlockType::Iq4Nl)),
    (23, Format::Blocks(BlockType::Iq4Xs)),
    (30, Format::Float(Dtype::BF16)),
];

/// The other types: number, name, elements and bytes of a block.
const OTHERS: [(u32, &str, usize, usize); 19] = [
    (9, "Q8_1", 32, 36),
    (15, "Q8_K", 256, 292),
    (16, "IQ2_XXS", 256, 66),
    (17, "IQ2_XS", 256, 74),
    (18, "IQ3_XXS", 256, 98),
    (19, "IQ1_S", 256, 50),
    (21, "IQ3_S", 256, 110),
    (22, "IQ2_S", 256, 82),
    (24, "I8", 1, 1),
    (25, "I16", 1, 2),
    (26, "I32", 1, 4),
    (27, "I64", 1, 8),
    (28, "F64", 1, 8),
    (29, "IQ1_M", 256, 56),
    (34, "TQ1_0", 256, 54),
    (35, "TQ2_0", 256, 66),
    (39, "MXFP4", 32, 17),
    (40, "NVFP4", 64, 36),
    (41, "Q1_0", 128, 18),
];

/// The type of a number, and the bytes of a row of so many elements, where a row can have as many.
fn of_type(number: u32, row: usize) -> Option<(Kind, Option<usize>)> {
    if let Some(&(_, format)) = NUMBERS.iter().find(|(of, _)| *of == number) {
        return Some((Kind::Numbers(format), format.row_bytes(row)));
    }
    let &(_, name, block, bytes) = OTHERS.iter().find(|(of, ..)| *of == number)?;
    let bytes = row.is_multiple_of(block).then_some(row / block)?.checked_mul(bytes);
    Some((Kind::Other(name.into()), bytes))
}

/// A tensor: its sizes, outermost first, and where it lies.
#[derive(Debug, Clone)]
pub(in super::super) struct Entry {
    pub kind: Kind,
    pub shape: Vec<usize>,
    /// Bytes of the whole file.
    pub range: Range<usize>,
}

/// An opened file.
pub(in super::super) struct Part {
    path: PathBuf,
    bytes: Bytes,
    values: BTreeMap<String, Stored>,
    tensors: Vec<(String, Entry)>,
}

impl Part {
    /// Reads and checks everything but the tensors' numbers.
    ///
    /// # Errors
    /// What is wrong, with the key or the tensor, without the path.
    pub fn parse(path: &Path, bytes: Bytes) -> Result<Self, String> {
        let mut reader = Reader::new(&bytes);
        if reader.take(MAGIC.len()).ok() != Some(MAGIC) {
            return Err("it does not begin with `GGUF` (a model is a Hugging Face folder, or a GGUF file)".into());
        }
        let version = reader.u32()?;
        if version != 2 && version != 3 {
            let swapped = if (2..=3).contains(&version.swap_bytes()) { ", big-endian" } else { "" };
            return Err(format!("version {version}{swapped} (expected 2 or 3, little-endian)"));
        }
        // A tensor takes a name's length, dimensions, type and offset; a value a key's length, a kind and a byte.
        let tensors = reader.count(8 + 4 + 4 + 8, limits::TENSORS, "tensors")?;
        let count = reader.count(8 + 4 + 1, limits::GGUF_VALUES, "values")?;
        let values = value::places(&mut reader, count)?;
        let entries = (0..tensors).map(|number| entry(&mut reader, number)).collect::<Result<Vec<_>, _>>()?;
        let head = reader.at();
        let mut part = Self { path: path.to_path_buf(), bytes, values, tensors: Vec::new() };
        let alignment = part.metadata().whole("general.alignment", 1..MOST_ALIGNMENT + 1);
        let alignment = alignment.map_err(|error| error.to_string())?.unwrap_or(ALIGNMENT);
        part.tensors = place(entries, head.next_multiple_of(alignment), alignment, part.bytes.len())?;
        Ok(part)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    pub fn metadata(&self) -> Metadata<'_> {
        Metadata::new(&self.path, &self.bytes, &self.values)
    }

    /// The tensors, in the order of their data.
    pub fn tensors(&self) -> &[(String, Entry)] {
        &self.tensors
    }
}

/// A tensor whose range is counted from the data's start.
fn entry(reader: &mut Reader<'_>, number: usize) -> Result<(String, Entry), String> {
    let name = reader.text().map_err(|why| format!("the name of tensor {number}, from 0 on: {why}"))?;
    let named = |why: String| format!("tensor `{}`: {why}", short(name));
    let dimensions = reader.u32().map_err(named)? as usize;
    if dimensions > DIMENSIONS {
        return Err(named(format!("{dimensions} dimensions (expected at most {DIMENSIONS})")));
    }
    let size = |reader: &mut Reader<'_>| reader.u64().map(|size| usize::try_from(size).unwrap_or(usize::MAX));
    let mut shape = (0..dimensions).map(|_| size(reader)).collect::<Result<Vec<_>, _>>().map_err(named)?;
    let number = reader.u32().map_err(named)?;
    let offset = size(reader).map_err(named)?;
    let row = shape.first().copied().unwrap_or(1);
    let (kind, bytes) = of_type(number, row).ok_or_else(|| named(format!("type {number}, of which there is none")))?;
    let rows = shape.iter().skip(1).try_fold(1usize, |rows, &size| rows.checked_mul(size));
    let end = bytes.zip(rows).and_then(|(bytes, rows)| offset.checked_add(bytes.checked_mul(rows)?));
    let end = end.ok_or_else(|| {
        named(format!(
            "sizes {shape:?} in {kind} at {offset} (expected rows of whole blocks, and no more than a file has)"
        ))
    })?;
    let range = offset..end;
    shape.reverse();
    Ok((name.to_owned(), Entry { kind, shape, range }))
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
