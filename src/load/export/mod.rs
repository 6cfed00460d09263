//! Writes a model as one GGUF file of quantised matrices, which llama.cpp opens as well as this crate.
//!
//! `metadata` says the geometry in GGUF's words, `vocabulary` the tokenizer, [`file`] puts them into bytes.

mod file;
mod metadata;
mod vocabulary;

use super::{Checkpoint, LoadError, chat};
use crate::model::{
    BlockType, Dtype, Encoder, Format, LayerWeights, Matrix, NotEncodable, OwnedMatrix, RowOrder, Vector,
};
use crate::replace::Replacement;
use file::{ALIGNMENT, Planned, Value};
use std::io::{BufWriter, Write};
use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

/// Why a model was not written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExportError {
    /// GGUF has no words for something that the model does.
    #[error("{what} cannot be said in a GGUF file (expected {expected})")]
    Unsayable {
        /// What it is, with its file.
        what: String,
        /// What can be said.
        expected: &'static str,
    },
    /// The model's files cannot be read.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// Its tokenizer.json is no JSON any more.
    #[error("tokenizer.json: {0}")]
    Json(#[from] serde_json::Error),
    /// A number does not fit its blocks.
    #[error("{tensor}: {error}")]
    Number {
        /// Where it is.
        tensor: String,
        /// Which it is.
        #[source]
        error: NotEncodable,
    },
    /// The file cannot be written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The caller did not want it any more. Nothing is written.
    #[error("interrupted: nothing is written")]
    Interrupted,
}

impl ExportError {
    fn unsayable(what: impl Into<String>, expected: &'static str) -> Self {
        Self::Unsayable { what: what.into(), expected }
    }
}

/// A file that was written.
#[derive(Debug)]
pub struct Exported {
    /// Its bytes.
    pub bytes: u64,
    /// What is not quite as was asked for: one sentence each.
    pub notes: Vec<String>,
}

/// The numbers of a tensor to be written.
enum Numbers<'a> {
    Matrix(Matrix<'a>),
    /// In f32, as llama.cpp wants vectors.
    Vector(Vec<f32>),
}

/// A tensor to be written: what of, in which format, and where each of its rows goes.
struct Tensor<'a> {
    name: String,
    numbers: Numbers<'a>,
    format: Format,
    order: RowOrder,
}

/// Writes `model` with its matrices in blocks of `encoder`, embedding and head in more bits, vectors in f32.
///
/// The file appears whole or not at all. `step` is told how many tensors of how many are written, and may end it.
///
/// # Errors
/// If GGUF has no words for the model, a number does not fit, or the file cannot be written.
pub fn quantise(
    model: &Checkpoint,
    path: &Path,
    encoder: Encoder,
    threads: NonZeroUsize,
    step: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
) -> Result<Exported, ExportError> {
    let geometry = model.geometry();
    let mut notes = Vec::new();
    let mut values = metadata::values(model.config(), model.name(), file_type(encoder))?;
    let tokenizer = model.tokenizer().map(AsRef::as_ref);
    values.extend(vocabulary::values(model.source(), tokenizer, model.generation(), geometry.vocab_size, &mut notes)?);
    if let Some(template) = chat::default_text(model.source())? {
        values.push(("tokenizer.chat_template".into(), Value::Text(template)));
    }
    let tensors = tensors(model, encoder, &mut notes);
    let planned: Vec<Planned> = tensors.iter().map(Tensor::plan).collect();
    let head = file::head(&values, &planned);
    let bytes = head.len() as u64 + planned.iter().map(|tensor| tensor.bytes.next_multiple_of(ALIGNMENT)).sum::<u64>();

    let io = |source| ExportError::Io { path: path.to_path_buf(), source };
    let new = Replacement::of(path).map_err(io)?;
    let mut out = BufWriter::new(new.file());
    out.write_all(&head).map_err(io)?;
    for (number, (tensor, planned)) in tensors.iter().zip(&planned).enumerate() {
        if step(number, tensors.len()).is_break() {
            return Err(ExportError::Interrupted);
        }
        tensor.write(&mut out, threads)?.map_err(io)?;
        let padding = planned.bytes.next_multiple_of(ALIGNMENT) - planned.bytes;
        out.write_all(&[0; ALIGNMENT as usize][..padding as usize]).map_err(io)?;
    }
    // All is done: too late to stop.
    let _ = step(tensors.len(), tensors.len());
    out.flush().map_err(io)?;
    drop(out);
    new.persist_durably().map_err(io)?;
    Ok(Exported { bytes, notes })
}

