//! Flags of `quantize`.

use super::values;
use clap::ValueEnum;
use eesd::model::Encoder;
use std::path::PathBuf;

/// Flags of `quantize`.
#[derive(Debug, clap::Args)]
pub struct QuantizeArgs {
    /// Hugging Face model folder or GGUF file; default: the small model in the binary
    #[arg(short, long, value_name = "DIR|FILE.gguf", help_heading = "Model and machine")]
    pub model: Option<PathBuf>,
    /// File to write, which llama.cpp opens too
    #[arg(short, long, value_name = "FILE.gguf", help_heading = "Output")]
    pub output: PathBuf,
    /// What the layers' matrices become
    ///
    /// Embedding and head become Q8_0 for Q8_0, else Q6_K; norms and biases are in f32. Where a type's blocks of 256 do not
    /// fit the rows, a matrix is in Q8_0 instead, and where those of 32 do not either, as it was; both are said.
    #[arg(long = "type", value_enum, value_name = "TYPE", ignore_case = true, help_heading = "Output")]
    pub kind: QuantizeType,
    /// Write over a file that is there
    #[arg(long, help_heading = "Output")]
    pub overwrite: bool,
    /// Worker threads [default: all cores]
    #[arg(short, long, value_name = "N", value_parser = values::up_to_1024, allow_negative_numbers = true, help_heading = "Model and machine")]
    pub threads: Option<usize>,
    /// No progress and no notes
    #[arg(short, long, help_heading = "Output")]
    pub quiet: bool,
}

/// Types that matrices can be put into, under llama.cpp's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum QuantizeType {
    /// 8.5 bits a weight.
    #[value(name = "Q8_0")]
    Q8_0,
    /// 4.5 bits a weight, the quickest to make.
    #[value(name = "Q4_0")]
    Q4_0,
    /// 4.5 bits a weight, nearer to the original than `Q4_0`.
    #[value(name = "Q4_K")]
    Q4K,
    /// 6.6 bits a weight.
    #[value(name = "Q6_K")]
    Q6K,
}

impl From<QuantizeType> for Encoder {
    fn from(kind: QuantizeType) -> Self {
        match kind {
            QuantizeType::Q8_0 => Encoder::Q8_0,
            QuantizeType::Q4_0 => Encoder::Q4_0,
            QuantizeType::Q4K => Encoder::Q4K,
            QuantizeType::Q6K => Encoder::Q6K,
        }
    }
}
