//! Rows of the paged cache as `cuda/common/cached_rows.cuh` has them, written and read on the host.

use crate::support::{narrow, widen};
use eesd::backend::KvFormat;
use eesd::backend::cuda::kernels::{Attention, Format};
use eesd::kv::PAGE_TOKENS;
use half::{bf16, f16};

const GROUP: usize = KvFormat::GROUP;

/// How rows are kept: a cache is `[pages][kv_heads]` times what this says of 64 rows, in words of 16 bits.
#[derive(Clone, Copy)]
pub struct Rows {
    pub format: Format,
    pub kv: KvFormat,
    pub kv_heads: usize,
    pub head_dim: usize,
}

/// A row of a page.
#[derive(Clone, Copy)]
pub struct Place {
    pub page: usize,
    pub kv_head: usize,
    pub row: usize,
}

impl Rows {
    /// Words of a page.
    pub fn page_words(&self) -> usize {
        self.kv_heads * self.head_words()
    }

    fn head_words(&self) -> usize {
        PAGE_TOKENS * Attention::row_bytes(self.kv, self.head_dim) / 2
    }

    /// The words of a row's numbers or codes, and of its scales.
    fn words(&self, at: Place) -> (std::ops::Range<usize>, std::ops::Range<usize>) {
        let first = (at.page * self.kv_heads + at.kv_head) * self.head_words();
        let (numbers, scales) = match self.kv {
            KvFormat::Full => (self.head_dim, 0),
            KvFormat::Eight => (self.head_dim / 2, self.head_dim.div_ceil(GROUP)),
        };
        let (of_numbers, of_scales) = (first + at.row * numbers, first + PAGE_TOKENS * numbers + at.row * scales);
        (of_numbers..of_numbers + numbers, of_scales..of_scales + scales)
    }

    /// To nearest: of an f64 `half` looks at 20 bits, which is not enough for a tie.
    fn round(&self, number: f32) -> u16 {
        match self.format {
            Format::Bf16 => bf16::from_f32(number).to_bits(),
            Format::F16 => f16::from_f32(number).to_bits(),
        }
    }

    /// The numbers that a row stands for.
    pub fn read(&self, cache: &[u16], at: Place) -> Vec<f64> {
        let (numbers, scales) = self.words(at);
        let (numbers, scales) = (&cache[numbers], &cache[scales]);
        match self.kv {
            KvFormat::Full => numbers.iter().map(|&number| widen(self.format, number)).collect(),
            KvFormat::Eight => {
                let codes = numbers.iter().flat_map(|word| word.to_le_bytes()).map(|byte| f64::from(byte) - 128.0);
                let scale = |dim: usize| widen(self.format, scales[dim / GROUP]);
                let exact = codes.enumerate().map(|(dim, code)| code * scale(dim));
                // Exact in f32: codes have 7 bits, scales 8 or 11.
                exact.map(|number| widen(self.format, self.round(number as f32))).collect()
            }
        }
    }

    /// Puts numbers in a row.
    pub fn write(&self, cache: &mut [u16], at: Place, numbers: &[f32]) {
        let (of_numbers, of_scales) = self.words(at);
        if self.kv == KvFormat::Full {
            let rounded = numbers.iter().map(|&number| self.round(number));
            return cache[of_numbers].iter_mut().zip(rounded).for_each(|(word, number)| *word = number);
        }
        let (mut codes, mut scales) = (Vec::new(), Vec::new());
        for group in numbers.chunks(GROUP) {
            let largest = group.iter().fold(0.0f32, |largest, number| largest.max(number.abs()));
            let scale = self.round(largest / 127.0);
            let step = widen(self.format, scale) as f32;
            let code = |&number: &f32| (number / step).clamp(-127.0, 127.0).round_ties_even() as i32;
            codes.extend(group.iter().map(|number| if step > 0.0 { code(number) + 128 } else { 128 } as u8));
            scales.push(scale);
        }
        let words = codes.chunks(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]]));
        cache[of_numbers].iter_mut().zip(words).for_each(|(word, codes)| *word = codes);
        cache[of_scales].copy_from_slice(&scales);
    }

    /// A cache of so many pages, of which nothing may be read before it is written.
    pub fn unwritten(&self, pages: usize) -> Vec<u16> {
        vec![narrow(self.format, f64::NAN); pages * self.page_words()]
    }

    /// How far a row's numbers may be from those that were put there: half a unit of the last place, or half a step of their
    /// group, and again as much as one rounding in 16 bits.
    pub fn tolerances(&self, numbers: &[f64], unit_roundoff: f64) -> Vec<f64> {
        let rounding = |x: f64| 2.0 * unit_roundoff * x.abs() + 1e-6;
        let of_group = |group: &[f64]| {
            let largest = group.iter().fold(0.0f64, |largest, number| largest.max(number.abs()));
            let step = if self.kv == KvFormat::Eight { largest / 127.0 } else { 0.0 };
            group.iter().map(|&number| step / 2.0 + rounding(number)).collect::<Vec<f64>>()
        };
        numbers.chunks(GROUP).flat_map(of_group).collect()
    }
}
