//! Weights that stay codes on the device: how they are coded, and how every format of files is brought into that.
//!
//! A weight is `scale · code + minimum`. Whatever a file has becomes codes of 4 or 8 bits in the order of matrix fragments,
//! and the file's own scales and minima beside them, without loss: nothing is rounded until it is multiplied.
//! `cuda/common/coding.cuh` says where each bit lies. This is done on the host, while a model is loaded.
//!
//! A format is told of by `Source`, in a file of its own: `blocks` are llama.cpp's, `groups` the integers of folders, `fp8`
//! their 8-bit floating-point numbers.

mod blocks;
mod fp8;
mod groups;
mod record;

use super::pack::{self, BLOCK_ROWS, TILE_ROWS, chunks};
use crate::model::{Format, Matrix};
use half::f16;

pub use record::pack_codes;

/// Columns that share a scale and a minimum at most: those of one product of fragments.
pub const STEP: usize = 16;
/// Rows and columns of a record.
const RECORD_WEIGHTS: usize = BLOCK_ROWS * pack::CHUNK;

/// What the scales of a row's 64 columns are, in the order of `cuda/common/coding.cuh`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scaling {
    /// A scale in f16 per 32.
    Halves,
    /// A scale in f32 per 64.
    Float,
    /// A scale in f32 per 32.
    Floats,
    /// A scale in f16 times a signed byte per 16.
    Sixteens,
    /// A scale and a minimum in f16 per 32.
    HalvesMinima,
    /// A scale and a minimum in f32 per 64.
    FloatMinimum,
    /// A scale and a minimum per 32, each a number in f16 times a signed byte.
    Blocks,
    /// A scale and a minimum per 16, each a number in f16 times four bits; minima are taken off.
    SixteensMinima,
    /// A scale and a minimum in f32 per 16.
    Wide,
}

impl Scaling {
    /// Bytes of a row's 64 columns.
    fn row_bytes(self) -> usize {
        match self {
            Self::Halves | Self::Float => 4,
            Self::Wide => 32,
            _ => 8,
        }
    }
}

/// What a code is, and how it is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// An integer in 4 bits, stored so much above its value: 0 or 8.
    Four {
        /// How much.
        centre: u8,
    },
    /// An integer in a byte, stored 128 above its value.
    Eight,
    /// An E4M3 number that is not NaN, as it is.
    E4m3,
}

impl Code {
    /// Of a code: 4 or 8.
    pub fn bits(self) -> usize {
        match self {
            Self::Four { .. } => 4,
            Self::Eight | Self::E4m3 => 8,
        }
    }
}

/// How a matrix is coded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Coding {
    /// What its codes are.
    pub code: Code,
    /// What its scales are.
    pub scaling: Scaling,
}

impl Coding {
    fn new(code: Code, scaling: Scaling) -> Self {
        Self { code, scaling }
    }

    /// As kernels are told; never 0 or 1.
    fn word(self) -> i32 {
        let kind = match self.code {
            Code::Four { centre } => centre.into(),
            Code::Eight => 0,
            Code::E4m3 => 1,
        };
        (self.code.bits() as i32) << 16 | kind << 8 | self.scaling as i32
    }

    /// Bytes of 16 rows' codes of 64 columns.
    fn code_bytes(self) -> usize {
        RECORD_WEIGHTS * self.code.bits() / 8
    }

    /// Bytes of 16 rows and 64 columns.
    fn record_bytes(self) -> usize {
        self.code_bytes() + BLOCK_ROWS * self.scaling.row_bytes()
    }

    /// What holds matrices of both codings; `None`: nothing does, since a code is an integer for all or for none.
    fn joined(self, other: Self) -> Option<Self> {
        match (self.code, other.code) {
            _ if self == other => Some(self),
            (Code::E4m3, Code::E4m3) => Some(Self::new(Code::E4m3, Scaling::Wide)),
            (Code::E4m3, _) | (_, Code::E4m3) => None,
            _ => Some(Self::new(Code::Eight, Scaling::Wide)),
        }
    }
}

/// How the weights of a packed matrix are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Storage {
    /// As numbers of 16 bits.
    Plain,
    /// As codes.
    Codes(Coding),
}

impl Storage {
    /// How a matrix is stored; an error says what it is instead of what can be.
    ///
    /// # Errors
    /// If it is of a format that no kernel multiplies.
    pub fn of(matrix: &Matrix<'_>) -> Result<Self, String> {
        if matrix.columns.is_some() {
            return Err(format!("{} with columns in an order of their own (expected columns in order)", matrix.format));
        }
        let Some(source) = source(matrix.format) else { return Ok(Self::Plain) };
        source.coding(matrix.cols).map(Self::Codes).map_err(|expected| {
            let found = matrix.format;
            format!("{found} (expected {expected})")
        })
    }

    /// What holds both; `None`: nothing does.
    pub fn joined(self, other: Self) -> Option<Self> {
        match (self, other) {
            (Self::Plain, Self::Plain) => Some(Self::Plain),
            (Self::Codes(one), Self::Codes(other)) => one.joined(other).map(Self::Codes),
            _ => None,
        }
    }

    /// As kernels are told: 0, or the coding.
    pub fn word(self) -> i32 {
        match self {
            Self::Plain => 0,
            Self::Codes(coding) => coding.word(),
        }
    }

    /// Bytes of a packed block of 16 rows.
    pub fn block_bytes(self, columns: usize) -> usize {
        match self {
            Self::Plain => pack::block_bytes(columns),
            Self::Codes(coding) => chunks(columns) * coding.record_bytes(),
        }
    }

    /// Bytes of a packed matrix.
    pub fn packed_bytes(self, rows: usize, columns: usize) -> usize {
        rows.div_ceil(TILE_ROWS) * (TILE_ROWS / BLOCK_ROWS) * self.block_bytes(columns)
    }
}

/// A format of codes.
trait Source {
    /// How rows of so many columns are coded; an error says what was expected.
    fn coding(&self, columns: usize) -> Result<Coding, String>;

    /// Takes a stored row of so many columns apart.
    fn read(&self, stored: &[u8], columns: usize, row: &mut Row);
}

/// The one place that knows all formats; `None`: plain numbers.
fn source(format: Format) -> Option<Box<dyn Source>> {
    match format {
        Format::Blocks(of) => Some(Box::new(of)),
        Format::Groups(of) => Some(Box::new(of)),
        Format::Fp8(of) => Some(Box::new(of)),
        Format::Float(_) => None,
    }
}

/// A row taken apart, filled up with zeros to whole chunks.
struct Row {
    /// Integers, or the bits of E4M3 numbers.
    codes: Vec<i8>,
    /// Of each 16 columns.
    scales: Vec<Scales>,
}

/// Scale and minimum of 16 columns: as products, and the products' factors where a format has them.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Scales {
    scale: f32,
    minimum: f32,
    /// `scale` is `whole · step`.
    whole: f16,
    step: i8,
    /// `minimum` is `whole_minimum · minimum_step`.
    whole_minimum: f16,
    minimum_step: i8,
}

impl Row {
    fn new(columns: usize) -> Self {
        let columns = columns.next_multiple_of(pack::CHUNK);
        Self { codes: vec![0; columns], scales: vec![Scales::default(); columns / STEP] }
    }
}
