//! A model's weights on the device: where each one lies, and what has to be brought there.

use super::arena::Arena;
use super::coding::Storage;
use super::kernels::{Address, Format, TableForm};
use super::pack::{BLOCK_ROWS, chunks};
use super::upload::Cargo;
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
    /// How its weights are stored.
    pub storage: Storage,
}

impl Packed {
    /// Bytes that it takes, padding included.
    pub fn bytes(&self) -> usize {
        self.storage.packed_bytes(self.outputs, self.inputs)
    }

    /// The rows from `row` on, which begins a block.
    fn rows_from(&self, row: usize) -> Self {
        let at = Address(self.at.0 + (row / BLOCK_ROWS * self.storage.block_bytes(self.inputs)) as u64);
        Self { at, outputs: self.outputs - row, ..*self }
    }
}

/// Matrices that share an input, one below the other: one packed matrix for each run of the same storage.
#[derive(Debug, Clone)]
pub struct Stack(Vec<Packed>);

impl Stack {
    /// What there is from row `first` on, each part with its first row.
    pub fn rows_from(&self, first: usize) -> impl Iterator<Item = (Packed, usize)> {
        let mut end = 0;
        self.0.iter().filter_map(move |part| {
            let start = end;
            end += part.outputs;
            (first < end).then(|| (part.rows_from(first.saturating_sub(start)), start.max(first)))
        })
    }
}

