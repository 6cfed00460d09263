//! The tensors of a model, mapped into memory: of one safetensors file, of several with an index, or of GGUF files.

use super::error::short;
use super::gguf::{self, Gguf};
use super::header::{self, Header};
use super::json::Document;
use super::source::{Bytes, Source};
use super::{LoadError, limits};
use crate::TokenId;
use crate::model::{BlockType, Dtype, Format, Matrix, RowOrder, Vector};
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

mod parts;

pub(super) use parts::Made;

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// Tensors by name, and the files that hold them.
pub(super) struct Tensors {
    /// The file to blame where a tensor is missing.
    path: PathBuf,
    files: Vec<TensorFile>,
    /// By the names that Hugging Face's files have for them.
    entries: BTreeMap<String, Location>,
    /// The name in the files of a tensor by its name here.
    spelling: fn(&str) -> String,
    /// The number formats that the files may have, as errors list them.
    formats: fn() -> String,
}

struct TensorFile {
    path: PathBuf,
    bytes: Bytes,
}

struct Location {
    file: usize,
    entry: Entry,
}

/// A tensor: how its numbers are stored, how many, and where.
struct Entry {
    kind: Kind,
    shape: Vec<usize>,
    /// Bytes of the whole file; as many as shape and number format need.
    range: Range<usize>,
    /// Of its rows.
    order: RowOrder,
    /// Of its columns; `None`: as they are stored.
    columns: Option<Vec<u32>>,
}

/// How numbers are stored.
#[derive(Debug, Clone)]
pub(super) enum Kind {
    /// In a format that this engine computes with.
    Numbers(Format),
    /// In another one, by its name.
    Other(Cow<'static, str>),
}

impl Tensors {
    /// The tensors of a model folder: of one file, or of the shards that the index names.
    pub(super) fn of_model(source: &Source, notes: &mut Vec<String>) -> Result<Self, LoadError> {
        if let Some(bytes) = source.map(SINGLE)? {
            return Ok(Self::of_file(source.path(SINGLE), bytes)?.0);
        }
        match source.read(INDEX)? {
            Some(index) => Self::of_shards(source, &Document::parse(source.path(INDEX), &index)?, notes),
            None => {
                let names = source.names()?;
                let other = |end: &str| names.iter().any(|name| name.ends_with(end));
                let hint = match () {
                    () if other(".bin") => ", only PyTorch files: convert them to safetensors",
                    () if other(".gguf") => ", only GGUF files, and a config.json: give the file instead of the folder",
                    () => "",
                };
                Err(LoadError::MissingFile { folder: source.path(""), wanted: SINGLE, hint })
            }
        }
    }

    /// The tensors and the metadata of one file.
    pub(super) fn of_file(path: PathBuf, bytes: Bytes) -> Result<(Self, BTreeMap<String, String>), LoadError> {
        let header = Header::parse(&bytes).map_err(|message| LoadError::safetensors(&path, message))?;
        let entries = header.tensors.into_iter().map(|(name, entry)| (name, located(0, entry))).collect();
        let files = vec![TensorFile { path: path.clone(), bytes }];
        Ok((Self { path, files, entries, spelling: as_it_is, formats: plain_formats }, header.metadata))
    }

