//! How a panel of 16 outputs of quantised weights lies in memory.
//!
//! First its scales, then its minima, where it has any; then its codes, block by block of 32 inputs: so a panel is read from
//! one end to the other. Inputs are padded to whole blocks with codes that the inputs' own padding, zero, makes nothing of.
//!
//! A block's codes are vectors of 64 bytes: vector `j` has inputs `4 j .. 4 j + 4` of the 16 outputs, output by output.
//! Codes of 4 bits lie two to a byte: vectors `j` and `4 + j` in the low and high halves of the `j`th 64 bytes. The fifth
//! bits of a block follow: bit `4 output + input % 4` of the `input / 4`th 8 bytes.

use super::super::lanes::LANES;
use super::BLOCK;
use crate::model::{BlockType, Format, Groups};

/// Elements of llama.cpp's longer blocks, which have scales of two levels.
pub const SUPER: usize = 256;

/// How the codes of a block are stored. Stored codes are unsigned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Codes {
    /// Four bits.
    Nibbles,
    /// Four bits and a fifth.
    Fifths,
    /// Eight bits.
    Bytes,
    /// Four bits that name one of [`STEPS`](crate::model::STEPS).
    Steps,
}

impl Codes {
    /// Bytes of a block.
    pub const fn block_bytes(self) -> usize {
        match self {
            Self::Nibbles | Self::Steps => 256,
            Self::Fifths => 256 + 64,
            Self::Bytes => 512,
        }
    }

    /// The stored code that stands for zero, where the weights have no minima; a power of two.
    pub const fn centre(self) -> i32 {
        match self {
            Self::Nibbles => 8,
            Self::Fifths => 16,
            Self::Bytes | Self::Steps => 128,
        }
    }

    /// Whether codes (those of steps, once looked up) have all eight bits.
    pub const fn wide(self) -> bool {
        matches!(self, Self::Bytes | Self::Steps)
    }
}

/// How scales (and minima) are stored, each for 16 outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scales {
    /// An f16 for each block.
    Half,
    /// An f16 for each [`SUPER`] inputs, all of them first, and an `i8` for each group.
    Super,
    /// An f32 for so many inputs, a multiple of [`BLOCK`] or the whole row.
    Single(usize),
}

/// How a matrix is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// Its codes.
    pub codes: Codes,
    /// Inputs of a group, which share a scale: 32, or 16. Scales of more inputs than a block are repeated.
    pub group: usize,
    /// Its scales, and its minima.
    pub scales: Scales,
    /// Whether groups have minima. Without, codes are around their [centre](Codes::centre).
    pub minima: bool,
    /// Inputs, padded to whole blocks.
    pub padded: usize,
}

impl Layout {
    /// The layout for a matrix of a format, with so many columns; `None` for plain numbers, and where there is none.
    pub fn of(format: Format, cols: usize) -> Option<Self> {
        let padded = cols.next_multiple_of(BLOCK);
        let layout = |codes, group, scales, minima| Some(Self { codes, group, scales, minima, padded });
        match format {
            Format::Blocks(of) => {
                let codes = match of {
                    BlockType::Q4_0 | BlockType::Q4_1 | BlockType::Q2K | BlockType::Q3K | BlockType::Q4K => {
                        Codes::Nibbles
                    }
                    BlockType::Q5_0 | BlockType::Q5_1 | BlockType::Q5K => Codes::Fifths,
                    BlockType::Q8_0 | BlockType::Q6K => Codes::Bytes,
                    BlockType::Iq4Nl | BlockType::Iq4Xs => Codes::Steps,
                };
                let scales = if of.len() == SUPER { Scales::Super } else { Scales::Half };
                layout(codes, of.group(), scales, of.has_minima())
            }
            Format::Groups(Groups { bits, size, minima }) if size % BLOCK == 0 || size >= cols => {
                let codes = if bits == 4 { Codes::Nibbles } else { Codes::Bytes };
                layout(codes, BLOCK, Scales::Single(size.next_multiple_of(BLOCK)), minima)
            }
            Format::Groups(_) | Format::Fp8(_) | Format::Float(_) => None,
        }
    }

    /// Blocks of a row.
    pub fn blocks(&self) -> usize {
        self.padded / BLOCK
    }

    /// Groups of a row.
    pub fn groups(&self) -> usize {
        self.padded / self.group
    }

    /// Where the codes lie in a panel: at a cache line.
    pub fn codes_at(&self) -> usize {
        (if self.minima { 2 } else { 1 } * self.scales_bytes()).next_multiple_of(64)
    }

    /// Bytes of the scales, and of the minima.
    pub fn scales_bytes(&self) -> usize {
        match self.scales {
            Scales::Half => self.blocks() * LANES * 2,
            Scales::Super => self.padded.div_ceil(SUPER) * LANES * 2 + self.groups() * LANES,
            Scales::Single(size) => self.padded.div_ceil(size) * LANES * 4,
        }
    }

    /// Bytes of a panel: whole cache lines.
    pub fn panel_bytes(&self) -> usize {
        self.codes_at() + self.blocks() * self.codes.block_bytes()
    }
}
