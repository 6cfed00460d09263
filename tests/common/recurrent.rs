//! Recurrent exit blocks for tests, made of others: their input is nearly `h_N`, their state nearly carries over.

use eesd::model::{Dtype, Encoder, ExitWeights, Matrix};
use eesd::sample::{Philox, Purpose};
use std::num::NonZeroUsize;

/// How far the matrices' numbers are from those of the identity.
const NOISE: f64 = 0.02;

/// The block with a matrix for its input and one for recurrent drafts, in `dtype` or in 8 bits. Leaks, as tests may: views
/// of weights borrow.
pub fn recurrent(exit: ExitWeights<'_>, dtype: Option<Dtype>) -> ExitWeights<'_> {
    let hidden = exit.norm.len;
    let (input, recurrent) = (matrix(1, hidden, hidden, dtype), matrix(2, hidden, 2 * hidden, dtype));
    ExitWeights { input: Some(input), recurrent: Some(recurrent), ..exit }
}

/// Ones on the diagonal, and noise everywhere.
fn matrix(seed: u64, rows: usize, cols: usize, dtype: Option<Dtype>) -> Matrix<'static> {
    let number = |i: usize| {
        let noise = NOISE * (2.0 * Philox::new(seed, i, Purpose::Controller, 0).uniform() - 1.0);
        (f64::from(u8::from(i / cols == i % cols)) + noise) as f32
    };
    let numbers = (0..rows * cols).map(number);
    let bytes: Vec<u8> = match dtype {
        Some(Dtype::BF16) => numbers.flat_map(|x| half::bf16::from_f32(x).to_le_bytes()).collect(),
        Some(Dtype::F16) => numbers.flat_map(|x| half::f16::from_f32(x).to_le_bytes()).collect(),
        Some(Dtype::F32) | None => numbers.flat_map(f32::to_le_bytes).collect(),
    };
    let plain = Matrix::new(dtype.unwrap_or(Dtype::F32), rows, cols, bytes.leak());
    match dtype {
        Some(_) => plain,
        None => Box::leak(Box::new(Encoder::Q8_0.encode_matrix(&plain, NonZeroUsize::MIN).unwrap())).view(),
    }
}