/// A decoder layer. Norms and biases are f32; a bias that is absent is null.
pub struct Layer {
    /// `[hidden]`.
    pub input_norm: Address,
    /// Rows of Wq, Wk, Wv.
    pub qkv: Stack,
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
    /// `[vocab, hidden]`; the packed head where that is tied.
    pub embedding: Address,
    /// How it lies there.
    pub embedding_form: TableForm,
    /// The model's layers in order.
    pub layers: Vec<Layer>,
    /// Final norm and LM head.
    pub head: Head,
    /// The exit block, where there is one.
    pub exit: Option<Exit>,
    /// `[context, head_dim / 2, 2]` f32: cosines and sines.
    pub rotary: Address,
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
        let (embedding, embedding_form) = plan.embedding(model.embed, geometry.tied_head.then_some(matrix));
        let weights = Self {
            embedding,
            embedding_form,
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
            qkv: self.stack(&qkv),
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

    /// The embedding: by rows, or packed where it is codes or the head.
    fn embedding(&mut self, embed: Matrix<'a>, head: Option<Packed>) -> (Address, TableForm) {
        if head.is_none() && storage_of(&embed) == Storage::Plain {
            return (self.bytes(embed.bytes, embed.rows * embed.row_bytes()), TableForm::Rows);
        }
        let packed = head.unwrap_or_else(|| self.matrix(&[embed]));
        (packed.at, TableForm::Packed(packed.storage))
    }

    /// Matrices of equal width, those of the same storage in one.
    fn stack(&mut self, matrices: &[Matrix<'a>]) -> Stack {
        let runs = matrices.chunk_by(|one, next| storage_of(one) == storage_of(next));
        Stack(runs.map(|run| self.matrix(run)).collect())
    }

    /// Matrices of equal width and storage one below the other; all but the last have whole blocks of rows.
    fn matrix(&mut self, matrices: &[Matrix<'a>]) -> Packed {
        let outputs = matrices.iter().map(|matrix| matrix.rows).sum();
        let packed = self.projection(outputs, matrices[0].cols, storage_of(&matrices[0]));
        let mut rows = 0;
        for &matrix in matrices {
            debug_assert!(rows % BLOCK_ROWS == 0, "a matrix begins with a block");
            self.rows(matrix, packed, rows / BLOCK_ROWS, 1);
            rows += matrix.rows;
        }
        packed
    }

    fn gate_up(&mut self, gate: Matrix<'a>, up: Matrix<'a>) -> Packed {
        let storage = storage_of(&gate).joined(storage_of(&up)).expect("checked before");
        let packed = self.projection(2 * gate.rows.next_multiple_of(BLOCK_ROWS), gate.cols, storage);
        for (first_block, matrix) in [gate, up].into_iter().enumerate() {
            self.rows(matrix, packed, first_block, 2);
        }
        packed
    }

    fn rows(&mut self, matrix: Matrix<'a>, packed: Packed, first_block: usize, block_step: usize) {
        let target = packed.at;
        self.cargo.push(match packed.storage {
            Storage::Plain => Cargo::Rows { matrix, target, first_block, block_step },
            Storage::Codes(coding) => Cargo::Codes { matrix, coding, target, first_block, block_step },
        });
    }

    /// Room for a packed matrix and a block more: who takes the last rows alone, from an odd block on,
    /// reads so far.
    fn projection(&mut self, outputs: usize, inputs: usize, storage: Storage) -> Packed {
        let at = self.arena.take(storage.packed_bytes(outputs, inputs) + storage.block_bytes(inputs));
        Packed { at, outputs, inputs, storage }
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

/// How a matrix that was [checked](format_of) is stored.
fn storage_of(matrix: &Matrix<'_>) -> Storage {
    Storage::of(matrix).expect("checked before")
}

/// The number format that a model is computed in: that of all its matrices, and its exit block's, which are not codes;
/// bf16 where all are.
///
/// # Errors
/// If two differ, or the kernels do not multiply one.
pub fn format_of(model: &ModelWeights<'_>, exit: Option<&ExitWeights<'_>>) -> Result<Format, BackendError> {
    let refuse = |why: String| Err(BackendError::Device(format!("cuda: {why}")));
    let mut found: Option<(&str, Stored)> = None;
    for (place, name, matrix) in matrices(model, exit) {
        let storage = match Storage::of(&matrix) {
            Ok(storage) => storage,
            Err(why) => {
                return refuse(format!(
                    "{place}: the weights of {name} are {why}: convert the model, or use --device cpu"
                ));
            }
        };
        match (storage, matrix.format) {
            (Storage::Codes(_), _) => {}
            (Storage::Plain, Stored::Float(Dtype::BF16 | Dtype::F16)) => match found {
                Some((first, format)) if format != matrix.format => {
                    return refuse(format!("{place} has weights in {} (expected {format}, as {first})", matrix.format));
                }
                _ => found = found.or(Some((name, matrix.format))),
            },
            (Storage::Plain, other) => {
                return refuse(format!(
                    "{place}: the weights are {other} (expected bf16 or f16, which its kernels compute with, integer \
                     codes, or fp8): convert the model, or use --device cpu"
                ));
            }
        }
    }
    let layers = model.layers.iter().chain(exit.map(|exit| &exit.layer));
    if let Some(layer) =
        layers.into_iter().find(|layer| storage_of(&layer.gate).joined(storage_of(&layer.up)).is_none())
    {
        let (gate, up) = (layer.gate.format, layer.up.format);
        return refuse(format!(
            "gate_proj is {gate} and up_proj is {up} (expected integer codes in both, fp8 in both, or 16 bits in both)"
        ));
    }
    Ok(match found {
        Some((_, Stored::Float(Dtype::F16))) => Format::F16,
        _ => Format::Bf16,
    })
}

/// All matrices of a model and its exit block: whose it is, what it is called.
fn matrices<'a>(
    model: &ModelWeights<'a>,
    exit: Option<&ExitWeights<'a>>,
) -> impl Iterator<Item = (String, &'static str, Matrix<'a>)> {
    let of_layer = |place: String, layer: &LayerWeights<'a>| {
        let LayerWeights { q, k, v, o, gate, up, down, .. } = *layer;
        let named = [
            ("q_proj", q),
            ("k_proj", k),
            ("v_proj", v),
            ("o_proj", o),
            ("gate_proj", gate),
            ("up_proj", up),
            ("down_proj", down),
        ];
        named.map(|(name, matrix)| (place.clone(), name, matrix))
    };
    let mut all = vec![("the LM head".to_string(), "the LM head", model.head)];
    all.push(("the embedding".into(), "the embedding", model.embed));
    for (index, layer) in model.layers.iter().enumerate() {
        all.extend(of_layer(format!("layer {index}"), layer));
    }
    if let Some(exit) = exit {
        let place = || "the exit block".to_string();
        all.extend(of_layer(place(), &exit.layer));
        let others = [("its input", exit.input), ("its recurrence", exit.recurrent), ("its head", exit.head)];
        all.extend(others.into_iter().filter_map(|(name, matrix)| Some((place(), name, matrix?))));
    }
    all.into_iter()
}

/// Whether a model, or its exit block, has a matrix of codes.
pub fn has_codes(model: &ModelWeights<'_>, exit: Option<&ExitWeights<'_>>) -> bool {
    matrices(model, exit).any(|(_, _, matrix)| matrix.format.dtype().is_none())
}

/// Elements between rows of a projection's input of `inputs` numbers: whole chunks of K.
pub fn operand_stride(inputs: usize) -> usize {
    chunks(inputs) * super::pack::CHUNK
}
