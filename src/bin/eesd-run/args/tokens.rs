//! Flags of `tokenize` and `detokenize`.

use super::{ModelArgs, TemplateArgs, values};
use eesd::TokenId;
use std::path::PathBuf;

/// Flags of `tokenize`.
#[derive(Debug, clap::Args)]
pub struct TokenizeArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// The text; without -p and -f it is read from standard input
    #[arg(
        short,
        long,
        value_name = "TEXT",
        allow_hyphen_values = true,
        conflicts_with = "file",
        help_heading = "Prompt"
    )]
    pub prompt: Option<String>,
    /// File with the text (- reads standard input)
    #[arg(short, long, value_name = "FILE", help_heading = "Prompt")]
    pub file: Option<PathBuf>,
    /// System message: puts the text through the model's chat template as a user's message
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true, help_heading = "Prompt")]
    pub system: Option<String>,
    #[command(flatten)]
    pub template: TemplateArgs,
    /// Leave out the token that the model wants at a text's beginning
    #[arg(long, conflicts_with = "system", help_heading = "Prompt")]
    pub no_begin: bool,
    /// Print the ids alone, as a JSON list
    #[arg(long, help_heading = "Output")]
    pub ids: bool,
}

/// Flags of `detokenize`.
#[derive(Debug, clap::Args)]
pub struct DetokenizeArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// The ids; without any they are read from standard input, between spaces, commas or the brackets of a JSON list
    #[arg(value_name = "ID", value_parser = values::token, allow_negative_numbers = true)]
    pub ids: Vec<TokenId>,
    /// Print special tokens too, by their names
    #[arg(long, help_heading = "Output")]
    pub special: bool,
}
