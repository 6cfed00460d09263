//! What an exit block is tied to: the model that it was trained for, however that model is stored.
//!
//! A block fits every model of one geometry and one vocabulary: the folder it was trained on, GGUF files of it, quantised
//! copies. It fits fine-tunes too, where it may draft badly; never wrongly, since the model decides on every token.
//!
//! | key of the block's metadata | what is hashed |
//! |---|---|
//! | `base_fingerprint` | [`fingerprint`], number formats included; alone in the blocks of earlier versions |
//! | `base_geometry_2` | the shapes, and what else the block's own layer computes with |
//! | `base_vocabulary_2` | the tokens by id, where there is a tokenizer |
//! | `base_norms_2` | the values of the norms, which every way to store a model keeps: tells fine-tunes apart |

use super::config::Config;
use super::fingerprint::{fingerprint, fnv1a};
use super::{LoadError, Tokenizer, error, weights};
use crate::TokenId;
use crate::model::{Dtype, Geometry, ModelWeights, Vector};
use half::bf16;
use std::collections::BTreeMap;
use std::path::Path;

const STORED: &str = "base_fingerprint";
const GEOMETRY: &str = "base_geometry_2";
const VOCABULARY: &str = "base_vocabulary_2";
const NORMS: &str = "base_norms_2";

/// What a model's blocks are tied to.
pub(super) struct Base {
    /// What `base_fingerprint` may be: the model's own, then those of the model in plain numbers.
    stored: Vec<String>,
    geometry: String,
    vocabulary: Option<String>,
    norms: String,
}

impl Base {
    /// Of a model with this [`fingerprint`].
    pub(super) fn of(config: &Config, weights: &ModelWeights<'_>, tokenizer: Option<&Tokenizer>, own: &str) -> Self {
        let vocab = config.geometry.vocab_size;
        Self {
            stored: std::iter::once(own.to_owned()).chain(in_plain_numbers(config)).collect(),
            geometry: hash(geometry(config).as_bytes()),
            vocabulary: tokenizer.map(|tokenizer| hash(vocabulary(tokenizer, vocab).as_bytes())),
            norms: hash(&norms(weights)),
        }
    }

    /// Refuses the metadata of a block that was trained for another model; a note where it was for another fine-tune.
    ///
    /// # Errors
    /// The first key that is not as it should be.
    pub(super) fn check(&self, path: &Path, metadata: &BTreeMap<String, String>) -> Result<Option<String>, LoadError> {
        let wrong = |key: &'static str, expected: &str| LoadError::Fingerprint {
            path: path.to_path_buf(),
            key,
            found: metadata.get(key).map_or("missing".into(), |found| error::short(format!("{found:?}"))),
            expected: expected.into(),
        };
        match metadata.get(GEOMETRY) {
            Some(geometry) if *geometry == self.geometry => {}
            Some(_) => return Err(wrong(GEOMETRY, &self.geometry)),
            None if metadata.get(STORED).is_some_and(|stored| self.stored.contains(stored)) => {}
            None => return Err(wrong(STORED, &self.stored[0])),
        }
        if let Some((key, ours)) = self.other_vocabulary(metadata) {
            return Err(wrong(key, ours));
        }
        let strange = metadata.get(NORMS).is_some_and(|norms| *norms != self.norms);
        let file = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy();
        let note = || {
            format!(
                "{file}: trained on another model of this shape (`{NORMS}` is not this model's): fewer of its drafts may be \
                 accepted, and answers stay the model's own"
            )
        };
        Ok(strange.then(note))
    }

    /// The key and the model's own value of it, if metadata say that something is of another vocabulary.
    pub(super) fn other_vocabulary(&self, metadata: &BTreeMap<String, String>) -> Option<(&'static str, &str)> {
        let (theirs, ours) = (metadata.get(VOCABULARY)?, self.vocabulary.as_ref()?);
        (theirs != ours).then_some((VOCABULARY, ours))
    }

    /// Writes into a block's metadata what it is tied to.
    pub(super) fn write(&self, metadata: &mut BTreeMap<String, String>) {
        let keys = [(STORED, &self.stored[0]), (GEOMETRY, &self.geometry), (NORMS, &self.norms)];
        metadata.extend(keys.map(|(key, value)| (key.to_owned(), value.clone())));
        self.write_vocabulary(metadata);
    }

    /// Writes into something's metadata which vocabulary its tokens are of.
    pub(super) fn write_vocabulary(&self, metadata: &mut BTreeMap<String, String>) {
        metadata.remove(VOCABULARY);
        metadata.extend(self.vocabulary.clone().map(|hash| (VOCABULARY.to_owned(), hash)));
    }
}

fn hash(bytes: &[u8]) -> String {
    format!("{:032x}", fnv1a(bytes))
}

/// What the shapes of a block depend on, and what its layer computes with. Neither positions, nor how positions are
/// scaled, nor windows: people and converters change those for one and the same model.
///
/// Part of the exit block format, as is what follows.
fn geometry(Config { geometry, biases }: &Config) -> String {
    let Geometry { vocab_size, hidden_size, intermediate_size, layers, .. } = geometry;
    let Geometry { heads, kv_heads, head_dim, rms_norm_eps, rope, qk_norm, .. } = geometry;
    let theta = rope.theta as f32; // as much of it as every format keeps
    format!(
        "vocab {vocab_size}\nhidden {hidden_size}\nmlp {intermediate_size}\nlayers {layers}\n\
         heads {heads} {kv_heads} {head_dim}\neps {rms_norm_eps:e}\ntheta {theta:e}\nqk_norm {qk_norm}\n\
         biases {} {} {}\n",
        biases.qkv, biases.output, biases.mlp
    )
}

/// Every token with its id. Ids without one are padding, for which converters to GGUF make up `[PAD<id>]`.
fn vocabulary(tokenizer: &Tokenizer, size: usize) -> String {
    let tokens = (0..size as TokenId).filter_map(|id| Some((id, tokenizer.token(id)?)));
    let tokens = tokens.filter(|(id, token)| *token != format!("[PAD{id}]"));
    tokens.map(|(id, token)| format!("{id} {token}\n")).collect()
}

/// The norms' values, in bf16, which copies in other formats round to as well.
fn norms(weights: &ModelWeights<'_>) -> Vec<u8> {
    let of_layers = weights.layers.iter().flat_map(|layer| [&layer.input_norm, &layer.post_norm]);
    let numbers = of_layers.chain([&weights.norm]).flat_map(Vector::to_f32);
    numbers.flat_map(|number| bf16::from_f32(number).to_le_bytes()).collect()
}

/// The fingerprints of a model with all tensors in one format of plain numbers. GGUF has one name for two families.
fn in_plain_numbers(config: &Config) -> impl Iterator<Item = String> {
    let families: &[&str] = match config.geometry.family.as_str() {
        "llama" | "mistral" => &["llama", "mistral"],
        _ => &[config.geometry.family.as_str()],
    };
    let plan = weights::model_plan(config);
    let of = |family: &str, dtype: Dtype| {
        let geometry = Geometry { family: family.into(), ..config.geometry.clone() };
        let formats = plan.keys().map(|name| (name.clone(), dtype.into())).collect();
        fingerprint(&geometry, &plan, &formats)
    };
    let dtypes = [Dtype::F32, Dtype::F16, Dtype::BF16];
    let all: Vec<String> = families.iter().flat_map(|family| dtypes.map(|dtype| of(family, dtype))).collect();
    all.into_iter()
}
