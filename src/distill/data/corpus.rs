//! Text that somebody else wrote.

use super::{DataError, Document};
use crate::load::{JsonLines, Keys, Tokenizer, encoding, is_json_lines};
use std::path::{Path, PathBuf};

const EXPECTED: &str = "a JSON object with a text under \"text\"";

/// Reads files of text, each a document of its own, as it is; of a `.jsonl` or `.json` file each line's `text` is one
/// (its other keys tell about the text, and change nothing of it). Documents have one token of context: the begin-of-text
/// token where the model wants one, else their first token. A long one is cut into windows later, by
/// [`Batches`](super::Batches).
///
/// # Errors
/// If a file cannot be read or is not UTF-8, a line has no text, or the tokenizer refuses one.
pub fn read_corpus(paths: &[PathBuf], tokenizer: &Tokenizer) -> Result<Vec<Document>, DataError> {
    let mut documents = Vec::new();
    for path in paths {
        let bytes = std::fs::read(path).map_err(|error| DataError::io(path, error))?;
        if is_json_lines(path) {
            documents.extend(read_lines(path, &bytes, tokenizer)?);
        } else {
            let encoding = |source| DataError::Encoding { path: path.to_path_buf(), source };
            let text = encoding::text(bytes).map_err(encoding)?;
            documents.push(document(path, 1, &text, tokenizer)?);
        }
    }
    Ok(documents)
}

fn read_lines(path: &Path, bytes: &[u8], tokenizer: &Tokenizer) -> Result<Vec<Document>, DataError> {
    let mut lines = JsonLines::new(bytes);
    let mut documents = Vec::new();
    while let Some((number, line)) = lines.next_line().map_err(|error| DataError::io(path, error))? {
        let mut keys = Keys::parse(line);
        let text = keys.whole().and_then(|()| keys.take::<String>("text"));
        let text = text.and_then(|text| text.ok_or("no key \"text\"".into()));
        let text = text.map_err(|found| DataError::line(path, number, found, EXPECTED))?;
        documents.push(document(path, number, &text, tokenizer)?);
    }
    if documents.is_empty() {
        return Err(DataError::Empty { found: path.display().to_string(), expected: "at least one line with a text" });
    }
    Ok(documents)
}

fn document(path: &Path, line: usize, text: &str, tokenizer: &Tokenizer) -> Result<Document, DataError> {
    let tokens = tokenizer.encode(text, true).map_err(|source| DataError::text(path, line, source))?;
    Ok(Document { tokens, prompt: 1 })
}
