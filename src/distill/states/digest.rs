//! Which model it is, by its weights.

use crate::load::fnv1a;
use crate::model::{LayerWeights, Matrix, ModelWeights, Vector};
use rayon::prelude::*;
use std::fmt::Write;

/// Bytes that a thread takes at a time.
const CHUNK: usize = 1 << 20;

/// 32 hexadecimal digits over the model's shape, by `fingerprint`, and every byte of its weights: a model that was trained
/// further has the same shape.
pub fn digest(fingerprint: &str, model: &ModelWeights<'_>) -> String {
    let ModelWeights { embed, layers, norm, head } = model;
    let mut text = fingerprint.to_owned();
    add_matrix(&mut text, embed);
    layers.iter().for_each(|layer| add_layer(&mut text, layer));
    add_bytes(&mut text, norm.bytes);
    add_matrix(&mut text, head);
    format!("{:032x}", fnv1a(text.as_bytes()))
}

fn add_layer(text: &mut String, layer: &LayerWeights<'_>) {
    let LayerWeights { input_norm, post_norm, q, k, v, o, gate, up, down, q_norm, k_norm, .. } = layer;
    let LayerWeights { q_bias, k_bias, v_bias, o_bias, gate_bias, up_bias, down_bias, .. } = layer;
    [q, k, v, o, gate, up, down].into_iter().for_each(|matrix| add_matrix(text, matrix));
    let optional = [q_norm, k_norm, q_bias, k_bias, v_bias, o_bias, gate_bias, up_bias, down_bias];
    let vectors = [input_norm, post_norm].into_iter().map(Some).chain(optional.map(Option::as_ref));
    let bytes = |vector: Option<&Vector<'_>>| add_bytes(text, vector.map_or(&[], |vector| vector.bytes));
    vectors.for_each(bytes);
}

fn add_matrix(text: &mut String, matrix: &Matrix<'_>) {
    // Writing to a `String` cannot fail.
    let _ = write!(text, "\n{} {:?}", matrix.format, matrix.order);
    add_bytes(text, bytemuck::cast_slice(matrix.columns.unwrap_or(&[])));
    add_bytes(text, matrix.bytes);
}

fn add_bytes(text: &mut String, bytes: &[u8]) {
    let sums: Vec<u32> = bytes.par_chunks(CHUNK).map(crc32fast::hash).collect();
    let _ = write!(text, " {}:{sums:x?}", bytes.len());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::Checkpoint;
    use crate::model::Format;

    #[test]
    fn a_weight_that_changes_is_another_model() {
        let checkpoint = Checkpoint::open("models/pycode-4m".as_ref()).unwrap();
        let model = checkpoint.weights();
        let of = |model: &ModelWeights<'_>| digest(checkpoint.fingerprint(), model);
        let expected = of(&model);
        assert_eq!(of(&checkpoint.weights()), expected);
        let mut bytes = model.layers[3].down.bytes.to_vec();
        bytes[12345] ^= 1;
        let mut changed = checkpoint.weights();
        changed.layers[3].down.bytes = &bytes;
        assert_ne!(of(&changed), expected, "a bit of a matrix");
        let mut bytes = model.norm.bytes.to_vec();
        bytes[7] ^= 1;
        let mut changed = checkpoint.weights();
        changed.norm.bytes = &bytes;
        assert_ne!(of(&changed), expected, "a bit of a vector");
        let mut changed = checkpoint.weights();
        changed.layers.swap(1, 2);
        assert_ne!(of(&changed), expected, "two layers in each other's place");
        let mut changed = checkpoint.weights();
        changed.head.format = Format::Float(crate::model::Dtype::F16);
        assert_ne!(of(&changed), expected, "the same bytes of another format");
    }
}
