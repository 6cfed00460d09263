//! The numbers a student computes with: `f32` to train, `f64` so that tests can check every gradient
//! against central differences of the very same code.

use std::fmt::Debug;
use std::iter::Sum;
use std::ops::{Add, AddAssign, Div, Mul, MulAssign, Neg, Sub};

/// `f32` or `f64`.
pub trait Real:
    Copy
    + Debug
    + Default
    + PartialOrd
    + Send
    + Sync
    + Sum
    + Add<Output = Self>
    + AddAssign
    + Sub<Output = Self>
    + Mul<Output = Self>
    + MulAssign
    + Div<Output = Self>
    + Neg<Output = Self>
    + 'static
{
    /// Rounds to this format.
    fn of(x: f64) -> Self;
    /// Widens, exactly.
    fn wide(self) -> f64;
    /// `e^x`.
    fn exp(self) -> Self;
    /// The square root.
    fn sqrt(self) -> Self;
    /// The larger one.
    fn max(self, other: Self) -> Self;

    /// `C = alpha A B + beta C` on one thread (`matrixmultiply`); strides in elements.
    ///
    /// # Safety
    /// All of `a` `[m, k]`, `b` `[k, n]`, `c` `[m, n]` can be read, `c` written, at these strides.
    #[expect(clippy::too_many_arguments, reason = "BLAS's own")]
    unsafe fn gemm(
        m: usize,
        k: usize,
        n: usize,
        alpha: Self,
        a: *const Self,
        a_strides: (isize, isize),
        b: *const Self,
        b_strides: (isize, isize),
        beta: Self,
        c: *mut Self,
        c_stride: isize,
    );
}

macro_rules! real {
    ($type:ty, $gemm:path) => {
        impl Real for $type {
            #[inline]
            fn of(x: f64) -> Self {
                x as $type
            }

            #[inline]
            fn wide(self) -> f64 {
                self.into()
            }

            #[inline]
            fn exp(self) -> Self {
                <$type>::exp(self)
            }

            #[inline]
            fn sqrt(self) -> Self {
                <$type>::sqrt(self)
            }

            #[inline]
            fn max(self, other: Self) -> Self {
                <$type>::max(self, other)
            }

            unsafe fn gemm(
                m: usize,
                k: usize,
                n: usize,
                alpha: Self,
                a: *const Self,
                a_strides: (isize, isize),
                b: *const Self,
                b_strides: (isize, isize),
                beta: Self,
                c: *mut Self,
                c_stride: isize,
            ) {
                let ((a_row, a_column), (b_row, b_column)) = (a_strides, b_strides);
                // SAFETY: the caller's promise.
                unsafe { $gemm(m, k, n, alpha, a, a_row, a_column, b, b_row, b_column, beta, c, c_stride, 1) }
            }
        }
    };
}

real!(f32, matrixmultiply::sgemm);
real!(f64, matrixmultiply::dgemm);
