//! The parameters of an exit block as one flat vector: what the optimiser and checkpoints see.

use crate::TokenId;
use crate::model::{
    DraftVocab, Dtype, Encoder, ExitWeights, Geometry, LayerWeights, Matrix, ModelWeights, NotEncodable, OwnedMatrix,
    Vector,
};
use half::{bf16, f16};
use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::ops::Range;

/// What becomes of the block's head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Head {
    /// A head of its own, trained.
    Trained,
    /// A head of its own that stays as it was.
    Frozen,
    /// The model's own, of which the block's file holds nothing.
    Shared,
}

/// What a block's numbers are rounded to for its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rounding {
    /// Plain numbers of one format.
    Plain(Dtype),
    /// Matrices to blocks of 8 bits (Q8_0), as far as their rows are whole blocks; the rest to f32.
    Q8,
}

impl From<Dtype> for Rounding {
    fn from(dtype: Dtype) -> Self {
        Self::Plain(dtype)
    }
}

/// One tensor's place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot {
    /// `[outputs, inputs]`; a vector is `[1, len]`.
    pub shape: [usize; 2],
    /// Elements of the flat vector.
    pub range: Range<usize>,
}

/// A projection's places.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Linear {
    /// `[outputs, inputs]`.
    pub weight: Slot,
    /// `[outputs]`.
    pub bias: Option<Slot>,
}

/// Where each tensor of the block lies. The head comes last, so that one that is not trained is left out by
/// leaving out the end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// `A`, of the hidden state that the layer reads.
    pub(super) input: Option<Slot>,
    /// `R`, of the state and the embedding that it reads instead in a chain.
    pub(super) recurrent: Option<Slot>,
    pub(super) input_norm: Slot,
    pub(super) q: Linear,
    pub(super) k: Linear,
    pub(super) v: Linear,
    pub(super) q_norm: Option<Slot>,
    pub(super) k_norm: Option<Slot>,
    pub(super) o: Linear,
    pub(super) post_norm: Slot,
    pub(super) gate: Linear,
    pub(super) up: Linear,
    pub(super) down: Linear,
    pub(super) norm: Slot,
    pub(super) head: Slot,
    /// The token of each row of the head, ascending; `None`: the first ones.
    pub(super) draft_ids: Option<Vec<TokenId>>,
    /// What becomes of the head.
    pub kind: Head,
    /// Layers of the model before the block.
    pub after: usize,
}

impl Layout {
    /// Places for a block like `exit`, and the values of its tensors. The rows of its head are those of `draft_ids`,
    /// ascending tokens, or without them all that it has; for a token that it has no row for, and where it has no head,
    /// they are the model's.
    ///
    /// # Errors
    /// If there is no token, one outside the vocabulary, or one that is not above the last, or a shared head is to be cut.
    pub fn new(
        exit: &ExitWeights<'_>,
        model: &ModelWeights<'_>,
        kind: Head,
        draft_ids: Option<&[TokenId]>,
    ) -> Result<(Self, Vec<f32>), String> {
        let mut values = Vec::new();
        let layer = &exit.layer;
        let own = if kind == Head::Shared { None } else { exit.head };
        let known = DraftVocab { size: own.unwrap_or(model.head).rows, ids: own.and(exit.draft_ids) };
        let ids: Vec<TokenId> = match draft_ids {
            Some(ids) if kind == Head::Shared => {
                return Err(format!(
                    "{} tokens to draft with the model's own head, which has {}",
                    ids.len(),
                    known.size
                ));
            }
            Some(ids) => ids.to_vec(),
            None => (0..known.size).map(|column| known.token(column)).collect(),
        };
        let wrong = |(found, expected)| format!("the tokens to draft have {found} (expected {expected})");
        DraftVocab { size: ids.len(), ids: Some(&ids) }.check(model.head.rows).map_err(wrong)?;
        let own_row = |id| Some((own?, known.column(id)?));
        let rows = ids.iter().map(|&id| own_row(id).unwrap_or((model.head, id as usize)));
        if ids.is_empty() {
            return Err("no token to draft (expected at least 1)".into());
        }
        let layout = Self {
            input: exit.input.map(|input| matrix(&mut values, input)),
            recurrent: exit.recurrent.map(|recurrent| matrix(&mut values, recurrent)),
            input_norm: vector(&mut values, layer.input_norm),
            q: linear(&mut values, layer.q, layer.q_bias),
            k: linear(&mut values, layer.k, layer.k_bias),
            v: linear(&mut values, layer.v, layer.v_bias),
            q_norm: layer.q_norm.map(|norm| vector(&mut values, norm)),
            k_norm: layer.k_norm.map(|norm| vector(&mut values, norm)),
            o: linear(&mut values, layer.o, layer.o_bias),
            post_norm: vector(&mut values, layer.post_norm),
            gate: linear(&mut values, layer.gate, layer.gate_bias),
            up: linear(&mut values, layer.up, layer.up_bias),
            down: linear(&mut values, layer.down, layer.down_bias),
            norm: vector(&mut values, exit.norm),
            head: some_rows(&mut values, model.head.cols, rows),
            // The first tokens need no list.
            draft_ids: ids.iter().zip(0..).any(|(&id, column)| id != column).then_some(ids),
            kind,
            after: exit.after,
        };
        Ok((layout, values))
    }

