//! Quantised storage in blocks, as llama.cpp's files have it (layouts: `ggml-common.h` and the package `gguf`, which is
//! the reference here).
//!
//! Whatever the type, a block's element is `scale · code + minimum`, with a scale and a minimum for each group of 16 or 32
//! elements and a code of at most eight bits with its sign. Scales and minima of the longer blocks are small integers times
//! a number of the whole block. [`BlockType::decode`] gives all of these as they are stored; the roundings of
//! [`BlockType::dequantise`] are those of the reference, so its numbers come out to the bit.

use half::f16;

/// A type of blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum BlockType {
    /// 4 bits around 8, a scale per 32.
    Q4_0,
    /// 4 bits, a scale and a minimum per 32.
    Q4_1,
    /// 5 bits around 16, a scale per 32.
    Q5_0,
    /// 5 bits, a scale and a minimum per 32.
    Q5_1,
    /// 8 bits, a scale per 32.
    Q8_0,
    /// 2 bits, a scale and a minimum of 4 bits per 16.
    Q2K,
    /// 3 bits around 4, a scale of 6 bits per 16.
    Q3K,
    /// 4 bits, a scale and a minimum of 6 bits per 32.
    Q4K,
    /// 5 bits, a scale and a minimum of 6 bits per 32.
    Q5K,
    /// 6 bits around 32, a scale of 8 bits per 16.
    Q6K,
    /// 4 bits that name one of 16 uneven steps, a scale per 32.
    Iq4Nl,
    /// The same, a scale of 6 bits per 32.
    Iq4Xs,
}

/// Most elements of a block, and most groups.
const LONGEST: usize = 256;
const MOST_GROUPS: usize = 16;

/// A block taken apart: element `i` of group `g = i / group` is
/// `(scale · scales[g]) · codes[i] + minimum · minima[g]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Block {
    /// Of each element.
    pub codes: [i8; LONGEST],
    /// Of the block.
    pub scale: f16,
    /// Of the block; 0 of a type that has none.
    pub minimum: f16,
    /// Of each group, 1 where the block is one group.
    pub scales: [i8; MOST_GROUPS],
    /// Of each group, 1 where the block is one group.
    pub minima: [i8; MOST_GROUPS],
}

impl Default for Block {
    fn default() -> Self {
        let (scale, minimum) = (f16::ZERO, f16::ZERO);
        Self { codes: [0; LONGEST], scale, minimum, scales: [1; MOST_GROUPS], minima: [1; MOST_GROUPS] }
    }
}

impl Block {
    /// The scale of a group.
    pub fn scale_of(&self, group: usize) -> f32 {
        self.scale.to_f32() * f32::from(self.scales[group])
    }

    /// The minimum of a group.
    pub fn minimum_of(&self, group: usize) -> f32 {
        self.minimum.to_f32() * f32::from(self.minima[group])
    }
}

/// The steps of the types that name steps.
pub const STEPS: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

impl BlockType {
    /// All of them.
    pub const ALL: [Self; 12] = [
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q2K,
        Self::Q3K,
        Self::Q4K,
        Self::Q5K,
        Self::Q6K,
        Self::Iq4Nl,
        Self::Iq4Xs,
    ];

    /// Elements of a block.
    #[expect(clippy::len_without_is_empty, reason = "no block is empty")]
    pub fn len(self) -> usize {
        match self {
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 | Self::Iq4Nl => 32,
            Self::Q2K | Self::Q3K | Self::Q4K | Self::Q5K | Self::Q6K | Self::Iq4Xs => LONGEST,
        }
    }

    /// Bytes of a block.
    pub fn bytes(self) -> usize {
        match self {
            Self::Q4_0 | Self::Iq4Nl => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q8_0 => 34,
            Self::Q2K => 84,
            Self::Q3K => 110,
            Self::Iq4Xs => 136,
            Self::Q4K => 144,
            Self::Q5K => 176,
            Self::Q6K => 210,
        }
    }

    /// Elements that share a scale and a minimum.
    pub fn group(self) -> usize {
        match self {
            Self::Q2K | Self::Q3K | Self::Q6K => 16,
            _ => 32,
        }
    }

    /// Whether groups have minima.
    pub fn has_minima(self) -> bool {
        matches!(self, Self::Q4_1 | Self::Q5_1 | Self::Q2K | Self::Q4K | Self::Q5K)
    }

