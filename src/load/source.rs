//! Where a model's files lie: in a folder, in the binary itself, or all in one GGUF file.

use super::encoding::without_mark;
use super::gguf::Gguf;
use super::{LoadError, limits};
use memmap2::Mmap;
use std::borrow::Cow;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Files in the binary: name and content.
pub(super) type Files = &'static [(&'static str, &'static [u8])];

/// A place with a model's files in it.
pub(super) enum Source {
    /// A folder.
    Folder(PathBuf),
    /// The binary, under a name that stands for a folder.
    Embedded { name: &'static str, files: Files },
    /// A GGUF model: its metadata stand for a folder's small files, and exit blocks lie beside it.
    Gguf(Box<Gguf>),
}

impl Source {
    /// The path of a file here, as error messages show it.
    pub(super) fn path(&self, file: &str) -> PathBuf {
        match self {
            Self::Folder(folder) => folder.join(file),
            Self::Embedded { name, .. } => Path::new(name).join(file),
            Self::Gguf(gguf) if Gguf::stands_for(file) => gguf.path().to_path_buf(),
            Self::Gguf(gguf) => gguf.folder().join(file),
        }
    }

    /// The content of a small file of text, without a byte order mark; `None` where there is no such file.
    pub(super) fn read(&self, file: &str) -> Result<Option<Cow<'static, [u8]>>, LoadError> {
        self.read_up_to(file, limits::JSON_BYTES)
    }

    /// The same for a file that may have `most` bytes.
    pub(super) fn read_up_to(&self, file: &str, most: u64) -> Result<Option<Cow<'static, [u8]>>, LoadError> {
        let path = self.path(file);
        match self {
            Self::Embedded { .. } => Ok(self.embedded(file).map(Cow::Borrowed)),
            Self::Gguf(gguf) => Ok(gguf.document(file, most)?.map(Cow::Owned)),
            Self::Folder(_) => open(&path)?.map(|opened| read_text(opened, &path, most).map(Cow::Owned)).transpose(),
        }
    }

    /// The content of a large file, mapped; `None` where there is no such file.
    pub(super) fn map(&self, file: &str) -> Result<Option<Bytes>, LoadError> {
        match self {
            Self::Embedded { .. } => Ok(self.embedded(file).map(Bytes::Embedded)),
            Self::Folder(_) | Self::Gguf(_) => map(&self.path(file)),
        }
    }

    /// The names of the files here, sorted.
    pub(super) fn names(&self) -> Result<Vec<String>, LoadError> {
        let mut names = match self {
            Self::Embedded { files, .. } => files.iter().map(|(name, _)| name.to_string()).collect::<Vec<_>>(),
            Self::Folder(folder) => names(folder)?,
            Self::Gguf(gguf) => names(gguf.folder())?,
        };
        names.sort_unstable();
        Ok(names)
    }

    fn embedded(&self, file: &str) -> Option<&'static [u8]> {
        match self {
            Self::Embedded { files, .. } => files.iter().find(|(name, _)| *name == file).map(|(_, bytes)| *bytes),
            Self::Folder(_) | Self::Gguf(_) => None,
        }
    }
}

/// The names of the files in a folder.
pub(super) fn names(folder: &Path) -> Result<Vec<String>, LoadError> {
    std::fs::read_dir(folder)
        .and_then(|entries| entries.map(|e| Ok(e?.file_name().to_string_lossy().into_owned())).collect())
        .map_err(|error| LoadError::io(folder, error))
}

/// Read-only bytes, of a file mostly.
#[derive(Clone)]
pub(super) enum Bytes {
    Mapped(Arc<Mmap>),
    Embedded(&'static [u8]),
    /// Made from a file's, where these lie in another order.
    Made(Arc<Vec<u8>>),
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Embedded(bytes) => bytes,
            Self::Made(bytes) => bytes,
        }
    }
}

/// Maps a file; `None` where there is none.
pub(super) fn map(path: &Path) -> Result<Option<Bytes>, LoadError> {
    let Some(file) = open(path)? else { return Ok(None) };
    // SAFETY: the map is only ever read. As with every mapped model, the file must not be shortened or
    // rewritten while it is open; this crate's own writer replaces files whole, by renaming.
    let map = unsafe { Mmap::map(&file) }.map_err(|error| LoadError::io(path, error))?;
    refuse_pointer(path, &map)?;
    Ok(Some(Bytes::Mapped(Arc::new(map))))
}

/// Opens a regular file: a pipe would block, a folder cannot be read.
fn open(path: &Path) -> Result<Option<File>, LoadError> {
    let io = |error| LoadError::io(path, error);
    match std::fs::metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io(error)),
        Ok(kind) if !kind.is_file() => Err(io(std::io::Error::new(ErrorKind::InvalidInput, "not a regular file"))),
        Ok(_) => File::open(path).map(Some).map_err(io),
    }
}

fn read_text(file: File, path: &Path, most: u64) -> Result<Vec<u8>, LoadError> {
    let io = |error| LoadError::io(path, error);
    let bytes = file.metadata().map_err(io)?.len();
    let mut content = Vec::new();
    if bytes <= most {
        content.try_reserve_exact(bytes as usize).map_err(|_| io(ErrorKind::OutOfMemory.into()))?;
        // One more, to see whether the file has grown since.
        file.take(most + 1).read_to_end(&mut content).map_err(io)?;
    }
    let bytes = bytes.max(content.len() as u64);
    if bytes > most {
        return Err(LoadError::limit(path, "bytes", bytes, most));
    }
    refuse_pointer(path, &content)?;
    utf8(content, path)
}

/// A clone without Git LFS has a few lines in place of every large file.
fn refuse_pointer(path: &Path, content: &[u8]) -> Result<(), LoadError> {
    let pointer = ["git-lfs", "hawser"].iter().any(|name| {
        let rest = content.strip_prefix(b"version https://").and_then(|rest| rest.strip_prefix(name.as_bytes()));
        rest.is_some_and(|rest| rest.starts_with(b".github.com/spec/"))
    });
    if pointer { Err(LoadError::GitLfsPointer { path: path.to_path_buf() }) } else { Ok(()) }
}

/// Takes a byte order mark off, and refuses UTF-16 by that name; whether the rest is UTF-8 is for its parser to say.
fn utf8(mut content: Vec<u8>, path: &Path) -> Result<Vec<u8>, LoadError> {
    let mark = content.len() - without_mark(&content).map_err(|error| LoadError::malformed(path, error))?.len();
    content.drain(..mark);
    Ok(content)
}