    /// All elements.
    #[expect(clippy::len_without_is_empty, reason = "no block is empty")]
    pub fn len(&self) -> usize {
        self.head.range.end
    }

    /// Elements that are trained: all, or all before the head.
    pub fn trained(&self) -> usize {
        if self.kind == Head::Trained { self.len() } else { self.head.range.start }
    }

    /// What the block drafts from.
    pub fn draft_vocab(&self) -> DraftVocab<'_> {
        DraftVocab { size: self.head.shape[0], ids: self.draft_ids.as_deref() }
    }

    /// Refuses a block that is not of a model's shapes.
    ///
    /// # Errors
    /// What of it is not.
    pub(super) fn check(&self, geometry: &Geometry) -> Result<(), String> {
        geometry.check()?;
        let (hidden, mlp) = (geometry.hidden_size, geometry.intermediate_size);
        let (q, kv) = (geometry.q_size(), geometry.kv_size());
        let linears = [
            ("q_proj", &self.q, [q, hidden]),
            ("k_proj", &self.k, [kv, hidden]),
            ("v_proj", &self.v, [kv, hidden]),
            ("o_proj", &self.o, [hidden, q]),
            ("gate_proj", &self.gate, [mlp, hidden]),
            ("up_proj", &self.up, [mlp, hidden]),
            ("down_proj", &self.down, [hidden, mlp]),
        ];
        let fits = |linear: &Linear, shape: [usize; 2]| {
            linear.weight.shape == shape && linear.bias.as_ref().is_none_or(|bias| bias.range.len() == shape[0])
        };
        if let Some((name, ..)) = linears.iter().find(|(_, linear, shape)| !fits(linear, *shape)) {
            return Err(format!("{name} is of another shape than the model's"));
        }
        let square = |slot: &Option<Slot>, columns| slot.as_ref().is_none_or(|slot| slot.shape == [hidden, columns]);
        if !square(&self.input, hidden) || !square(&self.recurrent, 2 * hidden) {
            return Err("its matrices of what it reads are of another shape than the model's".into());
        }
        let norms = [Some(&self.input_norm), Some(&self.post_norm), Some(&self.norm)].map(|norm| (norm, hidden));
        let heads = [self.q_norm.as_ref(), self.k_norm.as_ref()].map(|norm| (norm, geometry.head_dim));
        let wide = |(norm, width): &(Option<&Slot>, usize)| norm.is_none_or(|slot| slot.range.len() == *width);
        if !norms.iter().chain(&heads).all(wide) || self.q_norm.is_some() != self.k_norm.is_some() {
            return Err("its norms are not the model's".into());
        }
        let [rows, columns] = self.head.shape;
        if columns != hidden || rows > geometry.vocab_size || self.after >= geometry.layers {
            return Err(format!("a head [{rows}, {columns}] after layer {} is not the model's", self.after));
        }
        let wrong = |(found, expected)| format!("draft_ids has {found} (expected {expected})");
        self.draft_vocab().check(geometry.vocab_size).map_err(wrong)
    }

    /// The places of matrices among the trained elements: what weight decay applies to.
    pub fn decayed(&self) -> Vec<Range<usize>> {
        let head = (self.kind == Head::Trained).then_some(&self.head);
        self.matrices().chain(head).map(|slot| slot.range.clone()).collect()
    }

    /// All but the head.
    fn matrices(&self) -> impl Iterator<Item = &Slot> {
        let projections = [&self.q, &self.k, &self.v, &self.o, &self.gate, &self.up, &self.down];
        self.input.iter().chain(&self.recurrent).chain(projections.map(|linear| &linear.weight))
    }

    /// The place of the matrix that the hidden state goes through before the layer, where there is one.
    pub fn input(&self) -> Option<Range<usize>> {
        self.input.as_ref().map(|slot| slot.range.clone())
    }

    /// Whether it drafts from its own last state.
    pub fn is_recurrent(&self) -> bool {
        self.recurrent.is_some()
    }

    /// The block with these values, rounded.
    ///
    /// # Errors
    /// If a value is too large for blocks, or no number.
    ///
    /// # Panics
    /// If there are not [`len`](Self::len) values.
    pub fn export(&self, values: &[f32], rounding: impl Into<Rounding>) -> Result<ExportedBlock, NotEncodable> {
        assert_eq!(values.len(), self.len());
        let in_f32 = |values: &[f32]| values.iter().flat_map(|x| x.to_le_bytes()).collect();
        let (dtype, bytes) = match rounding.into() {
            Rounding::Plain(Dtype::F32) => (Dtype::F32, in_f32(values)),
            Rounding::Plain(Dtype::F16) => {
                (Dtype::F16, values.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect())
            }
            Rounding::Plain(Dtype::BF16) => {
                (Dtype::BF16, values.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect())
            }
            Rounding::Q8 => {
                let (blocks, rounded) = self.in_blocks(values)?;
                return Ok(ExportedBlock { layout: self.clone(), dtype: Dtype::F32, bytes: in_f32(&rounded), blocks });
            }
        };
        Ok(ExportedBlock { layout: self.clone(), dtype, bytes, blocks: BTreeMap::new() })
    }

    /// The block's own matrices in blocks, by where they begin, and all values with those of the blocks in their place.
    fn in_blocks(&self, values: &[f32]) -> Result<(BTreeMap<usize, OwnedMatrix>, Vec<f32>), NotEncodable> {
        let mut rounded = values.to_vec();
        let mut blocks = BTreeMap::new();
        let head = (self.kind != Head::Shared).then_some(&self.head);
        for Slot { shape: [rows, cols], range } in self.matrices().chain(head) {
            if !Encoder::Q8_0.fits(*cols) {
                continue;
            }
            let bytes: Vec<u8> = values[range.clone()].iter().flat_map(|x| x.to_le_bytes()).collect();
            let matrix = Matrix::new(Dtype::F32, *rows, *cols, &bytes);
            let encoded = Encoder::Q8_0.encode_matrix(&matrix, NonZeroUsize::MIN)?;
            for (row, out) in rounded[range.clone()].chunks_exact_mut(*cols).enumerate() {
                encoded.view().dequantise_row(row, out);
            }
            blocks.insert(range.start, encoded);
        }
        Ok((blocks, rounded))
    }
}

