//! Borrowed, already checked views of a model's tensors, little-endian, as stored in the file.

use super::{DraftVocab, Dtype, Format, Geometry};
use crate::TokenId;

/// A row-major `[rows, cols]` tensor; `bytes` need not be aligned.
#[derive(Debug, Clone, Copy)]
pub struct Matrix<'a> {
    /// How its rows are stored.
    pub format: Format,
    /// Output features of a projection; tokens of an embedding.
    pub rows: usize,
    /// Input features.
    pub cols: usize,
    /// The stored rows, one after the other: `rows · format.row_bytes(cols)` bytes.
    pub bytes: &'a [u8],
    /// Which stored row is which row of the matrix.
    pub order: RowOrder,
    /// The column that each stored one is, where groups of a [`Format::Groups`] are no neighbours; `None`: they are stored
    /// in order.
    pub columns: Option<&'a [u32]>,
}

/// Which stored row is which row of a matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowOrder {
    /// Stored in order.
    AsStored,
    /// In each head of `head_dim` rows, the two halves' rows in turn, as llama.cpp stores what RoPE turns in pairs of
    /// neighbours: row `i` of a head's first half is stored at `2 i`, row `i` of its second at `2 i + 1`.
    PairedHalves {
        /// Rows of a head, an even number.
        head_dim: usize,
    },
}

impl RowOrder {
    /// Where row `row` is stored.
    pub fn stored(self, row: usize) -> usize {
        match self {
            Self::AsStored => row,
            Self::PairedHalves { head_dim } => {
                let (head, at, half) = (row / head_dim, row % head_dim, head_dim / 2);
                head * head_dim + 2 * (at % half) + at / half
            }
        }
    }
}

impl<'a> Matrix<'a> {
    /// A matrix whose rows and columns are stored in order.
    pub fn new(format: impl Into<Format>, rows: usize, cols: usize, bytes: &'a [u8]) -> Self {
        Self { format: format.into(), rows, cols, bytes, order: RowOrder::AsStored, columns: None }
    }

    /// Bytes of a stored row.
    ///
    /// # Panics
    /// If no row of this format has so many columns.
    pub fn row_bytes(&self) -> usize {
        self.format.row_bytes(self.cols).expect("a checked matrix has whole rows")
    }

    /// A row as it is stored.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn row(&self, row: usize) -> &'a [u8] {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        let bytes = self.row_bytes();
        &self.bytes[self.order.stored(row) * bytes..][..bytes]
    }

    /// Widens a row, its columns in order: see [`Format::dequantise`].
    ///
    /// # Panics
    /// If there is no such row, or `out` is not as long as one.
    pub fn dequantise_row(&self, row: usize, out: &mut [f32]) {
        self.format.dequantise(self.row(row), out);
        if let Some(columns) = self.columns {
            let stored = out.to_vec();
            columns.iter().zip(stored).for_each(|(&column, number)| out[column as usize] = number);
        }
    }

    /// Refuses another shape than `[rows, cols]`, and another number of bytes than the shape's.
    fn check(&self, name: &str, rows: usize, cols: usize) -> Result<(), String> {
        if (self.rows, self.cols) != (rows, cols) {
            return Err(format!("{name} is [{}, {}] (expected [{rows}, {cols}])", self.rows, self.cols));
        }
        if let RowOrder::PairedHalves { head_dim } = self.order
            && (head_dim == 0 || !head_dim.is_multiple_of(2) || !rows.is_multiple_of(head_dim))
        {
            return Err(format!(
                "{name} has {rows} rows in heads of {head_dim} (expected whole heads of an even size)"
            ));
        }
        if let Some(columns) = self.columns {
            self.check_columns(columns).map_err(|found| format!("{name} has {found}"))?;
        }
        let Some(row) = self.format.row_bytes(cols) else {
            return Err(format!("{name} has rows of {cols} elements in {} (expected whole blocks)", self.format));
        };
        check_bytes(name, self.bytes, rows.checked_mul(row), self.format)
    }

    /// Refuses an order of columns that is none, or that other formats than groups have.
    fn check_columns(&self, columns: &[u32]) -> Result<(), String> {
        if !matches!(self.format, Format::Groups(_)) {
            return Err(format!("columns in an order of their own in {} (expected integers in groups)", self.format));
        }
        let mut seen = vec![false; self.cols];
        let once = |&column: &u32| seen.get_mut(column as usize).is_some_and(|seen| !std::mem::replace(seen, true));
        if columns.len() == self.cols && columns.iter().all(once) {
            return Ok(());
        }
        Err(format!("an order of columns that is none (expected each of {} once)", self.cols))
    }
}

