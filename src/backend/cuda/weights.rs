//! A model's weights on the device: where each one lies, and what has to be brought there.

use super::arena::Arena;
use super::kernels::{Address, Format};
use super::pack::{BLOCK_ROWS, block_bytes, chunks, packed_bytes};
use crate::backend::BackendError;
use crate::model::{Dtype, ExitWeights, Format as Stored, Geometry, LayerWeights, Matrix, ModelWeights, Vector};

/// A packed projection.
#[derive(Debug, Clone, Copy)]
pub struct Packed {
    /// Its first block.
    pub at: Address,
    /// Rows, without padding.
    pub outputs: usize,
    /// Columns, without padding.
    pub inputs: usize,
}

impl Packed {
    /// Bytes that it takes, padding included.
    pub fn bytes(&self) -> usize {
        packed_bytes(self.outputs, self.inputs)
    }
}

/// A decoder layer. Norms and biases are f32; a bias that is absent is null.
pub struct Layer {
    /// `[hidden]`.
    pub input_norm: Address,
    /// Rows of Wq, Wk, Wv.
    pub qkv: Packed,
    /// In the order of those rows.
    pub qkv_bias: Address,
    /// `[head_dim]`, or null.
    pub q_norm: Address,
    /// `[head_dim]`, or null.
    pub k_norm: Address,
    /// Output projection.
    pub o: Packed,
    /// `[hidden]`.
    pub o_bias: Address,
    /// `[hidden]`.
    pub post_norm: Address,
    /// 16 rows of the gate and 16 of `up` in turn.
    pub gate_up: Packed,
    /// In the order of those rows.
    pub gate_up_bias: Address,
    /// Down projection.
    pub down: Packed,
    /// `[hidden]`.
    pub down_bias: Address,
}

impl Layer {
    /// The key and value rows of `qkv` alone, and their bias.
    pub fn key_value(&self, geometry: &Geometry) -> (Packed, Address) {
        let rows = geometry.q_size();
        let at = Address(self.qkv.at.0 + (rows / BLOCK_ROWS * block_bytes(self.qkv.inputs)) as u64);
        let bias = match self.qkv_bias {
            Address(0) => Address(0),
            Address(bias) => Address(bias + 4 * rows as u64),
        };
        (Packed { at, outputs: 2 * geometry.kv_size(), ..self.qkv }, bias)
    }
}

/// An RMSNorm and a language-model head.
pub struct Head {
    /// `[hidden]`.
    pub norm: Address,
    /// `[vocab]` outputs.
    pub matrix: Packed,
}

/// The exit block.
pub struct Exit {
    /// `N`.
    pub after: usize,
    /// What takes `h_N` to the layer's input; `None`: it is the input.
    pub input: Option<ExitInput>,
    /// What takes its state at a draft and that draft's embedding to the layer's next input.
    pub recurrent: Option<Packed>,
    /// Its layer.
    pub layer: Layer,
    /// Its norm, and its own head or the model's.
    pub head: Head,
    /// `[outputs of the head]` u32, ascending: their tokens; null: the first ones.
    pub draft_ids: Address,
}

/// The matrix that an exit block reads `h_N` through.
pub struct ExitInput {
    /// `[hidden, hidden]`.
    pub matrix: Packed,
    /// `[hidden]` ones: the weight of the norm that `h_N` is not under.
    pub norm: Address,
}

/// Where everything lies.
pub struct Weights {
    /// `[vocab, hidden]` by rows, or the packed head where that is tied.
    pub embedding: Address,
    /// Whether the embedding is the packed head.
    pub embedding_packed: bool,
    /// The model's layers in order.
    pub layers: Vec<Layer>,
    /// Final norm and LM head.
    pub head: Head,
    /// The exit block, where there is one.
    pub exit: Option<Exit>,
    /// `[context, head_dim / 2, 2]` f32: cosines and sines.
    pub rotary: Address,
}

