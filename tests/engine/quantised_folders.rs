//! Compares quantised folders with the libraries of their formats: each matrix to the bit, and transformers' logits and
//! greedy tokens with these matrices, for every folder in `tests/fixtures/hf-quantised`.
//!
//! What `expected.safetensors` holds is told in `tools/quantised_fixtures.py`, which makes them.

use crate::common::greedy::follow;
use eesd::backend::Chunk;
use eesd::backend::cpu::{Activations, CpuBackend, CpuOptions};
use eesd::kv::PageId;
use eesd::load::Checkpoint;
use eesd::model::{Dtype, Format, LayerWeights, Matrix, ModelWeights};
use safetensors::SafeTensors;
use std::path::{Path, PathBuf};

/// What quantised weights are multiplied by, and the largest difference allowed in logits (those of the references have a
/// standard deviation of 3, and a column out of place moves them by as much). Also: a reference's two best logits closer
/// than this are a tie.
const PRODUCTS: [(Activations, f32); 2] = [(Activations::Full, 2e-3), (Activations::Eight, 0.8)];
/// Tokens that the greedy reference starts from.
const PROMPT: usize = 32;
/// Of the checksums of rows.
const MIX: u64 = 0x9E37_79B9_7F4A_7C15;

fn folders() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/hf-quantised");
    let mut folders: Vec<PathBuf> = std::fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path()).collect();
    folders.sort();
    assert!(folders.len() >= 16, "only {} fixtures found", folders.len());
    folders
}

fn open(folder: &Path) -> Checkpoint {
    Checkpoint::open(folder).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn every_matrix_is_its_librarys_to_the_bit() {
    let mut compared = 0;
    for folder in folders() {
        let bytes = std::fs::read(folder.join("expected.safetensors")).unwrap();
        let expected = SafeTensors::deserialize(&bytes).unwrap();
        let checkpoint = open(&folder);
        let weights = checkpoint.weights();
        for name in expected.names().into_iter().filter(|name| name.starts_with("rows.")) {
            let matrix = matrix(&weights, name.strip_prefix("rows.").unwrap());
            let sums =
                expected.tensor(name).unwrap().data().as_chunks::<8>().0.iter().map(|sum| u64::from_le_bytes(*sum));
            assert_eq!(sums.len(), matrix.rows, "{}: {name}", folder.display());
            for (row, sum) in sums.enumerate() {
                assert_eq!(checksum(&matrix, row), sum, "{}: {name}, row {row}", folder.display());
            }
            compared += 1;
        }
    }
    assert!(compared >= 130, "{compared}");
}

/// The bits of element `j` of a row times `MIX` to the power of `j + 1`, summed up.
fn checksum(matrix: &Matrix<'_>, row: usize) -> u64 {
    let mut numbers = vec![0.0f32; matrix.cols];
    matrix.dequantise_row(row, &mut numbers);
    let mut power = 1u64;
    let terms = numbers.iter().map(|number| {
        power = power.wrapping_mul(MIX);
        u64::from(number.to_bits()).wrapping_mul(power)
    });
    terms.fold(0, u64::wrapping_add)
}

fn matrix<'a>(weights: &ModelWeights<'a>, name: &str) -> Matrix<'a> {
    if name == "lm_head.weight" {
        return weights.head;
    }
    let (layer, map) = name.strip_prefix("model.layers.").unwrap().split_once('.').unwrap();
    let LayerWeights { q, k, v, o, gate, up, down, .. } = weights.layers[layer.parse::<usize>().unwrap()];
    match map {
        "self_attn.q_proj.weight" => q,
        "self_attn.k_proj.weight" => k,
        "self_attn.v_proj.weight" => v,
        "self_attn.o_proj.weight" => o,
        "mlp.gate_proj.weight" => gate,
        "mlp.up_proj.weight" => up,
        "mlp.down_proj.weight" => down,
        other => panic!("{other}"),
    }
}

