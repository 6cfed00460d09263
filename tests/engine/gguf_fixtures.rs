//! Compares the engine with references for GGUF files: logits and greedy tokens, for every file in `tests/fixtures/gguf`
//! and in the folder that `EESD_FIXTURES` names.
//!
//! Beside `NAME.gguf` lies `NAME.expected.safetensors`, made from the numbers that the package `gguf` makes of the blocks, by
//! transformers in f32: `input_ids` `[n]`, `logits` `[12, vocab]` of the first twelve, `greedy_from_first_24` (the ids that
//! follow the first 24) and `greedy_margins` (how far each was ahead).

use eesd::backend::cpu::{Activations, CpuBackend, CpuOptions};
use eesd::backend::{Backend, Chunk, Sequence};
use eesd::kv::PageId;
use eesd::load::Checkpoint;
use eesd::model::{BlockType, Dtype, Format};
use eesd::sample::{Sampler, SamplingParams};
use safetensors::SafeTensors;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// What quantised weights are multiplied by, and the largest difference allowed in logits.
const PRODUCTS: [(Activations, f32); 2] = [(Activations::Full, 2e-3), (Activations::Eight, 0.25)];

/// Tokens that the greedy reference starts from.
const PROMPT: usize = 24;

fn backend(checkpoint: &Checkpoint, activations: Activations) -> Box<dyn Backend> {
    let options = CpuOptions { context: 256, max_draft: 4, activations, ..CpuOptions::default() };
    CpuBackend::new(checkpoint.geometry(), &checkpoint.weights(), None, &options).unwrap()
}

#[test]
fn every_gguf_fixture_agrees() {
    let files = fixtures();
    let failed: Vec<String> =
        files.iter().flat_map(|file| PRODUCTS.map(|(by, most)| compare(file, by, most).err())).flatten().collect();
    assert!(failed.is_empty(), "\n{}", failed.join("\n"));
}

#[test]
fn the_bundled_fixtures_have_every_format_and_architecture() {
    let mut formats = BTreeSet::new();
    let mut families = BTreeSet::new();
    for file in bundled() {
        let checkpoint = Checkpoint::open(&file).unwrap();
        let weights = checkpoint.weights();
        let of_layers = weights.layers.iter().flat_map(|layer| {
            [layer.q, layer.k, layer.v, layer.o, layer.gate, layer.up, layer.down].map(|matrix| matrix.format)
        });
        formats.extend(of_layers.map(|format| format.to_string()));
        families.insert(checkpoint.geometry().family.clone());
    }
    let blocks = BlockType::ALL.map(Format::Blocks);
    let floats = [Dtype::F32, Dtype::F16, Dtype::BF16].map(Format::Float);
    let all = blocks.into_iter().chain(floats).map(|format| format.to_string());
    assert_eq!(formats, all.collect());
    assert_eq!(families.into_iter().collect::<Vec<_>>(), ["llama", "qwen2", "qwen3"]);
}

fn bundled() -> Vec<PathBuf> {
    inside(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/gguf"))
}

fn fixtures() -> Vec<PathBuf> {
    let named = std::env::var_os("EESD_FIXTURES").map(PathBuf::from);
    bundled().into_iter().chain(named.iter().flat_map(|folder| inside(folder))).collect()
}

/// The GGUF files of a folder that have a reference beside them.
fn inside(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "gguf") && reference(file).exists());
    files.sort();
    files
}

fn reference(file: &Path) -> PathBuf {
    file.with_extension("expected.safetensors")
}

/// What a reference holds.
struct Expected {
    input_ids: Vec<u32>,
    logits: Vec<f32>,
    greedy: Vec<u32>,
    margins: Vec<f32>,
}

impl Expected {
    fn read(file: &Path) -> Self {
        let bytes = std::fs::read(reference(file)).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let numbers = |name: &str| tensors.tensor(name).unwrap().data().as_chunks::<4>().0.to_vec();
        let floats = |name: &str| numbers(name).into_iter().map(f32::from_le_bytes).collect();
        let ids = |name: &str| numbers(name).into_iter().map(u32::from_le_bytes).collect();
        Self {
            input_ids: ids("input_ids"),
            logits: floats("logits"),
            greedy: ids("greedy_from_first_24"),
            margins: floats("greedy_margins"),
        }
    }
}

fn compare(file: &Path, activations: Activations, tolerance: f32) -> Result<(), String> {
    let name = file.display();
    let expected = Expected::read(file);
    let checkpoint = Checkpoint::open(file).map_err(|error| format!("{name}: {error}"))?;
    let mut backend = backend(&checkpoint, activations);
    let pages: Vec<PageId> = (0..backend.limits().pages as u32).map(PageId).collect();

    let chunk = Chunk { pages: &pages, start: 0, tokens: &expected.input_ids };
    let found = backend.evaluate(&chunk, 1).unwrap().logits;
    let first = &found[..expected.logits.len()];
    let difference = first.iter().zip(&expected.logits).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    println!("{name}, {activations:?}: logits differ by at most {difference:.1e}");
    // A number that is none differs too.
    let agree = first.iter().zip(&expected.logits).all(|(a, b)| (a - b).abs() <= tolerance);
    if !agree {
        return Err(format!("{name}, {activations:?}: logits differ by {difference} (expected at most {tolerance})"));
    }
    greedy(&mut *backend, &pages, &expected, tolerance).map_err(|error| format!("{name}: {error}"))
}

/// Decodes plainly from the first tokens; stops at a near-tie that went the other way.
fn greedy(backend: &mut dyn Backend, pages: &[PageId], expected: &Expected, tolerance: f32) -> Result<(), String> {
    let mut tokens = expected.input_ids[..PROMPT].to_vec();
    backend.prefill(&[Chunk { pages, start: 0, tokens: &tokens[..PROMPT - 1] }]).unwrap();
    let sampler = Sampler::new(SamplingParams::default(), backend.geometry().vocab_size).unwrap();
    for (index, (&wanted, &margin)) in expected.greedy.iter().zip(&expected.margins).enumerate() {
        let committed = tokens.len();
        let sequence = Sequence {
            slot: 0,
            pages,
            tokens: &tokens,
            committed,
            prompt: PROMPT,
            proposed: 0,
            recurrent: 0,
            sampler: &sampler,
        };
        let next = backend.verify(&[sequence]).unwrap()[0].next;
        if next != wanted {
            if margin > 2.0 * tolerance {
                return Err(format!("greedy token {index} is {next} (expected {wanted}, by {margin})"));
            }
            println!("  greedy token {index} is a tie (margin {margin:.1e}): stopped there");
            return Ok(());
        }
        tokens.push(next);
    }
    Ok(())
}
