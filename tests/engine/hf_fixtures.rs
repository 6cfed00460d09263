//! Compares the engine with Hugging Face's own models: logits, hidden states after two layers, and
//! greedy tokens, for every folder in `tests/fixtures/hf` and the one that `EESD_FIXTURES` names.
//!
//! A folder holds a checkpoint and `expected.safetensors`: `input_ids` `[n]`, `logits` `[n, vocab]`,
//! `hidden_after_2_layers` `[n, hidden]`, `greedy_from_first_32` (the ids that follow the first 32).

use crate::common::greedy::follow;
use eesd::backend::Chunk;
use eesd::backend::cpu::{CpuBackend, CpuOptions};
use eesd::kv::PageId;
use eesd::load::Checkpoint;
use safetensors::SafeTensors;
use std::path::{Path, PathBuf};

/// Largest difference allowed in logits. Also: a reference's two best logits closer than this are a tie.
const TOLERANCE: f32 = 2e-3;

/// Tokens that the greedy reference starts from.
const PROMPT: usize = 32;

#[test]
fn every_fixture_agrees() {
    let folders = fixtures();
    assert!(folders.len() >= 5, "only {} fixtures found", folders.len());
    let failed: Vec<String> = folders.iter().filter_map(|folder| compare(folder).err()).collect();
    assert!(failed.is_empty(), "\n{}", failed.join("\n"));
}

fn fixtures() -> Vec<PathBuf> {
    let bundled = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/hf");
    let named = std::env::var_os("EESD_FIXTURES").map(PathBuf::from);
    let mut folders = Vec::new();
    for root in [Some(bundled), named].into_iter().flatten() {
        if root.join("expected.safetensors").exists() {
            folders.push(root);
            continue;
        }
        let entries = std::fs::read_dir(&root).unwrap_or_else(|error| panic!("{}: {error}", root.display()));
        let inside =
            entries.map(|entry| entry.unwrap().path()).filter(|path| path.join("expected.safetensors").exists());
        folders.extend(inside);
    }
    folders.sort();
    folders
}

/// What `expected.safetensors` holds.
struct Expected {
    input_ids: Vec<u32>,
    logits: Vec<f32>,
    hidden: Vec<f32>,
    greedy: Vec<u32>,
}

impl Expected {
    fn read(folder: &Path) -> Self {
        let bytes = std::fs::read(folder.join("expected.safetensors")).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let floats = |name: &str| {
            let data = tensors.tensor(name).unwrap().data().to_vec();
            data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
        };
        let ids = |name: &str| {
            let data = tensors.tensor(name).unwrap().data().to_vec();
            data.chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()) as u32).collect()
        };
        Self {
            input_ids: ids("input_ids"),
            logits: floats("logits"),
            hidden: floats("hidden_after_2_layers"),
            greedy: ids("greedy_from_first_32"),
        }
    }
}

fn compare(folder: &Path) -> Result<(), String> {
    let name = folder.display();
    let expected = Expected::read(folder);
    let checkpoint = Checkpoint::open(folder).map_err(|error| format!("{name}: {error}"))?;
    let geometry = checkpoint.geometry();
    let options = CpuOptions { slots: 1, context: 256, max_draft: 4, ..CpuOptions::default() };
    let mut backend = CpuBackend::new(geometry, &checkpoint.weights(), None, &options).unwrap();
    let pages: Vec<PageId> = (0..backend.limits().pages as u32).map(PageId).collect();

    let chunk = Chunk { pages: &pages, start: 0, tokens: &expected.input_ids };
    let found = backend.evaluate(&chunk, 2).unwrap();
    let logits = largest_difference(&found.logits, &expected.logits);
    let hidden = largest_difference(&found.hidden, &expected.hidden);
    // The residual stream may be much larger than logits are.
    let hidden_scale = expected.hidden.iter().fold(1.0f32, |largest, x| largest.max(x.abs()));
    println!("{name}: logits differ by at most {logits:.1e}, hidden states by {hidden:.1e} (of {hidden_scale:.1})");
    if logits > TOLERANCE || hidden > TOLERANCE * hidden_scale {
        return Err(format!("{name}: logits differ by {logits}, hidden states by {hidden} (of {hidden_scale})"));
    }
    follow(&mut *backend, &pages, &expected.input_ids[..PROMPT], &expected.greedy, TOLERANCE)
        .map_err(|error| format!("{name}: {error}"))
}

fn largest_difference(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}