/// Refuses another number of bytes than `expected`; `None` is more than there can be.
fn check_bytes(name: &str, bytes: &[u8], expected: Option<usize>, format: Format) -> Result<(), String> {
    if expected == Some(bytes.len()) {
        return Ok(());
    }
    let expected = expected.map_or_else(|| "more than there can be".into(), |expected| expected.to_string());
    Err(format!("{name} has {} bytes of {format} (expected {expected})", bytes.len()))
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
        check_bytes(name, self.bytes, len.checked_mul(self.dtype.size()), self.dtype.into())
    }

    /// The elements, widened (exactly) to `f32`.
    pub fn to_f32(&self) -> Vec<f32> {
        let mut numbers = vec![0.0; self.len];
        self.dtype.widen(self.bytes, &mut numbers);
        numbers
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
/// after the first `after` layers, `h_N` (EESD, Findings of ACL 2024, section 3).
///
/// Ours, beyond the paper: the layer may read `h_N` through a matrix of its own, and a *recurrent* block makes all drafts
/// of a round but the first without the model's layers, from its own residual stream and the embedding of the last draft.
#[derive(Debug, Clone, Copy)]
pub struct ExitWeights<'a> {
    /// `N`: how many model layers come before the exit; `0 < after < L`.
    pub after: usize,
    /// What the layer reads where `h_N` is known: `input · h_N`, `[hidden, hidden]`; `None`: `h_N` itself.
    pub input: Option<Matrix<'a>>,
    /// What it reads where a draft was made from the draft before: `recurrent · [s ; e]`, `[hidden, 2 · hidden]`, where `s`
    /// is its own residual stream at the draft before, ahead of `norm`, and `e` that draft's embedding, RMS-normalised
    /// without a weight; `None`: it cannot, and every draft goes through the model's first layers.
    pub recurrent: Option<Matrix<'a>>,
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
        let layer = weights.layers[copied];
        Self { after, input: None, recurrent: None, layer, norm: weights.norm, head: None, draft_ids: None }
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
        let hidden = geometry.hidden_size;
        self.input.map_or(Ok(()), |input| input.check("input", hidden, hidden))?;
        self.recurrent.map_or(Ok(()), |recurrent| recurrent.check("recurrent", hidden, 2 * hidden))?;
        self.layer.check(geometry)?;
        self.norm.check("norm", hidden)?;
        if let Some(head) = self.head {
            head.check("lm_head", head.rows.clamp(1, geometry.vocab_size), hidden)?;
        }
        if self.head.is_none() && self.draft_ids.is_some() {
            return Err("draft_ids without a head (expected the lm_head whose rows they name)".into());
        }
        let draft_vocab = self.draft_vocab(geometry.vocab_size);
        let wrong = |(found, expected)| format!("draft_ids has {found} (expected {expected})");
        draft_vocab.check(geometry.vocab_size).map_err(wrong)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Groups;

    #[test]
    fn an_order_of_columns_names_each_once_and_is_that_of_groups() {
        let format = Format::Groups(Groups { bits: 8, size: 2, minima: false });
        let bytes = [1.0f32, 0.5].iter().flat_map(|x| x.to_le_bytes()).chain([1, 2, 3, 4]).collect::<Vec<u8>>();
        let matrix = Matrix { columns: Some(&[2, 0, 3, 1]), ..Matrix::new(format, 1, 4, &bytes) };
        assert_eq!(matrix.check("up", 1, 4), Ok(()));
        let mut row = [0.0; 4];
        matrix.dequantise_row(0, &mut row);
        assert_eq!(row, [2.0, 2.0, 1.0, 1.5]);

        let wrong: [&[u32]; 4] = [&[0, 1, 2, 2], &[0, 1, 2, 4], &[0, 1, 2], &[0, 1, 2, 3, 0]];
        for columns in wrong {
            let error = Matrix { columns: Some(columns), ..matrix }.check("up", 1, 4).unwrap_err();
            assert_eq!(error, "up has an order of columns that is none (expected each of 4 once)", "{columns:?}");
        }
        let plain = Matrix { format: Dtype::F16.into(), bytes: &[0; 8], ..matrix };
        let error = plain.check("up", 1, 4).unwrap_err();
        assert_eq!(error, "up has columns in an order of their own in f16 (expected integers in groups)");
    }
}
