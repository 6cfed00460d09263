//! A model's weights as the backend keeps them.

use super::super::BackendError;
use super::lanes::{LANES, padded};
use super::pack::{Packed, Packer, Panels};
use super::pool::Pool;
use crate::TokenId;
use crate::model::{ExitWeights, Format, Geometry, LayerWeights, ModelWeights, Vector};

/// Everything a pass reads.
pub struct Weights {
    /// The memory of all matrices below.
    pub packed: Packed,
    /// The embedding, whose rows are read one by one; the head where it is the same matrix.
    embedding: Panels,
    /// The model's layers; the exit block's is the last one, where there is one.
    pub layers: Vec<Layer>,
    /// Final norm and head.
    pub head: Head,
    /// The number formats of the model's matrices, the one with most bytes first.
    pub formats: String,
    /// The exit block.
    pub exit: Option<Exit>,
}

/// One decoder layer. Vectors over heads have each head padded to whole panels.
pub struct Layer {
    /// RMSNorm before attention.
    pub input_norm: Vec<f32>,
    /// Query heads, then key heads, then value heads.
    pub qkv: Panels,
    /// Bias of the same.
    pub qkv_bias: Option<Vec<f32>>,
    /// Per-head RMSNorm of queries.
    pub q_norm: Option<Vec<f32>>,
    /// Per-head RMSNorm of keys.
    pub k_norm: Option<Vec<f32>>,
    /// Output projection.
    pub o: Panels,
    /// Its bias.
    pub o_bias: Option<Vec<f32>>,
    /// RMSNorm before the MLP.
    pub post_norm: Vec<f32>,
    /// Panels of gate and up in turn.
    pub gate_up: Panels,
    /// Bias of the same.
    pub gate_up_bias: Option<Vec<f32>>,
    /// Down projection.
    pub down: Panels,
    /// Its bias.
    pub down_bias: Option<Vec<f32>>,
}

/// An RMSNorm and a language-model head.
pub struct Head {
    /// The norm's weight.
    pub norm: Vec<f32>,
    /// `[vocab]` outputs.
    pub matrix: Panels,
}

/// The exit block.
pub struct Exit {
    /// `N`.
    pub after: usize,
    /// What takes `h_N` to the layer's input; `None`: it is the input.
    pub input: Option<Panels>,
    /// What takes its state at a draft and that draft's embedding to the layer's next input.
    pub recurrent: Option<Recurrent>,
    /// Its norm, and its own head or the model's.
    pub head: Head,
    /// Logits of a draft.
    pub vocab: usize,
    /// Their tokens, ascending; `None`: the first ones.
    pub draft_ids: Option<Vec<TokenId>>,
}

/// What makes an exit block recurrent.
pub struct Recurrent {
    /// From its own residual stream, and after it the normalised embedding.
    pub matrix: Panels,
    /// The weight of the embedding's norm: ones, `[hidden]`.
    pub norm: Vec<f32>,
}

impl Weights {
    /// Packs a model and its exit block, which fit the geometry; `codes`: see [`Packer::new`].
    ///
    /// # Errors
    /// If the memory cannot be had.
    pub fn new(
        geometry: &Geometry,
        model: &ModelWeights<'_>,
        exit: Option<&ExitWeights<'_>>,
        codes: bool,
        pool: &mut Pool,
    ) -> Result<Self, BackendError> {
        let mut packer = Packer::new(codes);
        let matrix = packer.matrix(model.head);
        let head = Head { norm: vector(&model.norm), matrix: matrix.clone() };
        let mut layers: Vec<Layer> =
            model.layers.iter().map(|layer| Layer::plan(geometry, layer, &mut packer)).collect();
        let exit = match exit {
            Some(exit) => {
                layers.push(Layer::plan(geometry, &exit.layer, &mut packer));
                let matrix = exit.head.map_or_else(|| matrix.clone(), |own| packer.matrix(own));
                Some(Exit {
                    after: exit.after,
                    input: exit.input.map(|input| packer.matrix(input)),
                    recurrent: exit.recurrent.map(|of| {
                        let norm = padded_to_panels(&vec![1.0; geometry.hidden_size]);
                        Recurrent { matrix: packer.matrix(of), norm }
                    }),
                    head: Head { norm: vector(&exit.norm), matrix },
                    vocab: exit.draft_vocab(geometry.vocab_size).size,
                    draft_ids: exit.draft_ids.map(<[_]>::to_vec),
                })
            }
            None => None,
        };
        let embedding = if geometry.tied_head { matrix } else { packer.matrix(model.embed) };
        Ok(Self { packed: packer.pack(pool)?, embedding, layers, head, formats: formats(model), exit })
    }

