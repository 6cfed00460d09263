//! Models whose weights stay codes: files and folders as they are, the same numbers as plain weights, and drafts that change
//! nothing.

use crate::exits::rows_of;
use crate::support::{Subject, bits, difference, emulated, engine, on_device, options, run, size, table, tokens};
use eesd::backend::cpu::{Activations, CpuBackend, CpuOptions};
use eesd::backend::cuda::{CudaBackend, CudaOptions, Prefill};
use eesd::backend::{Backend, Chunk};
use eesd::engine::Request;
use eesd::load::Checkpoint;
use eesd::model::{
    BlockType, Dtype, Encoder, ExitWeights, Format, Fp8, Geometry, LayerWeights, Matrix, ModelWeights, Quantised,
    Scheme,
};
use eesd::sample::{SamplingParams, VerifyMode};
use half::bf16;
use std::num::NonZeroUsize;
use std::path::Path;

fn fixture(name: &str) -> Checkpoint {
    Checkpoint::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)).unwrap()
}

/// The matrices of a model, one after the other.
fn for_each<'a>(weights: &mut ModelWeights<'a>, tied: bool, change: &mut dyn FnMut(&mut Matrix<'a>)) {
    for LayerWeights { q, k, v, o, gate, up, down, .. } in &mut weights.layers {
        [q, k, v, o, gate, up, down].into_iter().for_each(&mut *change);
    }
    change(&mut weights.embed);
    if tied {
        weights.head = weights.embed;
    } else {
        change(&mut weights.head);
    }
}

/// In blocks of Q8_0. Leaks, as tests may: views of weights borrow.
fn in_blocks(matrix: Matrix<'_>) -> Matrix<'static> {
    Box::leak(Box::new(Encoder::Q8_0.encode_matrix(&matrix, NonZeroUsize::MIN).unwrap())).view()
}

/// A mixed file of test data, with what kernels do not multiply, or not beside codes, in blocks too.
fn mixed(checkpoint: &Checkpoint) -> ModelWeights<'_> {
    let mut weights = checkpoint.weights();
    let plain = |matrix: &Matrix<'_>| matrix.format.dtype().is_some();
    for_each(&mut weights, checkpoint.geometry().tied_head, &mut |matrix| {
        if matrix.format == Format::Float(Dtype::F32) {
            *matrix = in_blocks(*matrix);
        }
    });
    for layer in weights.layers.iter_mut().filter(|layer| plain(&layer.gate) != plain(&layer.up)) {
        (layer.gate, layer.up) = (in_blocks(layer.gate), in_blocks(layer.up));
    }
    weights
}

fn text(geometry: &Geometry, len: usize) -> Vec<u32> {
    (0..len).map(|i| ((7 + i * i * 31 + i * 17) % geometry.vocab_size) as u32).collect()
}

fn logits(mut backend: Box<dyn Backend>, tokens: &[u32]) -> Vec<f32> {
    let table = table(0, tokens.len());
    backend.evaluate(&Chunk { pages: table.pages(), start: 0, tokens }, 1).unwrap().logits
}

fn on_processor(geometry: &Geometry, weights: &ModelWeights<'_>, activations: Activations) -> Box<dyn Backend> {
    let options = CpuOptions { context: 128, activations, ..CpuOptions::default() };
    CpuBackend::new(geometry, weights, None, &options).unwrap()
}

/// The part of the logits' size that rounding activations to bf16 (8 bits) may change, and rounding them to 8 bits on the
/// processor beside it.
const BY_BF16: f64 = 0.02;
const BY_EIGHT_BITS: f64 = 0.05;

