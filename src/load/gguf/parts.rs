//! The files of a model: one, or parts that are numbered `-00001-of-00003.gguf`.

use super::super::source::{self, Bytes};
use super::super::{LoadError, limits};
use super::part::Part;
use super::value::Metadata;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

const EXTENSION: &str = "gguf";

/// An opened model.
pub(in super::super) struct Gguf {
    /// The first one has the metadata.
    parts: Vec<Part>,
    folder: PathBuf,
    name: String,
}

impl Gguf {
    /// Opens a file, and the other parts of its model where it is a part.
    ///
    /// # Errors
    /// If a file is missing or damaged, or the parts do not belong together.
    pub fn open(path: &Path) -> Result<Self, LoadError> {
        let name = file_name(path);
        let folder = match path.parent() {
            Some(parent) if parent != Path::new("") => parent.to_path_buf(),
            _ => PathBuf::from("."),
        };
        let of_name = Numbered::parse(&name);
        let paths = match &of_name {
            Some(numbered) => {
                if numbered.count > limits::SHARDS {
                    return Err(LoadError::limit(path, "files of one model", numbered.count, limits::SHARDS as u64));
                }
                numbered.all().into_iter().map(|name| path.with_file_name(name)).collect()
            }
            None => vec![path.to_path_buf()],
        };
        let parts = paths.iter().map(|path| open(path)).collect::<Result<Vec<Part>, _>>()?;
        check(&parts)?;
        let name = of_name.map_or(name.as_str(), |numbered| numbered.stem);
        let name = name.strip_suffix(".gguf").unwrap_or(name).to_owned();
        Ok(Self { parts, folder, name })
    }

    /// The file's name without its extension and a part's number.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The folder that the files lie in.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The file with the metadata.
    pub fn path(&self) -> &Path {
        self.parts[0].path()
    }

    pub fn metadata(&self) -> Metadata<'_> {
        self.parts[0].metadata()
    }

    pub fn parts(&self) -> &[Part] {
        &self.parts
    }
}

/// The one model that a folder holds as GGUF, `None` where it holds none; parts of a model are one.
///
/// # Errors
/// If there are several, by their names.
pub(in super::super) fn in_folder(folder: &Path) -> Result<Option<PathBuf>, LoadError> {
    let mut models: Vec<String> = source::names(folder)?;
    models.retain(|name| Path::new(name).extension() == Some(OsStr::new(EXTENSION)) && folder.join(name).is_file());
    models.sort_unstable();
    models.dedup_by(|later, first| match (Numbered::parse(later), Numbered::parse(first)) {
        (Some(later), Some(first)) => (later.stem, later.count) == (first.stem, first.count),
        _ => false,
    });
    match &models[..] {
        [] => Ok(None),
        [one] => Ok(Some(folder.join(one))),
        several => {
            let files = super::super::error::short(several.join(", "));
            Err(LoadError::SeveralModels { folder: folder.to_path_buf(), files })
        }
    }
}

fn open(path: &Path) -> Result<Part, LoadError> {
    let missing = || LoadError::io(path, std::io::ErrorKind::NotFound.into());
    let bytes: Bytes = source::map(path)?.ok_or_else(missing)?;
    Part::parse(path, bytes).map_err(|message| LoadError::gguf(path, message))
}

/// Checks that the files are the parts of one model, in order.
fn check(parts: &[Part]) -> Result<(), LoadError> {
    const COUNT: &str = "split.count";
    const NUMBER: &str = "split.no";
    const TENSORS: &str = "split.tensors.count";
    for (number, part) in parts.iter().enumerate() {
        let metadata = part.metadata();
        let count = metadata.whole(COUNT, 0..usize::from(u16::MAX))?;
        if count.unwrap_or(1).max(1) != parts.len() {
            let expected = format!("{}, as the file's name says (name-00001-of-00003.gguf)", parts.len());
            return Err(metadata.wrong(COUNT, &expected));
        }
        if parts.len() > 1 && metadata.whole(NUMBER, 0..usize::from(u16::MAX))? != Some(number) {
            return Err(metadata.wrong(NUMBER, &format!("{number}, as the file's name says, which counts from 1")));
        }
    }
    let tensors: usize = parts.iter().map(|part| part.tensors().len()).sum();
    for metadata in parts.iter().map(Part::metadata) {
        if metadata.whole(TENSORS, 0..limits::TENSORS + 1)?.is_some_and(|all| all != tensors) {
            return Err(metadata.wrong(TENSORS, &format!("{tensors}, those of all parts")));
        }
    }
    Ok(())
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// The name of a part: `stem-00001-of-00003.gguf`.
struct Numbered<'n> {
    stem: &'n str,
    count: usize,
}

impl<'n> Numbered<'n> {
    fn parse(name: &'n str) -> Option<Self> {
        let (rest, count) = name.strip_suffix(".gguf")?.rsplit_once("-of-")?;
        let (stem, number) = rest.rsplit_once('-')?;
        let digits = |text: &str| (text.len() == 5).then(|| text.parse::<u32>().ok()).flatten();
        let (number, count) = (digits(number)?, digits(count)?);
        (1..=count).contains(&number).then_some(Self { stem, count: count as usize })
    }

    /// The names of all parts.
    fn all(&self) -> Vec<String> {
        (1..=self.count).map(|number| format!("{}-{number:05}-of-{:05}.gguf", self.stem, self.count)).collect()
    }
}
