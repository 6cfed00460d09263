//! Two 256-bit registers, with the dot products of AVX-VNNI or those that AVX2 has.

use super::super::super::lanes::Avx2;
use super::{CodeKernel, Dots};
use crate::model::STEPS;
use std::arch::x86_64::*;

/// Compiles and runs `kernel` with AVX2, FMA and F16C.
///
/// # Safety
/// The processor has them.
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn run<K: CodeKernel>(kernel: K) {
    kernel.run::<Avx2, Pairs<false>>();
}

/// Compiles and runs `kernel` with the same and AVX-VNNI.
///
/// # Safety
/// The processor has them.
#[target_feature(enable = "avx2,fma,f16c,avxvnni")]
pub unsafe fn run_vnni<K: CodeKernel>(kernel: K) {
    kernel.run::<Avx2, Pairs<true>>();
}

/// Outputs 0 to 7, and 8 to 15. Used only inside [`run`] or, with `VNNI`, [`run_vnni`], whose callers have checked the
/// processor: the SAFETY of every intrinsic here.
pub struct Pairs<const VNNI: bool>;

/// The steps, 128 added to each, twice.
const TABLE: [u8; 32] = {
    let mut table = [0; 32];
    let mut i = 0;
    while i < 32 {
        table[i] = (STEPS[i % 16] as i16 + 128) as u8;
        i += 1;
    }
    table
};

impl<const VNNI: bool> Dots<Avx2> for Pairs<VNNI> {
    type Codes = [__m256i; 2];
    type Sums = [__m256i; 2];

    #[inline(always)]
    unsafe fn bytes(from: *const u8) -> Self::Codes {
        // SAFETY: the caller's promise.
        unsafe { [_mm256_loadu_si256(from.cast()), _mm256_loadu_si256(from.add(32).cast())] }
    }

    #[inline(always)]
    unsafe fn nibbles(from: *const u8) -> [Self::Codes; 2] {
        // SAFETY: the caller's promise.
        unsafe {
            let both = [_mm256_loadu_si256(from.cast()), _mm256_loadu_si256(from.add(32).cast())];
            let low = _mm256_set1_epi8(15);
            [
                both.map(|both| _mm256_and_si256(both, low)),
                both.map(|both| _mm256_and_si256(_mm256_srli_epi16::<4>(both), low)),
            ]
        }
    }

    #[inline(always)]
    unsafe fn with_fifths(codes: Self::Codes, bits: *const u8) -> Self::Codes {
        // SAFETY: the caller's promise.
        unsafe {
            // Each byte of the bits to the eight codes it is for, of which each keeps its own bit.
            let spread = _mm256_setr_epi8(
                0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3,
            );
            let own = _mm256_set1_epi64x(0x8040_2010_0804_0201_u64 as i64);
            let fifth = |half: usize| {
                let bits = _mm256_set1_epi32(bits.add(4 * half).cast::<i32>().read_unaligned());
                let set = _mm256_cmpeq_epi8(_mm256_and_si256(_mm256_shuffle_epi8(bits, spread), own), own);
                _mm256_and_si256(set, _mm256_set1_epi8(16))
            };
            [_mm256_or_si256(codes[0], fifth(0)), _mm256_or_si256(codes[1], fifth(1))]
        }
    }

    #[inline(always)]
    fn steps(codes: Self::Codes) -> Self::Codes {
        // SAFETY: see `Pairs`.
        unsafe {
            let table = _mm256_loadu_si256(TABLE.as_ptr().cast());
            codes.map(|codes| _mm256_shuffle_epi8(table, codes))
        }
    }

    #[inline(always)]
    unsafe fn start<const SHIFT: u32, const WIDE: bool>(negated: *const i32) -> Self::Sums {
        if WIDE && !VNNI {
            // Wide codes are taken around their centre, see `dot`.
            return <Self as Dots<Avx2>>::zero();
        }
        // SAFETY: the caller's promise.
        unsafe { [_mm256_set1_epi32(*negated << SHIFT); 2] }
    }

    #[inline(always)]
    fn zero() -> Self::Sums {
        // SAFETY: see `Pairs`.
        unsafe { [_mm256_setzero_si256(); 2] }
    }

    #[inline(always)]
    unsafe fn dot<const WIDE: bool>(codes: Self::Codes, inputs: *const i8, sums: Self::Sums) -> Self::Sums {
        // SAFETY: the caller's promise.
        unsafe {
            let inputs = _mm256_set1_epi32(inputs.cast::<i32>().read_unaligned());
            let add = |codes: __m256i, sums: __m256i| {
                if VNNI {
                    return _mm256_dpbusd_avx_epi32(sums, codes, inputs);
                }
                // Products of two inputs are added in 16 bits. With codes up to 255 they would not fit: of codes around 128
                // the magnitudes do, and the inputs take the signs.
                let pairs = if WIDE {
                    let signed = _mm256_xor_si256(codes, _mm256_set1_epi8(-128));
                    _mm256_maddubs_epi16(_mm256_abs_epi8(signed), _mm256_sign_epi8(inputs, signed))
                } else {
                    _mm256_maddubs_epi16(codes, inputs)
                };
                _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
            };
            [add(codes[0], sums[0]), add(codes[1], sums[1])]
        }
    }

    #[inline(always)]
    fn to_floats(sums: Self::Sums) -> Avx2 {
        // SAFETY: see `Pairs`.
        unsafe { Avx2::new(_mm256_cvtepi32_ps(sums[0]), _mm256_cvtepi32_ps(sums[1])) }
    }
}
