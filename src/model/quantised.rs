//! A model whose matrices are put into blocks when it is opened.

use super::{Encoder, Format, LayerWeights, Matrix, ModelWeights, NotEncodable, OwnedMatrix};
use std::num::NonZeroUsize;

/// How many bits a weight of a layer's matrix gets. Embedding and head, whose errors reach every token, get 8.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// 8 bits: Q8_0.
    Q8,
    /// 4 bits: Q4_0.
    Q4,
}

impl Scheme {
    /// What a layer's matrices become.
    pub fn of_layers(self) -> Encoder {
        match self {
            Self::Q8 => Encoder::Q8_0,
            Self::Q4 => Encoder::Q4_0,
        }
    }

    /// What embedding and head become.
    pub fn of_tokens(self) -> Encoder {
        Encoder::Q8_0
    }
}

impl std::fmt::Display for Scheme {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Q8 => "q8",
            Self::Q4 => "q4",
        })
    }
}

/// The matrices of a model in blocks, for as long as it is used. What is no plain numbers already, and what has rows of no
/// whole blocks, stays as it is.
pub struct Quantised {
    scheme: Scheme,
    embed: Option<OwnedMatrix>,
    /// `None`: the model's, or the embedding, where that is the head.
    head: Option<OwnedMatrix>,
    tied: bool,
    /// q, k, v, o, gate, up, down of each layer.
    layers: Vec<[Option<OwnedMatrix>; 7]>,
    kept: usize,
}

/// Why a model cannot be quantised.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum QuantiseError {
    /// There is nothing to do: it is quantised as it is.
    #[error("no matrix to quantise: they are in {found} (expected f32, f16 or bf16, in rows of whole blocks)")]
    Nothing {
        /// What the first layer's queries are stored in.
        found: Format,
    },
    /// A number is too large, or is none.
    #[error("{matrix}: {error}")]
    Number {
        /// Where it is.
        matrix: String,
        /// Which it is.
        #[source]
        error: NotEncodable,
    },
}

const NAMES: [&str; 7] = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];

fn matrices<'a>(layer: &LayerWeights<'a>) -> [Matrix<'a>; 7] {
    [layer.q, layer.k, layer.v, layer.o, layer.gate, layer.up, layer.down]
}

