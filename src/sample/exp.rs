//! `exp` of numbers at most 0, without branches or calls, so that loops over it vectorise; and the
//! same bits on every machine, which the C library's is not.
//!
//! Both split `x = n·ln 2 + f` with `|f| <= ln(2)/2`, take the Taylor series of `exp(f)`, and add `n`
//! to its exponent bits.

use std::f32;
use std::f64;

/// `exp(x)` for `x <= 0`: relative error below 10⁻⁵; NaN and everything below -87 give about 10⁻³⁸.
pub fn exp_f32(x: f32) -> f32 {
    // Adding 1.5·2²³ rounds to an integer, and leaves it in the low bits of the sum.
    const ROUNDER: f32 = 12_582_912.0;
    let x = if x > -87.0 { x.min(0.0) } else { -87.0 };
    let turns = x * f32::consts::LOG2_E;
    let rounded = turns + ROUNDER;
    let f = (turns - (rounded - ROUNDER)) * f32::consts::LN_2;
    let series =
        [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0].into_iter().fold(0.0, |sum, c| sum * f + c);
    f32::from_bits(series.to_bits().wrapping_add(rounded.to_bits() << 23))
}

/// `exp(x)` for `x <= 0`: relative error below 10⁻¹⁵; 0 for NaN and below -708, where normal numbers
/// end.
pub fn exp_f64(x: f64) -> f64 {
    const ROUNDER: f64 = 6_755_399_441_055_744.0; // 1.5·2⁵²
    // ln 2 in two parts; the product of the first, of 33 bits, with any n is exact.
    const LN_2_HIGH: f64 = 0.693_147_180_369_123_8;
    const LN_2_LOW: f64 = 1.908_214_929_270_587_7e-10;
    let possible = x > -708.0;
    let x = if possible { x.min(0.0) } else { -708.0 };
    let rounded = x * f64::consts::LOG2_E + ROUNDER;
    let n = rounded - ROUNDER;
    let f = (x - n * LN_2_HIGH) - n * LN_2_LOW;
    // Inverse factorials up to 13!, in pairs that can be worked out side by side.
    let (f2, f4) = (f * f, f * f * (f * f));
    let low = (1.0 + f) + f2 * (1.0 / 2.0 + f * (1.0 / 6.0));
    let middle = (1.0 / 24.0 + f * (1.0 / 120.0)) + f2 * (1.0 / 720.0 + f * (1.0 / 5_040.0));
    let high = (1.0 / 40_320.0 + f * (1.0 / 362_880.0)) + f2 * (1.0 / 3_628_800.0 + f * (1.0 / 39_916_800.0));
    let highest = 1.0 / 479_001_600.0 + f * (1.0 / 6_227_020_800.0);
    let series = low + f4 * (middle + f4 * (high + f4 * highest));
    let exp = f64::from_bits(series.to_bits().wrapping_add(rounded.to_bits() << 52));
    if possible { exp } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f32_is_close() {
        for i in 0..=87_000 {
            let x = -(i as f32) / 1000.0;
            assert!((f64::from(exp_f32(x)) / f64::from(x).exp() - 1.0).abs() < 1e-5, "exp({x})");
        }
        assert_eq!(exp_f32(0.0), 1.0);
        assert!(exp_f32(f32::NAN) < 1e-37 && exp_f32(f32::NEG_INFINITY) < 1e-37);
    }

    #[test]
    fn f64_is_nearly_exact() {
        for i in 0..=708_000 {
            let x = -f64::from(i) / 1000.0;
            let (found, exact) = (exp_f64(x), x.exp());
            // Just below -708 the exact value is still a normal number.
            assert!((found / exact - 1.0).abs() < 1e-15 || x <= -708.0, "exp({x}) = {found:e}, not {exact:e}");
        }
        assert_eq!(exp_f64(0.0), 1.0);
        assert_eq!(exp_f64(-708.0), 0.0);
        assert_eq!((exp_f64(f64::NAN), exp_f64(f64::NEG_INFINITY)), (0.0, 0.0));
    }

    /// Filters compare these values, so larger scores must not get smaller weights.
    #[test]
    fn f64_is_monotone_on_a_fine_grid() {
        let mut last = 0.0;
        for i in (0..=4_000_000).rev() {
            let next = exp_f64(-f64::from(i) / 1e5);
            assert!(next >= last);
            last = next;
        }
    }
}