/// A block as it goes into a file or a backend.
pub struct ExportedBlock {
    layout: Layout,
    /// Of the plain numbers.
    dtype: Dtype,
    bytes: Vec<u8>,
    /// Matrices in blocks, by where they begin.
    blocks: BTreeMap<usize, OwnedMatrix>,
}

impl ExportedBlock {
    /// All values, as rounded.
    pub fn values(&self) -> Vec<f32> {
        Vector { dtype: self.dtype, len: self.layout.len(), bytes: &self.bytes }.to_f32()
    }

    /// Views of its tensors.
    pub fn weights(&self) -> ExitWeights<'_> {
        let layout = &self.layout;
        let bias = |linear: &Linear| linear.bias.as_ref().map(|slot| self.vector(slot));
        let head = self.matrix(&layout.head);
        ExitWeights {
            after: layout.after,
            input: layout.input.as_ref().map(|slot| self.matrix(slot)),
            recurrent: layout.recurrent.as_ref().map(|slot| self.matrix(slot)),
            layer: LayerWeights {
                input_norm: self.vector(&layout.input_norm),
                q: self.matrix(&layout.q.weight),
                k: self.matrix(&layout.k.weight),
                v: self.matrix(&layout.v.weight),
                o: self.matrix(&layout.o.weight),
                q_bias: bias(&layout.q),
                k_bias: bias(&layout.k),
                v_bias: bias(&layout.v),
                o_bias: bias(&layout.o),
                q_norm: layout.q_norm.as_ref().map(|slot| self.vector(slot)),
                k_norm: layout.k_norm.as_ref().map(|slot| self.vector(slot)),
                post_norm: self.vector(&layout.post_norm),
                gate: self.matrix(&layout.gate.weight),
                up: self.matrix(&layout.up.weight),
                down: self.matrix(&layout.down.weight),
                gate_bias: bias(&layout.gate),
                up_bias: bias(&layout.up),
                down_bias: bias(&layout.down),
            },
            norm: self.vector(&layout.norm),
            head: (layout.kind != Head::Shared).then_some(head),
            draft_ids: layout.draft_ids.as_deref(),
        }
    }

    fn bytes(&self, slot: &Slot) -> &[u8] {
        let size = self.dtype.size();
        &self.bytes[slot.range.start * size..slot.range.end * size]
    }

    fn vector(&self, slot: &Slot) -> Vector<'_> {
        Vector { dtype: self.dtype, len: slot.range.len(), bytes: self.bytes(slot) }
    }

    fn matrix(&self, slot: &Slot) -> Matrix<'_> {
        let [rows, cols] = slot.shape;
        let plain = || Matrix::new(self.dtype, rows, cols, self.bytes(slot));
        self.blocks.get(&slot.range.start).map_or_else(plain, OwnedMatrix::view)
    }
}

fn linear(values: &mut Vec<f32>, weight: Matrix<'_>, bias: Option<Vector<'_>>) -> Linear {
    Linear { weight: matrix(values, weight), bias: bias.map(|bias| vector(values, bias)) }
}

fn vector(values: &mut Vec<f32>, vector: Vector<'_>) -> Slot {
    let start = values.len();
    values.extend(vector.to_f32());
    Slot { shape: [1, vector.len], range: start..values.len() }
}

fn matrix(values: &mut Vec<f32>, matrix: Matrix<'_>) -> Slot {
    some_rows(values, matrix.cols, (0..matrix.rows).map(|row| (matrix, row)))
}

/// Rows of so many columns, each of its matrix.
fn some_rows<'a>(
    values: &mut Vec<f32>,
    columns: usize,
    rows: impl ExactSizeIterator<Item = (Matrix<'a>, usize)>,
) -> Slot {
    let (start, shape) = (values.len(), [rows.len(), columns]);
    values.resize(start + shape[0] * shape[1], 0.0);
    for ((matrix, row), out) in rows.zip(values[start..].chunks_exact_mut(columns)) {
        matrix.dequantise_row(row, out);
    }
    Slot { shape, range: start..values.len() }
}

#[cfg(test)]
mod tests;