#[test]
fn logits_and_greedy_tokens_are_those_of_transformers() {
    let folders = folders();
    let failed: Vec<String> = folders
        .iter()
        .flat_map(|folder| PRODUCTS.map(|(by, most)| compare(folder, by, most).err()))
        .flatten()
        .collect();
    assert!(failed.is_empty(), "\n{}", failed.join("\n"));
}

fn compare(folder: &Path, activations: Activations, tolerance: f32) -> Result<(), String> {
    let bytes = std::fs::read(folder.join("expected.safetensors")).unwrap();
    let expected = SafeTensors::deserialize(&bytes).unwrap();
    let data = |name: &str| expected.tensor(name).unwrap().data();
    let ids = |name: &str| data(name).as_chunks::<8>().0.iter().map(|id| i64::from_le_bytes(*id) as u32).collect();
    let logits = data("logits").as_chunks::<4>().0.iter().map(|logit| f32::from_le_bytes(*logit));
    let (tokens, wanted): (Vec<u32>, Vec<u32>) = (ids("input_ids"), ids("greedy_from_first_32"));

    let checkpoint = open(folder);
    let options = CpuOptions { context: 256, max_draft: 4, activations, ..CpuOptions::default() };
    let mut backend = CpuBackend::new(checkpoint.geometry(), &checkpoint.weights(), None, &options).unwrap();
    let pages: Vec<PageId> = (0..backend.limits().pages as u32).map(PageId).collect();
    let found = backend.evaluate(&Chunk { pages: &pages, start: 0, tokens: &tokens }, 1).unwrap().logits;
    assert_eq!(found.len(), logits.len());
    // By the total order, in which what is no number is above all numbers.
    let largest = found.iter().zip(logits).map(|(a, b)| (a - b).abs()).max_by(f32::total_cmp).unwrap();
    let what = format!("{}, by {activations:?}", folder.display());
    println!("{what}: logits differ by at most {largest:.1e}");
    if largest.total_cmp(&tolerance).is_gt() {
        return Err(format!("{what}: logits differ by {largest}"));
    }
    follow(&mut *backend, &pages, &tokens[..PROMPT], &wanted, tolerance).map_err(|error| format!("{what}: {error}"))
}

/// Codes stay packed, whatever the order of inputs.
#[test]
fn matrices_stay_as_small_as_they_were() {
    let format = |name: &str| {
        let folder = folders().into_iter().find(|folder| folder.ends_with(name)).unwrap();
        open(&folder).weights().layers[0].up.format.to_string()
    };
    for (name, expected) in [
        ("ct-int4-group", "int4, groups of 32"),
        ("ct-int4-group-asymmetric-with-head", "int4, groups of 64 with minima"),
        ("ct-int4-channel", "int4, groups of 128"),
        ("ct-int8-packed-asymmetric", "int8, groups of 128 with minima"),
        ("ct-int8-channel", "int8, groups of 128"),
        ("ct-fp8-tensor", "fp8 (e4m3), groups of 128"),
        ("ct-fp8-block", "fp8 (e4m3), groups of 64"),
        ("fp8-block", "fp8 (e4m3), groups of 64"),
        ("gptq-v1", "int4, groups of 32"),
        ("gptq-dynamic", "int4, groups of 64 with minima"),
        ("awq", "int4, groups of 32 with minima"),
        ("ct-int4-act-order", "int4, groups of 32"),
        ("gptq-v2-act-order", "int4, groups of 32 with minima"),
    ] {
        assert_eq!(format(name), expected, "{name}");
    }
    let mixed = open(&folders().into_iter().find(|folder| folder.ends_with("ct-mixed")).unwrap());
    let [first, second] = &mixed.weights().layers[..] else { panic!() };
    assert_eq!(first.up.format.to_string(), "int4, groups of 128 with minima");
    assert_eq!(second.up.format, Format::Float(Dtype::BF16));
    assert_eq!(second.down.format.to_string(), "int8, groups of 128");
    assert_eq!(second.q.format.to_string(), "int4, groups of 32");
}
