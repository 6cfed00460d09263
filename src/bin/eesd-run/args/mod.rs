//! The command line as typed. Nothing is decided here: flags that were not given are `None`, and
//! [`settings`](crate::settings) settles them with what the model folder says.

mod bench;
mod common;
mod distill;
mod perplexity;
mod quantize;
mod serve;
mod tokens;
mod values;
mod verify;

pub use bench::{BenchArgs, TableFormat};
pub use common::{
    DraftArgs, DrafterArgs, KvChoice, MachineArgs, ModelArgs, MonitorArgs, PrefillArgs, SamplingArgs, TemplateArgs,
    Verification,
};
pub use distill::{BlockArgs, DistillArgs, InputMatrix, Store, TrainingArgs};
pub use eesd::backend::Device;
pub use perplexity::PerplexityArgs;
pub use quantize::QuantizeArgs;
pub use serve::ServeArgs;
pub use tokens::{DetokenizeArgs, TokenizeArgs};
pub use values::{BatchSize, ControllerList, DraftVocab, Drafters, ExitChoice};
pub use verify::VerifyArgs;

use crate::failure::{Failure, USAGE, one_line};
use crate::output::unwritten;
use crate::stderr::say;
use clap::error::ErrorKind;
use clap::{Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use std::path::PathBuf;
use std::process::ExitCode;

/// Language models answer faster without changing a single token: early-exit speculative decoding.
///
/// The first layers of the model and a small exit block write a draft, the full model checks the
/// whole draft in one pass, and a controller decides how long each draft is. Text goes to standard
/// output and nothing else does. Exit codes: 0 done, 1 failed, 2 wrong usage.
#[derive(Debug, Parser)]
#[command(name = "eesd-run", version, propagate_version = true, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Continue a prompt, or every prompt of a JSON-lines file
    Generate(GenerateArgs),
    /// Talk with a model that has a chat template
    Chat(ChatArgs),
    /// Answer over HTTP, as OpenAI's servers do
    Serve(Box<ServeArgs>),
    /// Measure speed against plain decoding, with predicted speed-up, tables and a plot
    Bench(BenchArgs),
    /// Train an exit block by self-distillation, so that a model can draft
    Distill(DistillArgs),
    /// Show a model's geometry, memory needs, exit blocks and what they could gain
    Inspect(InspectArgs),
    /// Prove on your model and prompts that speculation changes nothing
    Verify(VerifyArgs),
    /// Measure how probable a model finds a text, and how far it is from another model
    Perplexity(PerplexityArgs),
    /// Write a model as a GGUF file of quantised matrices, for llama.cpp too
    Quantize(QuantizeArgs),
    /// Print the tokens of a text
    Tokenize(TokenizeArgs),
    /// Print the text of tokens
    Detokenize(DetokenizeArgs),
    /// Look at this machine and say what to do about what is found
    Doctor(DoctorArgs),
    /// Print a completion script for a shell
    Completions(CompletionsArgs),
    /// Try loops in graphs on a GPU, and say on standard output how that went: for programs that ask
    #[command(hide = true)]
    LoopProbe(LoopProbeArgs),
}

/// What `generate --help` ends with.
const REQUEST_KEYS: &str = "\
JSON lines: each line of --input is an object with \"prompt\" (a text, or a list of tokens) or \"messages\" (a \
conversation for the chat template, which also gets tools, documents and the values of chat_template_kwargs), and, all \
optional: id, n (answers, each on a line of its own with \"sample\"), max_tokens, min_tokens, temperature, top_k, top_p, \
min_p, repetition_penalty, presence_penalty, frequency_penalty, logit_bias ({\"ID\": BIAS}), suppress_tokens, bad_words \
(texts, or lists of tokens), seed, verify (\"rejection\" or \"coupled\"), stop (a text or a list), stop_token_ids, \
ignore_eos, json_schema (a JSON schema) or grammar (a text in Lark) or response_format (as OpenAI has it), logprobs, \
speculate, draft (as --draft), draft_max. What a line does not say, the flags do. A line that is wrong gets {\"id\", \
\"index\", \"error\"} and the others go on; the exit code is then 1. Answers are written as they are finished, \"index\" \
counting requests from 0: {\"id\", \"index\", \"text\", \"tokens\", \"finish\" (length, end_token, stop_string, complete (its schema or grammar lets nothing follow), context or \
cancelled), \"seed\", \"stats\"}, with \"stop\" (the stop string met) and \"logprobs\" where there are any. Lines of OpenAI's \
batches (custom_id, method, url, body) are answered in OpenAI's form, one line with all choices.

