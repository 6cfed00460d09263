//! Groups of flags that several subcommands share, in llama.cpp's spellings.

use super::values::{self, Drafters, ExitChoice};
use crate::monitor::MetricsTarget;
use clap::ValueEnum;
use eesd::TokenId;
use eesd::backend::Device;
use eesd::backend::KvFormat;
use eesd::backend::cuda::Prefill;
use eesd::control::ControllerSpec;
use eesd::model::Scheme;
use eesd::sample::VerifyMode;
use std::path::PathBuf;

/// Which model.
#[derive(Debug, clap::Args)]
pub struct ModelArgs {
    /// Hugging Face model folder, or GGUF file (any part, where it is split); default: the small model in the binary
    #[arg(short, long, value_name = "MODEL", help_heading = "Model and machine")]
    pub model: Option<PathBuf>,
    /// Put the matrices of a 16- or 32-bit model into blocks of 8 or 4 bits as it is opened
    ///
    /// q8: llama.cpp's Q8_0. q4: Q4_0, with embedding and head in Q8_0. Answers are then those of the quantised model,
    /// which `eesd-run perplexity --against` compares with the original.
    #[arg(long, value_enum, value_name = "BITS", help_heading = "Model and machine")]
    pub quantize: Option<Quantize>,
}

/// How a model is quantised as it is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Quantize {
    /// 8 bits.
    Q8,
    /// 4 bits; embedding and head 8.
    Q4,
}

impl From<Quantize> for Scheme {
    fn from(quantize: Quantize) -> Self {
        match quantize {
            Quantize::Q8 => Scheme::Q8,
            Quantize::Q4 => Scheme::Q4,
        }
    }
}

/// How conversations become prompts.
#[derive(Debug, Default, clap::Args)]
pub struct TemplateArgs {
    /// Chat template in place of the model's own: Jinja, or JSON with the key chat_template
    #[arg(long, value_name = "FILE", help_heading = "Prompt")]
    pub chat_template: Option<PathBuf>,
    /// Value that the chat template reads, in JSON, such as enable_thinking=false (may be repeated)
    #[arg(long = "template-arg", value_name = "KEY=JSON", value_parser = values::template_arg, help_heading = "Prompt")]
    pub template_args: Vec<(String, serde_json::Value)>,
}

/// Where and how large.
#[derive(Debug, clap::Args)]
pub struct MachineArgs {
    /// Longest sequence in tokens; 0: the model's own [default: the model's, at most 8192]
    #[arg(short, long, value_name = "N", value_parser = values::context, allow_negative_numbers = true, help_heading = "Model and machine")]
    pub ctx_size: Option<usize>,
    /// Positions that the KV cache has room for, in pages of 64 [default: the context for every request side by side,
    /// but at most half of the memory that is free]
    ///
    /// Requests share the cache page by page, as their texts grow. Where it is full, the latest requests wait in the
    /// host's memory until there is room again. A request that alone needs more than there is fails.
    #[arg(long, value_name = "N", value_parser = values::count, allow_negative_numbers = true, help_heading = "Model and machine")]
    pub cache_tokens: Option<usize>,
    /// How keys and values are kept [default: f32; on a GPU the model's 16 bits]
    ///
    /// f32: as the processor computes them. q8: in 8 bits, with a scale for each 32 dimensions of a head: less than a third of
    /// the memory of f32, and little more than half of 16 bits' on a GPU. Faster where texts are long. Answers differ between
    /// these; within each, speculation and batches change nothing.
    #[arg(long, value_enum, value_name = "FORMAT", help_heading = "Model and machine")]
    pub kv: Option<KvChoice>,
    /// auto, cpu, cuda, or cuda:N
    #[arg(long, value_name = "DEVICE", default_value = "auto", help_heading = "Model and machine")]
    pub device: Device,
    /// Worker threads [default: all cores]
    #[arg(short, long, value_name = "N", value_parser = values::up_to_1024, allow_negative_numbers = true, help_heading = "Model and machine")]
    pub threads: Option<usize>,
    /// Use at most this part of a GPU's memory [default: 0.9]
    #[arg(long, value_name = "F", value_parser = values::positive_fraction, allow_negative_numbers = true, help_heading = "Model and machine")]
    pub gpu_memory_fraction: Option<f64>,
    /// Launch a GPU's kernels one by one, so that profilers see layers
    #[arg(long, help_heading = "Model and machine")]
    pub no_graphs: bool,
    /// Draft step by step on a GPU, also where its driver takes a loop of drafts as a whole
    #[arg(long, help_heading = "Model and machine")]
    pub no_draft_loops: bool,
}

/// How keys and values are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum KvChoice {
    /// In f32, on the processor.
    F32,
    /// In 8 bits.
    Q8,
}

