//! Flags of `serve`.

use super::{BatchSize, DraftArgs, MachineArgs, ModelArgs, PrefillArgs, SamplingArgs, TemplateArgs, values};
use clap::builder::NonEmptyStringValueParser;
use std::net::IpAddr;
use std::path::PathBuf;

/// What `serve --help` ends with.
const ENDPOINTS: &str = "\
POST /v1/chat/completions and /v1/completions, streaming or not, GET /v1/models, POST /tokenize and /detokenize, GET \
/health (503 while the model is being loaded and while the server is ending) and /metrics. What a request does not say, \
the flags do, and where they do not, generation_config.json does. A field that is not honoured is refused by its name.

Ctrl-C or SIGTERM: new requests are refused, those that were taken are answered, and the exit code is 0; it is 1 where \
answers were cut off by --shutdown-timeout. A second one ends the program at once.";

/// Flags of `serve`.
#[derive(Debug, clap::Args)]
#[command(after_long_help = ENDPOINTS)]
pub struct ServeArgs {
    #[command(flatten)]
    pub model: ModelArgs,

    /// Address to listen at; that of this machine alone, unless told otherwise
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1", help_heading = "Server")]
    pub host: IpAddr,
    /// Port to listen at; 0 takes a free one and says which
    #[arg(long, value_name = "PORT", default_value = "8080", help_heading = "Server")]
    pub port: u16,
    /// Name of the model in requests and answers [default: the model's own]
    #[arg(long, value_name = "NAME", value_parser = NonEmptyStringValueParser::new(), help_heading = "Server")]
    pub alias: Option<String>,
    /// Answer only those who send this key (may be repeated); others on this machine can read it here
    #[arg(long, value_name = "KEY", help_heading = "Server")]
    pub api_key: Vec<String>,
    /// The same, with keys from a file, one a line
    #[arg(long, value_name = "FILE", help_heading = "Server")]
    pub api_key_file: Option<PathBuf>,
    /// Answers that may wait for a place; a request beyond is told to try again later (429)
    #[arg(long, value_name = "N", value_parser = values::waiting, allow_negative_numbers = true, default_value = "256",
        help_heading = "Server")]
    pub max_waiting: usize,
    /// Seconds that answers get to be finished when the server is asked to end
    #[arg(long, value_name = "SECONDS", value_parser = values::seconds, allow_negative_numbers = true, default_value = "30",
        help_heading = "Server")]
    pub shutdown_timeout: u64,

    #[command(flatten)]
    pub template: TemplateArgs,
    /// Most tokens of an answer where the request does not say [default: max_new_tokens of generation_config.json, or 256]
    #[arg(short = 'n', long = "max-tokens", visible_alias = "n-predict", value_name = "N", value_parser = values::count,
        allow_negative_numbers = true, help_heading = "Prompt")]
    pub max_tokens: Option<usize>,
    #[command(flatten)]
    pub sampling: SamplingArgs,
    #[command(flatten)]
    pub draft: DraftArgs,
    #[command(flatten)]
    pub machine: MachineArgs,
    #[command(flatten)]
    pub prefill: PrefillArgs,
    /// Requests answered side by side; auto: as many as make answers faster here, found out first
    #[arg(
        short,
        long,
        value_name = "N|auto",
        allow_negative_numbers = true,
        default_value = "8",
        help_heading = "Model and machine"
    )]
    pub batch_size: BatchSize,
    /// No notes
    #[arg(short, long, help_heading = "Output")]
    pub quiet: bool,
}
