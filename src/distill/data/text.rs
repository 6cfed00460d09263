//! Text files and their lines.

use super::DataError;
use std::path::Path;

/// The text of a file.
///
/// # Errors
/// If it cannot be read, or is not UTF-8: with the first byte that is wrong.
pub(super) fn read(path: &Path) -> Result<String, DataError> {
    let bytes = std::fs::read(path).map_err(|error| DataError::io(path, error))?;
    String::from_utf8(bytes).map_err(|error| {
        let offset = error.utf8_error().valid_up_to();
        DataError::NotUtf8 { path: path.to_path_buf(), offset, found: error.as_bytes()[offset] }
    })
}

/// Whether the file's name says that each line is a JSON object: `.jsonl` or `.json`.
pub(super) fn is_json_lines(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "jsonl" || extension == "json")
}

/// Lines that are not empty, with their numbers from 1.
pub(super) fn lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines().enumerate().map(|(i, line)| (i + 1, line)).filter(|(_, line)| !line.trim().is_empty())
}

/// Runs of lines that are not empty, with the number of the first one, from 1. Line ends within become `\n`.
pub(super) fn paragraphs(text: &str) -> Vec<(usize, String)> {
    let mut paragraphs: Vec<(usize, String)> = Vec::new();
    let mut last = None;
    for (number, line) in lines(text) {
        match paragraphs.last_mut() {
            Some((_, paragraph)) if last == Some(number - 1) => {
                paragraph.push('\n');
                paragraph.push_str(line);
            }
            _ => paragraphs.push((number, line.to_owned())),
        }
        last = Some(number);
    }
    paragraphs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blank_lines_separate_paragraphs() {
        let text = "\n \none\r\n  two  \n\n\t\n\nthree\n";
        assert_eq!(paragraphs(text), [(3, "one\n  two  ".to_owned()), (8, "three".to_owned())]);
        assert_eq!(paragraphs(" \n\n"), []);
    }

    #[test]
    fn names_decide_what_a_file_is() {
        for (name, json) in [("a.jsonl", true), ("a.b/c.json", true), ("a.txt", false), ("jsonl", false), ("", false)] {
            assert_eq!(is_json_lines(Path::new(name)), json, "{name}");
        }
    }
}
