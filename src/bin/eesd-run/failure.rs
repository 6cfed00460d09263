//! How a command ends when it does not end well: one line on standard error and an exit code.

use crate::stderr::say;
use std::error::Error;
use std::fmt::Display;
use std::io;
use std::path::Path;
use std::process::ExitCode;

/// Exit code of a command that was understood but failed.
const FAILED: u8 = 1;
/// Exit code of a command line that makes no sense.
pub const USAGE: u8 = 2;

/// Why a command ends early.
#[derive(Debug)]
pub enum Failure {
    /// The flags contradict each other or what they refer to.
    Usage(String),
    /// Something went wrong: a file, the model, a check.
    Failed(String),
    /// Whoever read standard output went away: nothing is wrong and nothing is left to do.
    ReaderGone,
}

/// What a subcommand returns.
pub type Outcome<T = ()> = Result<T, Failure>;

impl Failure {
    /// A wrong command line.
    pub fn usage(message: impl Into<String>) -> Self {
        Failure::Usage(message.into())
    }

    /// A failure in words.
    pub fn failed(message: impl Into<String>) -> Self {
        Failure::Failed(message.into())
    }

    /// A file that could not be read or written.
    pub fn file(path: &Path, doing: &str, error: &io::Error) -> Self {
        Failure::Failed(format!("{}: could not be {doing}: {error}", path.display()))
    }

    /// What to tell the user.
    pub fn message(&self) -> &str {
        match self {
            Failure::Usage(message) | Failure::Failed(message) => message,
            Failure::ReaderGone => "nobody reads the output any more",
        }
    }

    /// Prints the one line and gives the exit code.
    pub fn exit(self) -> ExitCode {
        let code = match self {
            Failure::Usage(_) => USAGE,
            Failure::Failed(_) => FAILED,
            Failure::ReaderGone => return ExitCode::SUCCESS,
        };
        say(&format!("error: {}", one_line(&self.message())));
        ExitCode::from(code)
    }
}

/// Library errors become one line: the message, then each cause that it does not already tell.
impl<E: Error> From<E> for Failure {
    fn from(error: E) -> Self {
        Failure::Failed(with_causes(&error))
    }
}

/// An error's message followed by its causes.
pub fn with_causes(error: &dyn Error) -> String {
    let mut message = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        if !message.contains(&text) {
            message = format!("{message}: {text}");
        }
        cause = error.source();
    }
    message
}

/// Line breaks become spaces, so that one error is one line to whoever greps for it.
pub fn one_line(message: &impl Display) -> String {
    message.to_string().split_whitespace().collect::<Vec<_>>().join(" ")
}

/// An error without the middle of what it quotes, where that is longer than any honest value: what is wrong stands before
/// it, and what was expected behind.
pub fn shortened(error: String) -> String {
    let (head, tail) = (600, 300);
    let length = error.chars().count();
    if length <= head + tail {
        return error;
    }
    let mut ends = error.char_indices().map(|(at, _)| at);
    match (ends.nth(head), ends.nth(length - head - tail - 1)) {
        (Some(from), Some(to)) => format!("{}…{}", &error[..from], &error[to..]),
        _ => error,
    }
}
