//! A model of real geometry with random weights: made in seconds, nothing to ship.
//!
//! All norms are one, and every projection keeps the variance of its input, so the residual stream
//! and the logits have the sizes of a trained model's. What such a model writes means nothing.

use super::numbers::{Numbers, is_by_rows};
use eesd::model::{Dtype, Format, Geometry, LayerWeights, ModelWeights, Vector};

/// Standard deviation of the logits: the likeliest of 32,000 tokens then has a probability anywhere
/// between 0.1 and 0.9.
const LOGITS: f32 = 6.0;

/// How far the windows of a layer's matrices are from those of the layer before: an odd number of the longest blocks, so
/// that no row of one is a row of the other where rows are a power of two long. Numbers that are stored by rows are a row on.
const STEP: usize = 3 * 256;

fn step(format: Format, cols: usize) -> usize {
    if is_by_rows(format) { cols } else { STEP }
}

/// A model with random weights.
///
/// It takes little more memory than one of its layers, embedding and head: the layers' matrices are windows of the same
/// random numbers, each layer's at other places. What computes with it keeps its own copy of each.
pub struct RandomModel {
    /// Its shape.
    pub geometry: Geometry,
    format: Format,
    /// Of queries, keys, values, gates and ups, which read the residual stream.
    reading: Numbers,
    /// Of output and down projections, for each scale that a layer has.
    writing: Vec<Writing>,
    /// Which of these is each layer's.
    of_layer: Vec<usize>,
    embed: Numbers,
    head: Numbers,
    ones: Vec<u8>,
}

/// What writes to the residual stream.
struct Writing {
    scale: f32,
    o: Numbers,
    down: Numbers,
}

impl RandomModel {
    /// A model whose layer `i` writes `outputs(i)` times as much to the residual stream as it would:
    /// its output and down projections are scaled.
    ///
    /// # Panics
    /// If numbers cannot be put into the format, or the geometry's rows are no whole blocks of it.
    pub fn new(geometry: Geometry, format: Format, outputs: impl Fn(usize) -> f32) -> Self {
        let Geometry { hidden_size: hidden, intermediate_size: mlp, vocab_size: vocab, layers, .. } = geometry;
        let (q, kv) = (geometry.q_size(), geometry.kv_size());
        let [from_hidden, from_q, from_mlp] = [hidden, q, mlp].map(|inputs| (inputs as f32).powf(-0.5));
        // Of one layer's rows, with room for the windows of all layers.
        let random = |rows: usize, cols, deviation, seed| {
            Numbers::random(format, rows * cols + layers * step(format, cols), cols, deviation, seed)
        };
        let mut writing: Vec<Writing> = Vec::new();
        let of_layer = (0..layers).map(|layer| {
            let scale = outputs(layer);
            writing.iter().position(|known| known.scale == scale).unwrap_or_else(|| {
                let o = random(hidden, q, scale * from_q, 2);
                let down = random(hidden, mlp, scale * from_mlp, 3);
                writing.push(Writing { scale, o, down });
                writing.len() - 1
            })
        });
        let of_layer = of_layer.collect();
        Self {
            reading: random(q + 2 * kv + 2 * mlp, hidden, from_hidden, 1),
            writing,
            of_layer,
            embed: Numbers::random(format, vocab * hidden, hidden, 1.0, 4),
            head: Numbers::random(format, vocab * hidden, hidden, LOGITS * from_hidden, 5),
            ones: 1f32.to_le_bytes().repeat(hidden),
            geometry,
            format,
        }
    }

    /// Views of its tensors.
    pub fn weights(&self) -> ModelWeights<'_> {
        let Geometry { hidden_size: hidden, vocab_size: vocab, layers, .. } = self.geometry;
        let norm = self.norm();
        let layers = (0..layers).map(|layer| self.layer(layer)).collect();
        ModelWeights {
            embed: self.embed.window(0, vocab, hidden),
            layers,
            norm,
            head: self.head.window(0, vocab, hidden),
        }
    }

    fn norm(&self) -> Vector<'_> {
        Vector { dtype: Dtype::F32, len: self.geometry.hidden_size, bytes: &self.ones }
    }

    fn layer(&self, layer: usize) -> LayerWeights<'_> {
        let Geometry { hidden_size: hidden, intermediate_size: mlp, .. } = self.geometry;
        let (q, kv) = (self.geometry.q_size(), self.geometry.kv_size());
        let first = |cols| layer * step(self.format, cols);
        let mut at = first(hidden);
        let mut reading = |rows: usize| {
            let window = self.reading.window(at, rows, hidden);
            at += rows * hidden;
            window
        };
        let Writing { o, down, .. } = &self.writing[self.of_layer[layer]];
        LayerWeights {
            input_norm: self.norm(),
            q: reading(q),
            k: reading(kv),
            v: reading(kv),
            o: o.window(first(q), hidden, q),
            q_bias: None,
            k_bias: None,
            v_bias: None,
            o_bias: None,
            q_norm: None,
            k_norm: None,
            post_norm: self.norm(),
            gate: reading(mlp),
            up: reading(mlp),
            down: down.window(first(mlp), hidden, mlp),
            gate_bias: None,
            up_bias: None,
            down_bias: None,
        }
    }
}