Statistics, in \"stats\" of a line, --stats, --metrics and --stats-json: a round drafts and verifies once; the mean \
accepted length is 1 + accepted / rounds, where a round of several requests counts once for each; drafted \
counts drafts that were tested; acceptance by position is of those tested there. by_source has rounds, drafted \
and accepted of each source that drafted (exit, lookup, shared, grammar): in lines, the part of its drafts that was accepted and \
the part of all rounds that it drafted. queued_s is from \
submission to admission, first_token_s from admission to the first token; time to first token is both \
together. Time per output token is decoding, divided by the tokens of the answer. Prefilled tokens went \
through the model, reused ones were found in the cache. A verification pass has a row for each draft and \
for each request's pending token. Preempted requests wait in the host's memory while the cache is full.

Only the continuation is printed (--echo prints the prompt before it). One line break at the end of \
a prompt from a file or a pipe is left out, as in llama.cpp. Ctrl-C ends a text early but well, \
with its statistics and exit code 0 (1 where JSON answers are cut short or left out); a second one ends the program.";

/// Flags of `generate`.
#[derive(Debug, clap::Args)]
#[command(after_long_help = REQUEST_KEYS)]
pub struct GenerateArgs {
    #[command(flatten)]
    pub model: ModelArgs,

    /// Text to continue; without -p, -f and --input it is read from standard input
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true, conflicts_with_all = ["file", "input"],
        help_heading = "Prompt")]
    pub prompt: Option<String>,
    /// File with the text to continue (- reads standard input)
    #[arg(short, long, value_name = "FILE", conflicts_with = "input", help_heading = "Prompt")]
    pub file: Option<PathBuf>,
    /// System message: puts the prompt through the model's chat template as a user's message
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true, conflicts_with = "input", help_heading = "Prompt")]
    pub system: Option<String>,
    #[command(flatten)]
    pub template: TemplateArgs,
    /// Print what the model would continue, its text and its tokens, and continue nothing
    #[arg(long, conflicts_with_all = ["output", "resume"], help_heading = "Prompt")]
    pub show_prompt: bool,
    /// JSON lines, one request each (- reads standard input); see below for the keys
    #[arg(long, value_name = "FILE.jsonl", help_heading = "Prompt")]
    pub input: Option<PathBuf>,
    /// How many continuations of the one prompt
    #[arg(short = 'N', long, value_name = "COUNT", value_parser = values::count, allow_negative_numbers = true, default_value = "1",
        conflicts_with = "input", help_heading = "Prompt")]
    pub samples: usize,

    /// Most tokens to generate [default: max_new_tokens of generation_config.json, or 256]
    #[arg(short = 'n', long = "max-tokens", visible_alias = "n-predict", value_name = "N", value_parser = values::count, allow_negative_numbers = true,
        help_heading = "Prompt")]
    pub max_tokens: Option<usize>,
    #[command(flatten)]
    pub sampling: SamplingArgs,
    /// Answer in JSON of the schema in this file
    ///
    /// What is not of the schema cannot be written, and the answer ends with the JSON. Drafts follow the schema too, and
    /// change nothing. A keyword that cannot be guaranteed is refused by its place.
    #[arg(long, value_name = "FILE", conflicts_with = "grammar", help_heading = "Sampling")]
    pub json_schema: Option<PathBuf>,
    /// Answer by the grammar in this file, in llguidance's dialect of Lark, from its rule `start`
    #[arg(long, value_name = "FILE", help_heading = "Sampling")]
    pub grammar: Option<PathBuf>,
    #[command(flatten)]
    pub draft: DraftArgs,
    #[command(flatten)]
    pub machine: MachineArgs,
    #[command(flatten)]
    pub prefill: PrefillArgs,

    /// Requests answered side by side; auto: as many as make answers faster here, found out first [default: 1]
    #[arg(short, long, value_name = "N|auto", allow_negative_numbers = true, help_heading = "Model and machine")]
    pub batch_size: Option<BatchSize>,
    /// Print the prompt before its continuation
    #[arg(long, conflicts_with_all = ["json", "output", "input"], help_heading = "Output")]
    pub echo: bool,
    /// Write JSON lines to this file instead of text to standard output
    #[arg(long, value_name = "FILE.jsonl", help_heading = "Output")]
    pub output: Option<PathBuf>,
    /// Go on with the --output of a run that was killed or interrupted: answer what it has no finished line for
    ///
    /// Finished lines stay as they are, errors of single requests among them; lines that were cut short ("finish":
    /// "cancelled", "error": "interrupted", or no line break) are taken out and answered again. Give the same --input
    /// and the same flags. A line that does not belong to the input is an error, and the file stays as it is; without
    /// a file there, everything is answered.
    #[arg(long, requires = "output", help_heading = "Output")]
    pub resume: bool,
    #[command(flatten)]
    pub monitor: MonitorArgs,
    /// Print one JSON object per answer instead of its text
    #[arg(long, help_heading = "Output")]
    pub json: bool,
    /// Colour what was drafted and kept: green where the exit block wrote it, cyan where it was found in a text
    #[arg(long, conflicts_with_all = ["json", "output", "input"], help_heading = "Output")]
    pub show_drafts: bool,
    /// Colours of --show-drafts; auto: on a terminal, unless NO_COLOR is set
    #[arg(
        long,
        value_enum,
        default_value = "auto",
        requires = "show_drafts",
        value_name = "WHEN",
        help_heading = "Output"
    )]
    pub color: ColorChoice,
    /// No progress and no statistics
    #[arg(short, long, help_heading = "Output")]
    pub quiet: bool,
}

