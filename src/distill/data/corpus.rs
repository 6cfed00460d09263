//! Text that somebody else wrote.

use super::{DataError, Document, text};
use crate::load::{Tokenizer, json_line};
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// The key of a line that is read. Others tell about the text, and change nothing of it.
#[derive(Deserialize)]
#[serde(expecting = "an object with a text under \"text\"")]
struct Line {
    text: Option<String>,
}

/// Reads files of text, each a document of its own, as it is; of a `.jsonl` or `.json` file each line's `text` is one.
/// Documents have one token of context: the begin-of-text token where the model wants one, else their first token.
/// A long one is cut into windows later, by [`Batches`](super::Batches).
///
/// # Errors
/// If a file cannot be read or is not UTF-8, a line has no text, or the tokenizer refuses one.
pub fn read_corpus(paths: &[PathBuf], tokenizer: &Tokenizer) -> Result<Vec<Document>, DataError> {
    let mut documents = Vec::new();
    for path in paths {
        let content = text::read(path)?;
        if !text::is_json_lines(path) {
            documents.push(document(path, 1, &content, tokenizer)?);
            continue;
        }
        let before = documents.len();
        for (number, line) in text::lines(&content) {
            let wrong = |found| DataError::line(path, number, found, "a JSON object with a text under \"text\"");
            let line: Line = json_line(line.as_bytes()).map_err(wrong)?;
            let text = line.text.ok_or_else(|| wrong("no key \"text\"".into()))?;
            documents.push(document(path, number, &text, tokenizer)?);
        }
        if documents.len() == before {
            return Err(DataError::Empty {
                found: path.display().to_string(),
                expected: "at least one line with a text",
            });
        }
    }
    Ok(documents)
}

fn document(path: &Path, line: usize, text: &str, tokenizer: &Tokenizer) -> Result<Document, DataError> {
    let tokens = tokenizer.encode(text, true).map_err(|source| DataError::text(path, line, source))?;
    Ok(Document { tokens, prompt: 1 })
}
