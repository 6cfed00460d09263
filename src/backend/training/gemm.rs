//! Matrix products on all threads of the current rayon pool.
//!
//! The rows of the result, or the columns of a wide one, are dealt out to the threads, and one thread sums each element over
//! all of K in one order: the bits do not depend on the number of threads.

use super::real::Real;
use rayon::prelude::*;

/// A view of a matrix: rows at a stride, or their transpose.
#[derive(Clone, Copy)]
pub struct Mat<'a, R> {
    data: &'a [R],
    rows: usize,
    columns: usize,
    /// Elements from one row to the next, and from one column to the next.
    strides: (usize, usize),
}

/// Rows or columns of the result that a thread takes a multiple of: a few of the product's own register tiles.
const TILES: usize = 48;
/// Multiply-adds that are worth a second thread.
const WORTH_SHARING: usize = 1 << 16;

impl<'a, R: Real> Mat<'a, R> {
    /// A matrix `[rows, columns]` without gaps.
    pub fn new(data: &'a [R], rows: usize, columns: usize) -> Self {
        Self::strided(data, rows, columns, columns)
    }

    /// A matrix whose rows begin `stride` elements apart.
    ///
    /// # Panics
    /// If `data` ends before the matrix.
    pub fn strided(data: &'a [R], rows: usize, columns: usize, stride: usize) -> Self {
        let end = if rows == 0 || columns == 0 { 0 } else { (rows - 1) * stride + columns };
        assert!(data.len() >= end, "[{rows}, {columns}] at stride {stride} in {} elements", data.len());
        Self { data, rows, columns, strides: (stride, 1) }
    }

    /// Its transpose.
    pub fn t(self) -> Self {
        Self { rows: self.columns, columns: self.rows, strides: (self.strides.1, self.strides.0), ..self }
    }

    /// Rows `from .. from + count`.
    fn part(self, from: usize, count: usize) -> Self {
        Self { data: &self.data[from * self.strides.0..], rows: count, ..self }
    }

    /// Columns `from .. from + count`.
    fn columns(self, from: usize, count: usize) -> Self {
        self.t().part(from, count).t()
    }

    fn strides(&self) -> (isize, isize) {
        (self.strides.0 as isize, self.strides.1 as isize)
    }
}

/// `C = alpha A B + beta C`, where the rows of `C` are `stride` elements apart. With `beta` 0 nothing of
/// the old `C` is read into the result.
///
/// # Panics
/// If the shapes do not fit.
pub fn gemm<R: Real>(alpha: R, a: Mat<'_, R>, b: Mat<'_, R>, beta: R, c: &mut [R], stride: usize) {
    assert_eq!(a.columns, b.rows, "inner dimensions");
    assert!(stride >= b.columns, "rows of the result overlap");
    if a.rows == 0 || b.columns == 0 {
        return;
    }
    let used = (a.rows - 1) * stride + b.columns;
    let c = &mut c[..used];
    let threads = rayon::current_num_threads();
    if threads == 1 || a.rows * a.columns * b.columns < WORTH_SHARING {
        // SAFETY: `a` and `b` were checked when made, and all of the result is here.
        unsafe { multiply(alpha, a, b, beta, c.as_mut_ptr(), stride) };
        return;
    }
    // Large pieces, along the longer side: each packs all of one operand anew, and its part of the other.
    let piece = |len: usize| len.div_ceil(threads).next_multiple_of(TILES);
    if a.rows >= b.columns {
        let rows = piece(a.rows);
        c.par_chunks_mut(rows * stride).enumerate().for_each(|(index, c)| {
            let a = a.part(index * rows, c.len().div_ceil(stride));
            // SAFETY: as above; of these rows, the last one maybe without the gap behind it.
            unsafe { multiply(alpha, a, b, beta, c.as_mut_ptr(), stride) };
        });
        return;
    }
    let (columns, result) = (piece(b.columns), Shared(c.as_mut_ptr()));
    (0..b.columns.div_ceil(columns)).into_par_iter().for_each(|index| {
        let first = index * columns;
        let b = b.columns(first, columns.min(b.columns - first));
        // SAFETY: as above; no two pieces share a column.
        unsafe { multiply(alpha, a, b, beta, result.at_column(first), stride) };
    });
}

