//! Where a template's code is told to measure its values.
//!
//! Lists can hold one list twice, and that one another twice: sixty short steps make a value that takes longer to print,
//! compare or hash than anybody waits, and the engine counts none of it. So whatever is written out in brackets, given to
//! a call or put into a variable goes through the filter [`KEPT`], which knows how much is too much. Between two of these
//! points a value grows by no more than the operators of one tag.

use super::code::{Code, is_word};
use super::values::{FACTOR, KEPT};
use std::collections::BTreeMap;
use std::ops::Range;

/// Texts to be put in beside pieces of code, by the piece.
#[derive(Default)]
pub(super) struct Additions {
    before: BTreeMap<usize, String>,
    after: BTreeMap<usize, String>,
}

impl Additions {
    /// What the expressions in a range of pieces need.
    pub(super) fn of(code: &Code<'_>, range: Range<usize>) -> Self {
        let mut additions = Self::default();
        let closings = code.closings();
        let closed = |open: usize| closings[open].filter(|close| *close < range.end);
        // Inner brackets close first, and what belongs to them comes first.
        let mut brackets: Vec<(usize, usize)> = range.clone().filter_map(|open| Some((closed(open)?, open))).collect();
        brackets.sort_unstable();
        for &(close, open) in brackets.iter().filter(|(_, open)| !code.is_postfix(*open)) {
            // The parameters of a call block are written like a value in brackets.
            if has_names(code, open + 1..close) && !is_plain(code, open + 1..close) && !follows_call(code, open) {
                additions.before(open, "(");
                additions.after(close, &format!("|{KEPT})"));
            }
        }
        for star in range.clone().filter(|&index| is_multiplication(code, index, &range)) {
            if let Some(right) = right_operand(code, star + 1, &range, &closings) {
                additions.after(star - 1, &format!("|{FACTOR}"));
                additions.after(right, &format!("|{FACTOR}"));
            }
        }
        for &(close, open) in brackets.iter().filter(|(_, open)| code.piece(*open) == "(" && code.is_postfix(*open)) {
            for argument in parts(code, open + 1..close) {
                additions.keep(code, value_of(code, argument));
            }
        }
        additions
    }

    /// Measures the value of the expression that is these pieces.
    pub(super) fn keep(&mut self, code: &Code<'_>, range: Range<usize>) {
        if !range.is_empty() && !is_plain(code, range.clone()) {
            self.put_in_brackets(range, KEPT);
        }
    }

    /// Puts the expression that is these pieces through a filter.
    pub(super) fn put_in_brackets(&mut self, range: Range<usize>, filter: &str) {
        self.before(range.start, "(");
        self.after(range.end - 1, &format!(")|{filter}"));
    }

    pub(super) fn after(&mut self, piece: usize, text: &str) {
        self.after.entry(piece).or_default().push_str(text);
    }

    fn before(&mut self, piece: usize, text: &str) {
        self.before.entry(piece).or_default().push_str(text);
    }

    /// What comes before and after a piece.
    pub(super) fn around(&self, piece: usize) -> [&str; 2] {
        [&self.before, &self.after].map(|texts| texts.get(&piece).map_or("", String::as_str))
    }
}

/// The parts that commas separate, at the depth of the first piece.
pub(super) fn parts(code: &Code<'_>, range: Range<usize>) -> Vec<Range<usize>> {
    let Some(depth) = code.pieces[range.clone()].iter().map(|piece| piece.depth).min() else { return Vec::new() };
    let mut parts = Vec::new();
    let mut start = range.start;
    for index in range.clone() {
        if code.piece(index) == "," && code.pieces[index].depth == depth {
            parts.push(start..index);
            start = index + 1;
        }
    }
    parts.push(start..range.end);
    parts
}

/// What comes after `name =`, or after the stars of `*list`.
pub(super) fn value_of(code: &Code<'_>, part: Range<usize>) -> Range<usize> {
    let stars = part.clone().take_while(|&index| code.piece(index) == "*").count();
    let named = part.len() > 2 && is_word(code.piece(part.start)) && code.piece(part.start + 1) == "=";
    let start = if named && code.piece(part.start + 2) != "=" { part.start + 2 } else { part.start + stars };
    start..part.end
}

/// Whether an expression only takes out what some value holds, or chooses between such.
fn is_plain(code: &Code<'_>, range: Range<usize>) -> bool {
    range.clone().all(|index| match code.piece(index) {
        "[" => index > range.start && code.is_postfix(index),
        "." | "]" => true,
        text => is_word(text) || text.starts_with(['\'', '"']),
    })
}

/// Whether there are variables or calls in it, not constants alone.
fn has_names(code: &Code<'_>, mut range: Range<usize>) -> bool {
    const CONSTANTS: [&str; 6] = ["true", "false", "none", "True", "False", "None"];
    range.any(|index| {
        let text = code.piece(index);
        is_word(text) && !text.starts_with(|c: char| c.is_ascii_digit()) && !CONSTANTS.contains(&text)
    })
}

fn follows_call(code: &Code<'_>, open: usize) -> bool {
    open == code.name() + 1 && code.piece(open - 1) == "call"
}

/// A star between two values, neither that of a power nor that of a call's arguments.
fn is_multiplication(code: &Code<'_>, index: usize, range: &Range<usize>) -> bool {
    let is_star = |index: usize| code.piece(index) == "*";
    is_star(index)
        && index > range.start
        && index + 1 < range.end
        && !is_star(index - 1)
        && !is_star(index + 1)
        && !matches!(code.piece(index - 1), "(" | ",")
}

/// The last piece of a factor that begins here: its signs, its first value, and what is called, taken out of or filtered.
fn right_operand(code: &Code<'_>, start: usize, range: &Range<usize>, closings: &[Option<usize>]) -> Option<usize> {
    let is_sign = |index: usize| matches!(code.piece(index), "-" | "+" | "not");
    let mut at = (start..range.end).find(|&index| !is_sign(index))?;
    if matches!(code.piece(at), "(" | "[" | "{") {
        at = closings[at]?;
    }
    while at + 1 < range.end {
        at = match code.piece(at + 1) {
            "." | "|" => at + 2,
            "(" | "[" => closings[at + 1]?,
            _ => break,
        };
    }
    Some(at).filter(|at| *at < range.end)
}
