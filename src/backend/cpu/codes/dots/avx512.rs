//! One 512-bit register, with the dot products of AVX512-VNNI.

use super::super::super::lanes::Avx512;
use super::{CodeKernel, Dots};
use crate::model::STEPS;
use std::arch::x86_64::*;

/// Compiles and runs `kernel` with AVX-512 and its dot products.
///
/// # Safety
/// The processor has AVX-512F, AVX-512BW and AVX512-VNNI.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
pub unsafe fn run<K: CodeKernel>(kernel: K) {
    kernel.run::<Avx512, Vnni>();
}

/// AVX512-VNNI. Used only inside [`run`], whose caller has checked the processor: the SAFETY of every intrinsic here.
pub struct Vnni;

/// The steps, 128 added to each, four times.
const TABLE: [u8; 64] = {
    let mut table = [0; 64];
    let mut i = 0;
    while i < 64 {
        table[i] = (STEPS[i % 16] as i16 + 128) as u8;
        i += 1;
    }
    table
};

impl Dots<Avx512> for Vnni {
    type Codes = __m512i;
    type Sums = __m512i;

    #[inline(always)]
    unsafe fn bytes(from: *const u8) -> __m512i {
        // SAFETY: the caller's promise.
        unsafe { _mm512_loadu_si512(from.cast()) }
    }

    #[inline(always)]
    unsafe fn nibbles(from: *const u8) -> [__m512i; 2] {
        // SAFETY: the caller's promise.
        unsafe {
            let (both, low) = (_mm512_loadu_si512(from.cast()), _mm512_set1_epi8(15));
            [_mm512_and_si512(both, low), _mm512_and_si512(_mm512_srli_epi16::<4>(both), low)]
        }
    }

    #[inline(always)]
    unsafe fn with_fifths(codes: __m512i, bits: *const u8) -> __m512i {
        // SAFETY: the caller's promise.
        unsafe {
            let set = bits.cast::<u64>().read_unaligned();
            _mm512_mask_add_epi8(codes, set, codes, _mm512_set1_epi8(16))
        }
    }

    #[inline(always)]
    fn steps(codes: __m512i) -> __m512i {
        // SAFETY: see `Vnni`.
        unsafe { _mm512_shuffle_epi8(_mm512_loadu_si512(TABLE.as_ptr().cast()), codes) }
    }

    #[inline(always)]
    unsafe fn start<const SHIFT: u32, const WIDE: bool>(negated: *const i32) -> __m512i {
        // SAFETY: the caller's promise.
        unsafe { _mm512_slli_epi32::<SHIFT>(_mm512_set1_epi32(*negated)) }
    }

    #[inline(always)]
    fn zero() -> __m512i {
        // SAFETY: see `Vnni`.
        unsafe { _mm512_setzero_si512() }
    }

    #[inline(always)]
    unsafe fn dot<const WIDE: bool>(codes: __m512i, inputs: *const i8, sums: __m512i) -> __m512i {
        // SAFETY: the caller's promise.
        unsafe { _mm512_dpbusd_epi32(sums, codes, _mm512_set1_epi32(inputs.cast::<i32>().read_unaligned())) }
    }

    #[inline(always)]
    fn to_floats(sums: __m512i) -> Avx512 {
        // SAFETY: see `Vnni`.
        Avx512::new(unsafe { _mm512_cvtepi32_ps(sums) })
    }
}