    /// A tensor that the index does not list counts as it does in a single file. Of one that stands in several shards,
    /// the copy that the index names is the tensor.
    fn of_shards(source: &Source, index: &Document, notes: &mut Vec<String>) -> Result<Self, LoadError> {
        let root = index.root();
        let map = root.object("weight_map")?.ok_or_else(|| root.wrong("weight_map", "an object"))?;
        let mut shard_of = BTreeMap::new();
        for name in map.keys() {
            let shard = map.text(name)?.ok_or_else(|| map.wrong(name, "a string"))?;
            if !is_plain_file_name(shard) {
                return Err(map.wrong(name, "the name of a file in the same folder"));
            }
            shard_of.insert(name, shard);
        }

        let mut tensors = Self {
            path: root.path().to_path_buf(),
            files: Vec::new(),
            entries: BTreeMap::new(),
            spelling: as_it_is,
            formats: plain_formats,
        };
        let shards = shard_of.values().copied().collect::<BTreeSet<_>>();
        if shards.len() > limits::SHARDS {
            let what = format!("files in `{}`", root.name("weight_map"));
            return Err(LoadError::limit(root.path(), what, shards.len(), limits::SHARDS as u64));
        }
        for shard in shards {
            let path = source.path(shard);
            let missing = || LoadError::io(&path, std::io::ErrorKind::NotFound.into());
            let bytes = source.map(shard)?.ok_or_else(missing)?;
            let header = Header::parse(&bytes).map_err(|message| LoadError::safetensors(&path, message))?;
            let mut copies = Vec::new();
            for (name, entry) in header.tensors {
                match shard_of.get(name.as_str()) {
                    Some(&named) if named != shard => copies.push(name),
                    None if tensors.entries.contains_key(&name) => {
                        if !super::weights::is_derived(&name) {
                            let why = "other files have it too, and the index does not say which one counts".into();
                            return Err(LoadError::UnexpectedTensor { path, tensor: short(name), why });
                        }
                    }
                    _ => drop(tensors.entries.insert(name, located(tensors.files.len(), entry))),
                }
            }
            if let Some(first) = copies.iter().find(|name| !super::weights::is_derived(name)) {
                let more = if copies.len() > 1 { format!(" and {} more", copies.len() - 1) } else { String::new() };
                notes.push(format!("{shard}: `{}`{more} left out: the index takes it from another file", short(first)));
            }
            tensors.files.push(TensorFile { path, bytes });
        }
        match shard_of.iter().find(|(name, _)| !tensors.entries.contains_key(**name)) {
            Some((name, shard)) => Err(LoadError::Tensor {
                path: source.path(shard),
                tensor: short(name),
                found: "missing".into(),
                expected: "here, as the index says".into(),
            }),
            None => Ok(tensors),
        }
    }

    /// The tensors of a GGUF model's files, by the names that Hugging Face's files have for them; one that has no such
    /// name keeps its own.
    ///
    /// # Errors
    /// If two of its files have a tensor of one name.
    pub(super) fn of_gguf(gguf: &Gguf) -> Result<Self, LoadError> {
        let path = gguf.path().to_path_buf();
        let mut tensors = Self {
            path,
            files: Vec::new(),
            entries: BTreeMap::new(),
            spelling: gguf::stored_name,
            formats: all_formats,
        };
        for part in gguf.parts() {
            for (stored, gguf::Entry { kind, shape, range }) in part.tensors() {
                let name = gguf::name(stored);
                if let Some(Location { file, .. }) = tensors.entries.get(&name) {
                    let first = tensors.files.get(*file).map_or(part.path(), |file| &file.path);
                    let why = format!("{} has it too", first.display());
                    return Err(LoadError::UnexpectedTensor { path: part.path().into(), tensor: short(stored), why });
                }
                let (kind, shape, range) = (kind.clone(), shape.clone(), range.clone());
                let entry = Entry { kind, shape, range, order: RowOrder::AsStored, columns: None };
                tensors.entries.insert(name, Location { file: tensors.files.len(), entry });
            }
            tensors.files.push(TensorFile { path: part.path().into(), bytes: part.bytes().clone() });
        }
        Ok(tensors)
    }

    /// Says that the rows of some matrices are stored as pairs of a head's halves, and puts the elements of vectors that
    /// are stored so in order. All of them have passed [`check`](Self::check), as whole heads of `head_dim`.
    pub(super) fn pair_halves(&mut self, head_dim: usize, of: impl Fn(&str) -> bool) {
        let order = RowOrder::PairedHalves { head_dim };
        for (_, Location { file, entry }) in self.entries.iter_mut().filter(|(name, _)| of(name)) {
            if entry.shape.len() > 1 {
                entry.order = order;
                continue;
            }
            let TensorFile { path, bytes } = &self.files[*file];
            let (stored, elements) = (&bytes[entry.range.clone()], entry.shape[0]);
            let size = stored.len() / elements;
            let ordered = (0..elements).flat_map(|at| &stored[order.stored(at) * size..][..size]).copied();
            let made = TensorFile { path: path.clone(), bytes: Bytes::Made(Arc::new(ordered.collect())) };
            (*file, entry.range) = (self.files.len(), 0..stored.len());
            self.files.push(made);
        }
    }

