//! What all formats come down to: codes, and a scale and a zero point for each group of inputs. A weight is
//! `(code − zero point) · scale`.

use super::super::tensors::Made;
use super::module::{Number, Part};
use crate::model::{Dtype, Format, Fp8, Groups, e4m3};
use rayon::prelude::*;
use std::borrow::Cow;
use std::collections::TryReserveError;

/// Rows that are taken apart at a time: columns of words are read once for all of them.
const TILE: usize = 32;

/// A quantised matrix in its parts.
pub(super) struct Coded<'a> {
    pub(super) codes: Codes<'a>,
    pub(super) scales: Table<'a>,
    pub(super) zeros: Zeros<'a>,
    pub(super) groups: Grouping,
}

/// The codes of a matrix.
pub(super) enum Codes<'a> {
    /// Unsigned, in words.
    Packed(Fields<'a>),
    /// A signed byte each, row by row.
    Signed(&'a [u8]),
    /// E4M3 numbers, row by row.
    E4m3(&'a [u8]),
}

/// What is subtracted from codes.
pub(super) enum Zeros<'a> {
    /// The same from all.
    Fixed(i32),
    /// A field of a word for each row and group.
    Packed(Fields<'a>),
    /// A whole number for each row and group, and what to add to it.
    Stored(Table<'a>, i32),
}

/// Which group an input belongs to.
pub(super) enum Grouping {
    /// So many neighbours are a group.
    Runs(usize),
    /// Each input names its own.
    Named {
        /// The group of each input.
        groups: Vec<u32>,
        /// The inputs in the order of their groups, where these are then runs of `size`.
        columns: Option<Vec<u32>>,
        /// Inputs of a group.
        size: usize,
    },
}

impl Grouping {
    /// Groups by each input's; `size`: inputs of a group, where all are alike.
    pub(super) fn by(groups: Vec<u32>, size: usize) -> Self {
        let mut columns: Vec<u32> = (0..groups.len() as u32).collect();
        columns.sort_by_key(|&column| groups[column as usize]);
        let runs = columns.iter().enumerate().all(|(at, &column)| groups[column as usize] as usize == at / size);
        match runs {
            true if columns.is_sorted() => Self::Runs(size),
            true => Self::Named { groups, columns: Some(columns), size },
            false => Self::Named { groups, columns: None, size },
        }
    }

    fn count(&self, cols: usize) -> usize {
        match self {
            Self::Runs(size) => cols.div_ceil(*size),
            Self::Named { groups, .. } => groups.iter().max().map_or(0, |&most| most as usize + 1),
        }
    }

    fn of(&self, col: usize) -> usize {
        match self {
            Self::Runs(size) => col / size,
            Self::Named { groups, .. } => groups[col] as usize,
        }
    }
}

/// A number for each row and group of a matrix.
#[derive(Clone, Copy)]
pub(super) struct Table<'a> {
    pub(super) numbers: Part<'a>,
    /// Rows that share their numbers.
    pub(super) high: usize,
    /// Numbers from one such run of rows to the next.
    pub(super) row: usize,
    /// Numbers from one group to the next.
    pub(super) group: usize,
}

impl Table<'_> {
    fn at(&self, row: usize, group: usize) -> usize {
        row / self.high * self.row + group * self.group
    }
}

/// Codes of 4 or 8 bits in words of 32, little-endian.
#[derive(Clone, Copy)]
pub(super) struct Fields<'a> {
    pub(super) words: &'a [u8],
    pub(super) bits: usize,
    /// What the codes of a word are neighbours in.
    pub(super) along: Axis,
    /// Words from one to the next along that axis.
    pub(super) next: usize,
    /// Words from one to the next along the other axis.
    pub(super) other: usize,
    /// Which code of its word has which bits, from the low ones on.
    pub(super) order: &'static [usize],
    /// Added to each word before it is taken apart.
    pub(super) plus: u32,
}

/// The axes of a matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Axis {
    /// Outputs.
    Rows,
    /// Inputs, or groups of them.
    Cols,
}

