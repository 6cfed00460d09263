//! How a model's matrices are stored.

use eesd::model::{Geometry, Matrix, ModelWeights};
use serde::Serialize;
use std::collections::BTreeMap;

/// The formats of a model's parts.
#[derive(Debug, Serialize)]
pub struct Formats {
    pub embedding: String,
    /// By the format's name.
    pub layers: BTreeMap<String, Share>,
    /// `None`: it is the embedding.
    pub head: Option<String>,
}

/// The matrices of one format.
#[derive(Debug, Default, PartialEq, Serialize)]
pub struct Share {
    pub matrices: usize,
    pub bytes: u64,
}

impl Formats {
    pub fn of(weights: &ModelWeights<'_>, geometry: &Geometry) -> Self {
        let mut layers = BTreeMap::<String, Share>::new();
        let of_layer = weights.layers.iter().flat_map(|l| [l.q, l.k, l.v, l.o, l.gate, l.up, l.down]);
        for Matrix { format, bytes, .. } in of_layer {
            let share = layers.entry(format.to_string()).or_default();
            share.matrices += 1;
            share.bytes += bytes.len() as u64;
        }
        Self {
            embedding: weights.embed.format.to_string(),
            layers,
            head: (!geometry.tied_head).then(|| weights.head.format.to_string()),
        }
    }

    /// The format of most of the layers' bytes.
    pub fn main(&self) -> &str {
        let most = self.layers.iter().max_by_key(|(_, share)| share.bytes);
        most.map_or(&self.embedding, |(format, _)| format)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use eesd::load::Checkpoint;

    #[test]
    fn matrices_are_counted_by_their_formats() {
        let checkpoint = Checkpoint::open("tests/fixtures/gguf/qwen2-mixed.gguf".as_ref()).unwrap();
        let formats = Formats::of(&checkpoint.weights(), checkpoint.geometry());
        let counts: Vec<(&str, usize)> = formats.layers.iter().map(|(name, share)| (&**name, share.matrices)).collect();
        assert_eq!(counts, [("bf16", 5), ("f32", 2), ("q4_k", 3), ("q6_k", 1), ("q8_0", 3)]);
        let bytes: u64 = formats.layers.values().map(|share| share.bytes).sum();
        let all = checkpoint.weights().layers.iter().map(eesd::model::cost::layer_bytes).sum::<u64>();
        // The rest are two norms and the biases of q, k and v in each of two layers, in f32.
        assert_eq!(all - bytes, 2 * (2 * 256 + 128 + 64 + 64) * 4);
        assert_eq!((formats.main(), &*formats.embedding, formats.head.as_deref()), ("bf16", "q8_0", None));
    }
}