    /// Takes the tensors of bytes, `[rows, bytes of a row]`, as matrices in blocks.
    ///
    /// # Errors
    /// If one has another shape, or rows of no whole blocks.
    pub(super) fn take_bytes_as(&mut self, of: BlockType) -> Result<(), LoadError> {
        let is_bytes = |entry: &Entry| matches!(&entry.kind, Kind::Other(name) if name == "U8");
        for (name, Location { file, entry }) in self.entries.iter_mut().filter(|(_, at)| is_bytes(&at.entry)) {
            match entry.shape[..] {
                [rows, bytes] if bytes.is_multiple_of(of.bytes()) => {
                    entry.shape = vec![rows, bytes / of.bytes() * of.len()];
                    entry.kind = Kind::Numbers(Format::Blocks(of));
                }
                _ => {
                    let expected = format!("[rows, {} bytes for each block of {of}] in U8", of.bytes());
                    let (path, tensor) = (self.files[*file].path.clone(), (self.spelling)(name));
                    let found = short(format!("{:?} in U8", entry.shape));
                    return Err(LoadError::Tensor { path, tensor, found, expected });
                }
            }
        }
        Ok(())
    }

    /// Takes a list of numbers in F32 out; `None` where there is no tensor of this name.
    ///
    /// # Errors
    /// If it is not of this length, or in another number format.
    pub(super) fn take_numbers(&mut self, name: &str, len: usize) -> Result<Option<Vec<f32>>, LoadError> {
        let Some(Location { file, entry }) = self.entries.remove(name) else { return Ok(None) };
        let TensorFile { path, bytes } = &self.files[file];
        match entry.kind {
            Kind::Numbers(Format::Float(Dtype::F32)) if entry.shape == [len] => {
                Ok(Some(crate::model::floats(&bytes[entry.range]).collect()))
            }
            ref kind => Err(LoadError::Tensor {
                path: path.clone(),
                tensor: (self.spelling)(name),
                found: short(format!("{:?} in {kind}", entry.shape)),
                expected: format!("[{len}] in F32"),
            }),
        }
    }

    /// A tensor's name as its file spells it.
    pub(super) fn spelling(&self, name: &str) -> String {
        (self.spelling)(name)
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// A tensor's shape, where there is one of this name.
    pub(super) fn shape(&self, name: &str) -> Option<&[usize]> {
        self.entries.get(name).map(|location| &location.entry.shape[..])
    }

    /// Bytes of the named tensors together.
    pub(super) fn bytes<'n>(&self, names: impl Iterator<Item = &'n String>) -> u64 {
        names.filter_map(|name| self.entries.get(name)).map(|location| location.entry.range.len() as u64).sum()
    }

    /// The file that holds a tensor, or should.
    pub(super) fn path_of(&self, name: &str) -> &Path {
        self.entries.get(name).map_or(&self.path, |location| &self.files[location.file].path)
    }

    /// Checks that a tensor is there, in this shape and in a number format that this engine computes with.
    pub(super) fn check(&self, name: &str, shape: &[usize]) -> Result<Format, LoadError> {
        // Vectors are few and short: nothing stores them in blocks.
        let is_matrix = shape.len() == 2;
        let wrong = |found: String| LoadError::Tensor {
            path: self.path_of(name).to_path_buf(),
            tensor: (self.spelling)(name),
            found: short(found),
            expected: format!("{shape:?} in {}", if is_matrix { (self.formats)() } else { plain_formats() }),
        };
        let entry = &self.entries.get(name).ok_or_else(|| wrong("missing".into()))?.entry;
        match entry.kind {
            Kind::Numbers(format) if entry.shape == shape && (is_matrix || format.dtype().is_some()) => Ok(format),
            _ => Err(wrong(format!("{:?} in {}", entry.shape, entry.kind))),
        }
    }