/// Codes in the order of their bits.
pub(super) const IN_ORDER: &[usize] = &[0, 1, 2, 3, 4, 5, 6, 7];

impl Fields<'_> {
    fn word(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.words.as_chunks::<4>().0[at]).wrapping_add(self.plus)
    }

    fn mask(&self) -> u32 {
        (1 << self.bits) - 1
    }

    /// The code at a row and a column.
    fn get(&self, row: usize, col: usize) -> u8 {
        let count = 32 / self.bits;
        let (along, other) = if self.along == Axis::Rows { (row, col) } else { (col, row) };
        let word = self.word(along / count * self.next + other * self.other);
        let place = self.order.iter().position(|&code| code == along % count).unwrap_or(0);
        (word >> (place * self.bits) & self.mask()) as u8
    }

    /// The codes of some rows, from `first` on, which begins a word where words run along rows.
    fn unpack(&self, first: usize, cols: usize, out: &mut [u8]) {
        let (count, rows) = (32 / self.bits, out.len() / cols);
        let (along, others) = if self.along == Axis::Rows { (rows, cols) } else { (cols, rows) };
        let (first_word, first_other) = if self.along == Axis::Rows { (first / count, 0) } else { (0, first) };
        for run in 0..along.div_ceil(count) {
            for other in 0..others {
                let word = self.word((first_word + run) * self.next + (first_other + other) * self.other);
                for place in 0..count {
                    let at = run * count + self.order[place];
                    if at < along {
                        let (row, col) = if self.along == Axis::Rows { (at, other) } else { (other, at) };
                        out[row * cols + col] = (word >> (place * self.bits) & self.mask()) as u8;
                    }
                }
            }
        }
    }
}