/// Flags of `chat`.
#[derive(Debug, clap::Args)]
pub struct ChatArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// System message
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true, help_heading = "Prompt")]
    pub system: Option<String>,
    #[command(flatten)]
    pub template: TemplateArgs,
    /// Most tokens of one answer; default: what the context has room for
    #[arg(short = 'n', long = "max-tokens", visible_alias = "n-predict", value_name = "N", value_parser = values::count, allow_negative_numbers = true,
        help_heading = "Prompt")]
    pub max_tokens: Option<usize>,
    #[command(flatten)]
    pub sampling: SamplingArgs,
    #[command(flatten)]
    pub draft: DraftArgs,
    #[command(flatten)]
    pub machine: MachineArgs,
    #[command(flatten)]
    pub prefill: PrefillArgs,
    /// Colour what was drafted and kept: green where the exit block wrote it, cyan where it was found in a text
    #[arg(long, help_heading = "Output")]
    pub show_drafts: bool,
    /// Colours of --show-drafts; auto: on a terminal, unless NO_COLOR is set
    #[arg(
        long,
        value_enum,
        default_value = "auto",
        requires = "show_drafts",
        value_name = "WHEN",
        help_heading = "Output"
    )]
    pub color: ColorChoice,
    /// No progress, hints or statistics
    #[arg(short, long, help_heading = "Output")]
    pub quiet: bool,
}

/// Flags of `inspect`.
#[derive(Debug, clap::Args)]
pub struct InspectArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Flags of `loop-probe`.
#[derive(Debug, clap::Args)]
pub struct LoopProbeArgs {
    /// Number of the GPU
    pub number: usize,
}

/// Flags of `doctor`.
#[derive(Debug, clap::Args)]
pub struct DoctorArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Flags of `completions`.
#[derive(Debug, clap::Args)]
pub struct CompletionsArgs {
    /// The shell
    #[arg(value_enum)]
    pub shell: Shell,
}

/// When to colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ColorChoice {
    /// On a terminal, unless `NO_COLOR` is set.
    Auto,
    /// Into files and pipes too.
    Always,
    /// Not at all.
    Never,
}

/// Parses the command line; help and version are printed, errors become one line.
///
/// # Errors
/// The exit code, where there is nothing to run.
pub fn parse() -> Result<Cli, ExitCode> {
    Cli::try_parse().map_err(|error| match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            error.print().map_err(unwritten).err().map_or(ExitCode::SUCCESS, Failure::exit)
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let _ = error.print();
            ExitCode::from(USAGE)
        }
        _ => {
            let rendered = error.render().to_string();
            let told: Vec<&str> = rendered
                .lines()
                .take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more"))
                .collect();
            let told = told.join(" ");
            say(&format!("{} (see --help)", one_line(&told).replace(" tip:", "; tip:")));
            ExitCode::from(USAGE)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