/// llama.cpp's number for what most of a file is.
fn file_type(encoder: Encoder) -> u32 {
    match encoder {
        Encoder::Q8_0 => 7,
        Encoder::Q4_0 => 2,
        Encoder::Q4K => 14,
        Encoder::Q6K => 18,
    }
}

/// A format's number.
fn kind(format: Format) -> u32 {
    match format {
        Format::Float(Dtype::F32) => 0,
        Format::Float(Dtype::F16) => 1,
        Format::Float(Dtype::BF16) => 30,
        Format::Blocks(BlockType::Q4_0) => 2,
        Format::Blocks(BlockType::Q8_0) => 8,
        Format::Blocks(BlockType::Q4K) => 12,
        Format::Blocks(BlockType::Q6K) => 14,
        other => unreachable!("no tensor is written in {other}"),
    }
}

/// All tensors in the order of the file.
fn tensors<'a>(model: &'a Checkpoint, encoder: Encoder, notes: &mut Vec<String>) -> Vec<Tensor<'a>> {
    let (geometry, weights) = (model.geometry(), model.weights());
    let mut formats = Formats { encoder, instead: Vec::new() };
    let mut tensors = Vec::new();
    tensors.push(formats.matrix("token_embd.weight".into(), weights.embed, true, RowOrder::AsStored));
    if !geometry.tied_head {
        tensors.push(formats.matrix("output.weight".into(), weights.head, true, RowOrder::AsStored));
    }
    tensors.push(vector("output_norm.weight".into(), weights.norm, RowOrder::AsStored));
    if let Some(divisors) = metadata::divisors(geometry) {
        tensors.push(of_numbers("rope_freqs.weight".into(), divisors, RowOrder::AsStored));
    }
    // What RoPE turns lies in pairs of neighbours there.
    let paired = match metadata::architecture(geometry) {
        "llama" => RowOrder::PairedHalves { head_dim: geometry.head_dim },
        _ => RowOrder::AsStored,
    };
    for (index, layer) in weights.layers.iter().enumerate() {
        of_layer(&mut tensors, &mut formats, index, layer, paired);
    }
    notes.extend(formats.notes());
    let stored = weights.layers.first().map_or(weights.embed.format, |layer| layer.q.format);
    if stored.dtype().is_none() {
        notes.push(format!(
            "the model is in {stored} already: quantising it again loses more than quantising its original"
        ));
    }
    tensors
}

fn of_layer<'a>(
    tensors: &mut Vec<Tensor<'a>>,
    formats: &mut Formats,
    index: usize,
    layer: &LayerWeights<'a>,
    paired: RowOrder,
) {
    let plain = RowOrder::AsStored;
    for (name, matrix, bias, order) in [
        ("attn_q", layer.q, layer.q_bias, paired),
        ("attn_k", layer.k, layer.k_bias, paired),
        ("attn_v", layer.v, layer.v_bias, plain),
        ("attn_output", layer.o, layer.o_bias, plain),
        ("ffn_gate", layer.gate, layer.gate_bias, plain),
        ("ffn_up", layer.up, layer.up_bias, plain),
        ("ffn_down", layer.down, layer.down_bias, plain),
    ] {
        tensors.push(formats.matrix(format!("blk.{index}.{name}.weight"), matrix, false, order));
        tensors.extend(bias.map(|bias| vector(format!("blk.{index}.{name}.bias"), bias, order)));
    }
    let norms = [
        ("attn_norm", Some(layer.input_norm)),
        ("ffn_norm", Some(layer.post_norm)),
        ("attn_q_norm", layer.q_norm),
        ("attn_k_norm", layer.k_norm),
    ];
    for (name, norm) in norms {
        tensors.extend(norm.map(|norm| vector(format!("blk.{index}.{name}.weight"), norm, plain)));
    }
}

fn vector<'a>(name: String, vector: Vector<'_>, order: RowOrder) -> Tensor<'a> {
    of_numbers(name, vector.to_f32(), order)
}

fn of_numbers<'a>(name: String, numbers: Vec<f32>, order: RowOrder) -> Tensor<'a> {
    Tensor { name, numbers: Numbers::Vector(numbers), format: Dtype::F32.into(), order }
}

