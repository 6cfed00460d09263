//! Flags of `distill`.

use super::values;
use super::{MachineArgs, ModelArgs, TemplateArgs};
use clap::ValueEnum;
use eesd::backend::training::parameters::Rounding;
use eesd::model::Dtype;
use std::path::PathBuf;

/// What `distill --help` ends with.
pub const FILES: &str = "\
Data: the model continues every prompt (--prompts, --make-up), and the block learns to say what the model says there; or it learns \
on texts as they are (--corpus), or on all of them. Prompts are JSON lines as `generate --input` reads them (FILE.jsonl), or a \
text with an empty line between two; a corpus is text, one document a file, or JSON lines with \"text\". Answers are \
kept in OUTPUT/answers.jsonl, made-up prompts in OUTPUT/prompts.made-up.jsonl: the same command goes on with them, and a longer run adds to them.

Files: OUTPUT/exit-N.safetensors is the block, beside exit-N.metrics.jsonl (a line for each update) and \
exit-N.training, from which the same command goes on after Ctrl-C, a kill or a crash as if nothing had happened; it is \
of no use once the run is done. OUTPUT/states has what the model said of the texts in hidden states, so that later epochs \
and other runs need not ask it again; it can be deleted at any time. --device cuda reads and trains on a GPU, which needs NVIDIA's cuBLASLt; that has never \
been run on one. --steps 0 trains nothing and says what a block reaches on the held-out text.";

/// Flags of `distill`.
#[derive(Debug, clap::Args)]
#[command(after_long_help = FILES)]
pub struct DistillArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// Folder for what is written [default: the model's]
    #[arg(short, long, value_name = "DIR", help_heading = "Model and machine")]
    pub output: Option<PathBuf>,
    #[command(flatten)]
    pub machine: MachineArgs,
    #[command(flatten)]
    pub data: DataArgs,
    #[command(flatten)]
    pub block: BlockArgs,
    #[command(flatten)]
    pub training: TrainingArgs,
    /// Draw losses, acceptance and speeds into this file
    #[arg(long, value_name = "FILE.svg", help_heading = "Output")]
    pub plot: Option<PathBuf>,
    /// Write over an exit block that another run has made
    #[arg(long, help_heading = "Output")]
    pub overwrite: bool,
    /// No progress
    #[arg(short, long, help_heading = "Output")]
    pub quiet: bool,
}

/// What is learned from.
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("asked").multiple(true))]
pub struct DataArgs {
    /// Prompts that the model continues
    #[arg(long, value_name = "FILE", group = "asked", help_heading = "Data")]
    pub prompts: Option<PathBuf>,
    /// Let the model make up so many prompts itself, as a user of it might ask (needs a chat template)
    #[arg(long, value_name = "COUNT", value_parser = values::count, group = "asked", allow_negative_numbers = true, help_heading = "Data")]
    pub make_up: Option<usize>,
    /// Texts that are used as they are
    #[arg(long, value_name = "FILE", num_args = 1.., help_heading = "Data")]
    pub corpus: Vec<PathBuf>,
    #[command(flatten)]
    pub template: TemplateArgs,
    /// Put prompts that are plain text through the model's chat template
    #[arg(long, requires = "prompts", help_heading = "Data")]
    pub chat: bool,
    /// Answers to each prompt
    #[arg(long, value_name = "COUNT", value_parser = values::count, default_value = "1", requires = "asked", allow_negative_numbers = true, help_heading = "Data")]
    pub samples: usize,
    /// Most tokens of an answer
    #[arg(short = 'n', long = "max-tokens", value_name = "N", value_parser = values::count, default_value = "256", requires = "asked", allow_negative_numbers = true, help_heading = "Data")]
    pub max_tokens: usize,
    /// Temperature of answers; 0 is greedy
    #[arg(long, visible_alias = "temperature", value_name = "T", value_parser = values::not_negative, default_value = "1",
        allow_negative_numbers = true, requires = "asked", help_heading = "Data")]
    pub temp: f64,
    /// Keep the K most probable tokens in answers; 0 keeps all
    #[arg(long, value_name = "K", value_parser = values::whole, default_value = "0", requires = "asked", allow_negative_numbers = true, help_heading = "Data")]
    pub top_k: usize,
    /// Keep the most probable tokens whose probabilities add up to P in answers; 1 keeps all
    #[arg(long, value_name = "P", value_parser = values::positive_fraction, default_value = "1", requires = "asked", allow_negative_numbers = true, help_heading = "Data")]
    pub top_p: f64,
    /// Answers written side by side
    #[arg(short, long, value_name = "N", value_parser = values::up_to_1024, default_value = "8", requires = "asked", allow_negative_numbers = true, help_heading = "Data")]
    pub batch_size: usize,
    /// Leave out documents of fewer tokens
    #[arg(long, value_name = "N", value_parser = values::whole, default_value = "2", allow_negative_numbers = true, help_heading = "Data")]
    pub shortest: usize,
    /// Leave out documents of more tokens [default: none]
    #[arg(long, value_name = "N", value_parser = values::count, allow_negative_numbers = true, help_heading = "Data")]
    pub longest: Option<usize>,
    /// The part of documents (of prompts, for answers) that is measured on and never trained on
    #[arg(long, value_name = "F", value_parser = values::fraction, default_value = "0.05", allow_negative_numbers = true, help_heading = "Data")]
    pub held_out: f64,
    /// Seed of answers, of what is held out, and of the order of training
    #[arg(short, long, value_name = "SEED", value_parser = values::seed, default_value = "0", allow_negative_numbers = true, help_heading = "Data")]
    pub seed: u64,
}

