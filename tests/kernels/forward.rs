//! The kernels together: whole models from token ids to logits, as a prefill and token by token, bit for
//! bit the same; and close to the CPU backend, which keeps activations in f32.

use crate::support::{NULL, emulator, from, to};
use eesd::TokenId;
use eesd::backend::Chunk;
use eesd::backend::cpu::{CpuBackend, CpuOptions};
use eesd::backend::cuda::emulator::Emulator;
use eesd::backend::cuda::kernels::{
    Address, Attention, AttentionForm, Embedding, Form, Format, GateUp, HeadPartial, LmHead, Norm, PagedBatch,
    Projection, Qkv, Residual, attend, per_token, project,
};
use eesd::backend::cuda::pack::{BLOCK_ROWS, chunks, interleave, pack};
use eesd::kv::PageId;
use eesd::load::Checkpoint;
use eesd::model::{Dtype, Geometry, LayerWeights, Matrix, RopeScaling, Vector};
use std::path::Path;

const FORMAT: Format = Format::Bf16;
const CONTEXT: usize = 64;

/// One packed projection.
struct Packed {
    weights: Vec<u8>,
    outputs: usize,
    inputs: usize,
}

impl Packed {
    fn stack(matrices: &[Matrix<'_>]) -> Self {
        let rows: Vec<_> = matrices.iter().flat_map(rows).map(Some).collect();
        Self { weights: pack(&rows, matrices[0].cols), outputs: rows.len(), inputs: matrices[0].cols }
    }

    fn of(&self, x: &[u16], tokens: usize) -> Projection {
        let chunks = chunks(self.inputs) as i32;
        Projection {
            weights: from(&self.weights),
            x: from(x),
            outputs: self.outputs as i32,
            chunks,
            stride: chunks * 64,
            tokens: tokens as i32,
        }
    }
}

fn rows<'a>(matrix: &Matrix<'a>) -> Vec<&'a [u8]> {
    assert_eq!(matrix.dtype, Dtype::BF16);
    matrix.bytes.chunks_exact(matrix.cols * 2).collect()
}

fn floats(vectors: &[Option<Vector<'_>>]) -> Option<Vec<f32>> {
    let all: Vec<f32> = vectors.iter().flatten().flat_map(|v| v.to_f32()).collect();
    (!all.is_empty()).then_some(all)
}

fn address(vector: &Option<Vec<f32>>) -> Address {
    vector.as_ref().map_or(NULL, |v| from(v))
}

struct Layer {
    input_norm: Vec<f32>,
    qkv: Packed,
    qkv_bias: Option<Vec<f32>>,
    q_norm: Option<Vec<f32>>,
    k_norm: Option<Vec<f32>>,
    o: Packed,
    post_norm: Vec<f32>,
    gate_up: Packed,
    down: Packed,
    window: usize,
    cache: [Vec<u16>; 2],
}

impl Layer {
    fn new(geometry: &Geometry, weights: &LayerWeights<'_>, window: Option<usize>) -> Self {
        let order = interleave(&rows(&weights.gate), &rows(&weights.up));
        assert_eq!(order.len() % (2 * BLOCK_ROWS), 0);
        let gate_up =
            Packed { weights: pack(&order, weights.gate.cols), outputs: order.len(), inputs: weights.gate.cols };
        let cache = || vec![0; CONTEXT * geometry.kv_size()];
        Self {
            input_norm: weights.input_norm.to_f32(),
            qkv: Packed::stack(&[weights.q, weights.k, weights.v]),
            qkv_bias: floats(&[weights.q_bias, weights.k_bias, weights.v_bias]),
            q_norm: floats(&[weights.q_norm]),
            k_norm: floats(&[weights.k_norm]),
            o: Packed::stack(&[weights.o]),
            post_norm: weights.post_norm.to_f32(),
            gate_up,
            down: Packed::stack(&[weights.down]),
            window: window.unwrap_or(0),
            cache: [cache(), cache()],
        }
    }
}

struct Model<'a> {
    geometry: &'a Geometry,
    embed: &'a [u8],
    layers: Vec<Layer>,
    norm: Vec<f32>,
    head: Packed,
    rotary: Vec<f32>,
}

