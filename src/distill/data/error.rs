//! What can be wrong with data.

use crate::engine::EngineError;
use crate::load::LoadError;
use crate::load::encoding::EncodingError;
use crate::sample::ParamError;
use std::path::{Path, PathBuf};

/// Why data could not be read, written or put together.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// A file could not be read or written. What was written before is in it.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file is no text.
    #[error("{path}: {source}")]
    Encoding {
        /// The file.
        path: PathBuf,
        /// What it is instead.
        source: EncodingError,
    },
    /// A line of a file is not what it should be.
    #[error("{path}:{line}: {found} (expected {expected})")]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is there.
        found: String,
        /// What should be there.
        expected: String,
    },
    /// The tokenizer or the chat template refused a text.
    #[error("{path}:{line}: {source}")]
    Text {
        /// The file.
        path: PathBuf,
        /// The line where the text begins, from 1.
        line: usize,
        /// Why.
        source: Box<LoadError>,
    },
    /// There is nothing in a file, or nothing left to train on.
    #[error("{found}: expected {expected}")]
    Empty {
        /// What is empty.
        found: String,
        /// What should be there.
        expected: &'static str,
    },
    /// A file of answers that another model wrote, or with other parameters.
    #[error("{path}: was written with {key} = {found}, this run has {expected}: give another file, or the same {key}")]
    OtherRun {
        /// The file.
        path: PathBuf,
        /// The first parameter that differs.
        key: String,
        /// Its value in the file.
        found: String,
        /// Its value in this run.
        expected: String,
    },
    /// A file that holds something else than answers; it is left as it is.
    #[error("{path}: not a file of answers: {found} (expected a first line with \"format\": \"{expected}\")")]
    NotAnswers {
        /// The file.
        path: PathBuf,
        /// What is there.
        found: String,
        /// The format's name.
        expected: &'static str,
    },
    /// Another process is writing the file.
    #[error("{path}: another process is writing it (expected to be alone)")]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// The engine refused a prompt.
    #[error("prompt {index}: {source}")]
    Prompt {
        /// Its number, from 0.
        index: usize,
        /// Why.
        source: EngineError,
    },
    /// A pass failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A parameter is out of range.
    #[error(transparent)]
    Param(#[from] ParamError),
}

impl DataError {
    pub(super) fn io(path: &Path, source: std::io::Error) -> Self {
        Self::Io { path: path.to_path_buf(), source }
    }

    pub(super) fn text(path: &Path, line: usize, source: LoadError) -> Self {
        Self::Text { path: path.to_path_buf(), line, source: Box::new(source) }
    }

    pub(super) fn line(path: &Path, line: usize, found: impl Into<String>, expected: impl Into<String>) -> Self {
        Self::Line { path: path.to_path_buf(), line, found: found.into(), expected: expected.into() }
    }

    pub(super) fn param(name: &'static str, found: impl ToString, expected: &'static str) -> Self {
        Self::Param(ParamError { name, found: found.to_string(), expected })
    }
}
