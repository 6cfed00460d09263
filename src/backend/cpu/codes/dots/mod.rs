//! Dot products of stored codes and quantised inputs, four inputs of 16 outputs at a time.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;

use super::super::Simd;
use super::super::lanes::{self, Lanes};

/// What an instruction set does with codes. All sums are exact, so all sets give the same ones.
pub trait Dots<V: Lanes> {
    /// Codes of four inputs of each of 16 outputs, output by output.
    type Codes: Copy;
    /// A 32-bit integer for each output.
    type Sums: Copy;

    /// Reads 64 codes of eight bits.
    ///
    /// # Safety
    /// They are readable.
    unsafe fn bytes(from: *const u8) -> Self::Codes;

    /// Reads 64 bytes and takes the codes of their low halves and of their high halves.
    ///
    /// # Safety
    /// They are readable.
    unsafe fn nibbles(from: *const u8) -> [Self::Codes; 2];

    /// Adds 16 to the codes whose bits are set among the 64 at `bits`.
    ///
    /// # Safety
    /// The 8 bytes are readable.
    unsafe fn with_fifths(codes: Self::Codes, bits: *const u8) -> Self::Codes;

    /// The steps that codes of four bits name, 128 added to each.
    fn steps(codes: Self::Codes) -> Self::Codes;

    /// Where a sum starts, so that it comes out as if `2^SHIFT` had been taken from each code: at `2^SHIFT` times `negated`,
    /// minus the sum of the inputs.
    ///
    /// # Safety
    /// `negated` is readable.
    unsafe fn start<const SHIFT: u32, const WIDE: bool>(negated: *const i32) -> Self::Sums;

    /// Zeros.
    fn zero() -> Self::Sums;

    /// Adds the products of the codes and four inputs. `WIDE`: codes may have all eight bits, and the sum has been
    /// [started](Self::start) with a `SHIFT` of 7.
    ///
    /// # Safety
    /// The inputs are readable.
    unsafe fn dot<const WIDE: bool>(codes: Self::Codes, inputs: *const i8, sums: Self::Sums) -> Self::Sums;

    /// The sums, below 2^24 in magnitude, as floats.
    fn to_floats(sums: Self::Sums) -> V;
}

/// Something to run with an instruction set's vectors and dot products; see [`lanes::Kernel`].
pub trait CodeKernel {
    /// Runs with vector type `V` and dot products `D`.
    fn run<V: Lanes, D: Dots<V>>(self);
}

/// Bytes of a cache line.
pub const LINE: usize = 64;

/// Asks for a cache line, into the first cache or (not `NEAR`) the second; a hint that touches nothing.
#[inline(always)]
pub fn prefetch<const NEAR: bool>(at: *const u8) {
    // SAFETY: prefetching never faults, whatever the address.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _MM_HINT_T1, _mm_prefetch};
        if NEAR {
            _mm_prefetch::<_MM_HINT_T0>(at.cast());
        } else {
            _mm_prefetch::<_MM_HINT_T1>(at.cast());
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

impl Simd {
    /// Rows of the tallest tile of quantised products.
    pub fn max_code_rows(self) -> usize {
        match self {
            Simd::Avx512Vnni => 8,
            Simd::Avx512 | Simd::AvxVnni | Simd::Avx2 | Simd::Portable => 4,
        }
    }

    /// Runs `kernel` with this instruction set, which [`is_available`](Self::is_available).
    pub(in super::super) fn run_codes<K: CodeKernel>(self, kernel: K) {
        debug_assert!(self.is_available());
        match self {
            // SAFETY: the backend only ever keeps an instruction set that is available.
            #[cfg(target_arch = "x86_64")]
            Simd::Avx512Vnni => unsafe { avx512::run(kernel) },
            // SAFETY: the same.
            #[cfg(target_arch = "x86_64")]
            Simd::AvxVnni => unsafe { avx2::run_vnni(kernel) },
            // SAFETY: the same; AVX-512 comes with AVX2.
            #[cfg(target_arch = "x86_64")]
            Simd::Avx512 | Simd::Avx2 => unsafe { avx2::run(kernel) },
            _ => kernel.run::<lanes::Portable, portable::Plain>(),
        }
    }
}