/// Files of every block type, and folders, next to the same model dequantised on the processor.
#[test]
fn logits_are_the_processors_but_for_rounded_activations() {
    let files = ["llama", "qwen2", "qwen3"].map(|name| format!("gguf/{name}-mixed.gguf"));
    let integers = ["awq", "ct-int4-group", "ct-int8-channel", "ct-int8-packed-asymmetric", "gptq-v1"];
    let folders = [&integers[..], &["ct-fp8-channel", "ct-fp8-block", "fp8-block"]].concat();
    let folders: Vec<String> = folders.iter().map(|name| format!("hf-quantised/{name}")).collect();
    for name in files.iter().chain(&folders) {
        let checkpoint = fixture(name);
        let (geometry, weights) = (checkpoint.geometry(), mixed(&checkpoint));
        let tokens = text(geometry, 20);
        let found = logits(on_device(geometry, &weights, None, &options(1)), &tokens);
        for (activations, most) in [(Activations::Full, BY_BF16), (Activations::Eight, BY_EIGHT_BITS)] {
            let expected = logits(on_processor(geometry, &weights, activations), &tokens);
            let off = difference(&found, &expected) / size(expected.iter().copied());
            println!("{name}, {activations:?}: {off:.1e} of the logits' size");
            assert!(off <= most, "{name}, {activations:?}: {off} (expected at most {most})");
        }
    }
}

/// With scales that are powers of two, codes times scales are numbers in bf16: the plain model has the same weights, and
/// only sums are made in another order.
#[test]
fn codes_are_the_numbers_that_they_stand_for() {
    let subject = Subject::fixture("llama");
    let geometry = subject.geometry();
    let (mut coded, mut plain) = (subject.checkpoint.weights(), subject.checkpoint.weights());
    for_each(&mut coded, geometry.tied_head, &mut |matrix| {
        let blocks = in_blocks(*matrix);
        let mut bytes = blocks.bytes.to_vec();
        // Sign and exponent of the scale alone.
        bytes.chunks_mut(BlockType::Q8_0.bytes()).for_each(|block| (block[0], block[1]) = (0, block[1] & 0xfc));
        *matrix = Matrix { bytes: bytes.leak(), ..blocks };
    });
    let mut sources = Vec::new();
    for_each(&mut coded.clone(), geometry.tied_head, &mut |matrix| sources.push(*matrix));
    let mut sources = sources.into_iter();
    for_each(&mut plain, geometry.tied_head, &mut |matrix| {
        let source = sources.next().unwrap();
        let mut bytes = Vec::new();
        for row in 0..source.rows {
            let mut numbers = vec![0.0; source.cols];
            source.dequantise_row(row, &mut numbers);
            for number in numbers {
                assert_eq!(bf16::from_f32(number).to_f32(), number, "no number in bf16");
                bytes.extend(bf16::from_f32(number).to_le_bytes());
            }
        }
        *matrix = Matrix::new(Dtype::BF16, source.rows, source.cols, bytes.leak());
    });
    let tokens = text(geometry, 20);
    let [coded, plain] =
        [&coded, &plain].map(|weights| logits(on_device(geometry, weights, None, &options(1)), &tokens));
    let off = difference(&coded, &plain) / size(plain.iter().copied());
    println!("{off:.1e} of the logits' size");
    // Where a sum falls on the other side of a rounding to bf16, that one activation moves by its last bit.
    assert!(off <= 3e-3, "{off}");
    assert_ne!(bits(&coded), bits(&plain), "the coded model was not coded");
}

/// Greedy and sampled, 4 bits and 8, tied heads and not, exit blocks of codes: drafts change no token, batches neither.
#[test]
fn speculation_on_codes_changes_no_token() {
    let sampled = SamplingParams { temperature: 0.9, verify: Some(VerifyMode::Coupled), ..SamplingParams::default() };
    let cases = [("llama", Scheme::Q4, SamplingParams::default()), ("qwen2", Scheme::Q8, sampled)];
    for (name, scheme, sampling) in cases {
        let subject = Subject::fixture(name);
        let original = subject.checkpoint.weights();
        let quantised = Quantised::of(&original, scheme, NonZeroUsize::MIN).unwrap();
        assert_drafts_change_nothing(name, subject.geometry(), &quantised.weights(&original), &sampling);
    }
    let checkpoint = fixture("gguf/qwen3-mixed.gguf");
    assert_drafts_change_nothing("mixed", checkpoint.geometry(), &mixed(&checkpoint), &SamplingParams::default());
    let checkpoint = fixture("hf-quantised/fp8-block");
    let (geometry, weights) = twice(&checkpoint);
    assert_drafts_change_nothing("fp8", &geometry, &weights, &SamplingParams::default());
}