impl Quantised {
    /// Encodes the matrices, with so many threads.
    ///
    /// # Errors
    /// If there is none to encode, or a number that does not fit.
    pub fn of(weights: &ModelWeights<'_>, scheme: Scheme, threads: NonZeroUsize) -> Result<Self, QuantiseError> {
        let mut kept = 0;
        let mut encode = |matrix: &Matrix<'_>, by: Encoder, name: &dyn Fn() -> String| {
            if matrix.format.dtype().is_none() || !by.fits(matrix.cols) {
                kept += 1;
                return Ok(None);
            }
            let encoded = by.encode_matrix(matrix, threads);
            encoded.map(Some).map_err(|error| QuantiseError::Number { matrix: name(), error })
        };
        let tied = std::ptr::eq(weights.head.bytes, weights.embed.bytes);
        let embed = encode(&weights.embed, scheme.of_tokens(), &|| "embed_tokens".into())?;
        let head = match tied {
            true => None,
            false => encode(&weights.head, scheme.of_tokens(), &|| "lm_head".into())?,
        };
        let mut layers = Vec::with_capacity(weights.layers.len());
        for (index, layer) in weights.layers.iter().enumerate() {
            let mut encoded: [Option<OwnedMatrix>; 7] = Default::default();
            for ((place, matrix), name) in encoded.iter_mut().zip(matrices(layer)).zip(NAMES) {
                *place = encode(&matrix, scheme.of_layers(), &|| format!("layer {index}: {name}"))?;
            }
            layers.push(encoded);
        }
        if embed.is_none() && head.is_none() && layers.as_flattened().iter().all(Option::is_none) {
            let found = weights.layers.first().map_or(weights.embed.format, |layer| layer.q.format);
            return Err(QuantiseError::Nothing { found });
        }
        Ok(Self { scheme, embed, head, tied, layers, kept })
    }

    /// How they were encoded.
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// Matrices that are the model's own still.
    pub fn kept(&self) -> usize {
        self.kept
    }

    /// The model with these matrices in the place of its own.
    ///
    /// # Panics
    /// If it is another model than that whose matrices they are.
    pub fn weights<'a>(&'a self, original: &ModelWeights<'a>) -> ModelWeights<'a> {
        assert_eq!(original.layers.len(), self.layers.len(), "layers of the model");
        let or = |encoded: &'a Option<OwnedMatrix>, own: Matrix<'a>| encoded.as_ref().map_or(own, OwnedMatrix::view);
        let mut weights = original.clone();
        weights.embed = or(&self.embed, original.embed);
        weights.head = if self.tied { weights.embed } else { or(&self.head, original.head) };
        for (layer, [q, k, v, o, gate, up, down]) in weights.layers.iter_mut().zip(&self.layers) {
            (layer.q, layer.k, layer.v, layer.o) = (or(q, layer.q), or(k, layer.k), or(v, layer.v), or(o, layer.o));
            (layer.gate, layer.up, layer.down) = (or(gate, layer.gate), or(up, layer.up), or(down, layer.down));
        }
        weights
    }

    /// Bytes of the model's matrices less those of these.
    pub fn saved(&self, original: &ModelWeights<'_>) -> u64 {
        let own = |weights: &ModelWeights<'_>| {
            let head = if self.tied { 0 } else { weights.head.bytes.len() };
            let layers = weights.layers.iter().flat_map(matrices).map(|matrix| matrix.bytes.len()).sum::<usize>();
            (weights.embed.bytes.len() + head + layers) as u64
        };
        own(original).saturating_sub(own(&self.weights(original)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::Checkpoint;
    use crate::model::BlockType;

    #[test]
    fn matrices_become_blocks_and_vectors_stay() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/hf/");
        for (name, tied) in [("llama", false), ("qwen2", true)] {
            let checkpoint = Checkpoint::open(format!("{folder}{name}").as_ref()).unwrap();
            let original = checkpoint.weights();
            assert_eq!(checkpoint.geometry().tied_head, tied);
            for (scheme, of_layers) in [(Scheme::Q8, BlockType::Q8_0), (Scheme::Q4, BlockType::Q4_0)] {
                let quantised = Quantised::of(&original, scheme, NonZeroUsize::new(2).unwrap()).unwrap();
                let weights = quantised.weights(&original);
                weights.check(checkpoint.geometry()).unwrap();
                assert_eq!(quantised.kept(), 0);
                for matrix in [weights.embed, weights.head] {
                    assert_eq!(matrix.format, Format::Blocks(BlockType::Q8_0));
                }
                assert_eq!(std::ptr::eq(weights.embed.bytes, weights.head.bytes), tied);
                for (layer, own) in weights.layers.iter().zip(&original.layers) {
                    for (matrix, own) in matrices(layer).into_iter().zip(matrices(own)) {
                        assert_eq!(matrix.format, Format::Blocks(of_layers));
                        let expected = scheme.of_layers().encode_matrix(&own, NonZeroUsize::MIN).unwrap();
                        assert_eq!(matrix.bytes, expected.view().bytes, "each in its own place");
                    }
                    assert_eq!(layer.input_norm.bytes, own.input_norm.bytes);
                }
                let stored = |weights: &ModelWeights<'_>| {
                    let of_layers: usize = weights.layers.iter().flat_map(matrices).map(|m| m.bytes.len()).sum();
                    of_layers + weights.embed.bytes.len() + if tied { 0 } else { weights.head.bytes.len() }
                };
                assert_eq!(quantised.saved(&original), (stored(&original) - stored(&weights)) as u64);
                let again = Quantised::of(&weights, Scheme::Q4, NonZeroUsize::MIN).err().unwrap();
                assert!(again.to_string().starts_with("no matrix to quantise: they are in q"), "{again}");
            }
        }
    }
}
