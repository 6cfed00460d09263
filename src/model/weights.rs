//! Borrowed, already checked views of a model's tensors, little-endian, as stored in the file.

use super::{DraftVocab, Geometry};
use crate::TokenId;

/// Number format of a stored tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16.
    F16,
    /// The upper half of a binary32.
    BF16,
}

impl Dtype {
    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            Dtype::F32 => 4,
            Dtype::F16 | Dtype::BF16 => 2,
        }
    }
}

impl std::fmt::Display for Dtype {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Dtype::F32 => "f32",
            Dtype::F16 => "f16",
            Dtype::BF16 => "bf16",
        })
    }
}

/// A row-major `[rows, cols]` tensor; `bytes` need not be aligned.
#[derive(Debug, Clone, Copy)]
pub struct Matrix<'a> {
    /// Number format.
    pub dtype: Dtype,
    /// Output features of a projection; tokens of an embedding.
    pub rows: usize,
    /// Input features.
    pub cols: usize,
    /// `rows · cols · dtype.size()` bytes.
    pub bytes: &'a [u8],
}

impl Matrix<'_> {
    /// Refuses another shape than `[rows, cols]`, and another number of bytes than the shape's.
    fn check(&self, name: &str, rows: usize, cols: usize) -> Result<(), String> {
        if (self.rows, self.cols) != (rows, cols) {
            return Err(format!("{name} is [{}, {}] (expected [{rows}, {cols}])", self.rows, self.cols));
        }
        check_bytes(name, self.bytes, rows.checked_mul(cols), self.dtype)
    }
}

/// Refuses another number of bytes than that of so many elements; `None` is more than there can be.
fn check_bytes(name: &str, bytes: &[u8], elements: Option<usize>, dtype: Dtype) -> Result<(), String> {
    let expected = elements.and_then(|elements| elements.checked_mul(dtype.size()));
    if expected == Some(bytes.len()) {
        return Ok(());
    }
    let expected = expected.map_or_else(|| "more than there can be".into(), |expected| expected.to_string());
    Err(format!("{name} has {} bytes of {dtype} (expected {expected})", bytes.len()))
}

/// A `[len]` tensor: a norm's weight or a bias.
#[derive(Debug, Clone, Copy)]
pub struct Vector<'a> {
    /// Number format.
    pub dtype: Dtype,
    /// Elements.
    pub len: usize,
    /// `len · dtype.size()` bytes; need not be aligned.
    pub bytes: &'a [u8],
}

impl Vector<'_> {
    /// Refuses another length than `len`, and another number of bytes than that length's.
    fn check(&self, name: &str, len: usize) -> Result<(), String> {
        if self.len != len {
            return Err(format!("{name} is [{}] (expected [{len}])", self.len));
        }
        check_bytes(name, self.bytes, Some(len), self.dtype)
    }

    /// The elements, widened (exactly) to `f32`.
    pub fn to_f32(&self) -> Vec<f32> {
        match self.dtype {
            Dtype::F32 => self.bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
            Dtype::F16 => self.bytes.chunks_exact(2).map(|b| half::f16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
            Dtype::BF16 => {
                self.bytes.chunks_exact(2).map(|b| half::bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect()
            }
        }
    }
}

/// One decoder layer: attention and gated MLP, each behind an RMSNorm.
#[derive(Debug, Clone, Copy)]
pub struct LayerWeights<'a> {
    /// `input_layernorm.weight` `[hidden]`.
    pub input_norm: Vector<'a>,
    /// `self_attn.q_proj.weight` `[heads · head_dim, hidden]`.
    pub q: Matrix<'a>,
    /// `self_attn.k_proj.weight` `[kv_heads · head_dim, hidden]`.
    pub k: Matrix<'a>,
    /// `self_attn.v_proj.weight` `[kv_heads · head_dim, hidden]`.
    pub v: Matrix<'a>,
    /// `self_attn.o_proj.weight` `[hidden, heads · head_dim]`.
    pub o: Matrix<'a>,
    /// `self_attn.q_proj.bias`.
    pub q_bias: Option<Vector<'a>>,
    /// `self_attn.k_proj.bias`.
    pub k_bias: Option<Vector<'a>>,
    /// `self_attn.v_proj.bias`.
    pub v_bias: Option<Vector<'a>>,
    /// `self_attn.o_proj.bias`.
    pub o_bias: Option<Vector<'a>>,
    /// `self_attn.q_norm.weight` `[head_dim]`.
    pub q_norm: Option<Vector<'a>>,
    /// `self_attn.k_norm.weight` `[head_dim]`.
    pub k_norm: Option<Vector<'a>>,
    /// `post_attention_layernorm.weight` `[hidden]`.
    pub post_norm: Vector<'a>,
    /// `mlp.gate_proj.weight` `[intermediate, hidden]`.
    pub gate: Matrix<'a>,
    /// `mlp.up_proj.weight` `[intermediate, hidden]`.
    pub up: Matrix<'a>,
    /// `mlp.down_proj.weight` `[hidden, intermediate]`.
    pub down: Matrix<'a>,
    /// `mlp.gate_proj.bias`.
    pub gate_bias: Option<Vector<'a>>,
    /// `mlp.up_proj.bias`.
    pub up_bias: Option<Vector<'a>>,
    /// `mlp.down_proj.bias`.
    pub down_bias: Option<Vector<'a>>,
}

