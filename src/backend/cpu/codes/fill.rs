//! Brings rows of a quantised matrix into a panel, and reads a single element of one.

use super::super::lanes::LANES;
use super::BLOCK;
use super::layout::{Codes, Layout, SUPER, Scales};
use crate::model::{Block, BlockType, Format, Groups, Matrix, STEPS};
use half::f16;

/// Fills one output of a panel, whose bytes are zero, with a row of a matrix.
///
/// # Panics
/// If the layout is not that of the matrix's format.
pub fn fill(layout: &Layout, matrix: &Matrix<'_>, row: usize, panel: &mut [u8], lane: usize) {
    let (stored, mut out) = (matrix.row(row), Lane { layout, panel, lane });
    match matrix.format {
        Format::Blocks(of) => out.blocks(of, stored),
        Format::Groups(groups) => out.groups(groups, stored, matrix.cols),
        Format::Float(_) | Format::Fp8(_) => unreachable!("plain numbers have no codes"),
    }
}

/// One output of a panel that is being filled.
struct Lane<'a> {
    layout: &'a Layout,
    panel: &'a mut [u8],
    lane: usize,
}

impl Lane<'_> {
    fn blocks(&mut self, of: BlockType, stored: &[u8]) {
        let mut block = Block::default();
        for (index, stored) in stored.chunks_exact(of.bytes()).enumerate() {
            of.decode(stored, &mut block);
            let first = index * of.len();
            for (i, &code) in block.codes[..of.len()].iter().enumerate() {
                self.code(first + i, code);
            }
            let minima = self.layout.minima.then_some((block.minimum, &block.minima));
            for (part, (number, of_groups)) in
                [Some((block.scale, &block.scales)), minima].into_iter().flatten().enumerate()
            {
                let at = part * self.layout.scales_bytes();
                self.put(at + index * LANES * 2, self.lane, number.to_le_bytes());
                if self.layout.scales == Scales::Super {
                    let supers = self.layout.padded.div_ceil(SUPER);
                    let (at, groups) = (at + supers * LANES * 2, of.len() / of.group());
                    for (group, &of_group) in of_groups[..groups].iter().enumerate() {
                        self.put(at + (index * groups + group) * LANES, self.lane, of_group.to_le_bytes());
                    }
                }
            }
        }
    }

    fn groups(&mut self, groups: Groups, stored: &[u8], cols: usize) {
        let (scales, minima, codes) = groups.split(stored, cols);
        for input in 0..cols {
            self.code(input, groups.code(codes, input));
        }
        for (part, numbers) in [scales, minima].into_iter().enumerate() {
            let at = part * self.layout.scales_bytes();
            for (group, number) in numbers.as_chunks::<4>().0.iter().enumerate() {
                self.put(at + group * LANES * 4, self.lane, *number);
            }
        }
    }

    fn put<const SIZE: usize>(&mut self, at: usize, element: usize, bytes: [u8; SIZE]) {
        self.panel[at + element * SIZE..][..SIZE].copy_from_slice(&bytes);
    }

    fn code(&mut self, input: usize, code: i8) {
        let Layout { codes, minima, .. } = *self.layout;
        // 8-bit codes are around their centre even where there are minima.
        let centred = !minima || codes == Codes::Bytes;
        let stored = match codes {
            Codes::Steps => STEPS.iter().position(|&step| step == code).unwrap_or(0) as u8,
            _ if centred => (i32::from(code) + codes.centre()) as u8,
            _ => code as u8,
        };
        let place = Place::of(self.layout, input, self.lane);
        self.panel[place.byte] |= (stored & if codes == Codes::Bytes { 0xff } else { 15 }) << place.shift;
        if codes == Codes::Fifths {
            self.panel[place.fifth.0] |= (stored >> 4) << place.fifth.1;
        }
    }
}

/// Where a code lies in a panel.
struct Place {
    byte: usize,
    shift: usize,
    /// Byte and bit of its fifth bit.
    fifth: (usize, usize),
}

impl Place {
    fn of(layout: &Layout, input: usize, lane: usize) -> Self {
        let codes = layout.codes;
        let (block, within) = (layout.codes_at() + input / BLOCK * codes.block_bytes(), input % BLOCK);
        let (vector, at) = (within / 4, lane * 4 + within % 4);
        let fifth = (block + 256 + vector * 8 + at / 8, at % 8);
        match codes {
            Codes::Bytes => Self { byte: block + vector * 64 + at, shift: 0, fifth },
            _ => Self { byte: block + vector % 4 * 64 + at, shift: vector / 4 * 4, fifth },
        }
    }
}

/// Element `input` of output `lane`, as [`Format::dequantise`] gives it.
pub fn element(layout: &Layout, panel: &[u8], input: usize, lane: usize) -> f32 {
    let Layout { codes, minima, .. } = *layout;
    let place = Place::of(layout, input, lane);
    let low = panel[place.byte] >> place.shift;
    let code = match codes {
        Codes::Bytes => i32::from(low) - codes.centre(),
        Codes::Steps => i32::from(STEPS[usize::from(low & 15)]),
        Codes::Nibbles => i32::from(low & 15) - if minima { 0 } else { codes.centre() },
        Codes::Fifths => {
            let fifth = panel[place.fifth.0] >> place.fifth.1 & 1;
            i32::from(low & 15 | fifth << 4) - if minima { 0 } else { codes.centre() }
        }
    };
    let minimum = if minima { number(layout, panel, layout.scales_bytes(), input, lane) } else { 0.0 };
    number(layout, panel, 0, input, lane) * code as f32 + minimum
}

/// The scale, or minimum, of an input of an output, from those at `at`.
fn number(layout: &Layout, panel: &[u8], at: usize, input: usize, lane: usize) -> f32 {
    let half = |index: usize| {
        let at = at + (index * LANES + lane) * 2;
        f16::from_le_bytes([panel[at], panel[at + 1]]).to_f32()
    };
    match layout.scales {
        Scales::Half => half(input / BLOCK),
        Scales::Super => {
            let groups = at + layout.padded.div_ceil(SUPER) * LANES * 2;
            half(input / SUPER) * f32::from(panel[groups + input / layout.group * LANES + lane] as i8)
        }
        Scales::Single(size) => {
            let at = at + (input / size * LANES + lane) * 4;
            f32::from_le_bytes([panel[at], panel[at + 1], panel[at + 2], panel[at + 3]])
        }
    }
}
