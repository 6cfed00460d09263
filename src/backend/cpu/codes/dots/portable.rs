//! Plain Rust.

use super::super::super::lanes::{LANES, Lanes};
use super::Dots;
use crate::model::STEPS;
use std::array::from_fn;

/// Codes and sums in arrays.
pub struct Plain;

impl<V: Lanes> Dots<V> for Plain {
    type Codes = [[u8; 4]; LANES];
    type Sums = [i32; LANES];

    #[inline(always)]
    unsafe fn bytes(from: *const u8) -> Self::Codes {
        // SAFETY: the caller's promise.
        unsafe { from.cast::<Self::Codes>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn nibbles(from: *const u8) -> [Self::Codes; 2] {
        // SAFETY: the caller's promise.
        let both = unsafe { from.cast::<Self::Codes>().read_unaligned() };
        [both.map(|four| four.map(|byte| byte & 15)), both.map(|four| four.map(|byte| byte >> 4))]
    }

    #[inline(always)]
    unsafe fn with_fifths(codes: Self::Codes, bits: *const u8) -> Self::Codes {
        // SAFETY: the caller's promise.
        let bits = u64::from_le_bytes(unsafe { bits.cast::<[u8; 8]>().read_unaligned() });
        from_fn(|lane| from_fn(|i| codes[lane][i] | ((bits >> (4 * lane + i) & 1) as u8) << 4))
    }

    #[inline(always)]
    fn steps(codes: Self::Codes) -> Self::Codes {
        codes.map(|four| four.map(|code| (i16::from(STEPS[usize::from(code)]) + 128) as u8))
    }

    #[inline(always)]
    unsafe fn start<const SHIFT: u32, const WIDE: bool>(negated: *const i32) -> Self::Sums {
        // SAFETY: the caller's promise.
        [unsafe { *negated } << SHIFT; LANES]
    }

    #[inline(always)]
    fn zero() -> Self::Sums {
        [0; LANES]
    }

    #[inline(always)]
    unsafe fn dot<const WIDE: bool>(codes: Self::Codes, inputs: *const i8, sums: Self::Sums) -> Self::Sums {
        // SAFETY: the caller's promise.
        let inputs = unsafe { inputs.cast::<[i8; 4]>().read_unaligned() };
        from_fn(|lane| (0..4).fold(sums[lane], |sum, i| sum + i32::from(codes[lane][i]) * i32::from(inputs[i])))
    }

    #[inline(always)]
    fn to_floats(sums: Self::Sums) -> V {
        let floats = sums.map(|sum| sum as f32);
        // SAFETY: the array has 16 floats.
        unsafe { V::load(floats.as_ptr()) }
    }
}
