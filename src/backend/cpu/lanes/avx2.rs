//! Two 256-bit registers.

use super::{Kernel, Lanes};
use half::{bf16, f16};
use std::arch::x86_64::*;

/// Compiles and runs `kernel` with AVX2, FMA and F16C.
///
/// # Safety
/// The processor has them.
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn run<K: Kernel>(kernel: K) -> K::Output {
    kernel.run::<Lanes16>()
}

/// Lanes 0 to 7, and 8 to 15.
#[derive(Clone, Copy)]
pub struct Lanes16(__m256, __m256);

impl Lanes16 {
    /// The lanes of two registers.
    pub fn new(low: __m256, high: __m256) -> Self {
        Self(low, high)
    }
}

/// Wraps a pair of intrinsics, one for each half.
macro_rules! avx2 {
    ($low:expr, $high:expr) => {
        // SAFETY: `Lanes16` is only used inside `run`, whose caller has checked the processor; memory is the caller's promise.
        unsafe { Lanes16($low, $high) }
    };
}

/// Widens eight bfloat16 numbers.
///
/// # Safety
/// They are readable, and the processor has AVX2.
#[inline(always)]
unsafe fn widen_bf16(from: *const bf16) -> __m256 {
    // SAFETY: the caller's promise.
    unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast())))) }
}

/// Widens the first ones of eight pairs.
///
/// # Safety
/// They are readable, and the processor has AVX2.
#[inline(always)]
unsafe fn first_of_pairs(from: *const bf16) -> __m256 {
    // SAFETY: the caller's promise.
    unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_loadu_si256(from.cast()))) }
}

/// Widens the second ones of eight pairs.
///
/// # Safety
/// They are readable, and the processor has AVX2.
#[inline(always)]
unsafe fn second_of_pairs(from: *const bf16) -> __m256 {
    // SAFETY: the caller's promise.
    unsafe {
        let mask = _mm256_set1_epi32(super::UPPER_HALF);
        _mm256_castsi256_ps(_mm256_and_si256(_mm256_loadu_si256(from.cast()), mask))
    }
}

/// Widens E4M3 numbers in the upper bytes of sixteen words.
///
/// # Safety
/// The processor has AVX2 and F16C.
#[inline(always)]
unsafe fn widen_e4m3(words: __m256i) -> Lanes16 {
    // SAFETY: the caller's promise.
    unsafe {
        let halves = _mm256_and_si256(_mm256_srai_epi16::<1>(words), _mm256_set1_epi16(super::E4M3_IN_HALF));
        let power = _mm256_set1_ps(super::E4M3_POWER);
        let low = _mm256_cvtph_ps(_mm256_castsi256_si128(halves));
        let high = _mm256_cvtph_ps(_mm256_extracti128_si256::<1>(halves));
        Lanes16(_mm256_mul_ps(low, power), _mm256_mul_ps(high, power))
    }
}

/// `value · 2^n` by the bits of `power`, see [`Lanes::scale`].
///
/// # Safety
/// The processor has AVX2.
#[inline(always)]
unsafe fn scale(value: __m256, power: __m256) -> __m256 {
    // SAFETY: the caller's promise.
    unsafe {
        let exponent = _mm256_slli_epi32::<23>(_mm256_castps_si256(power));
        _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(value), exponent))
    }
}

