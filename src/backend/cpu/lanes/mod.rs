//! Sixteen `f32` lanes, the one vector type that every kernel is written for.
//!
//! A kernel is written once, generic over [`Lanes`]; [`Simd::run`] compiles and runs it for an
//! instruction set. Each operation rounds once and exactly alike in every set (products are always
//! fused into the sum), so all sets give the same bits.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;

#[cfg(target_arch = "x86_64")]
pub use avx2::Lanes16 as Avx2;
#[cfg(target_arch = "x86_64")]
pub use avx512::Lanes16 as Avx512;
pub use portable::Lanes16 as Portable;

use super::Simd;
use half::{bf16, f16};

/// Lanes of a vector; also the output columns of a weight panel.
pub const LANES: usize = 16;

/// Where a bfloat16 number lies in the binary32 number of the same value.
#[cfg(target_arch = "x86_64")]
const UPPER_HALF: i32 = 0xffff_0000_u32 as i32;

/// Where the sign, and exponent and fraction, of an E4M3 number lie in the binary16 number of `2^-8` times its value: one
/// bit to the right of where they are in the upper byte, but for the sign.
const E4M3_IN_HALF: i16 = 0xbf80_u16 as i16;

/// What makes that number the value again.
const E4M3_POWER: f32 = 256.0;

/// Rounds `n` up to whole vectors.
pub const fn padded(n: usize) -> usize {
    n.div_ceil(LANES) * LANES
}

/// A vector of [`LANES`] floats. Values exist only inside [`Simd::run`], which checks that the
/// processor has the instructions.
pub trait Lanes: Copy {
    /// All lanes `x`.
    fn splat(x: f32) -> Self;

    /// Reads 16 floats, at any alignment.
    ///
    /// # Safety
    /// They are readable.
    unsafe fn load(from: *const f32) -> Self;

    /// Reads and widens 16 binary16 numbers.
    ///
    /// # Safety
    /// They are readable.
    unsafe fn load_f16(from: *const f16) -> Self;

    /// Reads and widens 16 bfloat16 numbers.
    ///
    /// # Safety
    /// They are readable.
    unsafe fn load_bf16(from: *const bf16) -> Self;

    /// Of 16 pairs of bfloat16 numbers reads and widens the first ones.
    ///
    /// # Safety
    /// All 32 numbers are readable.
    unsafe fn load_bf16_first(from: *const bf16) -> Self;

    /// Of 16 pairs of bfloat16 numbers reads and widens the second ones.
    ///
    /// # Safety
    /// All 32 numbers are readable.
    unsafe fn load_bf16_second(from: *const bf16) -> Self;

    /// Of 16 pairs of E4M3 numbers reads and widens the first ones. Codes of no numbers come out as 480 and -480.
    ///
    /// # Safety
    /// All 32 bytes are readable.
    unsafe fn load_e4m3_first(from: *const u8) -> Self;

    /// Of 16 pairs of E4M3 numbers reads and widens the second ones, likewise.
    ///
    /// # Safety
    /// All 32 bytes are readable.
    unsafe fn load_e4m3_second(from: *const u8) -> Self;

    /// Reads and widens 16 E4M3 numbers, likewise.
    ///
    /// # Safety
    /// They are readable.
    unsafe fn load_e4m3(from: *const u8) -> Self;

    /// Writes 16 floats, at any alignment.
    ///
    /// # Safety
    /// They are writable.
    unsafe fn store(self, to: *mut f32);

    /// `self + other`.
    fn add(self, other: Self) -> Self;
    /// `self - other`.
    fn sub(self, other: Self) -> Self;
    /// `self · other`.
    fn mul(self, other: Self) -> Self;
    /// `self / other`.
    fn div(self, other: Self) -> Self;
    /// `self · factor + addend`, rounded once.
    fn fma(self, factor: Self, addend: Self) -> Self;
    /// `self > other ? self : other`.
    fn max(self, other: Self) -> Self;
    /// `self < other ? self : other`.
    fn min(self, other: Self) -> Self;
    /// Zero where `at < floor`, `self` elsewhere.
    fn zero_where_below(self, at: Self, floor: Self) -> Self;
    /// Whether no lane is infinite or no number.
    fn is_finite(self) -> bool;
    /// Rounds to integers, ties to even, and writes 16 of them as bytes; returns their sum. All are in -127..=127.
    ///
    /// # Safety
    /// The bytes are writable.
    unsafe fn store_i8(self, to: *mut i8) -> i32;
    /// Reads 16 bytes as numbers.
    ///
    /// # Safety
    /// They are readable.
    unsafe fn load_i8(from: *const i8) -> Self;
    /// The largest lane, of numbers.
    fn largest(self) -> f32;
    /// Adds the low 9 bits of `power`, as stored, to the exponent: `self · 2^n` for a `power` of `1.5·2²³ + n`.
    fn scale(self, power: Self) -> Self;

