//! Flags of `verify`.

use super::values;
use super::{ControllerList, ExitChoice, MachineArgs, ModelArgs, TemplateArgs};
use std::path::PathBuf;

/// Flags of `verify`.
#[derive(Debug, clap::Args)]
pub struct VerifyArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// A prompt to verify on; default: the prompts that come with the bundled model
    #[arg(
        short,
        long,
        value_name = "TEXT",
        allow_hyphen_values = true,
        conflicts_with = "input",
        help_heading = "Checks"
    )]
    pub prompt: Option<String>,
    /// Prompts: JSON lines as `generate --input` reads them, or a text with an empty line between two (- reads JSON lines
    /// from standard input)
    #[arg(long, value_name = "FILE", help_heading = "Checks")]
    pub input: Option<PathBuf>,
    #[command(flatten)]
    pub template: TemplateArgs,
    /// Use only the first prompts
    #[arg(long, value_name = "COUNT", value_parser = values::count, allow_negative_numbers = true, default_value = "8", help_heading = "Checks")]
    pub prompts: usize,
    /// Tokens to compare for each prompt
    #[arg(short = 'n', long = "max-tokens", value_name = "N", value_parser = values::count, allow_negative_numbers = true, default_value = "64",
        help_heading = "Checks")]
    pub max_tokens: usize,
    /// Controllers to hold against `off`; default: one of each kind, and always drafting --draft-max
    #[arg(long, value_name = "LIST", help_heading = "Checks")]
    pub controllers: Option<ControllerList>,
    /// Temperature of the sampled checks
    #[arg(long, visible_alias = "temperature", value_name = "T", value_parser = values::positive, default_value = "0.8",
        allow_negative_numbers = true, help_heading = "Checks")]
    pub temp: f64,
    /// First seed of the sampled checks
    #[arg(short, long, value_name = "SEED", default_value = "1", value_parser = values::seed,
        allow_negative_numbers = true, help_heading = "Checks")]
    pub seed: u64,
    /// Draws of each χ² test of rejection sampling
    #[arg(long, value_name = "COUNT", value_parser = values::count, allow_negative_numbers = true, default_value = "2000", help_heading = "Checks")]
    pub samples: usize,
    /// Exit block: a file, or the N of an exit-N.safetensors beside the model
    #[arg(long, value_name = "FILE|N", help_heading = "Drafting")]
    pub exit: Option<ExitChoice>,
    /// Most drafts in one round
    #[arg(long, value_name = "K", value_parser = values::up_to_1024, allow_negative_numbers = true, default_value = "16", help_heading = "Drafting")]
    pub draft_max: usize,
    #[command(flatten)]
    pub machine: MachineArgs,
    /// Print JSON
    #[arg(long, help_heading = "Output")]
    pub json: bool,
    /// No progress
    #[arg(short, long, help_heading = "Output")]
    pub quiet: bool,
}
