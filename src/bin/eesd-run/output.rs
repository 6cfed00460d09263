//! Standard output and JSON-lines files: written through at once, and quiet about a reader gone.

use crate::failure::{Failure, Outcome};
use eesd::replace::Replacement;
use serde::Serialize;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, BufWriter, ErrorKind, IsTerminal, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Where results go.
pub struct Output {
    sink: Box<dyn Write>,
    /// `None`: standard output.
    path: Option<PathBuf>,
}

impl Output {
    /// Standard output.
    pub fn stdout() -> Self {
        Self { sink: Box::new(BufWriter::new(io::stdout())), path: None }
    }

    /// Whether people see it on the terminal that they are told everything else on.
    pub fn is_terminal(&self) -> bool {
        self.path.is_none() && io::stdout().is_terminal()
    }

    /// Writes `text` and hands it on at once.
    ///
    /// # Errors
    /// If it cannot be written; [`Failure::ReaderGone`] where nobody reads standard output any more.
    pub fn text(&mut self, text: &str) -> Outcome {
        self.sink.write_all(text.as_bytes()).and_then(|()| self.sink.flush()).map_err(|error| match &self.path {
            None => unwritten(error),
            Some(path) => Failure::file(path, "written", &error),
        })
    }

    /// Writes one JSON value on a line of its own.
    ///
    /// # Errors
    /// As [`text`](Self::text).
    pub fn json_line(&mut self, value: &impl Serialize) -> Outcome {
        let mut line = serde_json::to_string(value)?;
        line.push('\n');
        self.text(&line)
    }

    /// Writes a JSON value for machines and patient people: indented.
    ///
    /// # Errors
    /// As [`text`](Self::text).
    pub fn json(&mut self, value: &impl Serialize) -> Outcome {
        let mut text = serde_json::to_string_pretty(value)?;
        text.push('\n');
        self.text(&text)
    }
}

/// Why standard output could not be written.
pub fn unwritten(error: io::Error) -> Failure {
    match error.kind() {
        ErrorKind::BrokenPipe => Failure::ReaderGone,
        _ => Failure::failed(format!("standard output: {error}")),
    }
}

/// A file of answers that no other run of this program writes at the same time. What it holds stays until it is
/// overwritten or gone on with.
pub struct AnswerFile {
    path: PathBuf,
    file: File,
}

impl AnswerFile {
    /// Opens the file at `path`, or makes it. To be gone on with it is read too, so it has to be a regular file.
    ///
    /// # Errors
    /// If it cannot be opened, or another run is writing it.
    pub fn open(path: &Path, resume: bool) -> Outcome<Self> {
        let io = |error| Failure::file(path, "written", &error);
        if resume && fs::metadata(path).is_ok_and(|kind| !kind.is_file()) {
            let found = format!("--resume: {} is not a regular file", path.display());
            return Err(Failure::failed(format!("{found} (expected one that can be read and gone on with)")));
        }
        let file = OpenOptions::new().read(resume).write(true).create(true).truncate(false).open(path).map_err(io)?;
        // Pipes and devices have nothing to protect. Some network file systems have no locks: no reason to refuse them.
        if file.metadata().map_err(io)?.is_file() {
            let locked = !matches!(file.try_lock(), Err(TryLockError::WouldBlock));
            if !locked || !is_at(&file, path).map_err(io)? {
                return Err(Failure::failed(format!("{}: another run is writing it", path.display())));
            }
        }
        Ok(Self { path: path.to_owned(), file })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads it from where reading stopped.
    pub fn reader(&self) -> impl Read {
        &self.file
    }

    /// Drops what it holds.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn overwrite(self) -> Outcome<Output> {
        let io = |error| Failure::file(&self.path, "written", &error);
        if self.file.metadata().map_err(io)?.is_file() {
            self.file.set_len(0).map_err(io)?;
        }
        Ok(self.into_output())
    }

    /// Goes on at its end, without these bytes, given in order. Whatever happens meanwhile, either all of them are in
    /// the file or none, and everything else is.
    ///
    /// # Errors
    /// If it cannot be read or written; then it is as it was.
    pub fn without(mut self, dropped: &[Range<u64>]) -> Outcome<Output> {
        if !dropped.is_empty() {
            self.file = self.rewritten(dropped).map_err(|error| Failure::file(&self.path, "rewritten", &error))?;
        }
        self.file.seek(SeekFrom::End(0)).map_err(|error| Failure::file(&self.path, "written", &error))?;
        Ok(self.into_output())
    }

    /// A file in the place of this one, without the dropped bytes.
    fn rewritten(&self, dropped: &[Range<u64>]) -> io::Result<File> {
        let new = Replacement::of(&self.path)?;
        self.copy(dropped, new.file())?;
        new.persist_durably()
    }

    fn copy(&self, dropped: &[Range<u64>], mut copy: &File) -> io::Result<()> {
        // Before it takes the other's place, so that there is no moment at which nobody has the lock. Only the owner of
        // that one makes such a copy, and where there are no locks there are none to lose.
        let _ = copy.try_lock();
        let mut file = &self.file;
        let metadata = file.metadata()?;
        copy.set_permissions(metadata.permissions())?;
        let mut kept_from = 0;
        let end = metadata.len()..metadata.len();
        for dropped in dropped.iter().chain(std::iter::once(&end)) {
            file.seek(SeekFrom::Start(kept_from))?;
            io::copy(&mut file.take(dropped.start - kept_from), &mut copy)?;
            kept_from = dropped.end;
        }
        Ok(())
    }

    fn into_output(self) -> Output {
        Output { sink: Box::new(BufWriter::new(self.file)), path: Some(self.path) }
    }
}

/// Whether `path` still leads to `file`: before this run had the lock, another one may have put a new file there.
#[cfg(unix)]
fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt;
    let (ours, there) = (file.metadata()?, fs::metadata(path)?);
    Ok((ours.dev(), ours.ino()) == (there.dev(), there.ino()))
}

/// Elsewhere nothing tells, and the lock has to be enough.
#[cfg(not(unix))]
fn is_at(_: &File, _: &Path) -> io::Result<bool> {
    Ok(true)
}