/// Something to be brought to the device.
pub enum Cargo<'a> {
    /// Rows to be packed on the way: 16-row block `b` becomes block `first_block + b · block_step`.
    Rows { matrix: Matrix<'a>, target: Address, first_block: usize, block_step: usize },
    /// Bytes as they are.
    Bytes { bytes: &'a [u8], target: Address },
    /// Numbers widened or computed on the host.
    Floats { floats: Vec<f32>, target: Address },
}

/// Lays weights out and lists what goes where.
struct Plan<'a> {
    arena: Arena,
    cargo: Vec<Cargo<'a>>,
}

impl Weights {
    /// Lays a model out from `base` on. Returns it with what has to be brought there, and how many bytes
    /// it takes. The memory must be zero: padding is not brought.
    pub fn plan<'a>(
        base: Address,
        geometry: &Geometry,
        model: &ModelWeights<'a>,
        exit: Option<&ExitWeights<'a>>,
        rotary: Vec<f32>,
    ) -> (Self, Vec<Cargo<'a>>, usize) {
        let mut plan = Plan { arena: Arena::new(base), cargo: Vec::new() };
        let matrix = plan.matrix(&[model.head]);
        let embed_bytes = model.embed.rows * model.embed.row_bytes();
        let embedding = if geometry.tied_head { matrix.at } else { plan.bytes(model.embed.bytes, embed_bytes) };
        let weights = Self {
            embedding,
            embedding_packed: geometry.tied_head,
            layers: model.layers.iter().map(|layer| plan.layer(layer)).collect(),
            head: Head { norm: plan.vector(&model.norm), matrix },
            exit: exit.map(|exit| Exit {
                after: exit.after,
                input: exit.input.map(|input| ExitInput {
                    matrix: plan.matrix(&[input]),
                    norm: plan.floats(vec![1.0; geometry.hidden_size]),
                }),
                recurrent: exit.recurrent.map(|recurrent| plan.matrix(&[recurrent])),
                layer: plan.layer(&exit.layer),
                head: Head {
                    norm: plan.vector(&exit.norm),
                    matrix: exit.head.map_or(matrix, |own| plan.matrix(&[own])),
                },
                draft_ids: exit
                    .draft_ids
                    .map_or(Address(0), |ids| plan.bytes(bytemuck::cast_slice(ids), size_of_val(ids))),
            }),
            rotary: plan.floats(rotary),
        };
        (weights, plan.cargo, plan.arena.taken())
    }
}

