//! Flags of `bench`.

use super::values;
use super::{ControllerList, DrafterArgs, MachineArgs, ModelArgs, PrefillArgs, SamplingArgs, TemplateArgs};
use clap::ValueEnum;
use std::path::PathBuf;

/// Flags of `bench`.
#[derive(Debug, clap::Args)]
pub struct BenchArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// Prompts: JSON lines as `generate --input` reads them, or a text with an empty line between two (- reads JSON lines
    /// from standard input); default: those that come with the bundled model
    ///
    /// Several files, with commas between them or by a flag each, are sets of their own: the table then has a row for
    /// each, and last the geometric mean.
    #[arg(long, value_name = "FILE,…", value_delimiter = ',', help_heading = "Measurement")]
    pub input: Vec<PathBuf>,
    #[command(flatten)]
    pub template: TemplateArgs,
    /// Use only the first prompts of each file
    #[arg(long, value_name = "COUNT", value_parser = values::count, allow_negative_numbers = true, help_heading = "Measurement")]
    pub prompts: Option<usize>,
    /// Tokens to generate for each prompt
    #[arg(short = 'n', long = "max-tokens", visible_alias = "n-gen", value_name = "N", value_parser = values::count, allow_negative_numbers = true,
        default_value = "96", help_heading = "Measurement")]
    pub max_tokens: usize,
    /// Length of the prompt whose prefill is timed [default: 256; with several files none is]
    #[arg(long, value_name = "N", value_parser = values::count, allow_negative_numbers = true, help_heading = "Measurement")]
    pub pp: Option<usize>,
    /// Controllers of an exit block to compare, each with the other sources of --draft [default: off, fixed:1, fixed:2,
    /// fixed:4, fixed:8, threshold:0.6, beta-ts, calibration-ts and goodput-ts; with several files goodput-ts]
    ///
    /// `off`, which is plain decoding without any source of drafts, is always among them. Where no exit block drafts, the
    /// other sources do against it.
    #[arg(long, value_name = "LIST", conflicts_with = "no_exit", help_heading = "Measurement")]
    pub controllers: Option<ControllerList>,
    /// Repetitions, after a warm-up that also checks that all outputs are equal
    #[arg(short, long, value_name = "COUNT", value_parser = values::count, allow_negative_numbers = true, default_value = "3", help_heading = "Measurement")]
    pub repetitions: usize,
    /// Prompts answered side by side
    #[arg(short, long, value_name = "N", value_parser = values::up_to_1024, allow_negative_numbers = true, default_value = "1", help_heading = "Measurement")]
    pub batch_size: usize,
    #[command(flatten)]
    pub sampling: SamplingArgs,
    #[command(flatten)]
    pub draft: DrafterArgs,
    #[command(flatten)]
    pub machine: MachineArgs,
    #[command(flatten)]
    pub prefill: PrefillArgs,
    /// How to print the results
    #[arg(short, long, value_enum, default_value = "md", value_name = "FORMAT", help_heading = "Output")]
    pub output_format: TableFormat,
    /// Print one JSON array, as --output-format json does
    #[arg(long, conflicts_with = "output_format", help_heading = "Output")]
    pub json: bool,
    /// Draw speed, acceptance and draft lengths into this file
    #[arg(long, value_name = "FILE.svg", help_heading = "Output")]
    pub plot: Option<PathBuf>,
    /// Write when each round of the repetitions and its parts began and ended, with what the controller believed and
    /// what was drafted and accepted, to this file: Chrome's trace format, which Perfetto (ui.perfetto.dev) opens
    #[arg(long, value_name = "FILE.json", help_heading = "Profiling")]
    pub trace: Option<PathBuf>,
    /// Tell an attached profiler to record the repetitions only, as `nsys profile -c cudaProfilerApi` and `ncu
    /// --profile-from-start off` expect
    #[arg(long, help_heading = "Profiling")]
    pub profile: bool,
    /// No progress
    #[arg(short, long, help_heading = "Output")]
    pub quiet: bool,
}

/// How `bench` prints its results.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum TableFormat {
    /// A Markdown table.
    Md,
    /// One JSON array.
    Json,
    /// One JSON object a line.
    Jsonl,
    /// Comma-separated values with a header.
    Csv,
}