/// Which block is trained.
#[derive(Debug, clap::Args)]
pub struct BlockArgs {
    /// N: how many layers of the model come before the block
    #[arg(short = 'N', long, value_name = "N", value_parser = values::count, allow_negative_numbers = true, help_heading = "Exit block",
        required_unless_present = "sweep_exit")]
    pub exit_layer: Option<usize>,
    /// Train a block for each N of A..B (both included), compare them, and recommend one
    #[arg(long, value_name = "A..B", value_parser = values::span, conflicts_with = "exit_layer", allow_negative_numbers = true, help_heading = "Exit block")]
    pub sweep_exit: Option<(usize, usize)>,
    /// Start from a copy of this layer of the model (from 0), or from a block in a file [default: the last layer]
    #[arg(long, value_name = "LAYER|FILE", help_heading = "Exit block")]
    pub init_from: Option<values::ExitChoice>,
    /// Give the block a head of its own and leave it as it is
    #[arg(long, help_heading = "Exit block")]
    pub freeze_head: bool,
    /// Use the model's head, so that the block's file has none
    #[arg(long, conflicts_with_all = ["freeze_head", "draft_vocab"], help_heading = "Exit block")]
    pub shared_head: bool,
    /// Draft only the K tokens that are most frequent in the training data, or as many as come to P % of it; output stays
    /// exact
    #[arg(long, value_name = "K|P%", allow_negative_numbers = true, help_heading = "Exit block")]
    pub draft_vocab: Option<values::DraftVocab>,
    /// Train a recurrent block: all drafts of a round but the first are made without the model's layers, and so many steps
    /// are trained in a row
    #[arg(long, value_name = "STEPS", value_parser = values::steps, allow_negative_numbers = true, help_heading = "Exit block")]
    pub recurrent: Option<usize>,
    /// A matrix that hidden states go through before the block [default: ridge with --recurrent, else none, or that of the
    /// block to start from]
    #[arg(long, value_enum, value_name = "START", help_heading = "Exit block")]
    pub input_matrix: Option<InputMatrix>,
    /// Number format of the block's file [default: the model's, or bf16 where the model is quantised]
    ///
    /// q8: matrices in blocks of 32 numbers of 8 bits with a scale (llama.cpp's Q8_0), half the size of 16 bits; what is
    /// reported of the block is measured with these.
    #[arg(long, value_enum, value_name = "FORMAT", help_heading = "Exit block")]
    pub store: Option<Store>,
}

/// What a block's input matrix begins as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum InputMatrix {
    /// The ridge regression from what the block reads to the model's last hidden states, on all training data.
    Ridge,
    /// There is none.
    None,
}

/// What a block's numbers are stored in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Store {
    /// 32 bits.
    F32,
    /// 16 bits, of IEEE 754.
    F16,
    /// 16 bits, the upper half of 32.
    Bf16,
    /// 8 bits.
    Q8,
}

impl From<Store> for Rounding {
    fn from(store: Store) -> Self {
        match store {
            Store::F32 => Self::Plain(Dtype::F32),
            Store::F16 => Self::Plain(Dtype::F16),
            Store::Bf16 => Self::Plain(Dtype::BF16),
            Store::Q8 => Self::Q8,
        }
    }
}