    /// Takes a list of token ids out, in I64 as other libraries have indices, so that what is left are weights;
    /// `None` where there is no tensor of this name.
    ///
    /// # Errors
    /// If it is not of this length, or of another number format, or a number is no token's.
    pub(super) fn take_ids(&mut self, name: &str, len: usize) -> Result<Option<Vec<TokenId>>, LoadError> {
        let Some(Location { file, entry }) = self.entries.remove(name) else { return Ok(None) };
        let TensorFile { path, bytes } = &self.files[file];
        let wrong = |found, expected| LoadError::Tensor { path: path.clone(), tensor: name.into(), found, expected };
        if !matches!(&entry.kind, Kind::Other(name) if name == "I64") || entry.shape != [len] {
            let found = format!("{:?} in {}", entry.shape, entry.kind);
            return Err(wrong(short(found), format!("[{len}] in I64, a token for each row of the head")));
        }
        let (numbers, _) = bytes[entry.range.clone()].as_chunks::<8>();
        let id = |(at, bytes): (usize, &[u8; 8])| {
            let number = i64::from_le_bytes(*bytes);
            TokenId::try_from(number).map_err(|_| wrong(format!("{number}, at {at}"), "a token".into()))
        };
        numbers.iter().enumerate().map(id).collect::<Result<_, _>>().map(Some)
    }

    /// A matrix that [`check`](Self::check) has passed.
    pub(super) fn matrix(&self, name: &str) -> Matrix<'_> {
        let (entry, format, bytes) = self.checked(name);
        Matrix {
            order: entry.order,
            columns: entry.columns.as_deref(),
            ..Matrix::new(format, entry.shape[0], entry.shape[1], bytes)
        }
    }

    /// A vector that [`check`](Self::check) has passed.
    pub(super) fn vector(&self, name: &str) -> Vector<'_> {
        let (entry, format, bytes) = self.checked(name);
        let dtype = format.dtype().expect("checked when the file was opened");
        Vector { dtype, len: entry.shape[0], bytes }
    }

    fn checked(&self, name: &str) -> (&Entry, Format, &[u8]) {
        let Location { file, entry } = &self.entries[name];
        let Kind::Numbers(format) = entry.kind else { unreachable!("checked when the file was opened") };
        (entry, format, &self.files[*file].bytes[entry.range.clone()])
    }
}

/// A tensor of a safetensors file.
fn located(file: usize, header::Entry { dtype, shape, range }: header::Entry) -> Location {
    let kind = match dtype {
        safetensors::Dtype::F32 => Kind::Numbers(Dtype::F32.into()),
        safetensors::Dtype::F16 => Kind::Numbers(Dtype::F16.into()),
        safetensors::Dtype::BF16 => Kind::Numbers(Dtype::BF16.into()),
        other => Kind::Other(other.to_string().into()),
    };
    Location { file, entry: Entry { kind, shape, range, order: RowOrder::AsStored, columns: None } }
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Numbers(format) => f.write_str(&format.to_string().to_uppercase()),
            Self::Other(name) => f.write_str(name),
        }
    }
}

fn as_it_is(name: &str) -> String {
    short(name)
}

fn plain_formats() -> String {
    "F32, F16 or BF16".into()
}

fn all_formats() -> String {
    let blocks: Vec<String> = BlockType::ALL.iter().map(|of| of.to_string().to_uppercase()).collect();
    format!("F32, F16, BF16, {}", blocks.join(", "))
}

/// Whether the name stays in its folder, on every system, and is no longer than a name there can be.
fn is_plain_file_name(name: &str) -> bool {
    const LONGEST: usize = 255;
    let mut components = Path::new(name).components();
    matches!((components.next(), components.next()), (Some(Component::Normal(_)), None))
        && !name.contains(['/', '\\', ':'])
        && name.len() <= LONGEST
}
