//! Philox4x32-10: counter-based random numbers (Salmon et al., "Parallel random numbers: as easy as
//! 1, 2, 3", SC 2011), so that a draw depends on what it is for and on nothing else.

use std::convert::Infallible;

/// What a random number decides; part of its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Purpose {
    /// Which token is drafted (rejection sampling).
    Draft = 0,
    /// Whether a drafted token is accepted.
    Accept = 1,
    /// Which token replaces a refused one.
    Residual = 2,
    /// Which token follows a fully accepted draft.
    Bonus = 3,
    /// The Gumbel noise of a token at a position (coupled sampling).
    Gumbel = 4,
    /// What the controller's posterior draws.
    Controller = 5,
    /// The weights of a synthetic model (`cuda/random_weights.cu`).
    Weights = 6,
    /// The seed of an answer that the teacher writes: position is its prompt's number, index its sample's.
    Answer = 7,
    /// Whether a document is held out, and which ones a mix keeps.
    Selection = 8,
    /// The order of training data: position is the epoch.
    Shuffle = 9,
    /// What is drawn to choose among sources of drafts.
    Sources = 10,
}

/// The stream of random words for one (seed, position, purpose, index).
#[derive(Debug, Clone)]
pub struct Philox {
    key: [u32; 2],
    /// `[block of the stream, index, position, purpose]`.
    counter: [u32; 4],
    block: [u32; 4],
    used: usize,
}

impl Philox {
    /// The stream for a token's absolute `position` (0-based, of the token being decided), a
    /// `purpose`, and an `index` that tells streams of the same purpose at one position apart.
    pub fn new(seed: u64, position: usize, purpose: Purpose, index: u32) -> Self {
        let key = [seed as u32, (seed >> 32) as u32];
        Self { key, counter: [0, index, position as u32, purpose as u32], block: [0; 4], used: 4 }
    }

    /// The four words of block `block` of this stream, without moving it: random access, so that
    /// token `4·block + i` can have word `i` for its own.
    pub fn block(&self, block: u32) -> [u32; 4] {
        let [_, index, position, purpose] = self.counter;
        philox4x32_10([block, index, position, purpose], self.key)
    }

    /// The next word.
    pub fn word(&mut self) -> u32 {
        if self.used == 4 {
            self.block = philox4x32_10(self.counter, self.key);
            self.counter[0] = self.counter[0].wrapping_add(1);
            self.used = 0;
        }
        self.used += 1;
        self.block[self.used - 1]
    }

    /// The next uniform number, strictly between 0 and 1.
    pub fn uniform(&mut self) -> f64 {
        unit(self.word())
    }

    /// The next uniform number of two words, strictly between 0 and 1, in steps of 2⁻⁵²: for picking
    /// among many tokens, where steps of 2⁻³² would add up.
    pub fn fine_uniform(&mut self) -> f64 {
        let high = u64::from(self.word());
        let bits = (high << 32 | u64::from(self.word())) >> 12;
        (bits as f64 + 0.5) / (1u64 << 52) as f64
    }
}

/// A word as a number strictly between 0 and 1: `(word + ½) · 2⁻³²`.
pub fn unit(word: u32) -> f64 {
    (f64::from(word) + 0.5) * (1.0 / 4_294_967_296.0)
}

impl rand::rand_core::TryRng for Philox {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        Ok(self.word())
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        let low = u64::from(self.word());
        Ok(u64::from(self.word()) << 32 | low)
    }

    fn try_fill_bytes(&mut self, out: &mut [u8]) -> Result<(), Infallible> {
        for chunk in out.chunks_mut(4) {
            let word = self.word().to_le_bytes();
            chunk.copy_from_slice(&word[..chunk.len()]);
        }
        Ok(())
    }
}

fn philox4x32_10(mut c: [u32; 4], mut k: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let a = u64::from(c[0]) * 0xD251_1F53;
        let b = u64::from(c[2]) * 0xCD9E_8D57;
        c = [(b >> 32) as u32 ^ c[1] ^ k[0], b as u32, (a >> 32) as u32 ^ c[3] ^ k[1], a as u32];
        k = [k[0].wrapping_add(0x9E37_79B9), k[1].wrapping_add(0xBB67_AE85)];
    }
    c
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Known answers published with the generator (Random123, `kat_vectors`).
    #[test]
    fn known_answers() {
        assert_eq!(philox4x32_10([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox4x32_10([u32::MAX; 4], [u32::MAX; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        let pi = [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344];
        assert_eq!(philox4x32_10(pi, [0xa409_3822, 0x299f_31d0]), [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]);
    }

    #[test]
    fn random_access_agrees_with_the_stream() {
        let mut stream = Philox::new(7, 11, Purpose::Gumbel, 0);
        let at = stream.clone();
        for block in 0..5 {
            for word in at.block(block) {
                assert_eq!(stream.word(), word);
            }
        }
    }

    #[test]
    fn fine_uniform_uses_two_words_high_first() {
        let mut stream = Philox::new(3, 1, Purpose::Draft, 0);
        let [high, low, ..] = stream.block(0);
        let expected = (f64::from(high) + f64::from(low) / 4_294_967_296.0) / 4_294_967_296.0;
        assert!((stream.fine_uniform() - expected).abs() < 1e-15);
        assert_eq!(stream.word(), stream.block(0)[2]);
    }

    #[test]
    fn unit_is_never_zero_or_one() {
        assert!(unit(0) > 0.0 && unit(u32::MAX) < 1.0);
    }
}