/// How it is trained.
#[derive(Debug, clap::Args)]
pub struct TrainingArgs {
    /// Times that all data is seen [default: 1]
    #[arg(long, value_name = "X", value_parser = values::positive, conflicts_with_all = ["steps", "budget"], allow_negative_numbers = true, help_heading = "Training")]
    pub epochs: Option<f64>,
    /// Updates; 0 trains nothing
    #[arg(long, value_name = "N", value_parser = values::whole, conflicts_with = "budget", allow_negative_numbers = true, help_heading = "Training")]
    pub steps: Option<usize>,
    /// Positions to train at, for each exit layer
    #[arg(long, value_name = "N", value_parser = values::count, allow_negative_numbers = true, help_heading = "Training")]
    pub budget: Option<usize>,
    /// Tokens that texts are cut to [default: 512, or the context where that is less]
    #[arg(long, value_name = "N", value_parser = values::count, allow_negative_numbers = true, help_heading = "Training")]
    pub window: Option<usize>,
    /// Most tokens of a batch
    #[arg(long, value_name = "N", value_parser = values::count, default_value = "2048", allow_negative_numbers = true, help_heading = "Training")]
    pub batch_tokens: usize,
    /// Batches for one update
    #[arg(long, value_name = "N", value_parser = values::count, default_value = "1", allow_negative_numbers = true, help_heading = "Training")]
    pub accumulate: usize,
    /// Highest learning rate
    #[arg(long, visible_alias = "learning-rate", value_name = "X", value_parser = values::positive, default_value = "0.002", allow_negative_numbers = true, help_heading = "Training")]
    pub lr: f64,
    /// Last learning rate, as a part of the highest
    #[arg(long, value_name = "F", value_parser = values::fraction, default_value = "0.02", allow_negative_numbers = true, help_heading = "Training")]
    pub last_lr: f64,
    /// Updates in which the learning rate rises [default: a twentieth of all, at most 100]
    #[arg(long, value_name = "N", value_parser = values::whole, allow_negative_numbers = true, help_heading = "Training")]
    pub warmup: Option<usize>,
    /// Weight decay of matrices
    #[arg(long, value_name = "X", value_parser = values::not_negative, default_value = "0.01", allow_negative_numbers = true, help_heading = "Training")]
    pub weight_decay: f64,
    /// Largest norm of a gradient
    #[arg(long, value_name = "X", value_parser = values::positive, default_value = "1", allow_negative_numbers = true, help_heading = "Training")]
    pub clip: f64,
    /// Weight of the cross-entropy to the model's distribution
    #[arg(long, value_name = "X", value_parser = values::not_negative, default_value = "1", allow_negative_numbers = true, help_heading = "Training")]
    pub soft: f64,
    /// Temperature of both distributions there
    #[arg(long, value_name = "T", value_parser = values::positive, allow_negative_numbers = true, default_value = "1", help_heading = "Training")]
    pub soft_temp: f64,
    /// Weight of the cross-entropy to the tokens of the text
    #[arg(long, value_name = "X", value_parser = values::not_negative, default_value = "0", allow_negative_numbers = true, help_heading = "Training")]
    pub hard: f64,
    /// Weight of the total variation, the chance that sampling refuses a draft
    #[arg(long, value_name = "X", value_parser = values::not_negative, default_value = "0", allow_negative_numbers = true, help_heading = "Training")]
    pub tv: f64,
    /// Positions after which one counts half as much as the first of its text [default: all count alike]
    #[arg(long, value_name = "X", value_parser = values::positive, allow_negative_numbers = true, help_heading = "Training")]
    pub half_life: Option<f64>,
    /// Updates between two measurements on held-out text
    #[arg(long, value_name = "N", value_parser = values::count, default_value = "200", allow_negative_numbers = true, help_heading = "Training")]
    pub measure_every: usize,
    /// End after so many measurements on held-out text without a better one [default: never]
    #[arg(long, value_name = "N", value_parser = values::count, allow_negative_numbers = true, help_heading = "Training")]
    pub patience: Option<usize>,
    /// Most bytes of hidden states on disk, of all exit layers together; 0 keeps none
    #[arg(long, value_name = "BYTES", value_parser = values::bytes, default_value = "8G", allow_negative_numbers = true, help_heading = "Training")]
    pub keep_states: u64,
    /// Folder of the hidden states, which runs of the same model can share [default: OUTPUT/states]
    #[arg(long, value_name = "DIR", help_heading = "Training")]
    pub states: Option<PathBuf>,
    /// Updates between two snapshots
    #[arg(long, value_name = "N", value_parser = values::count, default_value = "100", allow_negative_numbers = true, help_heading = "Training")]
    pub save_every: usize,
}