impl<'a> Model<'a> {
    fn new(checkpoint: &'a Checkpoint) -> Self {
        let (geometry, weights) = (checkpoint.geometry(), checkpoint.weights());
        let layers =
            weights.layers.iter().zip(&geometry.windows).map(|(layer, window)| Layer::new(geometry, layer, *window));
        let (half, theta) = (geometry.head_dim / 2, geometry.rope.theta);
        let turn = |p: usize, i: usize| p as f64 * theta.powf(-(i as f64) / half as f64);
        Self {
            geometry,
            embed: weights.embed.bytes,
            layers: layers.collect(),
            norm: weights.norm.to_f32(),
            head: Packed::stack(&[weights.head]),
            rotary: (0..CONTEXT)
                .flat_map(|p| (0..half).map(move |i| turn(p, i)))
                .flat_map(|angle| [angle.cos() as f32, angle.sin() as f32])
                .collect(),
        }
    }

    /// The logits of `ids` at positions `start ..`, in the forms that decoding or prefill use.
    fn forward(&mut self, on: &Emulator, ids: &[TokenId], start: usize, form: Form) -> Vec<f32> {
        let g = self.geometry;
        let tokens = ids.len();
        let padded = |columns: usize| vec![0u16; tokens * chunks(columns) * 64];
        let slots = g.hidden_size.div_ceil(32);
        let stride = (chunks(g.hidden_size) * 64) as i32;
        let mut residual = vec![f32::NAN; tokens * g.hidden_size];
        let (mut operand, mut squares) = (padded(g.hidden_size), vec![f32::NAN; tokens * slots]);
        let (mut attended, mut gated) = (padded(g.q_size()), padded(g.intermediate_size));
        let width = g.q_size() + 2 * g.kv_size();
        let mut qkv = vec![f32::NAN; tokens * width];
        let norm = Norm {
            squares: from(&squares),
            slots: slots as i32,
            width: g.hidden_size as i32,
            epsilon: g.rms_norm_eps,
            padding: 0,
        };
        // The table is read by element: alignment of the mapped file does not matter on this machine.
        let embed: Vec<u16> = self.embed.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]])).collect();
        let embedding = Embedding {
            ids: from(ids),
            table: from(&embed),
            packed: 0,
            hidden: g.hidden_size as i32,
            residual: to(&mut residual),
            norm: from(&self.layers[0].input_norm),
            operand: to(&mut operand),
            stride,
            padding: 0,
            squares: to(&mut squares),
        };
        // SAFETY: here and below, buffers of the sizes that the kernels' head comments state.
        unsafe { per_token(on, "embedding", FORMAT, tokens, &embedding) }.unwrap();
        let (row_begin, starts, table) = ([0i32, tokens as i32], [start as i32], [0u32]);
        let tiles = Attention::row_tiles(tokens, g.heads, g.kv_heads);
        let mut partial = vec![0f32; Attention::partial_bytes(1, g.kv_heads, tiles, 1, g.head_dim) / 4];
        let mut arrived = vec![0u32; g.kv_heads * tiles];

        let residual_stream = (to(&mut residual), to(&mut operand), to(&mut squares));
        let add_to_residual = |projection: Projection, next_norm: Address| {
            let (residual, operand, squares) = residual_stream;
            let arguments =
                Residual { projection, bias: NULL, residual, next_norm, operand, stride, padding: 0, squares };
            // SAFETY: as above.
            unsafe { project(on, "residual", FORMAT, form, &arguments) }.unwrap();
        };

        for index in 0..self.layers.len() {
            let next_norm = self.layers.get(index + 1).map_or(from(&self.norm), |next| from(&next.input_norm));
            let layer = &mut self.layers[index];
            let projection = layer.qkv.of(&operand, tokens);
            let arguments = Qkv {
                projection,
                norm,
                bias: address(&layer.qkv_bias),
                out: to(&mut qkv),
                stride: width as i32,
                padding: 0,
            };
            // SAFETY: as above.
            unsafe { project(on, "qkv", FORMAT, form, &arguments) }.unwrap();
            let [k, v] = &mut layer.cache;
            let attention = Attention {
                batch: PagedBatch {
                    row_begin: from(&row_begin),
                    start: from(&starts),
                    block_table: from(&table),
                    max_pages: 1,
                    padding: 0,
                },
                qkv: from(&qkv),
                k_cache: to(k),
                v_cache: to(v),
                rotary: from(&self.rotary),
                q_norm: address(&layer.q_norm),
                k_norm: address(&layer.k_norm),
                epsilon: g.rms_norm_eps,
                scale: (std::f64::consts::LOG2_E / (g.head_dim as f64).sqrt()) as f32,
                heads: g.heads as i32,
                kv_heads: g.kv_heads as i32,
                window: layer.window as i32,
                row_tiles: tiles as i32,
                out: to(&mut attended),
                stride: (chunks(g.q_size()) * 64) as i32,
                padding: 0,
                partial: to(&mut partial),
                arrived: to(&mut arrived),
            };
            let forms: &[AttentionForm] = match form {
                Form::Skinny => &[AttentionForm::Split { chunks: 1 }],
                Form::Gemm => &[AttentionForm::Append { rows: tokens }, AttentionForm::Prefill],
            };
            for &form in forms {
                // SAFETY: as above.
                unsafe { attend(on, FORMAT, form, 1, g.head_dim, &attention) }.unwrap();
            }
            add_to_residual(layer.o.of(&attended, tokens), from(&layer.post_norm));
            let arguments = GateUp {
                projection: layer.gate_up.of(&operand, tokens),
                norm,
                bias: NULL,
                out: to(&mut gated),
                stride: (chunks(g.intermediate_size) * 64) as i32,
                intermediate: g.intermediate_size as i32,
            };
            // SAFETY: as above.
            unsafe { project(on, "gate_up", FORMAT, form, &arguments) }.unwrap();
            add_to_residual(layer.down.of(&gated, tokens), next_norm);
        }
        let mut logits = vec![f32::NAN; tokens * g.vocab_size];
        let mut partials = vec![HeadPartial { max: 0.0, token: 0, sum: 0.0 }; tokens * g.vocab_size.div_ceil(32)];
        let head = LmHead {
            projection: self.head.of(&operand, tokens),
            norm,
            logits: to(&mut logits),
            partials: to(&mut partials),
        };
        // SAFETY: as above.
        unsafe { project(on, "lm_head", FORMAT, form, &head) }.unwrap();
        logits
    }
}