    /// Takes a block apart; what of `block` is past its length and its groups is left as it was.
    ///
    /// # Panics
    /// If `stored` is not as long as a block.
    pub fn decode(self, stored: &[u8], block: &mut Block) {
        assert_eq!(stored.len(), self.bytes(), "bytes of a block of {self}");
        match self {
            Self::Q4_0 => plain(stored, block, Plain { minimum: false, fifth: false, centre: 8 }),
            Self::Q4_1 => plain(stored, block, Plain { minimum: true, fifth: false, centre: 0 }),
            Self::Q5_0 => plain(stored, block, Plain { minimum: false, fifth: true, centre: 16 }),
            Self::Q5_1 => plain(stored, block, Plain { minimum: true, fifth: true, centre: 0 }),
            Self::Q8_0 => {
                block.set_scale(float(stored, 0));
                block.codes.iter_mut().zip(&stored[2..]).for_each(|(code, &byte)| *code = byte as i8);
            }
            Self::Q2K => q2_k(stored, block),
            Self::Q3K => q3_k(stored, block),
            Self::Q4K => q45_k(stored, block, &[], &stored[16..]),
            Self::Q5K => q45_k(stored, block, &stored[16..48], &stored[48..]),
            Self::Q6K => q6_k(stored, block),
            Self::Iq4Nl => {
                block.set_scale(float(stored, 0));
                nibbles(&stored[2..], &mut block.codes, |_, nibble| STEPS[usize::from(nibble)]);
            }
            Self::Iq4Xs => iq4_xs(stored, block),
        }
    }

    /// Widens whole blocks, exactly as the reference does.
    ///
    /// # Panics
    /// If `stored` is not whole blocks, or `out` not as long as they are together.
    pub fn dequantise(self, stored: &[u8], out: &mut [f32]) {
        assert_eq!(stored.len() / self.bytes() * self.len(), out.len(), "elements of the blocks");
        let mut block = Block::default();
        for (stored, out) in stored.chunks_exact(self.bytes()).zip(out.chunks_exact_mut(self.len())) {
            self.decode(stored, &mut block);
            let codes = block.codes.chunks(self.group());
            for (group, (out, codes)) in out.chunks_mut(self.group()).zip(codes).enumerate() {
                let (scale, minimum) = (block.scale_of(group), block.minimum_of(group));
                out.iter_mut().zip(codes).for_each(|(out, &code)| *out = scale * f32::from(code) + minimum);
            }
        }
    }
}

impl std::fmt::Display for BlockType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Q4_0 => "q4_0",
            Self::Q4_1 => "q4_1",
            Self::Q5_0 => "q5_0",
            Self::Q5_1 => "q5_1",
            Self::Q8_0 => "q8_0",
            Self::Q2K => "q2_k",
            Self::Q3K => "q3_k",
            Self::Q4K => "q4_k",
            Self::Q5K => "q5_k",
            Self::Q6K => "q6_k",
            Self::Iq4Nl => "iq4_nl",
            Self::Iq4Xs => "iq4_xs",
        })
    }
}

impl Block {
    /// Makes it a block of one group without a minimum.
    fn set_scale(&mut self, scale: f16) {
        (self.scale, self.minimum) = (scale, f16::ZERO);
        (self.scales[0], self.minima[0]) = (1, 1);
    }
}

/// The f16 at a byte.
fn float(stored: &[u8], at: usize) -> f16 {
    f16::from_le_bytes([stored[at], stored[at + 1]])
}

/// Codes of nibbles, sixteen bytes for 32 elements: the low ones are the first sixteen.
fn nibbles(stored: &[u8], codes: &mut [i8], code: impl Fn(usize, u8) -> i8) {
    for (i, &byte) in stored.iter().enumerate() {
        codes[i] = code(i, byte & 15);
        codes[i + 16] = code(i + 16, byte >> 4);
    }
}

/// What tells the blocks of 32 with plain scales apart.
struct Plain {
    minimum: bool,
    fifth: bool,
    /// The code that stands for 0.
    centre: i8,
}

fn plain(stored: &[u8], block: &mut Block, Plain { minimum, fifth, centre }: Plain) {
    block.set_scale(float(stored, 0));
    if minimum {
        block.minimum = float(stored, 2);
    }
    let stored = &stored[if minimum { 4 } else { 2 }..];
    let (fifths, stored) = if fifth { stored.split_at(4) } else { stored.split_at(0) };
    let bit = |i: usize| if fifth { fifths[i / 8] >> (i % 8) & 1 } else { 0 };
    nibbles(stored, &mut block.codes, |i, nibble| (nibble | bit(i) << 4) as i8 - centre);
}