impl Coded<'_> {
    /// The matrix in rows of a [`Format`]: in f32 where no other one has groups like these.
    ///
    /// # Errors
    /// If there is no memory for it.
    pub(super) fn transcode(&self, rows: usize, cols: usize) -> Result<Made, TryReserveError> {
        let format = self.format(rows, cols);
        let row_bytes = format.row_bytes(cols).expect("a format is taken that has such rows");
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(rows.saturating_mul(row_bytes))?;
        bytes.resize(rows * row_bytes, 0);
        bytes.par_chunks_mut(TILE * row_bytes).enumerate().for_each(|(tile, out)| {
            let (first, count) = (tile * TILE, out.len() / row_bytes);
            let mut unpacked = Vec::new();
            let codes = match &self.codes {
                Codes::Signed(codes) | Codes::E4m3(codes) => &codes[first * cols..][..count * cols],
                Codes::Packed(fields) => {
                    unpacked.resize(count * cols, 0);
                    fields.unpack(first, cols, &mut unpacked);
                    &unpacked
                }
            };
            for (at, (out, codes)) in out.chunks_mut(row_bytes).zip(codes.chunks(cols)).enumerate() {
                self.write_row(first + at, codes, format, out);
            }
        });
        Ok(Made { format, rows, cols, bytes, columns: self.columns(format).map(<[_]>::to_vec) })
    }

    /// The input that each stored column of a format is, where they are not in order.
    fn columns(&self, format: Format) -> Option<&[u32]> {
        match (&self.groups, format) {
            (Grouping::Named { columns, .. }, Format::Groups(_)) => columns.as_deref(),
            _ => None,
        }
    }

    fn format(&self, rows: usize, cols: usize) -> Format {
        let size = match (&self.groups, &self.codes) {
            (&Grouping::Runs(size), _) => size,
            (&Grouping::Named { size, columns: Some(_), .. }, Codes::Signed(_) | Codes::Packed(_)) => size,
            (Grouping::Named { .. }, _) => return Dtype::F32.into(),
        };
        let bits = match &self.codes {
            Codes::E4m3(_) => return Format::Fp8(Fp8 { size: size.min(cols) }),
            Codes::Signed(_) => 8,
            Codes::Packed(fields) => fields.bits as u8,
        };
        // One group for all may be as long as it likes, and is even.
        let size = if size >= cols { cols.next_multiple_of(2) } else { size };
        let groups = self.groups.count(cols);
        let minima = (0..rows).any(|row| (0..groups).any(|group| self.zero(row, group) != self.middle()));
        let format = Format::Groups(Groups { bits, size, minima });
        if format.row_bytes(cols).is_some() { format } else { Dtype::F32.into() }
    }

    /// The zero point of rows without minima.
    fn middle(&self) -> i32 {
        match &self.codes {
            Codes::Packed(fields) => 1 << (fields.bits - 1),
            _ => 0,
        }
    }

    /// The code that rows with minima count from: unsigned bytes become signed ones, four bits stay as they are.
    fn base(&self) -> i32 {
        match &self.codes {
            Codes::Packed(Fields { bits: 8, .. }) => 128,
            _ => 0,
        }
    }

    fn zero(&self, row: usize, group: usize) -> i32 {
        match &self.zeros {
            Zeros::Fixed(zero) => *zero,
            Zeros::Packed(fields) => fields.get(row, group).into(),
            Zeros::Stored(table, plus) => table.numbers.whole(table.at(row, group)) as i32 + plus,
        }
    }

    fn scale(&self, row: usize, group: usize) -> f32 {
        self.scales.numbers.float(self.scales.at(row, group))
    }

    fn write_row(&self, row: usize, codes: &[u8], format: Format, out: &mut [u8]) {
        let groups = self.groups.count(codes.len());
        let scales = (0..groups).map(|group| self.scale(row, group));
        match format {
            Format::Groups(of) => {
                let minimum = |group| -((self.zero(row, group) - self.base()) as f32 * self.scale(row, group));
                let (numbers, packed) = out.split_at_mut(out.len() - of.bits as usize * codes.len() / 8);
                write(numbers, scales.chain((0..groups).map(minimum)));
                let codes: Cow<'_, [u8]> = match self.columns(format) {
                    Some(columns) => columns.iter().map(|&column| codes[column as usize]).collect(),
                    None => codes.into(),
                };
                match &self.codes {
                    Codes::Packed(Fields { bits: 4, .. }) => {
                        let pairs = codes.as_chunks::<2>().0;
                        packed.iter_mut().zip(pairs).for_each(|(out, [low, high])| *out = low | high << 4);
                    }
                    // Around 128, as signed bytes are around 0.
                    Codes::Packed(_) => packed.iter_mut().zip(codes.iter()).for_each(|(out, code)| *out = code ^ 0x80),
                    _ => packed.copy_from_slice(&codes),
                }
            }
            Format::Fp8(_) => {
                let (numbers, packed) = out.split_at_mut(out.len() - codes.len());
                write(numbers, scales);
                packed.copy_from_slice(codes);
            }
            _ => {
                let of_group: Vec<(f32, i32)> = scales.zip((0..groups).map(|group| self.zero(row, group))).collect();
                let number = |(col, &code): (usize, &u8)| {
                    let (scale, zero) = of_group[self.groups.of(col)];
                    match &self.codes {
                        Codes::E4m3(_) => e4m3(code) * scale,
                        Codes::Signed(_) => (i32::from(code as i8) - zero) as f32 * scale,
                        Codes::Packed(_) => (i32::from(code) - zero) as f32 * scale,
                    }
                };
                write(out, codes.iter().enumerate().map(number));
            }
        }
    }
}

fn write(out: &mut [u8], numbers: impl Iterator<Item = f32>) {
    out.as_chunks_mut::<4>().0.iter_mut().zip(numbers).for_each(|(out, number)| *out = number.to_le_bytes());
}

/// The groups that a list of each input's says.
///
/// # Errors
/// The place of the first number that is no group's, and the number.
pub(super) fn index(part: Part<'_>, cols: usize, groups: usize) -> Result<Vec<u32>, (usize, i64)> {
    debug_assert!(matches!(part.number, Number::I32 | Number::I64));
    let group = |at| {
        let number = part.whole(at);
        u32::try_from(number).ok().filter(|&group| (group as usize) < groups).ok_or((at, number))
    };
    (0..cols).map(group).collect()
}
