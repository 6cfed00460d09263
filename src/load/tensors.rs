//! The tensors of one safetensors file or of several with an index, mapped into memory.

use super::error::short;
use super::header::{Entry, Header};
use super::json::Document;
use super::source::{Bytes, Source};
use super::{LoadError, limits};
use crate::TokenId;
use crate::model::{Dtype, Format, Matrix, Vector};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// Tensors by name, and the files that hold them.
pub(super) struct Tensors {
    /// The file to blame where a tensor is missing.
    path: PathBuf,
    files: Vec<TensorFile>,
    entries: BTreeMap<String, Location>,
}

struct TensorFile {
    path: PathBuf,
    bytes: Bytes,
}

struct Location {
    file: usize,
    entry: Entry,
    /// The format, if it is one that this engine computes with.
    format: Option<Format>,
}

/// A tensor as its file has it.
pub(super) struct Stored<'a> {
    /// Its number format, as safetensors calls it.
    pub(super) dtype: String,
    pub(super) shape: &'a [usize],
    pub(super) bytes: &'a [u8],
}

impl Stored<'_> {
    /// Whether it is plain numbers, all of them zero.
    pub(super) fn is_zero(&self) -> bool {
        matches!(&self.dtype[..], "F32" | "F16" | "BF16") && self.bytes.iter().all(|&byte| byte == 0)
    }
}

/// A matrix that was made of some tensors.
pub(super) struct Made {
    pub(super) format: Format,
    pub(super) rows: usize,
    pub(super) cols: usize,
    /// `rows · format.row_bytes(cols)` bytes.
    pub(super) bytes: Vec<u8>,
}

fn located(file: usize, entry: Entry) -> Location {
    let format = dtype(&entry).map(Format::from);
    Location { file, entry, format }
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
                    () if other(".gguf") => ", only GGUF files: take the model's Hugging Face folder",
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
        Ok((Self { path, files, entries }, header.metadata))
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

        let mut tensors = Self { path: root.path().to_path_buf(), files: Vec::new(), entries: BTreeMap::new() };
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

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// A tensor's shape, where there is one of this name.
    pub(super) fn shape(&self, name: &str) -> Option<&[usize]> {
        self.entries.get(name).map(|location| &location.entry.shape[..])
    }

    /// A tensor as it is stored, whatever its number format.
    pub(super) fn stored(&self, name: &str) -> Option<Stored<'_>> {
        let Location { file, entry, .. } = self.entries.get(name)?;
        let bytes = &self.files[*file].bytes[entry.range.clone()];
        Some(Stored { dtype: entry.dtype.to_string(), shape: &entry.shape, bytes })
    }

    /// Takes a tensor out.
    pub(super) fn remove(&mut self, name: &str) {
        self.entries.remove(name);
    }

    /// Puts a matrix in the place of the tensors that it was made of, the first of which says the file to blame.
    pub(super) fn replace(&mut self, parts: &[String], name: String, made: Made) {
        let path = self.path_of(&parts[0]).to_path_buf();
        parts.iter().for_each(|part| self.remove(part));
        let Made { format, rows, cols, bytes } = made;
        let entry = Entry { dtype: safetensors::Dtype::U8, shape: vec![rows, cols], range: 0..bytes.len() };
        self.entries.insert(name, Location { file: self.files.len(), entry, format: Some(format) });
        self.files.push(TensorFile { path, bytes: Bytes::Made(Arc::new(bytes)) });
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
        let wrong = |found: String| LoadError::Tensor {
            path: self.path_of(name).to_path_buf(),
            tensor: short(name),
            found: short(found),
            expected: format!("{shape:?} in F32, F16 or BF16"),
        };
        let Location { entry, format, .. } = self.entries.get(name).ok_or_else(|| wrong("missing".into()))?;
        match format {
            Some(format) if entry.shape == shape => Ok(*format),
            _ => Err(wrong(format!("{:?} in {}", entry.shape, entry.dtype))),
        }
    }

    /// Takes a list of token ids out, in I64 as other libraries have indices, so that what is left are weights;
    /// `None` where there is no tensor of this name.
    ///
    /// # Errors
    /// If it is not of this length, or of another number format, or a number is no token's.
    pub(super) fn take_ids(&mut self, name: &str, len: usize) -> Result<Option<Vec<TokenId>>, LoadError> {
        let Some(Location { file, entry, .. }) = self.entries.remove(name) else { return Ok(None) };
        let TensorFile { path, bytes } = &self.files[file];
        let wrong = |found, expected| LoadError::Tensor { path: path.clone(), tensor: name.into(), found, expected };
        if entry.dtype != safetensors::Dtype::I64 || entry.shape != [len] {
            let found = format!("{:?} in {}", entry.shape, entry.dtype);
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
        Matrix::new(format, entry.shape[0], entry.shape[1], bytes)
    }

    /// A vector that [`check`](Self::check) has passed.
    pub(super) fn vector(&self, name: &str) -> Vector<'_> {
        let (entry, format, bytes) = self.checked(name);
        let dtype = format.dtype().expect("only matrices are made of parts");
        Vector { dtype, len: entry.shape[0], bytes }
    }

    fn checked(&self, name: &str) -> (&Entry, Format, &[u8]) {
        let Location { file, entry, format } = &self.entries[name];
        let format = format.expect("checked when the file was opened");
        (entry, format, &self.files[*file].bytes[entry.range.clone()])
    }
}

fn dtype(entry: &Entry) -> Option<Dtype> {
    match entry.dtype {
        safetensors::Dtype::F32 => Some(Dtype::F32),
        safetensors::Dtype::F16 => Some(Dtype::F16),
        safetensors::Dtype::BF16 => Some(Dtype::BF16),
        _ => None,
    }
}

/// Whether the name stays in its folder, on every system, and is no longer than a name there can be.
fn is_plain_file_name(name: &str) -> bool {
    const LONGEST: usize = 255;
    let mut components = Path::new(name).components();
    matches!((components.next(), components.next()), (Some(Component::Normal(_)), None))
        && !name.contains(['/', '\\', ':'])
        && name.len() <= LONGEST
}
