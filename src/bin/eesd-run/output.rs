//! Standard output and JSON-lines files: written through at once, and quiet about a reader gone.

use crate::failure::{Failure, Outcome};
use serde::Serialize;
use std::fs::File;
use std::io::{self, BufWriter, ErrorKind, Write};
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

    /// The file at `path`, made anew; standard output where there is none or it is `-`.
    ///
    /// # Errors
    /// If the file cannot be made.
    pub fn open(path: Option<&Path>) -> Outcome<Self> {
        match path {
            Some(path) if path != Path::new("-") => {
                let file = File::create(path).map_err(|e| Failure::file(path, "written", &e))?;
                Ok(Self { sink: Box::new(BufWriter::new(file)), path: Some(path.to_owned()) })
            }
            _ => Ok(Self::stdout()),
        }
    }

    /// Writes `text` and hands it on at once.
    ///
    /// # Errors
    /// If it cannot be written; [`Failure::ReaderGone`] where nobody reads standard output any more.
    pub fn text(&mut self, text: &str) -> Outcome {
        self.sink.write_all(text.as_bytes()).and_then(|()| self.sink.flush()).map_err(|error| match &self.path {
            None if error.kind() == ErrorKind::BrokenPipe => Failure::ReaderGone,
            None => Failure::failed(format!("standard output: {error}")),
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
