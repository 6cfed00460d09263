//! One 512-bit register.

use super::{Kernel, Lanes};
use half::{bf16, f16};
use std::arch::x86_64::*;

/// Compiles and runs `kernel` with AVX-512F.
///
/// # Safety
/// The processor has AVX-512F.
#[target_feature(enable = "avx512f")]
pub unsafe fn run<K: Kernel>(kernel: K) -> K::Output {
    kernel.run::<Lanes16>()
}

/// Sixteen lanes in a `zmm` register.
#[derive(Clone, Copy)]
pub struct Lanes16(__m512);

impl Lanes16 {
    /// The lanes of a register.
    pub fn new(lanes: __m512) -> Self {
        Self(lanes)
    }
}

/// Wraps an AVX-512F intrinsic.
macro_rules! avx512f {
    ($value:expr) => {
        // SAFETY: `Lanes16` is only used inside `run`, whose caller has checked for AVX-512F; memory is the caller's promise.
        Lanes16(unsafe { $value })
    };
}

/// Widens E4M3 numbers in the upper bytes of sixteen words.
///
/// # Safety
/// The processor has AVX-512F.
#[inline(always)]
unsafe fn widen_e4m3(words: __m256i) -> __m512 {
    // SAFETY: the caller's promise.
    unsafe {
        let halves = _mm256_and_si256(_mm256_srai_epi16::<1>(words), _mm256_set1_epi16(super::E4M3_IN_HALF));
        _mm512_mul_ps(_mm512_cvtph_ps(halves), _mm512_set1_ps(super::E4M3_POWER))
    }
}

impl Lanes for Lanes16 {
    #[inline(always)]
    fn splat(x: f32) -> Self {
        avx512f!(_mm512_set1_ps(x))
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        avx512f!(_mm512_loadu_ps(from))
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const f16) -> Self {
        avx512f!(_mm512_cvtph_ps(_mm256_loadu_si256(from.cast())))
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const bf16) -> Self {
        avx512f!(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast())))))
    }

    #[inline(always)]
    unsafe fn load_bf16_first(from: *const bf16) -> Self {
        avx512f!(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_loadu_si512(from.cast()))))
    }

    #[inline(always)]
    unsafe fn load_bf16_second(from: *const bf16) -> Self {
        avx512f!(_mm512_castsi512_ps(_mm512_and_si512(
            _mm512_loadu_si512(from.cast()),
            _mm512_set1_epi32(super::UPPER_HALF)
        )))
    }

    #[inline(always)]
    unsafe fn load_e4m3_first(from: *const u8) -> Self {
        avx512f!(widen_e4m3(_mm256_slli_epi16::<8>(_mm256_loadu_si256(from.cast()))))
    }

    #[inline(always)]
    unsafe fn load_e4m3_second(from: *const u8) -> Self {
        avx512f!(widen_e4m3(_mm256_loadu_si256(from.cast())))
    }

    #[inline(always)]
    unsafe fn load_e4m3(from: *const u8) -> Self {
        avx512f!(widen_e4m3(_mm256_slli_epi16::<8>(_mm256_cvtepu8_epi16(_mm_loadu_si128(from.cast())))))
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: as in `avx512f!`.
        unsafe { _mm512_storeu_ps(to, self.0) }
    }

    #[inline(always)]
    unsafe fn load_i8(from: *const i8) -> Self {
        avx512f!(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from.cast()))))
    }

    #[inline(always)]
    unsafe fn store_i8(self, to: *mut i8) -> i32 {
        // SAFETY: as in `avx512f!`.
        unsafe {
            let rounded = _mm512_cvtps_epi32(self.0);
            _mm_storeu_si128(to.cast(), _mm512_cvtepi32_epi8(rounded));
            _mm512_reduce_add_epi32(rounded)
        }
    }

    #[inline(always)]
    fn is_finite(self) -> bool {
        // SAFETY: as in `avx512f!`. Nothing else times zero is zero.
        unsafe {
            let zero = _mm512_setzero_ps();
            _mm512_cmp_ps_mask::<_CMP_EQ_OQ>(_mm512_mul_ps(self.0, zero), zero) == u16::MAX
        }
    }

    #[inline(always)]
    fn largest(self) -> f32 {
        // SAFETY: as in `avx512f!`.
        unsafe { _mm512_reduce_max_ps(self.0) }
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        avx512f!(_mm512_add_ps(self.0, other.0))
    }

    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        avx512f!(_mm512_sub_ps(self.0, other.0))
    }

    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        avx512f!(_mm512_mul_ps(self.0, other.0))
    }

    #[inline(always)]
    fn div(self, other: Self) -> Self {
        avx512f!(_mm512_div_ps(self.0, other.0))
    }

    #[inline(always)]
    fn fma(self, factor: Self, addend: Self) -> Self {
        avx512f!(_mm512_fmadd_ps(self.0, factor.0, addend.0))
    }

    #[inline(always)]
    fn max(self, other: Self) -> Self {
        avx512f!(_mm512_max_ps(self.0, other.0))
    }

    #[inline(always)]
    fn min(self, other: Self) -> Self {
        avx512f!(_mm512_min_ps(self.0, other.0))
    }

    #[inline(always)]
    fn zero_where_below(self, at: Self, floor: Self) -> Self {
        avx512f!(_mm512_maskz_mov_ps(_mm512_cmp_ps_mask::<_CMP_NLT_UQ>(at.0, floor.0), self.0))
    }

    #[inline(always)]
    fn scale(self, power: Self) -> Self {
        avx512f!(_mm512_castsi512_ps(_mm512_add_epi32(
            _mm512_castps_si512(self.0),
            _mm512_slli_epi32::<23>(_mm512_castps_si512(power.0))
        )))
    }
}
