//! Lines on standard error.

use std::io::{self, Write};

/// Writes a line to standard error. Where that cannot be written, nobody reads it and nothing is lost.
pub fn say(line: &str) {
    let _ = io::stderr().write_all(format!("{line}\n").as_bytes());
}
