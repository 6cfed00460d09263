//! `eesd-run completions SHELL`: a completion script for the shell, on standard output.

use crate::args::{Cli, CompletionsArgs};
use crate::failure::Outcome;
use crate::output::Output;
use clap::CommandFactory;

/// Writes the script.
pub fn run(args: CompletionsArgs) -> Outcome {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "eesd-run", &mut script);
    Output::stdout().text(&String::from_utf8_lossy(&script))
}
