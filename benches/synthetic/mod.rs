//! A model of real geometry with random weights: made in a second, nothing to ship.
//!
//! All norms are one, and every projection keeps the variance of its input, so the residual stream
//! and the logits have the sizes of a trained model's. What such a model writes means nothing.

use eesd::model::{Dtype, Geometry, LayerWeights, Matrix, ModelWeights, Rope, RopeScaling, Vector};

/// Standard deviation of the logits: the likeliest of 32,000 tokens then has a probability anywhere
/// between 0.1 and 0.9.
const LOGITS: f32 = 6.0;

/// A model of some 330 million parameters with random weights.
pub struct RandomModel {
    /// Its shape.
    pub geometry: Geometry,
    dtype: Dtype,
    /// All tensors one after the other, in the order of [`weights`](Self::weights).
    bytes: Vec<u8>,
}

impl RandomModel {
    /// A model whose layer `i` writes `outputs(i)` times as much to the residual stream as it would:
    /// its output and down projections are scaled.
    pub fn new(dtype: Dtype, outputs: impl Fn(usize) -> f32) -> Self {
        let geometry = Geometry {
            family: "llama".to_owned(),
            vocab_size: 32_000,
            hidden_size: 1024,
            intermediate_size: 2816,
            layers: 24,
            heads: 16,
            kv_heads: 4,
            head_dim: 64,
            rms_norm_eps: 1e-5,
            rope: Rope { theta: 10_000.0, scaling: RopeScaling::Default },
            windows: vec![None; 24],
            max_positions: 2048,
            qk_norm: false,
            tied_head: false,
        };
        let Geometry { hidden_size: hidden, intermediate_size: mlp, vocab_size: vocab, .. } = geometry;
        let (q, kv) = (geometry.q_size(), geometry.kv_size());
        let mut filler = Filler { dtype, state: 1, bytes: Vec::new() };
        let [from_hidden, from_q, from_mlp] = [hidden, q, mlp].map(|inputs| (inputs as f32).powf(-0.5));
        for layer in 0..geometry.layers {
            filler.ones(hidden);
            filler.random((q + 2 * kv) * hidden, from_hidden);
            filler.random(hidden * q, outputs(layer) * from_q);
            filler.ones(hidden);
            filler.random(2 * mlp * hidden, from_hidden);
            filler.random(hidden * mlp, outputs(layer) * from_mlp);
        }
        filler.ones(hidden);
        filler.random(vocab * hidden, 1.0);
        filler.random(vocab * hidden, LOGITS * from_hidden);
        Self { geometry, dtype, bytes: filler.bytes }
    }

    /// Views of its tensors.
    pub fn weights(&self) -> ModelWeights<'_> {
        let mut rest = self.bytes.as_slice();
        let mut take = |rows: usize, cols: usize| {
            let (bytes, after) = rest.split_at(rows * cols * self.dtype.size());
            rest = after;
            Matrix::new(self.dtype, rows, cols, bytes)
        };
        let Geometry { hidden_size: hidden, intermediate_size: mlp, vocab_size: vocab, .. } = self.geometry;
        let (q, kv) = (self.geometry.q_size(), self.geometry.kv_size());
        let mut layer = || LayerWeights {
            input_norm: vector(take(1, hidden)),
            q: take(q, hidden),
            k: take(kv, hidden),
            v: take(kv, hidden),
            o: take(hidden, q),
            q_bias: None,
            k_bias: None,
            v_bias: None,
            o_bias: None,
            q_norm: None,
            k_norm: None,
            post_norm: vector(take(1, hidden)),
            gate: take(mlp, hidden),
            up: take(mlp, hidden),
            down: take(hidden, mlp),
            gate_bias: None,
            up_bias: None,
            down_bias: None,
        };
        let layers = (0..self.geometry.layers).map(|_| layer()).collect();
        let norm = vector(take(1, hidden));
        ModelWeights { embed: take(vocab, hidden), layers, norm, head: take(vocab, hidden) }
    }
}

/// A one-row matrix as a vector.
fn vector(matrix: Matrix<'_>) -> Vector<'_> {
    Vector {
        dtype: matrix.format.dtype().expect("random weights are plain numbers"),
        len: matrix.cols,
        bytes: matrix.bytes,
    }
}

/// Writes tensors one after the other.
struct Filler {
    dtype: Dtype,
    /// Of a linear congruential generator (Knuth's MMIX), whose upper bits are random enough here.
    state: u64,
    bytes: Vec<u8>,
}

impl Filler {
    fn ones(&mut self, count: usize) {
        (0..count).for_each(|_| self.push(1.0));
    }

    /// Uniform numbers around zero with this standard deviation.
    fn random(&mut self, count: usize, deviation: f32) {
        self.bytes.reserve(count * self.dtype.size());
        let width = deviation * 12f32.sqrt();
        for _ in 0..count {
            self.state = self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let uniform = (self.state >> 40) as f32 / (1u64 << 24) as f32 - 0.5;
            self.push(width * uniform);
        }
    }

    fn push(&mut self, weight: f32) {
        match self.dtype {
            Dtype::F32 => self.bytes.extend_from_slice(&weight.to_le_bytes()),
            Dtype::F16 => self.bytes.extend_from_slice(&half::f16::from_f32(weight).to_le_bytes()),
            Dtype::BF16 => self.bytes.extend_from_slice(&half::bf16::from_f32(weight).to_le_bytes()),
        }
    }
}