    /// Inputs `range` of a token's embedding.
    pub fn embed(&self, token: TokenId, range: std::ops::Range<usize>, out: &mut [f32]) {
        self.packed.column(&self.embedding, token as usize, range, out);
    }
}

impl Layer {
    fn plan<'a>(geometry: &Geometry, layer: &LayerWeights<'a>, packer: &mut Packer<'a>) -> Self {
        let head_dim = geometry.head_dim;
        let qkv = [layer.q, layer.k, layer.v];
        let qkv_bias = [layer.q_bias, layer.k_bias, layer.v_bias];
        let gate_up_bias = [(layer.gate_bias, layer.gate.rows), (layer.up_bias, layer.up.rows)];
        Self {
            input_norm: vector(&layer.input_norm),
            qkv: packer.heads(&qkv, head_dim),
            qkv_bias: qkv_bias.iter().any(Option::is_some).then(|| {
                let biases = qkv_bias.iter().zip(&qkv).map(|(bias, matrix)| bias_or_zeros(*bias, matrix.rows));
                biases.flat_map(|bias| bias.chunks(head_dim).flat_map(padded_to_panels).collect::<Vec<_>>()).collect()
            }),
            q_norm: layer.q_norm.as_ref().map(vector),
            k_norm: layer.k_norm.as_ref().map(vector),
            o: packer.matrix(layer.o),
            o_bias: layer.o_bias.as_ref().map(vector),
            post_norm: vector(&layer.post_norm),
            gate_up: packer.interleaved(layer.gate, layer.up),
            gate_up_bias: gate_up_bias.iter().any(|(bias, _)| bias.is_some()).then(|| {
                let [gate, up] = gate_up_bias.map(|(bias, rows)| padded_to_panels(&bias_or_zeros(bias, rows)));
                gate.chunks(LANES).zip(up.chunks(LANES)).flat_map(|(gate, up)| [gate, up].concat()).collect()
            }),
            down: packer.matrix(layer.down),
            down_bias: layer.down_bias.as_ref().map(vector),
        }
    }
}

/// The formats of a model's matrices, by their bytes.
fn formats(model: &ModelWeights<'_>) -> String {
    let of_layer = |layer: &LayerWeights<'_>| {
        [layer.q, layer.k, layer.v, layer.o, layer.gate, layer.up, layer.down]
            .map(|matrix| (matrix.format, matrix.bytes.len()))
    };
    let mut found: Vec<(Format, usize)> = Vec::new();
    let head = (model.head.format, model.head.bytes.len());
    for (format, bytes) in model.layers.iter().flat_map(of_layer).chain([head]) {
        match found.iter_mut().find(|(known, _)| *known == format) {
            Some((_, sum)) => *sum += bytes,
            None => found.push((format, bytes)),
        }
    }
    found.sort_by_key(|&(_, bytes)| std::cmp::Reverse(bytes));
    found.iter().map(|(format, _)| format.to_string()).collect::<Vec<_>>().join(" + ")
}

/// The numbers, padded with zeros to whole vectors.
fn vector(stored: &Vector<'_>) -> Vec<f32> {
    padded_to_panels(&stored.to_f32())
}

fn padded_to_panels(numbers: &[f32]) -> Vec<f32> {
    let mut numbers = numbers.to_vec();
    numbers.resize(padded(numbers.len()), 0.0);
    numbers
}

fn bias_or_zeros(bias: Option<Vector<'_>>, len: usize) -> Vec<f32> {
    bias.map_or_else(|| vec![0.0; len], |bias| bias.to_f32())
}