impl LayerWeights<'_> {
    /// Checks the layer's shapes against the model's.
    ///
    /// # Errors
    /// The first tensor that does not fit: what was found, what was expected.
    pub fn check(&self, geometry: &Geometry) -> Result<(), String> {
        let (hidden, mlp) = (geometry.hidden_size, geometry.intermediate_size);
        let matrices = [
            ("q_proj", self.q, geometry.q_size(), hidden),
            ("k_proj", self.k, geometry.kv_size(), hidden),
            ("v_proj", self.v, geometry.kv_size(), hidden),
            ("o_proj", self.o, hidden, geometry.q_size()),
            ("gate_proj", self.gate, mlp, hidden),
            ("up_proj", self.up, mlp, hidden),
            ("down_proj", self.down, hidden, mlp),
        ];
        matrices.iter().try_for_each(|(name, matrix, rows, cols)| matrix.check(name, *rows, *cols))?;
        let vectors = [
            ("input_layernorm", Some(self.input_norm), hidden),
            ("post_attention_layernorm", Some(self.post_norm), hidden),
            ("q_norm", self.q_norm, geometry.head_dim),
            ("k_norm", self.k_norm, geometry.head_dim),
            ("q_proj.bias", self.q_bias, geometry.q_size()),
            ("k_proj.bias", self.k_bias, geometry.kv_size()),
            ("v_proj.bias", self.v_bias, geometry.kv_size()),
            ("o_proj.bias", self.o_bias, hidden),
            ("gate_proj.bias", self.gate_bias, mlp),
            ("up_proj.bias", self.up_bias, mlp),
            ("down_proj.bias", self.down_bias, hidden),
        ];
        let given = vectors.iter().filter_map(|(name, vector, len)| Some((name, vector.as_ref()?, len)));
        given.into_iter().try_for_each(|(name, vector, len)| vector.check(name, *len))
    }
}

impl ModelWeights<'_> {
    /// Checks that the geometry is one that can be computed with, and all shapes against it.
    ///
    /// # Errors
    /// The first thing that does not fit: what it is, what was found, what was expected.
    pub fn check(&self, geometry: &Geometry) -> Result<(), String> {
        geometry.check()?;
        if self.layers.len() != geometry.layers {
            return Err(format!("weights of {} layers (expected {})", self.layers.len(), geometry.layers));
        }
        let (vocab, hidden) = (geometry.vocab_size, geometry.hidden_size);
        self.embed.check("embed_tokens", vocab, hidden)?;
        for (index, layer) in self.layers.iter().enumerate() {
            layer.check(geometry).map_err(|error| format!("layer {index}: {error}"))?;
        }
        self.norm.check("norm", hidden)?;
        self.head.check("lm_head", vocab, hidden)
    }
}

