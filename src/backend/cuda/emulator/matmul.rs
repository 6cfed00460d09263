//! Products of matrices on the processor: plain loops, in f32 as a GPU's.

use crate::backend::cuda::matmul::{Matmul, Number, RowMajor};
use half::{bf16, f16};

/// Multiplies; each sum is made in one accumulator, in ascending order.
///
/// # Safety
/// All matrices lie in the process's memory as the product says; `c` is apart from the others.
pub unsafe fn multiply(product: &Matmul) {
    let Matmul { m, n, k, a, b, c, .. } = *product;
    let [a_shape, b_shape, _] = product.shapes();
    // SAFETY: the caller's promise, here and below.
    let (a, b) = unsafe { (read(a, a_shape, product.transpose_a), read(b, b_shape, product.transpose_b)) };
    for (i, factors) in a.chunks_exact(k).enumerate() {
        let mut sums = vec![0f32; n];
        for (&factor, row) in factors.iter().zip(b.chunks_exact(n)) {
            sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += factor * x);
        }
        for (j, sum) in sums.iter().enumerate() {
            let at = i * c.stride + j;
            // SAFETY: `i < m` and `j < n`.
            let before = if product.beta == 0.0 { 0.0 } else { unsafe { product.beta * load(c, at) } };
            // SAFETY: as above.
            unsafe { store(c, at, product.alpha * sum + before) };
        }
    }
    debug_assert_eq!(a.len(), m * k);
}

/// The bytes that a matrix of this shape spans.
pub fn span((rows, columns): (usize, usize), matrix: RowMajor) -> usize {
    ((rows - 1) * matrix.stride + columns) * matrix.number.bytes()
}

/// The elements row by row, or column by column where `transposed`.
unsafe fn read(matrix: RowMajor, (rows, columns): (usize, usize), transposed: bool) -> Vec<f32> {
    // SAFETY: the caller's promise.
    let element = |row: usize, column: usize| unsafe { load(matrix, row * matrix.stride + column) };
    if transposed {
        (0..columns).flat_map(|column| (0..rows).map(move |row| element(row, column))).collect()
    } else {
        (0..rows).flat_map(|row| (0..columns).map(move |column| element(row, column))).collect()
    }
}

unsafe fn load(matrix: RowMajor, index: usize) -> f32 {
    // SAFETY: the caller's promise; elements may lie at any address.
    unsafe {
        match matrix.number {
            Number::Bf16 => (matrix.at.0 as *const bf16).add(index).read_unaligned().to_f32(),
            Number::F16 => (matrix.at.0 as *const f16).add(index).read_unaligned().to_f32(),
            Number::F32 => (matrix.at.0 as *const f32).add(index).read_unaligned(),
        }
    }
}

unsafe fn store(matrix: RowMajor, index: usize, x: f32) {
    // SAFETY: as `load`.
    unsafe {
        match matrix.number {
            Number::Bf16 => (matrix.at.0 as *mut bf16).add(index).write_unaligned(bf16::from_f32(x)),
            Number::F16 => (matrix.at.0 as *mut f16).add(index).write_unaligned(f16::from_f32(x)),
            Number::F32 => (matrix.at.0 as *mut f32).add(index).write_unaligned(x),
        }
    }
}