impl From<KvChoice> for KvFormat {
    fn from(choice: KvChoice) -> Self {
        match choice {
            KvChoice::F32 => KvFormat::Full,
            KvChoice::Q8 => KvFormat::Eight,
        }
    }
}

/// How prompts are taken in.
#[derive(Debug, clap::Args)]
pub struct PrefillArgs {
    /// How a GPU multiplies prompts with the weights
    ///
    /// exact: as everything else is multiplied, with the same bits. fast: through NVIDIA's cuBLASLt, where more than
    /// 128 tokens of a prompt are taken in at a time; needs that library, memory for a matrix and its sums, and a GPU.
    /// The two round differently, so answers to long prompts may differ between them. Within either, speculation
    /// changes nothing: an answer is the one that plain decoding gives with the same --prefill.
    #[arg(long, value_enum, value_name = "HOW", default_value = "exact", help_heading = "Model and machine")]
    pub prefill: PrefillChoice,
}

/// The two ways to multiply prompts with the weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PrefillChoice {
    /// This project's own kernels.
    Exact,
    /// cuBLASLt.
    Fast,
}

impl From<PrefillChoice> for Prefill {
    fn from(choice: PrefillChoice) -> Self {
        match choice {
            PrefillChoice::Exact => Prefill::Exact,
            PrefillChoice::Fast => Prefill::Fast,
        }
    }
}

/// Who drafts, and how far.
#[derive(Debug, clap::Args)]
pub struct DraftArgs {
    #[command(flatten)]
    pub by: DrafterArgs,
    /// off, fixed:K, threshold:C, beta-ts, calibration-ts or goodput-ts [default: goodput-ts]
    #[arg(long, value_name = "NAME[:ARG]", value_parser = values::controller, conflicts_with = "no_exit",
        help_heading = "Drafting")]
    pub controller: Option<ControllerSpec>,
    /// Look texts up in this file too, and leave this run's there for the next one
    ///
    /// It holds the tokens of the last 200,000 or so of prompts and answers that were finished, as they are: whoever can
    /// read it can read them.
    #[arg(long, value_name = "FILE", help_heading = "Drafting")]
    pub draft_index: Option<PathBuf>,
}

/// Who drafts.
#[derive(Debug, clap::Args)]
pub struct DrafterArgs {
    /// Exit block: a file, or the N of an exit-N.safetensors beside the model
    ///
    /// Default: N = 2 for the bundled model; in a folder the only block there is, or of several the one that promises
    /// most by what a draft step costs here and by the acceptance that its file tells of, which is named (`eesd-run
    /// inspect` compares them). Where there is none, the other sources draft.
    #[arg(long, value_name = "FILE|N", help_heading = "Drafting")]
    pub exit: Option<ExitChoice>,
    /// Do without an exit block, as a list for --draft without exit does
    #[arg(long, conflicts_with = "exit", help_heading = "Drafting")]
    pub no_exit: bool,
    /// Who drafts: auto, off, or a list of exit, lookup, shared and grammar
    ///
    /// exit: the exit block. lookup: what followed the last tokens where they stood before in the same text. shared: what
    /// followed them in texts that this run has finished, or that --draft-index knows. grammar: what has to follow by an answer's schema or grammar. auto: exit where there is a
    /// block, lookup, grammar, and, but for `bench`, shared where all requests come from one file or there is a --draft-index. Each round goes to the
    /// source that is expected to be worth most; none changes an answer. off: plain decoding.
    #[arg(long, value_name = "LIST", default_value = "auto", hide_default_value = true, help_heading = "Drafting")]
    pub draft: Drafters,
    /// Most drafts in one round
    #[arg(long, value_name = "K", value_parser = values::up_to_1024, allow_negative_numbers = true, default_value = "16", help_heading = "Drafting")]
    pub draft_max: usize,
}

/// How a batch is watched.
#[derive(Debug, clap::Args)]
pub struct MonitorArgs {
    /// Show how a batch is going: refreshed on a terminal, else a line every 5 s
    #[arg(long, conflicts_with = "quiet", help_heading = "Output")]
    pub stats: bool,
    /// Write metrics for Prometheus: into a file, or served over HTTP at /metrics (may be repeated)
    ///
    /// A file is replaced as a whole about once a second. A number alone is a port of this machine only, 127.0.0.1;
    /// ADDRESS:PORT serves others too. Port 0 takes a free one and says which.
    #[arg(long, value_name = "FILE|[ADDRESS:]PORT", allow_negative_numbers = true, help_heading = "Output")]
    pub metrics: Vec<MetricsTarget>,
    /// Write what the batch came to into this file: counts, speed, quantiles of latencies
    #[arg(long, value_name = "FILE.json", help_heading = "Output")]
    pub stats_json: Option<PathBuf>,
}