/// Chooses formats, and remembers where they are not what was asked for.
struct Formats {
    encoder: Encoder,
    /// Columns, what was to be, what is, and how often.
    instead: Vec<(usize, BlockType, Format, usize)>,
}

impl Formats {
    /// `of_tokens`: embedding or head, whose errors reach every token.
    fn matrix<'a>(&mut self, name: String, matrix: Matrix<'a>, of_tokens: bool, order: RowOrder) -> Tensor<'a> {
        let wanted = match self.encoder {
            Encoder::Q8_0 => Encoder::Q8_0,
            _ if of_tokens => Encoder::Q6K,
            encoder => encoder,
        };
        let fallback = || match Encoder::Q8_0.fits(matrix.cols) {
            true => Format::Blocks(BlockType::Q8_0),
            false => matrix.format.dtype().unwrap_or(Dtype::F32).into(),
        };
        let format = if wanted.fits(matrix.cols) { Format::Blocks(wanted.blocks()) } else { fallback() };
        if format != Format::Blocks(wanted.blocks()) {
            let of = (matrix.cols, wanted.blocks(), format);
            match self.instead.iter_mut().find(|(cols, wanted, format, _)| (*cols, *wanted, *format) == of) {
                Some((.., count)) => *count += 1,
                None => self.instead.push((of.0, of.1, of.2, 1)),
            }
        }
        Tensor { name, numbers: Numbers::Matrix(matrix), format, order }
    }

    fn notes(&self) -> impl Iterator<Item = String> {
        self.instead.iter().map(|(cols, wanted, format, count)| {
            let why = format!("rows of {cols} are no multiple of {}", wanted.len());
            format!("matrices in {format} instead of {wanted}, since {why}: {count}")
        })
    }
}

impl Tensor<'_> {
    fn plan(&self) -> Planned {
        let shape = match &self.numbers {
            Numbers::Matrix(matrix) => vec![matrix.rows, matrix.cols],
            Numbers::Vector(numbers) => vec![numbers.len()],
        };
        let row = self.format.row_bytes(shape[shape.len() - 1]).expect("a format that fits the rows");
        let rows = shape[..shape.len() - 1].iter().product::<usize>();
        Planned { name: self.name.clone(), shape, kind: kind(self.format), bytes: rows as u64 * row as u64 }
    }

    /// Which row, or number, comes at each place of the file.
    fn places(&self, rows: usize) -> Vec<usize> {
        let mut places = vec![0; rows];
        (0..rows).for_each(|row| places[self.order.stored(row)] = row);
        places
    }

    /// Writes its data: in two steps what may go wrong, the numbers and the file.
    fn write(&self, out: &mut impl Write, threads: NonZeroUsize) -> Result<std::io::Result<()>, ExportError> {
        let matrix = match &self.numbers {
            Numbers::Matrix(matrix) => matrix,
            Numbers::Vector(numbers) => {
                let mut places = self.places(numbers.len()).into_iter();
                return Ok(places.try_for_each(|at| out.write_all(&numbers[at].to_le_bytes())));
            }
        };
        let encoded = match self.format {
            format if format == matrix.format => None,
            Format::Float(_) => None,
            Format::Blocks(of) => Some(self.encode(matrix, of, threads)?),
            other => unreachable!("no tensor is written in {other}"),
        };
        let mut row = vec![0.0; matrix.cols];
        let mut write = |at: usize| match &encoded {
            Some(encoded) => out.write_all(encoded.view().row(at)),
            None if self.format == matrix.format => out.write_all(matrix.row(at)),
            None => {
                matrix.dequantise_row(at, &mut row);
                row.iter().try_for_each(|number| out.write_all(&number.to_le_bytes()))
            }
        };
        Ok(self.places(matrix.rows).into_iter().try_for_each(&mut write))
    }

    fn encode(&self, matrix: &Matrix<'_>, of: BlockType, threads: NonZeroUsize) -> Result<OwnedMatrix, ExportError> {
        let encoder = [Encoder::Q8_0, Encoder::Q4_0, Encoder::Q4K, Encoder::Q6K].into_iter();
        let encoder = encoder.into_iter().find(|encoder| encoder.blocks() == of).expect("a type that is written");
        let number = |error| ExportError::Number { tensor: self.name.clone(), error };
        encoder.encode_matrix(matrix, threads).map_err(number)
    }
}
