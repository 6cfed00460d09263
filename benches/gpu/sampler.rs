//! `sample` by itself: rows of logits as a model with a large vocabulary has them, under each kind of filter.

use crate::device::Measurable;
use crate::expected;
use crate::kernels::time;
use crate::sizes::Size;
use eesd::backend::BackendError;
use eesd::backend::cuda::driver::{HostMemory, Memory};
use eesd::backend::cuda::kernels::{Address, HeadPartial, JudgedRow, Params, RowChoice, Sample, sample};
use std::error::Error;
use std::sync::Arc;

/// Logits behind one of the head's partial results.
const TILE: usize = 32;
const GREEDY: u32 = 0;
const COUPLED: u32 = 2;

/// Measures and prints.
///
/// # Errors
/// If there is too little memory, or the device fails.
pub fn sampler<D: Measurable>(driver: &Arc<D>, size: &Size) -> Result<(), Box<dyn Error>> {
    let (vocab, most_rows) = (size.sampled_vocab, size.sampled_rows[size.sampled_rows.len() - 1]);
    println!(
        "### Sampling, vocabulary of {vocab}\n\nBytes: logits, read once; medians of {} graphs of {} launches.\n\n\
         | filter | rows | MB | µs | expected |\n|---|--:|--:|--:|--:|",
        size.repetitions, size.launches
    );
    let logits = logits(most_rows * vocab);
    let partials: Vec<HeadPartial> = logits.chunks(vocab).flat_map(partials).collect();
    let rows: Vec<JudgedRow> = (0..most_rows as u32)
        .map(|row| JudgedRow { sequence: row, position: 100 + row, drafted: 0, slot: row, destination: row })
        .collect();
    let logits = upload(driver, bytemuck::cast_slice(&logits))?;
    let partials = upload(driver, bytemuck::cast_slice(&partials))?;
    let rows = upload(driver, bytemuck::cast_slice(&rows))?;
    let weights = Memory::zeroed(driver, most_rows * vocab * size_of::<u64>(), "weights of tokens")?;
    let choices = Memory::zeroed(driver, (most_rows * size_of::<RowChoice>()).next_multiple_of(16), "choices")?;
    let filters = Memory::zeroed(driver, (most_rows * Sample::FILTER_BYTES).next_multiple_of(16), "filters of rows")?;
    let parts = Memory::zeroed(
        driver,
        (most_rows * Sample::slices(vocab) * Sample::PART_BYTES).next_multiple_of(16),
        "parts of rows",
    )?;
    let plain = Params {
        temperature: 0.8,
        top_p: 1.0,
        min_p: 0.0,
        repetition_penalty: 1.0,
        presence_penalty: 0.0,
        frequency_penalty: 0.0,
        seed: 1,
        top_k: 0,
        rule: COUPLED,
    };
    let cases = [
        ("greedy", Params { rule: GREEDY, ..plain }),
        ("none", plain),
        ("top-k 50", Params { top_k: 50, ..plain }),
        ("top-p 0.9", Params { top_p: 0.9, ..plain }),
        ("min-p 0.05", Params { min_p: 0.05, ..plain }),
    ];
    for (name, params) in cases {
        let weighs = params.rule != GREEDY;
        let uploaded = upload(driver, bytemuck::cast_slice(&vec![params; most_rows]))?;
        for &count in size.sampled_rows {
            let arguments = Sample {
                logits: logits.at(),
                partials: partials.at(),
                raw_partials: partials.at(),
                params: uploaded.at(),
                rows: rows.at(),
                weights: weights.at(),
                choices: choices.at(),
                draft_ids: Address(0),
                filters: filters.at(),
                parts: parts.at(),
                vocab: vocab as i32,
                draws: 1,
                stride: vocab as i32,
                padding: 0,
            };
            // SAFETY: all buffers have room for `most_rows` rows of the vocabulary.
            let seconds = time(&**driver, size, 1, &|_| unsafe { sample(&**driver, count, weighs, &arguments) })?;
            let filters = weighs.then(|| usize::from(params.top_k > 0) + usize::from(params.top_p < 1.0));
            let expected = expected::sampling(vocab, filters) * 1e6;
            let megabytes = (count * vocab * 4) as f64 * 1e-6;
            println!("| {name} | {count} | {megabytes:.1} | {:.1} | {expected:.1} |", seconds * 1e6);
        }
    }
    println!();
    Ok(())
}

/// About normal, the same each time: sums of four bytes of a hash.
fn logits(count: usize) -> Vec<f32> {
    let logit = |i: u64| {
        let mut word = (i + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        word = (word ^ word >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let bytes = ((word ^ word >> 32) as u32).to_le_bytes();
        (bytes.iter().map(|&byte| f32::from(byte)).sum::<f32>() - 510.0) / 50.0
    };
    (0..count as u64).map(logit).collect()
}

/// What the head leaves of a row beside its logits.
fn partials(row: &[f32]) -> Vec<HeadPartial> {
    let tile = |(i, tile): (usize, &[f32])| {
        let max = tile.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let at = tile.iter().position(|&logit| logit == max).expect("the largest is one of them");
        HeadPartial { max, column: (i * TILE + at) as u32, sum: tile.iter().map(|&logit| (logit - max).exp()).sum() }
    };
    row.chunks(TILE).enumerate().map(tile).collect()
}

fn upload<D: Measurable>(driver: &Arc<D>, bytes: &[u8]) -> Result<Memory<D>, BackendError> {
    let memory = Memory::zeroed(driver, bytes.len().next_multiple_of(16), "the sampler's input")?;
    let mut host = HostMemory::zeroed(driver, bytes.len())?;
    host.contents_mut().copy_from_slice(bytes);
    // SAFETY: both sides have room, and the host's is left alone until the copy is done.
    unsafe { driver.copy_to_device(memory.at(), host.at(), bytes.len()) }?;
    driver.wait()?;
    Ok(memory)
}
