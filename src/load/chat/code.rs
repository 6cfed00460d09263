//! The code between a tag's delimiters, in pieces.

use std::ops::Range;

/// The code of a tag, from after its opening delimiter up to its closing one.
pub(super) struct Code<'a> {
    pub(super) text: &'a str,
    pub(super) pieces: Vec<Piece>,
}

/// A word, a text in quotes or any other single character, white space left out.
pub(super) struct Piece {
    pub(super) start: usize,
    pub(super) end: usize,
    /// How many brackets are open around it.
    pub(super) depth: usize,
}

impl<'a> Code<'a> {
    /// Reads up to `end`, where that stands outside of quotes and brackets.
    pub(super) fn read(from: &'a str, end: &str) -> Self {
        let mut pieces = Vec::new();
        let (mut at, mut depth) = (0, 0_usize);
        while let Some(first) = from[at..].chars().next() {
            let rest = &from[at..];
            if depth == 0 && rest.starts_with(end) {
                break;
            }
            let is_letter = |c: char| c.is_alphanumeric() || c == '_';
            let length = match first {
                '\'' | '"' => quoted(rest, first),
                _ if is_letter(first) => rest.find(|c| !is_letter(c)).unwrap_or(rest.len()),
                _ => first.len_utf8(),
            };
            if matches!(first, ')' | ']' | '}') {
                depth = depth.saturating_sub(1);
            }
            if !first.is_whitespace() {
                pieces.push(Piece { start: at, end: at + length, depth });
            }
            if matches!(first, '(' | '[' | '{') {
                depth += 1;
            }
            at += length;
        }
        Self { text: &from[..at], pieces }
    }

    pub(super) fn piece(&self, index: usize) -> &'a str {
        self.pieces.get(index).map_or("", |piece| &self.text[piece.start..piece.end])
    }

    /// The index of the tag's name, after the sign that keeps or drops white space.
    pub(super) fn name(&self) -> usize {
        usize::from(matches!(self.piece(0), "-" | "+"))
    }

    /// For each piece that opens a bracket the one that closes it, where one does.
    pub(super) fn closings(&self) -> Vec<Option<usize>> {
        let (mut closings, mut open) = (vec![None; self.pieces.len()], Vec::new());
        for index in 0..self.pieces.len() {
            match self.piece(index) {
                "(" | "[" | "{" => open.push(index),
                ")" | "]" | "}" => {
                    if let Some(opening) = open.pop() {
                        closings[opening] = Some(index);
                    }
                }
                _ => {}
            }
        }
        closings
    }

    /// Whether what stands before a bracket makes it a call's or a subscript's, not that of a value written out.
    pub(super) fn is_postfix(&self, bracket: usize) -> bool {
        const WORDS: [&str; 15] = [
            "and", "as", "do", "elif", "else", "filter", "from", "if", "in", "include", "import", "is", "not", "or",
            "set",
        ];
        let Some(before) = bracket.checked_sub(1) else { return false };
        let text = self.piece(before);
        text.starts_with(['\'', '"']) || matches!(text, ")" | "]" | "}") || is_word(text) && !WORDS.contains(&text)
    }

    /// The pieces without the signs at both ends that keep or drop white space.
    pub(super) fn unsigned(&self) -> Range<usize> {
        let is_sign = |index: usize| matches!(self.piece(index), "-" | "+");
        let first = usize::from(is_sign(0) && self.pieces[0].start == 0);
        let last = self.pieces.len();
        let signed = last > first && is_sign(last - 1) && self.pieces[last - 1].end == self.text.len();
        first..last - usize::from(signed)
    }

    /// How many operators there are, subscripts among them. What the template engine does to a tag grows with their square.
    pub(super) fn operators(&self) -> usize {
        const WORDS: [&str; 5] = ["and", "in", "is", "not", "or"];
        let is_operator = |&index: &usize| {
            let text = self.piece(index);
            text.starts_with(['+', '-', '*', '/', '%', '~', '<', '>', '=', '!', '|'])
                || WORDS.contains(&text)
                || text == "[" && self.is_postfix(index)
        };
        (0..self.pieces.len()).filter(is_operator).count()
    }
}

/// Whether a piece is a name or a number.
pub(super) fn is_word(text: &str) -> bool {
    text.starts_with(|c: char| c.is_alphanumeric() || c == '_')
}

/// The length of a quoted text with its quotes; to the end where it is not closed.
fn quoted(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, character) in text.char_indices().skip(1) {
        match character {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if character == quote => return at + 1,
            _ => {}
        }
    }
    text.len()
}