    /// The lanes in order.
    #[inline(always)]
    fn to_array(self) -> [f32; LANES] {
        let mut lanes = [0.0; LANES];
        // SAFETY: the array has room for 16 floats.
        unsafe { self.store(lanes.as_mut_ptr()) };
        lanes
    }
}

/// Something to run with a vector type of the caller's choice. `run` must be `#[inline(always)]`,
/// and so must all it calls, or the kernel is not compiled for the instruction set.
pub trait Kernel {
    /// What comes out.
    type Output;

    /// Runs with vector type `V`.
    fn run<V: Lanes>(self) -> Self::Output;
}

impl Simd {
    /// The best instruction set of this processor.
    pub fn detect() -> Self {
        Self::ALL.into_iter().find(|level| level.is_available()).unwrap_or(Self::Portable)
    }

    /// Whether this processor has the instructions.
    pub fn is_available(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Simd::Avx512Vnni => {
                is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vnni")
            }
            #[cfg(target_arch = "x86_64")]
            Simd::Avx512 => is_x86_feature_detected!("avx512f"),
            #[cfg(target_arch = "x86_64")]
            Simd::AvxVnni => Simd::Avx2.is_available() && is_x86_feature_detected!("avxvnni"),
            #[cfg(target_arch = "x86_64")]
            Simd::Avx2 => {
                is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
            }
            #[cfg(not(target_arch = "x86_64"))]
            Simd::Avx512Vnni | Simd::Avx512 | Simd::AvxVnni | Simd::Avx2 => false,
            Simd::Portable => true,
        }
    }

    /// Rows of the tallest register tile.
    pub fn max_rows(self) -> usize {
        match self {
            Simd::Avx512Vnni | Simd::Avx512 => 8,
            Simd::AvxVnni | Simd::Avx2 => 6,
            Simd::Portable => 4,
        }
    }

    /// Panels of the register tile of `rows` rows. Few rows get many panels: a multiply-add takes four
    /// cycles and two can start in each, so that at least eight must be under way. The tallest tiles
    /// keep half the registers free, or the compiler spills sums to load two inputs' weights at once.
    pub fn max_panels(self, rows: usize) -> usize {
        match self {
            Simd::Avx512Vnni | Simd::Avx512 => match rows {
                1 => 8,
                2 | 3 => 6,
                4 => 4,
                5 => 3,
                _ => 2,
            },
            Simd::AvxVnni | Simd::Avx2 => match rows {
                1 => 4,
                2 => 3,
                3 => 2,
                _ => 1,
            },
            Simd::Portable => 1,
        }
    }

    /// Runs `kernel` with this instruction set, which [`is_available`](Self::is_available).
    #[inline]
    pub(super) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        debug_assert!(self.is_available());
        match self {
            // SAFETY: the backend only ever keeps an instruction set that is available.
            #[cfg(target_arch = "x86_64")]
            Simd::Avx512Vnni | Simd::Avx512 => unsafe { avx512::run(kernel) },
            // SAFETY: the same.
            #[cfg(target_arch = "x86_64")]
            Simd::AvxVnni | Simd::Avx2 => unsafe { avx2::run(kernel) },
            _ => kernel.run::<portable::Lanes16>(),
        }
    }
}

/// A number format that weights are stored in. In a panel, two inputs of 16 outputs each make a block
/// of 32 numbers; where the number of inputs is odd, the last 16 numbers are a single input's.
pub trait Element: Copy {
    /// Elements before the weights of a group of inputs, whose bytes are 16 scales in f32; 0: there are no scales.
    const SCALES: usize = 0;

