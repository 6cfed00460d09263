//! Exit blocks: `exit-<N>.safetensors` beside the model, a small trained layer, norm and head.

use super::base::Base;
use super::config::Config;
use super::error::short;
use super::source::Bytes;
use super::store::{self, Stored};
use super::tensors::Tensors;
use super::weights::{self, EXIT_HEAD, EXIT_IDS, EXIT_INPUT, EXIT_LAYER, EXIT_NORM, EXIT_RECURRENT, ExitParts};
use super::{Checkpoint, LoadError};
use crate::TokenId;
use crate::model::{BlockType, DraftVocab, ExitWeights, Format, LayerWeights, Matrix, RowOrder};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const FORMAT: &str = "eesd-exit-1";
/// The format of blocks that may have a matrix for their input and one for recurrent drafts. Blocks without are written in
/// the first one still, which older versions read.
const RECURRENT_FORMAT: &str = "eesd-exit-2";
/// The key for what tensors of bytes are: matrices of 8 bits, which safetensors has no name for.
const MATRICES: &str = "matrices";
const IN_BLOCKS: BlockType = BlockType::Q8_0;

/// An opened `exit-<N>.safetensors`, checked against the model it belongs to.
pub struct ExitBlock {
    path: PathBuf,
    config: Config,
    after: usize,
    parts: ExitParts,
    /// The tokens of its own head's rows, where the file lists them.
    draft_ids: Option<Vec<TokenId>>,
    metadata: BTreeMap<String, String>,
    notes: Vec<String>,
    tensors: Tensors,
}

impl ExitBlock {
    pub(super) fn parse(path: PathBuf, bytes: Bytes, config: &Config, base: &Base) -> Result<Self, LoadError> {
        let (mut tensors, metadata) = Tensors::of_file(path.clone(), bytes)?;
        let wrong = |key: &str, expected: String| LoadError::Key {
            path: path.clone(),
            key: format!("__metadata__.{key}"),
            found: metadata.get(key).map_or("missing".into(), |value| short(format!("{value:?}"))),
            expected,
        };
        let format = metadata.get("format").map(String::as_str);
        if !matches!(format, Some(FORMAT | RECURRENT_FORMAT)) {
            return Err(wrong("format", format!("{FORMAT:?} or {RECURRENT_FORMAT:?}")));
        }
        // Before the tensors: another model's block should be called just that.
        let notes = base.check(&path, &metadata)?.into_iter().collect();
        let layers = config.geometry.layers;
        let after = metadata.get("exit_layer").and_then(|layer| layer.parse().ok());
        let after = after
            .filter(|after| (1..layers).contains(after))
            .ok_or_else(|| wrong("exit_layer", format!("a layer in 1..={}", layers.saturating_sub(1))))?;
        match metadata.get(MATRICES) {
            None => {}
            Some(blocks) if *blocks == IN_BLOCKS.to_string() => tensors.take_bytes_as(IN_BLOCKS)?,
            Some(_) => return Err(wrong(MATRICES, format!("\"{IN_BLOCKS}\""))),
        }
        // A head of more rows than the vocabulary, or of none, fails the check against what is possible.
        let rows = tensors.shape(EXIT_HEAD).map(|shape| shape.first().copied().unwrap_or(0));
        let head = rows.map(|rows| rows.clamp(1, config.geometry.vocab_size));
        let has = |name: &str| match tensors.shape(name) {
            Some(_) if format == Some(FORMAT) => Err(LoadError::UnexpectedTensor {
                path: path.clone(),
                tensor: name.into(),
                why: format!("blocks of {FORMAT:?} have none (expected the format {RECURRENT_FORMAT:?})"),
            }),
            shape => Ok(shape.is_some()),
        };
        let parts = ExitParts { input: has(EXIT_INPUT)?, recurrent: has(EXIT_RECURRENT)?, head };
        let draft_ids = draft_ids(&mut tensors, &path, head, config.geometry.vocab_size)?;
        weights::check(&tensors, &weights::exit_plan(config, parts), config)?;
        Ok(Self { path, config: config.clone(), after, parts, draft_ids, metadata, notes, tensors })
    }

    /// The exit layer `N`: how many of the model's layers come before the block.
    pub fn after(&self) -> usize {
        self.after
    }

    /// Where it came from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What is no error, and still should be known to who drafts with it: one sentence each, with the file's name.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The metadata of its file: format, exit layer, what it is tied to, and what its trainer wrote there.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// How many tokens it can draft: all of the vocabulary, or a part.
    pub fn draft_vocab(&self) -> usize {
        self.parts.head.unwrap_or(self.config.geometry.vocab_size)
    }

    /// Number of its parameters; a shared head does not count.
    pub fn parameters(&self) -> u64 {
        weights::parameters(&weights::exit_plan(&self.config, self.parts))
    }

    /// Bytes of its tensors as stored.
    pub fn bytes(&self) -> u64 {
        let ids = self.draft_ids.as_ref().map_or(0, |ids| ids.len() * size_of::<i64>());
        self.tensors.bytes(weights::exit_plan(&self.config, self.parts).keys()) + ids as u64
    }