/// The frozen model: embedding, `L` layers, final norm, LM head.
#[derive(Debug, Clone)]
pub struct ModelWeights<'a> {
    /// `model.embed_tokens.weight` `[vocab, hidden]`.
    pub embed: Matrix<'a>,
    /// The decoder layers in order.
    pub layers: Vec<LayerWeights<'a>>,
    /// `model.norm.weight` `[hidden]`.
    pub norm: Vector<'a>,
    /// `lm_head.weight` `[vocab, hidden]`; the embedding where the head is tied.
    pub head: Matrix<'a>,
}

/// The exit block: one layer of the model's geometry, a norm and a head, fed by the residual stream
/// after the first `after` layers (EESD, Findings of ACL 2024, section 3).
#[derive(Debug, Clone, Copy)]
pub struct ExitWeights<'a> {
    /// `N`: how many model layers come before the exit; `0 < after < L`.
    pub after: usize,
    /// The trained layer; its attention has the sliding window of model layer `after` (counted from 0).
    pub layer: LayerWeights<'a>,
    /// The norm before the head.
    pub norm: Vector<'a>,
    /// The head `[draft vocabulary, hidden]`; `None`: the model's own head is shared. With fewer rows
    /// than the vocabulary it drafts only a part of it: drafts cost less, and what is emitted is the
    /// model's all the same.
    pub head: Option<Matrix<'a>>,
    /// The token of each row of `head`, ascending; `None`: the first ones of the vocabulary.
    pub draft_ids: Option<&'a [TokenId]>,
}

impl<'a> ExitWeights<'a> {
    /// An untrained exit block after layer `after`: a copy of model layer `copied`, the model's own
    /// norm and its head. Where distillation starts, and a lossless (if seldom accepted) drafter as it is.
    ///
    /// # Panics
    /// If `after` is not in `1..L` or `copied` not in `0..L`.
    pub fn from_model(weights: &ModelWeights<'a>, after: usize, copied: usize) -> Self {
        assert!(after > 0 && after < weights.layers.len(), "exit layer {after} of {}", weights.layers.len());
        Self { after, layer: weights.layers[copied], norm: weights.norm, head: None, draft_ids: None }
    }

    /// What it drafts from, of a vocabulary of `vocab` tokens.
    pub fn draft_vocab(&self, vocab: usize) -> DraftVocab<'a> {
        DraftVocab { size: self.head.map_or(vocab, |head| head.rows), ids: self.draft_ids }
    }

    /// Refuses an exit after `after` layers that is not inside the model.
    pub(crate) fn check_place(after: usize, geometry: &Geometry) -> Result<(), String> {
        if after == 0 || after >= geometry.layers {
            return Err(format!("exit layer {after} (expected 1 to {})", geometry.layers.saturating_sub(1)));
        }
        Ok(())
    }

    /// Checks the block's shapes against the model's, and its list of tokens.
    ///
    /// # Errors
    /// The first thing that does not fit: what it is, what was found, what was expected.
    pub fn check(&self, geometry: &Geometry) -> Result<(), String> {
        Self::check_place(self.after, geometry)?;
        self.layer.check(geometry)?;
        self.norm.check("norm", geometry.hidden_size)?;
        if let Some(head) = self.head {
            head.check("lm_head", head.rows.clamp(1, geometry.vocab_size), geometry.hidden_size)?;
        }
        if self.head.is_none() && self.draft_ids.is_some() {
            return Err("draft_ids without a head (expected the lm_head whose rows they name)".into());
        }
        let draft_vocab = self.draft_vocab(geometry.vocab_size);
        let wrong = |(found, expected)| format!("draft_ids has {found} (expected {expected})");
        draft_vocab.check(geometry.vocab_size).map_err(wrong)
    }
}