fn q2_k(stored: &[u8], block: &mut Block) {
    (block.scale, block.minimum) = (float(stored, 80), float(stored, 82));
    for (group, &both) in stored[..16].iter().enumerate() {
        block.scales[group] = (both & 15) as i8;
        block.minima[group] = -((both >> 4) as i8);
    }
    for (i, code) in block.codes.iter_mut().enumerate() {
        *code = pair(&stored[16..80], i) as i8;
    }
}

/// Two bits of element `i` among those of 256: bytes `32 n ..` hold elements `128 n ..`, 32 in each pair of bits.
fn pair(stored: &[u8], i: usize) -> u8 {
    stored[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3
}

fn q3_k(stored: &[u8], block: &mut Block) {
    let (thirds, pairs, packed) = (&stored[..32], &stored[32..96], &stored[96..108]);
    (block.scale, block.minimum) = (float(stored, 108), f16::ZERO);
    for group in 0..16 {
        let low = packed[group % 8] >> (group / 8 * 4) & 15;
        let high = packed[8 + group % 4] >> (group / 4 * 2) & 3;
        block.scales[group] = (low | high << 4) as i8 - 32;
    }
    for (i, code) in block.codes.iter_mut().enumerate() {
        let third = thirds[i % 32] >> (i / 32) & 1;
        *code = (pair(pairs, i) | third << 2) as i8 - 4;
    }
}

/// Nibbles of eight groups, with fifth bits or none.
fn q45_k(stored: &[u8], block: &mut Block, fifths: &[u8], low: &[u8]) {
    (block.scale, block.minimum) = (float(stored, 0), float(stored, 2));
    let packed = &stored[4..16];
    for group in 0..8 {
        let [of_scale, of_minimum] = match group {
            0..4 => [packed[group] & 63, packed[group + 4] & 63],
            _ => {
                let both = packed[group + 4];
                [both & 15 | packed[group - 4] >> 6 << 4, both >> 4 | packed[group] >> 6 << 4]
            }
        };
        block.scales[group] = of_scale as i8;
        block.minima[group] = -(of_minimum as i8);
    }
    for (i, code) in block.codes.iter_mut().enumerate() {
        let nibble = low[i / 64 * 32 + i % 32] >> (i % 64 / 32 * 4) & 15;
        let fifth = fifths.get(i % 32).map_or(0, |bits| bits >> (i / 32) & 1);
        *code = (nibble | fifth << 4) as i8;
    }
}

fn q6_k(stored: &[u8], block: &mut Block) {
    let (low, high, scales) = (&stored[..128], &stored[128..192], &stored[192..208]);
    (block.scale, block.minimum) = (float(stored, 208), f16::ZERO);
    block.scales.iter_mut().zip(scales).for_each(|(scale, &of_group)| *scale = of_group as i8);
    for (i, code) in block.codes.iter_mut().enumerate() {
        let nibble = low[i / 128 * 64 + i % 64] >> (i % 128 / 64 * 4) & 15;
        *code = (nibble | pair(high, i) << 4) as i8 - 32;
    }
}

fn iq4_xs(stored: &[u8], block: &mut Block) {
    (block.scale, block.minimum) = (float(stored, 0), f16::ZERO);
    let high = u16::from_le_bytes([stored[2], stored[3]]);
    for group in 0..8 {
        let low = stored[4 + group / 2] >> (group % 2 * 4) & 15;
        block.scales[group] = (low | ((high >> (2 * group) & 3) as u8) << 4) as i8 - 32;
        nibbles(&stored[8 + 16 * group..][..16], &mut block.codes[32 * group..], |_, nibble| {
            STEPS[usize::from(nibble)]
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Random blocks of every type and what the package `gguf` makes of them; `tools/gguf_fixtures.py` wrote both.
    const BLOCKS: &[u8] = include_bytes!("../../tests/fixtures/gguf/blocks.bin");
    const BLOCKS_OF_EACH: usize = 5;

    #[test]
    fn blocks_are_what_the_reference_makes_of_them() {
        let mut rest = BLOCKS;
        for of in BlockType::ALL {
            let (stored, after) = rest.split_at(BLOCKS_OF_EACH * of.bytes());
            let (expected, after) = after.split_at(BLOCKS_OF_EACH * of.len() * 4);
            rest = after;
            let mut found = vec![0.0; BLOCKS_OF_EACH * of.len()];
            of.dequantise(stored, &mut found);
            for (i, (found, expected)) in found.iter().zip(expected.chunks_exact(4)).enumerate() {
                let expected = f32::from_le_bytes(expected.try_into().unwrap());
                assert!(*found == expected, "{of}, element {i}: {found}, expected {expected}");
            }
        }
        assert!(rest.is_empty());
    }
}
