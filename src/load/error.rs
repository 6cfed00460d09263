//! What can be wrong with a model folder.

use std::path::{Path, PathBuf};

/// Why a model, a tokenizer or an exit block could not be opened or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The folder lacks a file that every model has.
    #[error("{folder}: no {wanted} here{hint}")]
    MissingFile {
        /// The folder.
        folder: PathBuf,
        /// The file that was looked for.
        wanted: &'static str,
        /// What is there instead; empty, or begins with punctuation.
        hint: &'static str,
    },
    /// Something is larger than any honest file has it, as docs/limits.md lists them.
    #[error("{path}: {what}: {found} (at most {most})")]
    Limit {
        /// The file.
        path: PathBuf,
        /// The key, or what it is the size of.
        what: String,
        /// How large it is.
        found: String,
        /// The limit.
        most: u64,
    },
    /// The file was not fetched: a pointer of Git LFS stands in its place.
    #[error("{path}: a Git LFS pointer in place of the file: run `git lfs pull` in its folder")]
    GitLfsPointer {
        /// The file.
        path: PathBuf,
    },
    /// A file is not the JSON (or UTF-8) it should be.
    #[error("{path}: {message}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        message: String,
    },
    /// A key has a value of the wrong type or out of range, or is missing.
    #[error("{path}: `{key}` is {found}, expected {expected}")]
    Key {
        /// The file.
        path: PathBuf,
        /// The key, with the keys of the objects around it.
        key: String,
        /// Its value.
        found: String,
        /// What it should be.
        expected: String,
    },
    /// The file is fine, but describes something this engine does not run.
    #[error("{path}: {what} is not supported (supported: {supported})")]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// What was asked for, by name.
        what: String,
        /// What there is instead.
        supported: &'static str,
    },
    /// A safetensors file is damaged.
    #[error("{path}: damaged safetensors file: {message}")]
    Safetensors {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// A GGUF file is damaged.
    #[error("{path}: damaged GGUF file: {message}")]
    Gguf {
        /// The file.
        path: PathBuf,
        /// What is wrong, with the key or the tensor.
        message: String,
    },
    /// A folder holds several models.
    #[error("{folder}: several GGUF models here, give the file of one: {files}")]
    SeveralModels {
        /// The folder.
        folder: PathBuf,
        /// The files, by their names.
        files: String,
    },
    /// A tensor is missing, or has another shape or number format than the configuration says.
    #[error("{path}: tensor `{tensor}` is {found}, expected {expected}")]
    Tensor {
        /// The file (the index of a sharded model where the tensor is missing).
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// What the file has.
        found: String,
        /// What the configuration asks for.
        expected: String,
    },
    /// A tensor that the configuration has no place for; ignoring it would change the model.
    #[error("{path}: unexpected tensor `{tensor}`: {why}")]
    UnexpectedTensor {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Why it has no place.
        why: String,
    },
    /// An exit block was trained for another model, or does not say for which.
    #[error("{path}: not an exit block of this model: {key} is {found}, expected {expected}")]
    Fingerprint {
        /// The exit block.
        path: PathBuf,
        /// What it lacks or has another one of: the model's fingerprint, geometry or vocabulary.
        key: &'static str,
        /// What its metadata say.
        found: String,
        /// The model's own.
        expected: String,
    },
    /// The tokenizer cannot be used, or refused a text.
    #[error("{path}: {message}")]
    Tokenizer {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// A chat template does not parse, or raised an error on a conversation.
    #[error("{path}: chat template: {message}")]
    Template {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// The binary was built without the bundled model.
    #[error("this binary was built without the feature `bundled-model`: give a model folder with -m")]
    NotBundled,
}

impl LoadError {
    pub(super) fn io(path: &Path, source: std::io::Error) -> Self {
        Self::Io { path: path.to_path_buf(), source }
    }

    pub(super) fn limit(path: &Path, what: impl ToString, found: impl ToString, most: u64) -> Self {
        Self::Limit { path: path.to_path_buf(), what: short(what), found: short(found), most }
    }

    pub(super) fn malformed(path: &Path, message: impl ToString) -> Self {
        Self::Malformed { path: path.to_path_buf(), message: short(message) }
    }

    pub(super) fn unsupported(path: &Path, what: impl ToString, supported: &'static str) -> Self {
        Self::Unsupported { path: path.to_path_buf(), what: short(what), supported }
    }

    pub(super) fn safetensors(path: &Path, message: impl ToString) -> Self {
        Self::Safetensors { path: path.to_path_buf(), message: short(message) }
    }

    pub(super) fn gguf(path: &Path, message: impl ToString) -> Self {
        Self::Gguf { path: path.to_path_buf(), message: short(message) }
    }

    pub(super) fn tokenizer(path: &Path, message: impl ToString) -> Self {
        Self::Tokenizer { path: path.to_path_buf(), message: short(message) }
    }

    pub(super) fn template(path: &Path, message: impl ToString) -> Self {
        Self::Template { path: path.to_path_buf(), message: short(message) }
    }
}

/// Text from a file as an error shows it: cut where it is longer than any honest one.
pub(super) fn short(text: impl ToString) -> String {
    cut(text, 300)
}

/// A token in quotation marks, cut so that the rest of a sentence fits beside it.
pub(super) fn spelling(token: &str) -> String {
    format!("{:?}", cut(token, 60))
}

fn cut(text: impl ToString, longest: usize) -> String {
    let text = text.to_string();
    match text.char_indices().nth(longest) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}
