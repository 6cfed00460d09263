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
    /// Turns each `x` into `e^(x - max)`; no `x` is above `max`.
    fn exp_of_differences(values: &mut [Self], max: Self);
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
    ($type:ty, $gemm:path, $exp:path) => {
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
            fn exp_of_differences(values: &mut [Self], max: Self) {
                values.iter_mut().for_each(|x| *x = $exp(*x - max));
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

real!(f32, matrixmultiply::sgemm, exp_of_negative);
real!(f64, matrixmultiply::dgemm, f64::exp);

/// `e^x` for `x` up to 0, to about one unit in the last place; 0 below -87, where results would be subnormal. Without
/// branches, so that loops over it are vectorised: most of a loss is exponentials.
#[inline]
fn exp_of_negative(x: f32) -> f32 {
    // x = n ln 2 + r, |r| at most ln 2 / 2. Adding 1.5 · 2^23 rounds to an integer and leaves it in the low bits.
    const ROUNDING: f32 = 12_582_912.0;
    // ln 2 in two parts; the first has trailing zeros, so that n times it is exact.
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let clamped = if x > -87.0 { x } else { -87.0 };
    let power = clamped * std::f32::consts::LOG2_E + ROUNDING;
    let n = power - ROUNDING;
    let r = clamped - n * LN_2_HIGH - n * LN_2_LOW;
    // Taylor's series to r^7 / 7!: what is left out is below 2^-27.
    let mut sum = 1.0 / 5040.0;
    for coefficient in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        sum = sum * r + coefficient;
    }
    let scale = f32::from_bits((power.to_bits() << 23).wrapping_add(1.0f32.to_bits()));
    if x >= -87.0 {
        sum * scale
    } else if x < -87.0 {
        0.0
    } else {
        x
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponentials_are_accurate() {
        let mut worst = 0f64;
        for step in 0..200_000 {
            let x = -87.0 * step as f32 / 200_000.0;
            let expected = f64::from(x).exp();
            worst = worst.max((f64::from(exp_of_negative(x)) - expected).abs() / expected);
        }
        assert!(worst < 3e-7, "{worst:e}");
        assert_eq!([exp_of_negative(0.0), exp_of_negative(-1e9), exp_of_negative(f32::NEG_INFINITY)], [1.0, 0.0, 0.0]);
        assert!(exp_of_negative(f32::NAN).is_nan());
    }
}
