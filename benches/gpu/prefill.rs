//! Prompts into the cache, by the engine's own kernels and by NVIDIA's library of matrix products, against the rate of
//! one large product of that library.

use crate::costs::median;
use crate::device::Measurable;
use crate::expected;
use crate::kernels::fill;
use crate::sizes::Size;
use eesd::TokenId;
use eesd::backend::cuda::driver::Memory;
use eesd::backend::cuda::matmul::{Matmul, Number, RowMajor};
use eesd::backend::cuda::{CudaBackend, CudaOptions, Prefill};
use eesd::backend::{BackendError, Chunk};
use eesd::kv::{BlockTable, PAGE_TOKENS, PagePool};
use eesd::model::Geometry;
use std::error::Error;
use std::sync::Arc;
use std::time::Instant;

/// Products in one measurement.
const PRODUCTS: usize = 8;

/// Measures prompts of one model and prints them.
///
/// # Errors
/// If the model does not fit the device, or the device fails.
pub fn prefill<D: Measurable>(
    open: &dyn Fn(bool) -> Result<Arc<D>, Box<dyn Error>>,
    size: &Size,
) -> Result<(), Box<dyn Error>> {
    println!("### Prompts, {}\n", size.name);
    let driver = open(true)?;
    let rate = driver.matmul_workspace().and_then(|bytes| product_rate(&driver, size, bytes));
    drop(driver);
    let mut ways = ways(size);
    match &rate {
        Ok(rate) => {
            let n = size.product;
            println!("A product of {n} x {n} x {n} in bf16, summed in f32: {:.0} TFLOP/s.", rate * 1e-12);
        }
        Err(why) => {
            println!("Fast prefill is left out: {why}.");
            ways.retain(|&(prefill, _)| prefill == Prefill::Exact);
        }
    }
    println!(
        "Wall-clock, medians of {}. FLOP: two for each weight of a projection and token; attention is not counted.\n\n\
         | prefill | rows of a pass | tokens | ms | expected | tokens/s | TFLOP/s | of the product |\n|---|--:|--:|--:|--:|--:|--:|--:|",
        size.repetitions
    );
    let longest = size.prompts[size.prompts.len() - 1];
    for (prefill, prefill_rows) in ways {
        let options = CudaOptions { context: longest + 1, prefill_rows, prefill, ..CudaOptions::default() };
        let mut backend = CudaBackend::synthetic(open(true)?, &size.geometry, size.exit_after, 1.0, &options)?;
        let mut pool = PagePool::new(longest.div_ceil(PAGE_TOKENS));
        let mut table = BlockTable::default();
        table.reserve(longest, &mut pool).map_err(|missing| format!("{missing} pages are missing"))?;
        let text: Vec<_> = (0..longest).map(|i| (i * 7919 % size.geometry.vocab_size) as TokenId).collect();
        for &tokens in size.prompts {
            let mut seconds = Vec::new();
            // In the first one kernels are loaded, and the library chooses how to multiply.
            for repetition in 0..size.repetitions + 1 {
                let start = Instant::now();
                backend.prefill(&[Chunk { pages: table.pages(), start: 0, tokens: &text[..tokens] }])?;
                if repetition > 0 {
                    seconds.push(start.elapsed().as_secs_f64());
                }
            }
            let middle = median(&seconds);
            let expected = expected(&size.geometry, tokens, prefill_rows, prefill);
            let reached = 2.0 * (weights(&size.geometry) * tokens) as f64 / middle;
            let part = rate.as_ref().map_or("".into(), |rate| format!("{:.0} %", reached / rate * 100.0));
            println!(
                "| {prefill:?} | {prefill_rows} | {tokens} | {:.2} | {:.2} | {:.0} | {:.1} | {part} |",
                middle * 1e3,
                expected * 1e3,
                tokens as f64 / middle,
                reached * 1e-12
            );
        }
    }
    println!();
    Ok(())
}

/// Ways of taking in prompts that are measured, and rows of a pass for each.
pub fn ways(size: &Size) -> Vec<(Prefill, usize)> {
    let fast = size.prefill_rows.iter().map(|&rows| (Prefill::Fast, rows));
    [(Prefill::Exact, size.prefill_rows[0])].into_iter().chain(fast).collect()
}

/// Seconds that an H200 should take for a prompt, in passes of so many rows.
pub fn expected(geometry: &Geometry, tokens: usize, rows: usize, prefill: Prefill) -> f64 {
    let passes = (0..tokens).step_by(rows).map(|from| rows.min(tokens - from));
    passes.map(|rows| expected::prefill(weights(geometry) * 2, rows, prefill == Prefill::Fast)).sum()
}

/// Weights that a token of a prompt is multiplied with: all projections but those after the last layer's keys and
/// values, and the exit layer's for its own.
fn weights(geometry: &Geometry) -> usize {
    let Geometry { hidden_size: hidden, intermediate_size: mlp, layers, .. } = *geometry;
    let (q, kv) = (geometry.q_size(), geometry.kv_size());
    hidden * ((layers - 1) * (2 * q + 2 * kv + 3 * mlp) + 2 * 2 * kv)
}

/// FLOP per second of one large product, of numbers that are not zero: those would cost less power.
fn product_rate<D: Measurable>(driver: &Arc<D>, size: &Size, workspace: usize) -> Result<f64, BackendError> {
    let n = size.product;
    let zeroed = |bytes| Memory::zeroed(driver, bytes, "a product");
    let (a, b, c, workspace) = (zeroed(n * n * 2)?, zeroed(n * n * 2)?, zeroed(n * n * 4)?, zeroed(workspace)?);
    fill(driver, &a, 1.0)?;
    fill(driver, &b, 1.0)?;
    let matrix = |memory: &Memory<D>, number| RowMajor { at: memory.at(), stride: n, number };
    let product = Matmul {
        m: n,
        n,
        k: n,
        a: matrix(&a, Number::Bf16),
        transpose_a: false,
        b: matrix(&b, Number::Bf16),
        transpose_b: true,
        c: matrix(&c, Number::F32),
        alpha: 1.0,
        beta: 0.0,
        workspace: workspace.at(),
    };
    // SAFETY: all of it is memory of this device, and is given back after what is queued is waited for.
    let mut multiply = || (0..PRODUCTS).try_for_each(|_| unsafe { driver.matmul(&product) });
    multiply()?;
    let mut rates = Vec::new();
    for _ in 0..size.repetitions {
        let seconds = driver.seconds(&mut multiply)?;
        rates.push((PRODUCTS * 2 * n * n * n) as f64 / seconds);
    }
    Ok(median(&rates))
}