impl<'a> Plan<'a> {
    fn layer(&mut self, layer: &LayerWeights<'a>) -> Layer {
        let qkv = [layer.q, layer.k, layer.v];
        let qkv_bias = [layer.q_bias, layer.k_bias, layer.v_bias];
        Layer {
            input_norm: self.vector(&layer.input_norm),
            qkv: self.matrix(&qkv),
            qkv_bias: self.biases(qkv_bias.iter().any(Option::is_some).then(|| {
                qkv_bias.iter().zip(qkv).flat_map(|(bias, matrix)| floats_or_zeros(bias, matrix.rows)).collect()
            })),
            q_norm: self.optional(&layer.q_norm),
            k_norm: self.optional(&layer.k_norm),
            o: self.matrix(&[layer.o]),
            o_bias: self.optional(&layer.o_bias),
            post_norm: self.vector(&layer.post_norm),
            gate_up: self.gate_up(layer.gate, layer.up),
            gate_up_bias: self.biases((layer.gate_bias.is_some() || layer.up_bias.is_some()).then(|| {
                let padded = |bias: &Option<Vector<'_>>, rows: usize| {
                    let mut bias = floats_or_zeros(bias, rows);
                    bias.resize(rows.next_multiple_of(BLOCK_ROWS), 0.0);
                    bias
                };
                let gate = padded(&layer.gate_bias, layer.gate.rows);
                let up = padded(&layer.up_bias, layer.up.rows);
                gate.chunks(BLOCK_ROWS).zip(up.chunks(BLOCK_ROWS)).flat_map(|(gate, up)| [gate, up].concat()).collect()
            })),
            down: self.matrix(&[layer.down]),
            down_bias: self.optional(&layer.down_bias),
        }
    }

    /// Matrices of equal width one below the other; all but the last have whole blocks of rows.
    fn matrix(&mut self, matrices: &[Matrix<'a>]) -> Packed {
        let (outputs, inputs) = (matrices.iter().map(|matrix| matrix.rows).sum(), matrices[0].cols);
        let target = self.projection(outputs, inputs);
        let mut rows = 0;
        for &matrix in matrices {
            debug_assert!(rows % BLOCK_ROWS == 0, "a matrix begins with a block");
            self.cargo.push(Cargo::Rows { matrix, target, first_block: rows / BLOCK_ROWS, block_step: 1 });
            rows += matrix.rows;
        }
        Packed { at: target, outputs, inputs }
    }

    fn gate_up(&mut self, gate: Matrix<'a>, up: Matrix<'a>) -> Packed {
        let (outputs, inputs) = (2 * gate.rows.next_multiple_of(BLOCK_ROWS), gate.cols);
        let target = self.projection(outputs, inputs);
        for (first_block, matrix) in [gate, up].into_iter().enumerate() {
            self.cargo.push(Cargo::Rows { matrix, target, first_block, block_step: 2 });
        }
        Packed { at: target, outputs, inputs }
    }

    /// Room for a packed matrix and a block more: who takes the last rows alone, from an odd block on,
    /// reads so far.
    fn projection(&mut self, outputs: usize, inputs: usize) -> Address {
        self.arena.take(packed_bytes(outputs, inputs) + block_bytes(inputs))
    }

    /// Room for `size` bytes: all that there are, but of weights that are made on the device.
    fn bytes(&mut self, bytes: &'a [u8], size: usize) -> Address {
        let target = self.arena.take(size);
        self.cargo.push(Cargo::Bytes { bytes, target });
        target
    }

    fn floats(&mut self, floats: Vec<f32>) -> Address {
        let target = self.arena.array::<f32>(floats.len());
        self.cargo.push(Cargo::Floats { floats, target });
        target
    }

    fn vector(&mut self, vector: &Vector<'a>) -> Address {
        self.floats(vector.to_f32())
    }

    fn optional(&mut self, vector: &Option<Vector<'a>>) -> Address {
        self.biases(vector.as_ref().map(Vector::to_f32))
    }

    fn biases(&mut self, floats: Option<Vec<f32>>) -> Address {
        floats.map_or(Address(0), |floats| self.floats(floats))
    }
}

fn floats_or_zeros(vector: &Option<Vector<'_>>, len: usize) -> Vec<f32> {
    vector.as_ref().map_or_else(|| vec![0.0; len], Vector::to_f32)
}

/// The one number format of all matrices of a model and its exit block.
///
/// # Errors
/// If they differ, or the kernels do not compute in it.
pub fn format_of(model: &ModelWeights<'_>, exit: Option<&ExitWeights<'_>>) -> Result<Format, BackendError> {
    let of_layer = |layer: &LayerWeights<'_>| {
        [layer.q, layer.k, layer.v, layer.o, layer.gate, layer.up, layer.down].map(|matrix| matrix.format)
    };
    let format = match model.head.format {
        Stored::Float(Dtype::BF16) => Format::Bf16,
        Stored::Float(Dtype::F16) => Format::F16,
        other => {
            let why = format!(
                "cuda: the weights are {other} (expected bf16 or f16, which its kernels compute with): convert the \
                 model, or use --device cpu"
            );
            return Err(BackendError::Device(why));
        }
    };
    let same = |what: String, found: Stored| {
        let expected = model.head.format;
        let why = || format!("cuda: {what} has weights in {found} (expected {expected}, as the LM head)");
        if found == expected { Ok(()) } else { Err(BackendError::Device(why())) }
    };
    same("the embedding".into(), model.embed.format)?;
    for (index, layer) in model.layers.iter().enumerate() {
        of_layer(layer).into_iter().try_for_each(|format| same(format!("layer {index}"), format))?;
    }
    if let Some(exit) = exit {
        let others = [exit.input, exit.recurrent, exit.head].into_iter().flatten().map(|matrix| matrix.format);
        of_layer(&exit.layer).into_iter().chain(others).try_for_each(|format| same("the exit block".into(), format))?;
    }
    Ok(format)
}

/// Elements between rows of a projection's input of `inputs` numbers: whole chunks of K.
pub fn operand_stride(inputs: usize) -> usize {
    chunks(inputs) * super::pack::CHUNK
}
