//! How a matrix's numbers are stored, row by row.

use super::BlockType;
use half::{bf16, f16};

/// Number format of a tensor of plain numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16.
    F16,
    /// The upper half of a binary32.
    BF16,
}

impl Dtype {
    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            Dtype::F32 => 4,
            Dtype::F16 | Dtype::BF16 => 2,
        }
    }

    /// Widens stored elements, exactly.
    ///
    /// # Panics
    /// If there are not `out.len()` of them.
    pub fn widen(self, stored: &[u8], out: &mut [f32]) {
        assert_eq!(stored.len(), out.len() * self.size(), "bytes of {self} for {} elements", out.len());
        match self {
            Dtype::F32 => {
                let elements = stored.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes));
                out.iter_mut().zip(elements).for_each(|(out, element)| *out = element);
            }
            Dtype::F16 => {
                let elements = stored.as_chunks::<2>().0.iter().map(|bytes| f16::from_le_bytes(*bytes).to_f32());
                out.iter_mut().zip(elements).for_each(|(out, element)| *out = element);
            }
            Dtype::BF16 => {
                let elements = stored.as_chunks::<2>().0.iter().map(|bytes| bf16::from_le_bytes(*bytes).to_f32());
                out.iter_mut().zip(elements).for_each(|(out, element)| *out = element);
            }
        }
    }
}

impl std::fmt::Display for Dtype {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Dtype::F32 => "f32",
            Dtype::F16 => "f16",
            Dtype::BF16 => "bf16",
        })
    }
}

/// How the rows of a matrix are stored. Each row is a run of bytes of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    /// Plain numbers.
    Float(Dtype),
    /// Blocks of llama.cpp's files.
    Blocks(BlockType),
    /// Integer codes with scales: what the quantised folders of Hugging Face become when they are opened.
    Groups(Groups),
    /// 8-bit floating-point numbers with scales.
    Fp8(Fp8),
}

/// Integer codes of 4 or 8 bits with a scale, and perhaps a minimum, for each group of inputs.
///
/// A row is its groups' scales in f32, their minima in f32 (where there are any), then the codes: 8-bit ones are `i8`;
/// of 4-bit ones a byte has two, the even element's in its low half, and without minima they are around 8. Element `i`
/// is `scale · code + minimum`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Groups {
    /// Bits of a code: 4 or 8.
    pub bits: u8,
    /// Elements of a group, an even number; the last group of a row may be shorter.
    pub size: usize,
    /// Whether groups have a minimum each.
    pub minima: bool,
}

/// E4M3 numbers (OCP 8-bit floating point, no infinities) with a scale for each group of inputs.
///
/// A row is its groups' scales in f32, then a byte for each element: the element is their product.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fp8 {
    /// Elements of a group; the last one of a row may be shorter.
    pub size: usize,
}

impl Format {
    /// The format of plain numbers, if it is one.
    pub fn dtype(self) -> Option<Dtype> {
        match self {
            Self::Float(dtype) => Some(dtype),
            _ => None,
        }
    }

    /// Bytes of a row of `cols` elements; `None` where no row can have that many.
    pub fn row_bytes(self, cols: usize) -> Option<usize> {
        match self {
            Self::Float(dtype) => cols.checked_mul(dtype.size()),
            Self::Blocks(of) => cols.is_multiple_of(of.len()).then_some(cols / of.len())?.checked_mul(of.bytes()),
            Self::Groups(Groups { bits, size, minima }) => {
                if !matches!(bits, 4 | 8)
                    || size == 0
                    || !size.is_multiple_of(2)
                    || (bits == 4 && !cols.is_multiple_of(2))
                {
                    return None;
                }
                let numbers = cols.div_ceil(size).checked_mul(if minima { 8 } else { 4 })?;
                numbers.checked_add(if bits == 4 { cols / 2 } else { cols })
            }
            Self::Fp8(Fp8 { size }) => {
                (size > 0).then_some(())?;
                cols.div_ceil(size).checked_mul(4)?.checked_add(cols)
            }
        }
    }

    /// Widens a row: exactly for plain numbers; otherwise each product and each sum of the formula is rounded to f32.
    ///
    /// # Panics
    /// If `row` is not as long as a row of `out.len()` elements.
    pub fn dequantise(self, row: &[u8], out: &mut [f32]) {
        assert_eq!(self.row_bytes(out.len()), Some(row.len()), "bytes of a row of {} elements in {self}", out.len());
        match self {
            Self::Float(dtype) => dtype.widen(row, out),
            Self::Blocks(of) => of.dequantise(row, out),
            Self::Groups(groups) => groups.dequantise(row, out),
            Self::Fp8(Fp8 { size }) => {
                let (scales, codes) = row.split_at(out.len().div_ceil(size) * 4);
                for ((out, codes), scale) in out.chunks_mut(size).zip(codes.chunks(size)).zip(floats(scales)) {
                    out.iter_mut().zip(codes).for_each(|(out, &code)| *out = e4m3(code) * scale);
                }
            }
        }
    }
}