/// How tokens are chosen. A flag goes before generation_config.json, which goes before greedy decoding.
#[derive(Debug, Default, clap::Args)]
pub struct SamplingArgs {
    /// Seed: the same seed gives the same text, whatever drafts and whatever else runs [default: drawn at random]
    #[arg(short, long, value_name = "SEED", value_parser = values::seed, allow_negative_numbers = true, help_heading = "Sampling")]
    pub seed: Option<u64>,
    /// Temperature; 0 is greedy
    ///
    /// Each sampling value is decided in this order: its flag; generation_config.json, whose
    /// temperature, top_k, top_p and min_p count where its do_sample is true; off. So without flags
    /// a model that does not ask for sampling decodes greedily.
    #[arg(long, visible_alias = "temperature", value_name = "T", value_parser = values::not_negative,
        allow_negative_numbers = true, help_heading = "Sampling")]
    pub temp: Option<f64>,
    /// Keep the K most probable tokens; 0 keeps all
    #[arg(long, value_name = "K", value_parser = values::whole, allow_negative_numbers = true, help_heading = "Sampling")]
    pub top_k: Option<usize>,
    /// Keep the most probable tokens whose probabilities add up to P; 1 keeps all
    #[arg(long, value_name = "P", value_parser = values::positive_fraction, allow_negative_numbers = true,
        help_heading = "Sampling")]
    pub top_p: Option<f64>,
    /// Keep tokens at least P times as probable as the most probable one; 0 keeps all
    #[arg(long, value_name = "P", value_parser = values::fraction, allow_negative_numbers = true, help_heading = "Sampling")]
    pub min_p: Option<f64>,
    /// Make tokens of prompt and text less likely; 1 is off
    #[arg(long, visible_alias = "repetition-penalty", value_name = "X", value_parser = values::positive,
        allow_negative_numbers = true, help_heading = "Sampling")]
    pub repeat_penalty: Option<f64>,
    /// Taken off the logit of every token in the text; 0 is off
    #[arg(long, value_name = "X", value_parser = values::finite, allow_negative_numbers = true, help_heading = "Sampling")]
    pub presence_penalty: Option<f64>,
    /// Taken off a token's logit for each time it is in the text; 0 is off
    #[arg(long, value_name = "X", value_parser = values::finite, allow_negative_numbers = true, help_heading = "Sampling")]
    pub frequency_penalty: Option<f64>,
    /// Add to one token's logit: 15043+1, 15043-2.5, 15043=-inf (may be repeated)
    #[arg(long, value_name = "ID(+|-|=)BIAS", value_parser = values::logit_bias, help_heading = "Sampling")]
    pub logit_bias: Vec<(TokenId, f32)>,
    /// End before this text; \n and \t are understood (may be repeated)
    #[arg(long, value_name = "TEXT", value_parser = values::stop, allow_hyphen_values = true, help_heading = "Sampling")]
    pub stop: Vec<String>,
    /// End with this token, as with the model's end tokens (may be repeated)
    #[arg(long, value_name = "ID", value_parser = values::token, allow_negative_numbers = true, help_heading = "Sampling")]
    pub stop_token: Vec<TokenId>,
    /// Go on past the model's end tokens
    #[arg(long, help_heading = "Sampling")]
    pub ignore_eos: bool,
    /// Generate at least N tokens: none of them ends the text, nor does a stop string within them
    #[arg(long, value_name = "N", value_parser = values::whole, allow_negative_numbers = true, help_heading = "Sampling")]
    pub min_tokens: Option<usize>,
    /// Never generate this token (may be repeated)
    #[arg(long, value_name = "ID", value_parser = values::token, allow_negative_numbers = true, help_heading = "Sampling")]
    pub suppress_token: Vec<TokenId>,
    /// Never generate this word, at a text's beginning or after a space (may be repeated)
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true, help_heading = "Sampling")]
    pub bad_word: Vec<String>,
    /// Report each token's log-probability and those of the N most probable ones (in JSON)
    #[arg(long, value_name = "N", value_parser = values::whole, allow_negative_numbers = true, help_heading = "Sampling")]
    pub logprobs: Option<usize>,
    /// How sampled drafts are verified [default: coupled with a seed, rejection without]
    ///
    /// rejection: the model's own distribution, accepts most; a seed does not repeat a text. coupled:
    /// for a given seed token for token what plain sampling gives. Neither changes what greedy decoding gives.
    #[arg(long, visible_alias = "verify-mode", value_enum, value_name = "MODE", help_heading = "Sampling")]
    pub verify: Option<Verification>,
}

/// The two lossless rules for sampled drafts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Verification {
    /// Exact in distribution.
    Rejection,
    /// Exact token for token under a seed.
    Coupled,
}

impl From<Verification> for VerifyMode {
    fn from(mode: Verification) -> Self {
        match mode {
            Verification::Rejection => VerifyMode::Rejection,
            Verification::Coupled => VerifyMode::Coupled,
        }
    }
}