    /// Views of the tensors.
    pub fn weights(&self) -> ExitWeights<'_> {
        weights::exit(&self.tensors, &self.config, self.after, self.parts, self.draft_ids.as_deref())
    }

    /// Writes an exit block for this model, and for whatever else has its geometry and its vocabulary.
    ///
    /// The file appears whole or not at all: it is written under another name in the same folder and
    /// renamed. `metadata` may hold anything; `format`, `exit_layer`, `matrices` and the keys that begin with
    /// `base_` are set here. Matrices in blocks of 8 bits (Q8_0) are stored so; others that are no plain numbers in f32.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn save(
        path: &Path,
        weights: &ExitWeights<'_>,
        metadata: &BTreeMap<String, String>,
        model: &Checkpoint,
    ) -> Result<(), LoadError> {
        let mut metadata = metadata.clone();
        let plain = weights.input.is_none() && weights.recurrent.is_none();
        metadata.insert("format".into(), if plain { FORMAT } else { RECURRENT_FORMAT }.into());
        metadata.insert("exit_layer".into(), weights.after.to_string());
        model.base().write(&mut metadata);
        let stored = stored(weights);
        metadata.remove(MATRICES);
        if stored.values().any(|tensor| tensor.dtype == safetensors::Dtype::U8) {
            metadata.insert(MATRICES.into(), IN_BLOCKS.to_string());
        }
        store::save(path, &stored, &metadata)
    }
}

/// Takes the list of tokens out of a block's tensors, where it has one: a token below `vocab` for each of the head's
/// `rows`.
fn draft_ids(
    tensors: &mut Tensors,
    path: &Path,
    rows: Option<usize>,
    vocab: usize,
) -> Result<Option<Vec<TokenId>>, LoadError> {
    let (path, tensor) = (path.to_path_buf(), EXIT_IDS.to_owned());
    let Some(size) = rows else {
        let why = format!("there is no `{EXIT_HEAD}` whose rows it would name");
        let lists = tensors.shape(EXIT_IDS).is_some();
        return if lists { Err(LoadError::UnexpectedTensor { path, tensor, why }) } else { Ok(None) };
    };
    let ids = tensors.take_ids(EXIT_IDS, size)?;
    match (DraftVocab { size, ids: ids.as_deref() }).check(vocab) {
        Ok(()) => Ok(ids),
        Err((found, expected)) => Err(LoadError::Tensor { path, tensor, found, expected }),
    }
}

/// Every tensor of the block by its name in the file.
fn stored<'a>(exit: &ExitWeights<'a>) -> BTreeMap<String, Stored<'a>> {
    let layer: &LayerWeights<'a> = &exit.layer;
    let always: [(&str, Stored<'a>); 9] = [
        ("input_layernorm.weight", layer.input_norm.into()),
        ("self_attn.q_proj.weight", matrix(layer.q)),
        ("self_attn.k_proj.weight", matrix(layer.k)),
        ("self_attn.v_proj.weight", matrix(layer.v)),
        ("self_attn.o_proj.weight", matrix(layer.o)),
        ("post_attention_layernorm.weight", layer.post_norm.into()),
        ("mlp.gate_proj.weight", matrix(layer.gate)),
        ("mlp.up_proj.weight", matrix(layer.up)),
        ("mlp.down_proj.weight", matrix(layer.down)),
    ];
    let optional = [
        ("self_attn.q_proj.bias", layer.q_bias),
        ("self_attn.k_proj.bias", layer.k_bias),
        ("self_attn.v_proj.bias", layer.v_bias),
        ("self_attn.o_proj.bias", layer.o_bias),
        ("self_attn.q_norm.weight", layer.q_norm),
        ("self_attn.k_norm.weight", layer.k_norm),
        ("mlp.gate_proj.bias", layer.gate_bias),
        ("mlp.up_proj.bias", layer.up_bias),
        ("mlp.down_proj.bias", layer.down_bias),
    ];
    let present = optional.into_iter().filter_map(|(name, vector)| Some((name, vector?.into())));
    let mut tensors: BTreeMap<_, _> =
        always.into_iter().chain(present).map(|(name, tensor)| (format!("{EXIT_LAYER}{name}"), tensor)).collect();
    tensors.insert(EXIT_NORM.into(), exit.norm.into());
    for (name, optional) in [(EXIT_INPUT, exit.input), (EXIT_RECURRENT, exit.recurrent), (EXIT_HEAD, exit.head)] {
        tensors.extend(optional.map(|of| (name.into(), matrix(of))));
    }
    if let Some(ids) = exit.draft_ids {
        tensors.insert(EXIT_IDS.into(), ids.into());
    }
    tensors
}

fn matrix(matrix: Matrix<'_>) -> Stored<'_> {
    match matrix.format {
        Format::Blocks(IN_BLOCKS) if matrix.order == RowOrder::AsStored => Stored {
            dtype: safetensors::Dtype::U8,
            shape: vec![matrix.rows, matrix.row_bytes()],
            bytes: matrix.bytes.into(),
        },
        _ => matrix.into(),
    }
}
