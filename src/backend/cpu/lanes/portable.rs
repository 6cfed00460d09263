//! Sixteen floats in plain Rust.

use super::{LANES, Lanes};
use half::{bf16, f16};
use std::array::from_fn;

/// Sixteen floats.
#[derive(Clone, Copy)]
pub struct Lanes16([f32; LANES]);

/// Widens an E4M3 number.
#[inline(always)]
fn widen_e4m3(code: u8) -> f32 {
    let half = i16::from_le_bytes([0, code]) >> 1 & super::E4M3_IN_HALF;
    f16::from_bits(half as u16).to_f32() * super::E4M3_POWER
}

impl Lanes for Lanes16 {
    #[inline(always)]
    fn splat(x: f32) -> Self {
        Self([x; LANES])
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller's promise.
        Self(unsafe { from.cast::<[f32; LANES]>().read_unaligned() })
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const f16) -> Self {
        // SAFETY: the caller's promise.
        Self(unsafe { from.cast::<[f16; LANES]>().read_unaligned() }.map(f16::to_f32))
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const bf16) -> Self {
        // SAFETY: the caller's promise.
        Self(unsafe { from.cast::<[bf16; LANES]>().read_unaligned() }.map(bf16::to_f32))
    }

    #[inline(always)]
    unsafe fn load_bf16_first(from: *const bf16) -> Self {
        // SAFETY: the caller's promise.
        Self(unsafe { from.cast::<[[bf16; 2]; LANES]>().read_unaligned() }.map(|[first, _]| first.to_f32()))
    }

    #[inline(always)]
    unsafe fn load_bf16_second(from: *const bf16) -> Self {
        // SAFETY: the caller's promise.
        Self(unsafe { from.cast::<[[bf16; 2]; LANES]>().read_unaligned() }.map(|[_, second]| second.to_f32()))
    }

    #[inline(always)]
    unsafe fn load_e4m3_first(from: *const u8) -> Self {
        // SAFETY: the caller's promise.
        Self(unsafe { from.cast::<[[u8; 2]; LANES]>().read_unaligned() }.map(|[first, _]| widen_e4m3(first)))
    }

    #[inline(always)]
    unsafe fn load_e4m3_second(from: *const u8) -> Self {
        // SAFETY: the caller's promise.
        Self(unsafe { from.cast::<[[u8; 2]; LANES]>().read_unaligned() }.map(|[_, second]| widen_e4m3(second)))
    }

    #[inline(always)]
    unsafe fn load_e4m3(from: *const u8) -> Self {
        // SAFETY: the caller's promise.
        Self(unsafe { from.cast::<[u8; LANES]>().read_unaligned() }.map(widen_e4m3))
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe { to.cast::<[f32; LANES]>().write_unaligned(self.0) }
    }

    #[inline(always)]
    unsafe fn load_i8(from: *const i8) -> Self {
        // SAFETY: the caller's promise.
        Self(unsafe { from.cast::<[i8; LANES]>().read_unaligned() }.map(f32::from))
    }

    #[inline(always)]
    unsafe fn store_i8(self, to: *mut i8) -> i32 {
        let rounded = self.0.map(|x| x.round_ties_even() as i8);
        // SAFETY: the caller's promise.
        unsafe { to.cast::<[i8; LANES]>().write_unaligned(rounded) };
        rounded.iter().map(|&x| i32::from(x)).sum()
    }

    #[inline(always)]
    fn is_finite(self) -> bool {
        self.0.iter().all(|x| x.is_finite())
    }

    #[inline(always)]
    fn largest(self) -> f32 {
        self.0.iter().fold(f32::NEG_INFINITY, |largest, &x| largest.max(x))
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        Self(from_fn(|i| self.0[i] + other.0[i]))
    }

    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        Self(from_fn(|i| self.0[i] - other.0[i]))
    }

    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        Self(from_fn(|i| self.0[i] * other.0[i]))
    }

    #[inline(always)]
    fn div(self, other: Self) -> Self {
        Self(from_fn(|i| self.0[i] / other.0[i]))
    }

    #[inline(always)]
    fn fma(self, factor: Self, addend: Self) -> Self {
        Self(from_fn(|i| self.0[i].mul_add(factor.0[i], addend.0[i])))
    }

    #[inline(always)]
    fn max(self, other: Self) -> Self {
        Self(from_fn(|i| if self.0[i] > other.0[i] { self.0[i] } else { other.0[i] }))
    }

    #[inline(always)]
    fn min(self, other: Self) -> Self {
        Self(from_fn(|i| if self.0[i] < other.0[i] { self.0[i] } else { other.0[i] }))
    }

    #[inline(always)]
    fn zero_where_below(self, at: Self, floor: Self) -> Self {
        Self(from_fn(|i| if at.0[i] < floor.0[i] { 0.0 } else { self.0[i] }))
    }

    #[inline(always)]
    fn scale(self, power: Self) -> Self {
        Self(from_fn(|i| f32::from_bits(self.0[i].to_bits().wrapping_add(power.0[i].to_bits() << 23))))
    }
}
