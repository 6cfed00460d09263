//! Steps of models with quantised weights, 8 and 4 bits: what they should take, and what they do.

use crate::costs::median;
use crate::device::Measurable;
use crate::expected;
use crate::random_model::RandomModel;
use crate::sizes::Size;
use crate::steps::{Rounds, cache_bytes};
use eesd::backend::KvFormat;
use eesd::backend::cuda::{CudaBackend, CudaOptions};
use eesd::model::{Encoder, Format, Geometry};
use std::error::Error;
use std::sync::Arc;

/// 8 and 4 bits, with a scale for each 32 weights.
const ENCODERS: [(&str, Encoder); 2] = [("q8_0", Encoder::Q8_0), ("q4_0", Encoder::Q4_0)];
/// Rows of the verifications.
const ROWS: [usize; 2] = [1, 8];

/// A line of the table, as far as it is known beforehand.
pub struct Case {
    encoder: Encoder,
    rows: usize,
    context: usize,
    /// Model, format, rows, gigabytes of a step's weights.
    pub told: String,
    /// Seconds that an H200 should take.
    pub expected: f64,
}

impl Case {
    /// All of one model.
    pub fn all(size: &Size) -> Vec<Self> {
        let context = size.contexts[1];
        let case = |(name, encoder): (&str, Encoder), rows| {
            let weights = weight_bytes(size, Format::Blocks(encoder.blocks()));
            let cache = size.geometry.layers * cache_bytes(&size.geometry, KvFormat::Full, context);
            let told = format!("| {} | {name} | {rows} | {:.1} |", size.name, weights as f64 * 1e-9);
            let expected = expected::quantised(weights, rows, encoder.blocks()) + expected::reading(cache);
            Self { encoder, rows, context, told, expected }
        };
        ENCODERS.iter().flat_map(|&encoder| ROWS.map(|rows| case(encoder, rows))).collect()
    }
}

/// Above the lines.
pub const HEADING: &str = "### Quantised weights\n\nRandom weights in blocks of 32; context as of the passes. Expected: codes and scales \
     read once.\n\n| model | weights | rows | GB | ms | expected |\n|---|---|--:|--:|--:|--:|";

/// Measures the models and prints a table.
///
/// # Errors
/// If a model does not fit the device, or the device fails.
pub fn quantised<D: Measurable>(
    open: &dyn Fn(bool) -> Result<Arc<D>, Box<dyn Error>>,
    sizes: &[Size],
) -> Result<(), Box<dyn Error>> {
    println!("{HEADING}");
    for (_, encoder) in ENCODERS {
        for size in sizes {
            let cases = Case::all(size).into_iter().filter(|case| case.encoder == encoder);
            let mut rounds = None;
            for case in cases {
                let rounds = match &mut rounds {
                    Some(rounds) => rounds,
                    none => {
                        let backend = backend(open(true)?, &size.geometry, size.exit_after, encoder, case.context)?;
                        let mut made = Rounds::new(backend, case.context)?;
                        made.prefill()?;
                        none.insert(made)
                    }
                };
                let seconds = median(&rounds.measure(case.context, case.rows, size.repetitions)?.1);
                println!("{} {:.3} | {:.3} |", case.told, seconds * 1e3, case.expected * 1e3);
            }
        }
    }
    println!();
    Ok(())
}

fn backend<D: Measurable>(
    driver: Arc<D>,
    geometry: &Geometry,
    exit_after: usize,
    encoder: Encoder,
    context: usize,
) -> Result<Box<dyn eesd::backend::Backend>, Box<dyn Error>> {
    let model = RandomModel::new(geometry.clone(), Format::Blocks(encoder.blocks()), |_| 1.0);
    let weights = model.weights();
    let exit = eesd::model::ExitWeights::from_model(&weights, exit_after, exit_after);
    let options = CudaOptions { context, prefill_rows: 1024, ..CudaOptions::default() };
    Ok(CudaBackend::new(driver, geometry, &weights, Some(&exit), &options)?)
}

/// Bytes of the matrices that a plain step reads: every layer and the head.
fn weight_bytes(size: &Size, format: Format) -> usize {
    let bytes = |outputs: usize, inputs: usize| outputs * format.row_bytes(inputs).expect("rows of whole blocks");
    let [layer @ .., (_, vocab, hidden)] = size.projections();
    let layer: usize = layer.iter().map(|&(_, outputs, inputs)| bytes(outputs, inputs)).sum();
    size.geometry.layers * layer + bytes(vocab, hidden)
}
