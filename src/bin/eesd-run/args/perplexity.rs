//! Flags of `perplexity`.

use super::values;
use super::{MachineArgs, ModelArgs};
use std::path::PathBuf;

/// What `perplexity --help` ends with.
const MEASURES: &str = "\
As llama.cpp measures it: the text is cut into windows, each is read from its beginning with nothing before it, with the \
model's begin token in place of its first one where the tokenizer puts one at a text's start, and only the tokens of its \
second half are scored, so that each has half a window before it. Numbers of different windows do not compare. A mean comes \
with its standard error. Ctrl-C ends early and prints what was measured so far.

--against holds the model up to another one, such as the 16-bit folder that a quantised file was made of: the \
Kullback-Leibler divergence of the reference's distribution from the model's at each scored token, in nats, and how often \
both find the same token most probable.";

/// Flags of `perplexity`.
#[derive(Debug, clap::Args)]
#[command(after_long_help = MEASURES)]
pub struct PerplexityArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// The text (- reads standard input)
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Tokens of a window [default: 512, or the model's context where that is smaller]
    ///
    /// The tokens of a window's second half, but for its first, are scored; what is left over at the text's end is not
    /// read.
    #[arg(long, value_name = "N", value_parser = values::window, allow_negative_numbers = true, help_heading = "Measures")]
    pub window: Option<usize>,
    /// Read the first N tokens of the text only
    #[arg(short = 'n', long = "max-tokens", value_name = "N", value_parser = values::count, allow_negative_numbers = true,
        help_heading = "Measures")]
    pub max_tokens: Option<usize>,
    /// Reference with the same vocabulary: how far the model is from it
    #[arg(long, value_name = "DIR|FILE.gguf", help_heading = "Measures")]
    pub against: Option<PathBuf>,
    #[command(flatten)]
    pub machine: MachineArgs,
    /// Print JSON
    #[arg(long, help_heading = "Output")]
    pub json: bool,
    /// No progress
    #[arg(short, long, help_heading = "Output")]
    pub quiet: bool,
}
