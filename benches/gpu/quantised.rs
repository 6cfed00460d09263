//! Steps of models with quantised weights, integers of 8 and 4 bits and 8-bit floating point: what they should take, and what
//! they do.

use crate::costs::median;
use crate::device::Measurable;
use crate::expected;
use crate::random_model::RandomModel;
use crate::sizes::Size;
use crate::steps::{Rounds, cache_bytes};
use eesd::backend::KvFormat;
use eesd::backend::cuda::coding::Storage;
use eesd::backend::cuda::{CudaBackend, CudaOptions};
use eesd::model::{BlockType, Format, Fp8, Geometry, Matrix};
use std::error::Error;
use std::sync::Arc;

/// Integers of 8 and 4 bits with a scale for each 32 weights, and 8-bit floating point with one for each 128.
const FORMATS: [(&str, Format); 3] = [
    ("q8_0", Format::Blocks(BlockType::Q8_0)),
    ("q4_0", Format::Blocks(BlockType::Q4_0)),
    ("fp8", Format::Fp8(Fp8 { size: 128 })),
];
/// The most that is loaded in 8-bit floating point: of a larger model it is as many bytes as in integers, and a visit has no time
/// to load them twice.
const MOST_FP8_BYTES: usize = 60_000_000_000;
/// Rows of the verifications.
const ROWS: [usize; 2] = [1, 8];

/// A line of the table, as far as it is known beforehand.
pub struct Case {
    format: Format,
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
        let count = weights(size, |outputs, inputs| outputs * inputs);
        let case = |(name, format): (&str, Format), rows| {
            let bytes = weights(size, |outputs, inputs| bytes_on_device(format, outputs, inputs));
            let cache = size.geometry.layers * cache_bytes(&size.geometry, KvFormat::Full, context);
            let told = format!("| {} | {name} | {rows} | {:.1} |", size.name, bytes as f64 * 1e-9);
            let expected = expected::quantised(count, bytes, rows) + expected::reading(cache);
            (bytes, Self { format, rows, context, told, expected })
        };
        let cases = FORMATS.iter().flat_map(|&format| ROWS.map(|rows| case(format, rows)));
        let fits = |(bytes, case): (usize, Self)| {
            (!matches!(case.format, Format::Fp8(_)) || bytes <= MOST_FP8_BYTES).then_some(case)
        };
        cases.filter_map(fits).collect()
    }
}

/// Above the lines.
pub const HEADING: &str = "### Quantised weights\n\nRandom weights in blocks of 32, fp8 in groups of 128; context as of the passes. \
     Expected: codes and scales read once.\n\n| model | weights | rows | GB | ms | expected |\n|---|---|--:|--:|--:|--:|";

/// Measures the models and prints a table.
///
/// # Errors
/// If a model does not fit the device, or the device fails.
pub fn quantised<D: Measurable>(
    open: &dyn Fn(bool) -> Result<Arc<D>, Box<dyn Error>>,
    sizes: &[Size],
) -> Result<(), Box<dyn Error>> {
    println!("{HEADING}");
    for (_, format) in FORMATS {
        for size in sizes {
            let cases = Case::all(size).into_iter().filter(|case| case.format == format);
            let mut rounds = None;
            for case in cases {
                let rounds = match &mut rounds {
                    Some(rounds) => rounds,
                    none => {
                        let backend = backend(open(true)?, &size.geometry, size.exit_after, format, case.context)?;
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
    format: Format,
    context: usize,
) -> Result<Box<dyn eesd::backend::Backend>, Box<dyn Error>> {
    let model = RandomModel::new(geometry.clone(), format, |_| 1.0);
    let weights = model.weights();
    let exit = eesd::model::ExitWeights::from_model(&weights, exit_after, exit_after);
    let options = CudaOptions { context, prefill_rows: 1024, ..CudaOptions::default() };
    Ok(CudaBackend::new(driver, geometry, &weights, Some(&exit), &options)?)
}

/// What a matrix of so many outputs and inputs takes on the device.
fn bytes_on_device(format: Format, outputs: usize, inputs: usize) -> usize {
    let storage = Storage::of(&Matrix::new(format, outputs, inputs, &[])).expect("a format that kernels multiply");
    storage.packed_bytes(outputs, inputs)
}

/// The sum over the matrices that a plain step reads: every layer and the head.
fn weights(size: &Size, of: impl Fn(usize, usize) -> usize) -> usize {
    let [layer @ .., (_, vocab, hidden)] = size.projections();
    let layer: usize = layer.iter().map(|&(_, outputs, inputs)| of(outputs, inputs)).sum();
    size.geometry.layers * layer + of(vocab, hidden)
}