/// A model of one layer with that layer twice, so that there is something to draft with.
fn twice(checkpoint: &Checkpoint) -> (Geometry, ModelWeights<'_>) {
    let (mut geometry, mut weights) = (checkpoint.geometry().clone(), checkpoint.weights());
    assert_eq!(geometry.layers, 1);
    geometry.layers = 2;
    geometry.windows.extend_from_within(..);
    weights.layers.extend_from_within(..);
    (geometry, weights)
}

fn assert_drafts_change_nothing(
    name: &str,
    geometry: &Geometry,
    weights: &ModelWeights<'_>,
    sampling: &SamplingParams,
) {
    // A head of its own, in the model's format.
    let ids: Vec<u32> = (0..geometry.vocab_size as u32).filter(|id| id % 5 != 2).collect();
    let exit = ExitWeights::from_model(weights, 1, weights.layers.len() - 1);
    let exit = ExitWeights { head: Some(rows_of(weights.head, &ids)), draft_ids: Some(ids.leak()), ..exit };
    let requests: Vec<Request> = [5, 21]
        .map(|len| {
            let sampling = SamplingParams { seed: Some(len as u64), ..sampling.clone() };
            Request { sampling, ..Request::new(text(geometry, len), 8) }
        })
        .into();
    let ids = |controller, slots| {
        let mut engine = engine(on_device(geometry, weights, Some(&exit), &options(slots)), controller);
        let done = run(&mut engine, &requests, slots);
        tokens(&done).into_iter().map(<[u32]>::to_vec).collect::<Vec<_>>()
    };
    let plain = ids("off", 1);
    assert_eq!(ids("fixed:3", 1), plain, "{name}, one after the other");
    assert_eq!(ids("fixed:2", 2), plain, "{name}, together");
}

#[test]
fn what_codes_cannot_do_is_refused() {
    let error = |geometry: &Geometry, weights: &ModelWeights<'_>, options: &CudaOptions| {
        CudaBackend::new(emulated(0, 1 << 30), geometry, weights, None, options).err().unwrap().to_string()
    };
    let checkpoint = fixture("gguf/qwen3-mixed.gguf");
    let fast = CudaOptions { prefill: Prefill::Fast, ..options(1) };
    let found = error(checkpoint.geometry(), &mixed(&checkpoint), &fast);
    assert!(found.contains("--prefill fast multiplies weights of 16 bits"), "{found}");

    let mut weights = checkpoint.weights();
    let bytes: &'static [u8] = vec![0; weights.layers[1].up.rows * weights.layers[1].up.cols * 2].leak();
    weights.layers[1].up = Matrix { format: Dtype::BF16.into(), bytes, ..weights.layers[1].up };
    let found = error(checkpoint.geometry(), &weights, &options(1));
    assert!(found.contains("and up_proj is bf16 (expected integer codes in both, fp8 in both, or"), "{found}");

    let checkpoint = fixture("hf-quantised/ct-int4-act-order");
    let found = error(checkpoint.geometry(), &checkpoint.weights(), &options(1));
    assert!(found.contains("cuda: layer 0: the weights of "), "{found}");
    assert!(found.contains("with columns in an order of their own (expected columns in order)"), "{found}");

    let checkpoint = fixture("hf-quantised/fp8-block");
    let in_fp8 = |like: &Matrix<'_>, size| {
        let format = Format::Fp8(Fp8 { size });
        let bytes: &'static [u8] = vec![0; like.rows * format.row_bytes(like.cols).unwrap()].leak();
        Matrix::new(format, like.rows, like.cols, bytes)
    };
    let mut weights = checkpoint.weights();
    weights.layers[0].down = in_fp8(&weights.layers[0].down, 24);
    let found = error(checkpoint.geometry(), &weights, &options(1));
    let expected = "the weights of down_proj are fp8 (e4m3), groups of 24 (expected groups of a multiple of 16)";
    assert!(found.contains(expected), "{found}");
    let mut weights = checkpoint.weights();
    weights.layers[0].up = in_blocks(weights.layers[0].up);
    let found = error(checkpoint.geometry(), &weights, &options(1));
    assert!(found.contains("gate_proj is fp8 (e4m3), groups of 64 and up_proj is q8_0 (expected"), "{found}");
}