    /// Up to so many rows weights are widened on their way to the registers, for each tile of rows anew.
    const FEW_ROWS: usize = 24;

    /// Multiplies weights by their scales, where there are any.
    #[inline(always)]
    fn scaled<V: Lanes>(weights: V, scales: V) -> V {
        if Self::SCALES > 0 { weights.mul(scales) } else { weights }
    }

    /// Reads the first input's 16 weights of a block as `f32`, exactly.
    ///
    /// # Safety
    /// The block is readable.
    unsafe fn first<V: Lanes>(block: *const Self) -> V;

    /// Reads the second input's 16 weights of a block, `stride` being the distance of two inputs.
    ///
    /// # Safety
    /// The block is readable.
    unsafe fn second<V: Lanes>(block: *const Self, stride: usize) -> V;

    /// Reads a single input's 16 weights.
    ///
    /// # Safety
    /// They are readable.
    unsafe fn single<V: Lanes>(from: *const Self) -> V;
}

impl Element for f32 {
    #[inline(always)]
    unsafe fn first<V: Lanes>(block: *const Self) -> V {
        // SAFETY: the caller's promise.
        unsafe { V::load(block) }
    }

    #[inline(always)]
    unsafe fn second<V: Lanes>(block: *const Self, stride: usize) -> V {
        // SAFETY: the caller's promise.
        unsafe { V::load(block.add(stride)) }
    }

    #[inline(always)]
    unsafe fn single<V: Lanes>(from: *const Self) -> V {
        // SAFETY: the caller's promise.
        unsafe { V::load(from) }
    }
}

impl Element for f16 {
    #[inline(always)]
    unsafe fn first<V: Lanes>(block: *const Self) -> V {
        // SAFETY: the caller's promise.
        unsafe { V::load_f16(block) }
    }

    #[inline(always)]
    unsafe fn second<V: Lanes>(block: *const Self, stride: usize) -> V {
        // SAFETY: the caller's promise.
        unsafe { V::load_f16(block.add(stride)) }
    }

    #[inline(always)]
    unsafe fn single<V: Lanes>(from: *const Self) -> V {
        // SAFETY: the caller's promise.
        unsafe { V::load_f16(from) }
    }
}

/// A block holds 16 pairs, so that one shift or one mask widens 16 numbers: with the inputs one after
/// the other they would have to be spread first, in units that multiply-adds need too.
impl Element for bf16 {
    #[inline(always)]
    unsafe fn first<V: Lanes>(block: *const Self) -> V {
        // SAFETY: the caller's promise.
        unsafe { V::load_bf16_first(block) }
    }

    #[inline(always)]
    unsafe fn second<V: Lanes>(block: *const Self, _stride: usize) -> V {
        // SAFETY: the caller's promise.
        unsafe { V::load_bf16_second(block) }
    }

    #[inline(always)]
    unsafe fn single<V: Lanes>(from: *const Self) -> V {
        // SAFETY: the caller's promise.
        unsafe { V::load_bf16(from) }
    }
}

/// An E4M3 number by its byte.
#[derive(Debug, Clone, Copy)]
#[repr(transparent)]
pub struct E4m3(u8);

/// A block holds 16 pairs, as of bfloat16 numbers.
impl Element for E4m3 {
    const SCALES: usize = LANES * size_of::<f32>();

    // To widen a vector takes as long as to multiply eight rows by it.
    const FEW_ROWS: usize = 8;

    #[inline(always)]
    unsafe fn first<V: Lanes>(block: *const Self) -> V {
        // SAFETY: the caller's promise.
        unsafe { V::load_e4m3_first(block.cast()) }
    }

    #[inline(always)]
    unsafe fn second<V: Lanes>(block: *const Self, _stride: usize) -> V {
        // SAFETY: the caller's promise.
        unsafe { V::load_e4m3_second(block.cast()) }
    }

    #[inline(always)]
    unsafe fn single<V: Lanes>(from: *const Self) -> V {
        // SAFETY: the caller's promise.
        unsafe { V::load_e4m3(from.cast()) }
    }
}
