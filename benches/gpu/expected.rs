//! What things should take on an H200, by the model of time in cuda/README.md. Printed beside what is measured, so that the
//! first table from a GPU says where the model is wrong. On another GPU, and on the emulator, it means nothing.

use eesd::backend::cuda::kernels::{Form, Sample};

/// Bytes a second from memory, from L2 by all of the GPU, and from L2 by one of its multiprocessors.
const MEMORY: f64 = 4.2e12;
const L2: f64 = 5.5e12;
const L2_BY_ONE: f64 = 1.1e11;
/// Seconds of a lookup, as the processor takes them in a text of some thousands of tokens.
pub const LOOKUP: f64 = 20e-6;
/// Seconds of a kernel that has next to nothing to do.
const LAUNCH: f64 = 2e-6;
/// Rows of a prefill pass, and the microseconds of a layer's projections, with 634 MB of weights, by the engine's kernels and
/// by the library.
const PREFILL: [(f64, [f64; 2]); 4] =
    [(128.0, [424.0, 466.0]), (256.0, [614.0, 560.0]), (1024.0, [2095.0, 1333.0]), (4096.0, [7597.0, 4426.0])];
const PREFILL_BYTES: f64 = 634e6;

/// Seconds of reading so many bytes once.
pub fn reading(bytes: usize) -> f64 {
    bytes as f64 / MEMORY
}

/// Seconds of projections with so many bytes of weights.
pub fn projection(bytes: usize, rows: usize) -> f64 {
    match Form::for_tokens(rows as i32) {
        // The rows are read from L2 once for each 32 outputs.
        Form::Skinny => reading(bytes).max(bytes as f64 * (1.0 + rows as f64 / 32.0) / L2),
        _ => prefill(bytes, rows, false),
    }
}

/// Seconds of projections with so many weights, and so many bytes of codes and scales. They are multiplied as 16 bits each, so the
/// rows are read from L2 as often as with such weights.
pub fn quantised(weights: usize, bytes: usize, rows: usize) -> f64 {
    let as_16_bits = weights as f64 * 2.0;
    reading(bytes).max((bytes as f64 + as_16_bits * rows as f64 / 32.0) / L2)
}

/// Seconds of all projections, with so many bytes of weights, in a prefill pass of so many rows.
pub fn prefill(bytes: usize, rows: usize, fast: bool) -> f64 {
    let rows = (rows as f64).clamp(PREFILL[0].0, PREFILL[PREFILL.len() - 1].0);
    let next = PREFILL.iter().position(|&(known, _)| rows <= known).unwrap_or(PREFILL.len() - 1).max(1);
    let [(from, low), (to, high)] = [PREFILL[next - 1], PREFILL[next]];
    let [low, high] = [low, high].map(|way| way[usize::from(fast)]);
    (low + (high - low) * (rows - from) / (to - from)) * 1e-6 * bytes as f64 / PREFILL_BYTES
}

/// Seconds of sampling rows of a vocabulary, with so many of top-k and top-p; `None`: greedily.
pub fn sampling(vocab: usize, filters: Option<usize>) -> f64 {
    let partials = (vocab.div_ceil(32) * 12) as f64 / L2_BY_ONE;
    let Some(filters) = filters else { return LAUNCH + partials };
    let slice = vocab.div_ceil(Sample::slices(vocab)) as f64;
    2.0 * (LAUNCH + partials) + (12.0 + 12.0) * slice / L2_BY_ONE + (8 * filters * vocab) as f64 / L2_BY_ONE
}
