//! Random numbers in a model's number format, made once and looked at through many windows.

use eesd::model::{Dtype, Encoder, Format, Fp8, Matrix};
use std::num::NonZeroUsize;
use std::thread;

/// Numbers that are made at a time, each time from a seed of its own: whole blocks of every format. Those whose scales lie
/// before a row's codes are made by rows.
const PIECE: usize = 1 << 16;
/// The largest number of E4M3.
const MOST_E4M3: f32 = 448.0;

/// Stored numbers.
pub struct Numbers {
    format: Format,
    bytes: Vec<u8>,
}

impl Numbers {
    /// At least `count` uniform numbers around zero with this standard deviation, for matrices with so many columns.
    ///
    /// # Panics
    /// As [`by_pieces`](Self::by_pieces).
    pub fn random(format: Format, count: usize, cols: usize, deviation: f32, seed: u64) -> Self {
        let width = deviation * 12f32.sqrt();
        let piece = if is_by_rows(format) { cols } else { PIECE };
        Self::by_pieces(format, count.div_ceil(piece), piece, |piece, numbers| {
            // A linear congruential generator (Knuth's MMIX), whose upper bits are random enough here; each piece begins
            // elsewhere in its one sequence.
            let mut state = (seed << 32 | piece as u64 | 1 << 63).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            for number in numbers {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                *number = width * ((state >> 40) as f32 / (1u64 << 24) as f32 - 0.5);
            }
        })
    }

    /// Pieces of so many numbers, each filled by its index, on all cores.
    ///
    /// # Panics
    /// If numbers cannot be put into this format, or a piece is no whole blocks of it.
    pub fn by_pieces(format: Format, pieces: usize, len: usize, fill: impl Fn(usize, &mut [f32]) + Sync) -> Self {
        let bytes_of_piece = format.row_bytes(len).expect("pieces of whole blocks");
        let mut bytes = vec![0; pieces * bytes_of_piece];
        let threads = thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let share = pieces.div_ceil(threads).max(1);
        thread::scope(|scope| {
            for (number, part) in bytes.chunks_mut(share * bytes_of_piece).enumerate() {
                let fill = &fill;
                scope.spawn(move || {
                    let mut numbers = vec![0.0; len];
                    for (piece, stored) in (number * share..).zip(part.chunks_exact_mut(bytes_of_piece)) {
                        fill(piece, &mut numbers);
                        store(format, &numbers, stored);
                    }
                });
            }
        });
        Self { format, bytes }
    }

    /// `rows · cols` of them as a matrix, from number `at` on.
    ///
    /// # Panics
    /// If that is no place where a block (or a row, where numbers are stored by rows) begins, or past the end.
    pub fn window(&self, at: usize, rows: usize, cols: usize) -> Matrix<'_> {
        let place = |at: usize| {
            let (runs, run) = if is_by_rows(self.format) { (at / cols, cols) } else { (1, at) };
            assert_eq!(runs * run, at, "a window of whole rows");
            runs * self.format.row_bytes(run).expect("a window of whole blocks")
        };
        Matrix::new(self.format, rows, cols, &self.bytes[place(at)..][..place(rows * cols)])
    }
}

/// Whether a row's scales are stored before its codes, so that a row is no part of a longer one.
pub fn is_by_rows(format: Format) -> bool {
    matches!(format, Format::Groups(_) | Format::Fp8(_))
}

fn store(format: Format, numbers: &[f32], stored: &mut [u8]) {
    match format {
        Format::Float(Dtype::F32) => each(stored, numbers, f32::to_le_bytes),
        Format::Float(Dtype::F16) => each(stored, numbers, |number| half::f16::from_f32(number).to_le_bytes()),
        Format::Float(Dtype::BF16) => each(stored, numbers, |number| half::bf16::from_f32(number).to_le_bytes()),
        Format::Fp8(Fp8 { size }) => {
            let (scales, codes) = stored.split_at_mut(stored.len() - numbers.len());
            let groups = scales.as_chunks_mut().0.iter_mut().zip(codes.chunks_mut(size)).zip(numbers.chunks(size));
            for ((scale, codes), numbers) in groups {
                let most = numbers.iter().fold(f32::MIN_POSITIVE, |most, number| most.max(number.abs()));
                *scale = (most / MOST_E4M3).to_le_bytes();
                codes.iter_mut().zip(numbers).for_each(|(code, number)| *code = e4m3_of(number * (MOST_E4M3 / most)));
            }
        }
        _ => {
            let encoder = encoder(format).expect("a format that numbers can be put into");
            encoder.encode(numbers, stored).expect("numbers that fit");
        }
    }
}

/// The E4M3 number nearest to one of at most 448: as the upper bits of the binary32 number that has its exponent, which counts
/// from 7 in place of 127.
fn e4m3_of(number: f32) -> u8 {
    let bits = (number.abs().min(MOST_E4M3) * 2f32.powi(7 - 127)).to_bits();
    let nearest = (bits + 0x7ffff + (bits >> 20 & 1)) >> 20;
    nearest as u8 | if number.is_sign_negative() { 0x80 } else { 0 }
}

fn each<const SIZE: usize>(stored: &mut [u8], numbers: &[f32], bytes: impl Fn(f32) -> [u8; SIZE]) {
    stored.as_chunks_mut().0.iter_mut().zip(numbers).for_each(|(stored, &number)| *stored = bytes(number));
}

/// What puts numbers into blocks of a format, if that is one of blocks and there is something that does.
fn encoder(format: Format) -> Option<Encoder> {
    let all = [Encoder::Q8_0, Encoder::Q4_0, Encoder::Q4K, Encoder::Q6K];
    all.into_iter().find(|encoder| Format::Blocks(encoder.blocks()) == format)
}
