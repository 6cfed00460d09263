//! The shape of a decoder-only Transformer, with every default of its family already decided.

/// Shape and constants of a Llama-like decoder (Llama, Mistral, Qwen2, Qwen3).
///
/// Everything a pass needs to know apart from the weights; optional parts (biases, QK norms) show
/// by their presence in [`LayerWeights`](super::LayerWeights).
#[derive(Debug, Clone, PartialEq)]
pub struct Geometry {
    /// `model_type` of the configuration: `llama`, `mistral`, `qwen2`, `qwen3`.
    pub family: String,
    /// Rows of the embedding and of the LM head.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the gated MLP.
    pub intermediate_size: usize,
    /// Decoder layers, `L`.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key/value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of one head; even. Not always `hidden_size / heads`.
    pub head_dim: usize,
    /// Epsilon of every RMSNorm.
    pub rms_norm_eps: f32,
    /// Rotary position embedding.
    pub rope: Rope,
    /// Sliding window of each layer: position `p` attends to `p - window + 1 ..= p`.
    pub windows: Vec<Option<usize>>,
    /// Longest sequence the model was trained for.
    pub max_positions: usize,
    /// Queries and keys of each head pass an RMSNorm of their own before the rotation (Qwen3).
    pub qk_norm: bool,
    /// The LM head is the embedding.
    pub tied_head: bool,
}

impl Geometry {
    /// Width of all query heads together.
    pub fn q_size(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Width of all key heads (or all value heads) together.
    pub fn kv_size(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Refuses what no pass can compute with: sizes of nothing, heads that do not share evenly, layers without a window.
    ///
    /// # Errors
    /// The first thing that does not fit: what it is, what was found, what was expected.
    pub fn check(&self) -> Result<(), String> {
        let sizes = [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("layers", self.layers),
            ("heads", self.heads),
            ("kv_heads", self.kv_heads),
            ("head_dim", self.head_dim),
        ];
        if let Some((name, _)) = sizes.iter().find(|(_, size)| *size == 0) {
            return Err(format!("{name} is 0 (expected at least 1)"));
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            return Err(format!("{} heads on {} kv_heads (expected a multiple)", self.heads, self.kv_heads));
        }
        if !self.head_dim.is_multiple_of(2) || self.heads.checked_mul(self.head_dim).is_none() {
            return Err(format!("head_dim is {} (expected an even one, for {} heads)", self.head_dim, self.heads));
        }
        if let RopeScaling::Divisors(divisors) = &self.rope.scaling
            && (divisors.len() != self.head_dim / 2 || !divisors.iter().all(|&d| d > 0.0 && d.is_finite()))
        {
            return Err(format!("{} divisors of RoPE (expected {} above 0)", divisors.len(), self.head_dim / 2));
        }
        if self.windows.len() != self.layers {
            return Err(format!("windows of {} layers (expected {})", self.windows.len(), self.layers));
        }
        if self.windows.contains(&Some(0)) {
            return Err("a window of 0 positions (expected at least 1)".into());
        }
        Ok(())
    }

    /// Query heads that share one key/value head.
    pub fn group(&self) -> usize {
        self.heads / self.kv_heads
    }
}

/// Rotary position embedding: base frequency and how it is stretched to longer contexts.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// Base θ: pair `i` turns by `position · θ^(-2i/head_dim)`.
    pub theta: f64,
    /// How the frequencies are changed for contexts longer than the model was first trained for.
    pub scaling: RopeScaling,
}

/// The rotary scalings of Hugging Face's `modeling_rope_utils`, with their parameters resolved, and GGUF's own.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// Frequencies as they are.
    Default,
    /// All frequencies divided by `factor`.
    Linear {
        /// Context stretch.
        factor: f64,
    },
    /// NTK by parts of the length: past `original_max_positions` the base grows with the position.
    ///
    /// Position `p` is rotated as a sequence of length `p + 1` would be, so that a position's key
    /// never depends on how the prompt was cut into chunks.
    Dynamic {
        /// Context stretch.
        factor: f64,
        /// Length from which the base grows.
        original_max_positions: usize,
    },
    /// Llama 3.1: long wavelengths divided by `factor`, short ones kept, a ramp between.
    Llama3 {
        /// Context stretch.
        factor: f64,
        /// Wavelengths above `original_max_positions / low_freq_factor` are fully stretched.
        low_freq_factor: f64,
        /// Wavelengths below `original_max_positions / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// Context of the first training.
        original_max_positions: usize,
    },
    /// YaRN: a ramp between interpolation and extrapolation, and a temperature on the rotation.
    Yarn {
        /// Context stretch.
        factor: f64,
        /// Rotations over the original context above which a pair is kept.
        beta_fast: f64,
        /// Rotations over the original context below which a pair is fully stretched.
        beta_slow: f64,
        /// Factor on cos and sin, resolved from `attention_factor`, `mscale` and `mscale_all_dim`.
        attention_factor: f64,
        /// Round the bounds of the ramp to whole pairs.
        truncate: bool,
        /// Context of the first training.
        original_max_positions: usize,
    },
    /// Each pair's frequency divided by a number of its own, `[head_dim / 2]`, as GGUF files list them (`rope_freqs`).
    Divisors(Vec<f64>),
}