/// A result whose columns several threads write.
struct Shared<R>(*mut R);

// SAFETY: whoever writes to it takes care that nobody else writes the same elements.
unsafe impl<R: Send> Sync for Shared<R> {}

impl<R> Shared<R> {
    /// From column `column` on.
    fn at_column(&self, column: usize) -> *mut R {
        self.0.wrapping_add(column)
    }
}

/// On one thread.
///
/// # Safety
/// `c` has `a.rows` rows of `b.columns` elements that nobody else touches, `stride` elements apart.
unsafe fn multiply<R: Real>(alpha: R, a: Mat<'_, R>, b: Mat<'_, R>, beta: R, c: *mut R, stride: usize) {
    let (a_data, b_data) = (a.data.as_ptr(), b.data.as_ptr());
    let (a_strides, b_strides) = (a.strides(), b.strides());
    // SAFETY: views were checked when made; the result is the caller's promise.
    unsafe {
        R::gemm(a.rows, a.columns, b.columns, alpha, a_data, a_strides, b_data, b_strides, beta, c, stride as isize);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::{Philox, Purpose};

    fn noise(seed: u64, len: usize) -> Vec<f32> {
        let value = |i| Philox::new(seed, i, Purpose::Controller, 0).uniform() as f32 - 0.5;
        (0..len).map(value).collect()
    }

    fn reference(a: Mat<'_, f32>, b: Mat<'_, f32>, i: usize, j: usize) -> f64 {
        let at = |m: &Mat<'_, f32>, i: usize, j: usize| f64::from(m.data[i * m.strides.0 + j * m.strides.1]);
        (0..a.columns).map(|k| at(&a, i, k) * at(&b, k, j)).sum()
    }

    #[test]
    fn every_layout_is_right_and_has_the_same_bits_on_any_number_of_threads() {
        for (m, k, n) in [(1, 1, 1), (5, 7, 3), (130, 65, 70), (257, 300, 48), (60, 300, 301), (2, 500, 200)] {
            let (left, right) = (noise(1, m * k), noise(2, k * n));
            let (left_t, right_t) = (noise(3, m * k), noise(4, k * n));
            for (a, b) in [
                (Mat::new(&left, m, k), Mat::new(&right, k, n)),
                (Mat::new(&left, m, k), Mat::new(&right_t, n, k).t()),
                (Mat::new(&left_t, k, m).t(), Mat::new(&right, k, n)),
            ] {
                let stride = n + 3;
                let start = noise(5, m * stride);
                let run = |threads| {
                    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                    let mut c = start.clone();
                    pool.install(|| gemm(0.5, a, b, 2.0, &mut c, stride));
                    c
                };
                let c = run(1);
                for i in 0..m {
                    for j in 0..n {
                        let expected = 0.5 * reference(a, b, i, j) + 2.0 * f64::from(start[i * stride + j]);
                        assert!((f64::from(c[i * stride + j]) - expected).abs() < 1e-4, "{m} {k} {n}: {i}, {j}");
                    }
                    let gap = i * stride + n..(i * stride + stride).min(c.len());
                    assert_eq!(c[gap.clone()], start[gap], "the gap behind row {i}");
                }
                let bits = |c: &[f32]| c.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                assert!([2, 3, 5].into_iter().all(|threads| bits(&run(threads)) == bits(&c)), "{m} {k} {n}");
            }
        }
    }

    #[test]
    fn a_beta_of_zero_forgets_even_nan() {
        let mut c = [f32::NAN; 4];
        gemm(1.0, Mat::new(&[1.0, 2.0, 3.0, 4.0], 2, 2), Mat::new(&[1.0, 0.0, 0.0, 1.0], 2, 2), 0.0, &mut c, 2);
        assert_eq!(c, [1.0, 2.0, 3.0, 4.0]);
    }
}