impl Lanes for Lanes16 {
    #[inline(always)]
    fn splat(x: f32) -> Self {
        avx2!(_mm256_set1_ps(x), _mm256_set1_ps(x))
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        avx2!(_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8)))
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const f16) -> Self {
        avx2!(_mm256_cvtph_ps(_mm_loadu_si128(from.cast())), _mm256_cvtph_ps(_mm_loadu_si128(from.add(8).cast())))
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const bf16) -> Self {
        avx2!(widen_bf16(from), widen_bf16(from.add(8)))
    }

    #[inline(always)]
    unsafe fn load_bf16_first(from: *const bf16) -> Self {
        avx2!(first_of_pairs(from), first_of_pairs(from.add(16)))
    }

    #[inline(always)]
    unsafe fn load_bf16_second(from: *const bf16) -> Self {
        avx2!(second_of_pairs(from), second_of_pairs(from.add(16)))
    }

    #[inline(always)]
    unsafe fn load_e4m3_first(from: *const u8) -> Self {
        // SAFETY: as in `avx2!`.
        unsafe { widen_e4m3(_mm256_slli_epi16::<8>(_mm256_loadu_si256(from.cast()))) }
    }

    #[inline(always)]
    unsafe fn load_e4m3_second(from: *const u8) -> Self {
        // SAFETY: as in `avx2!`.
        unsafe { widen_e4m3(_mm256_loadu_si256(from.cast())) }
    }

    #[inline(always)]
    unsafe fn load_e4m3(from: *const u8) -> Self {
        // SAFETY: as in `avx2!`.
        unsafe { widen_e4m3(_mm256_slli_epi16::<8>(_mm256_cvtepu8_epi16(_mm_loadu_si128(from.cast())))) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: as in `avx2!`.
        unsafe {
            _mm256_storeu_ps(to, self.0);
            _mm256_storeu_ps(to.add(8), self.1);
        }
    }

    #[inline(always)]
    unsafe fn load_i8(from: *const i8) -> Self {
        // SAFETY: as in `avx2!`.
        unsafe {
            let bytes = _mm_loadu_si128(from.cast());
            let (low, high) = (_mm256_cvtepi8_epi32(bytes), _mm256_cvtepi8_epi32(_mm_bsrli_si128::<8>(bytes)));
            Lanes16(_mm256_cvtepi32_ps(low), _mm256_cvtepi32_ps(high))
        }
    }

    #[inline(always)]
    unsafe fn store_i8(self, to: *mut i8) -> i32 {
        // SAFETY: as in `avx2!`.
        unsafe {
            let (low, high) = (_mm256_cvtps_epi32(self.0), _mm256_cvtps_epi32(self.1));
            // Packing takes the four quarters in turn of both.
            let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi32(low, high));
            let bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
            _mm_storeu_si128(to.cast(), bytes);
            let mut lanes = [0; 8];
            _mm256_storeu_si256(lanes.as_mut_ptr().cast(), _mm256_add_epi32(low, high));
            lanes.iter().sum()
        }
    }

    #[inline(always)]
    fn is_finite(self) -> bool {
        // SAFETY: as in `avx2!`. Nothing else times zero is zero.
        unsafe {
            let zero = _mm256_setzero_ps();
            let finite = |x| _mm256_cmp_ps::<_CMP_EQ_OQ>(_mm256_mul_ps(x, zero), zero);
            _mm256_movemask_ps(_mm256_and_ps(finite(self.0), finite(self.1))) == 0xff
        }
    }

    #[inline(always)]
    fn largest(self) -> f32 {
        // SAFETY: as in `avx2!`.
        let lanes = unsafe {
            let mut lanes = [0.0f32; 8];
            _mm256_storeu_ps(lanes.as_mut_ptr(), _mm256_max_ps(self.0, self.1));
            lanes
        };
        lanes.iter().fold(f32::NEG_INFINITY, |largest, &x| largest.max(x))
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        avx2!(_mm256_add_ps(self.0, other.0), _mm256_add_ps(self.1, other.1))
    }

    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        avx2!(_mm256_sub_ps(self.0, other.0), _mm256_sub_ps(self.1, other.1))
    }

    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        avx2!(_mm256_mul_ps(self.0, other.0), _mm256_mul_ps(self.1, other.1))
    }

    #[inline(always)]
    fn div(self, other: Self) -> Self {
        avx2!(_mm256_div_ps(self.0, other.0), _mm256_div_ps(self.1, other.1))
    }

    #[inline(always)]
    fn fma(self, factor: Self, addend: Self) -> Self {
        avx2!(_mm256_fmadd_ps(self.0, factor.0, addend.0), _mm256_fmadd_ps(self.1, factor.1, addend.1))
    }

    #[inline(always)]
    fn max(self, other: Self) -> Self {
        avx2!(_mm256_max_ps(self.0, other.0), _mm256_max_ps(self.1, other.1))
    }

    #[inline(always)]
    fn min(self, other: Self) -> Self {
        avx2!(_mm256_min_ps(self.0, other.0), _mm256_min_ps(self.1, other.1))
    }

    #[inline(always)]
    fn zero_where_below(self, at: Self, floor: Self) -> Self {
        avx2!(
            _mm256_and_ps(_mm256_cmp_ps::<_CMP_NLT_UQ>(at.0, floor.0), self.0),
            _mm256_and_ps(_mm256_cmp_ps::<_CMP_NLT_UQ>(at.1, floor.1), self.1)
        )
    }

    #[inline(always)]
    fn scale(self, power: Self) -> Self {
        avx2!(scale(self.0, power.0), scale(self.1, power.1))
    }
}