/// Logits in f32 activations, from the CPU backend.
fn reference(checkpoint: &Checkpoint, ids: &[TokenId]) -> Vec<f32> {
    let options = CpuOptions { threads: Some(1), simd: None, slots: 1, context: CONTEXT, max_draft: 1, pages: Some(1) };
    let mut cpu = CpuBackend::new(checkpoint.geometry(), &checkpoint.weights(), None, &options).unwrap();
    cpu.evaluate(&Chunk { pages: &[PageId(0)], start: 0, tokens: ids }, 1).unwrap().logits
}

fn check(checkpoint: &Checkpoint) {
    let name = checkpoint.name();
    let vocab = checkpoint.geometry().vocab_size;
    let ids: Vec<TokenId> = (0..20).map(|i| (i * 97 + 5) % vocab as TokenId).collect();
    let prefill = Model::new(checkpoint).forward(&emulator(2), &ids, 0, Form::Gemm);
    // Decoding, and verification of several rows: all cut differently, all the same bits.
    let mut model = Model::new(checkpoint);
    for (start, rows) in [(0, 1), (1, 9), (10, 1), (11, 9)] {
        let logits = model.forward(&emulator(rows as u64), &ids[start..start + rows], start, Form::Skinny);
        let same = logits.iter().zip(&prefill[start * vocab..]).all(|(a, b)| a.to_bits() == b.to_bits());
        assert!(same, "{name}: rows {start} .. {} differ from prefill", start + rows);
    }
    let expected = reference(checkpoint, &ids);
    let mean_square =
        |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>() / expected.len() as f64;
    let size = mean_square(&mut expected.iter().map(|&l| l.into())).sqrt();
    let error = mean_square(&mut expected.iter().zip(&prefill).map(|(a, b)| f64::from(a - b))).sqrt();
    // Activations are rounded to 8 bits a few times a layer: 0.5 to 0.7 % on the fixtures.
    assert!(error < 0.015 * size, "{name}: error {error} of {size}");
    for (position, (cpu, gpu)) in expected.chunks(vocab).zip(prefill.chunks(vocab)).enumerate() {
        let best = |row: &[f32]| (0..vocab).reduce(|a, b| if row[b] > row[a] { b } else { a }).unwrap();
        // Where another token comes first, the CPU must have held the two for nearly equal.
        let gap = f64::from(cpu[best(cpu)] - cpu[best(gpu)]);
        assert!(gap < 6.0 * error, "{name}: position {position}, a gap of {gap} with error {error}");
    }
}

#[cfg(feature = "bundled-model")]
#[test]
fn bundled_model() {
    check(&Checkpoint::bundled().unwrap());
}

#[test]
fn every_fixture() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/hf");
    let mut checked = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let checkpoint = Checkpoint::open(&entry.unwrap().path()).unwrap();
        // Frequencies of other scalings are the runtime's to compute; the kernels only read the table.
        if checkpoint.geometry().rope.scaling == RopeScaling::Default {
            check(&checkpoint);
            checked += 1;
        }
    }
    assert!(checked >= 4, "only {checked} models checked");
}