impl Groups {
    /// A row taken apart: its scales, its minima (none, or as many), its codes' bytes.
    pub fn split<'a>(&self, row: &'a [u8], cols: usize) -> (&'a [u8], &'a [u8], &'a [u8]) {
        let numbers = cols.div_ceil(self.size) * 4;
        let (scales, rest) = row.split_at(numbers);
        let (minima, codes) = rest.split_at(if self.minima { numbers } else { 0 });
        (scales, minima, codes)
    }

    /// The code of element `at`.
    pub fn code(&self, codes: &[u8], at: usize) -> i8 {
        match self.bits {
            8 => codes[at] as i8,
            _ => (codes[at / 2] >> (at % 2 * 4) & 15) as i8 - if self.minima { 0 } else { 8 },
        }
    }

    fn dequantise(&self, row: &[u8], out: &mut [f32]) {
        let (scales, minima, codes) = self.split(row, out.len());
        let minima = floats(minima).chain(std::iter::repeat(0.0));
        for (group, ((out, scale), minimum)) in out.chunks_mut(self.size).zip(floats(scales)).zip(minima).enumerate() {
            for (i, out) in out.iter_mut().enumerate() {
                *out = scale * f32::from(self.code(codes, group * self.size + i)) + minimum;
            }
        }
    }
}

/// The f32 numbers of some bytes.
pub fn floats(bytes: &[u8]) -> impl Iterator<Item = f32> {
    bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes))
}

/// An E4M3 number: sign, four bits of exponent around 7, three of fraction; all ones is no number.
pub fn e4m3(code: u8) -> f32 {
    let (exponent, fraction) = (i32::from(code >> 3 & 15), f32::from(code & 7));
    let magnitude = match (exponent, code & 7) {
        (15, 7) => f32::NAN,
        (0, _) => fraction * 2f32.powi(-9),
        _ => (8.0 + fraction) * 2f32.powi(exponent - 10),
    };
    if code >> 7 == 1 { -magnitude } else { magnitude }
}

impl From<Dtype> for Format {
    fn from(dtype: Dtype) -> Self {
        Self::Float(dtype)
    }
}

impl std::fmt::Display for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Float(dtype) => dtype.fmt(f),
            Self::Blocks(of) => of.fmt(f),
            Self::Groups(Groups { bits, size, minima }) => {
                write!(f, "int{bits}, groups of {size}{}", if *minima { " with minima" } else { "" })
            }
            Self::Fp8(Fp8 { size }) => write!(f, "fp8 (e4m3), groups of {size}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn e4m3_numbers_are_those_of_the_standard() {
        for (code, value) in [
            (0x00, 0.0),
            (0x01, 2f32.powi(-9)),
            (0x07, 7.0 * 2f32.powi(-9)),
            (0x08, 2f32.powi(-6)),
            (0x38, 1.0),
            (0x3c, 1.5),
            (0x7e, 448.0),
            (0xc0, -2.0),
            (0xfe, -448.0),
        ] {
            assert_eq!(e4m3(code), value, "{code:#x}");
        }
        assert!(e4m3(0x7f).is_nan() && e4m3(0xff).is_nan());
    }

    #[test]
    fn rows_of_groups_are_scales_minima_and_codes() {
        let numbers = |numbers: &[f32]| numbers.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
        let mut out = [0.0; 6];
        let nibbles = Format::Groups(Groups { bits: 4, size: 4, minima: false });
        nibbles.dequantise(&[numbers(&[0.5, 2.0]), vec![0x80, 0x9f, 0x79]].concat(), &mut out);
        assert_eq!(out, [-4.0, 0.0, 3.5, 0.5, 2.0, -2.0]);
        let bytes = Format::Groups(Groups { bits: 8, size: 4, minima: true });
        bytes.dequantise(&[numbers(&[0.5, 2.0, 1.0, -1.0]), vec![0, 2, 254, 128, 1, 127]].concat(), &mut out);
        assert_eq!(out, [1.0, 2.0, 0.0, -63.0, 1.0, 253.0]);
        let eights = Format::Fp8(Fp8 { size: 4 });
        eights.dequantise(&[numbers(&[0.5, 3.0]), vec![0x38, 0x3c, 0xc0, 0, 0x38, 0x38]].concat(), &mut out);
        assert_eq!(out, [0.5, 0.75, -1.0, 0.0, 3.0, 3.0]);
    }

    #[test]
    fn a_row_has_whole_blocks_and_pairs_of_nibbles() {
        assert_eq!(Format::Blocks(BlockType::Q4K).row_bytes(576), None);
        assert_eq!(Format::Blocks(BlockType::Q4K).row_bytes(512), Some(288));
        assert_eq!(Format::Groups(Groups { bits: 4, size: 32, minima: true }).row_bytes(33), None);
        assert_eq!(Format::Float(Dtype::F32).row_bytes(usize::MAX), None);
    }
}
