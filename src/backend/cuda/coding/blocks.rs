//! Blocks of llama.cpp's files.

use super::{Code, Coding, Row, STEP, Scales, Scaling, Source};
use crate::model::{Block, BlockType};

impl Source for BlockType {
    fn coding(&self, _columns: usize) -> Result<Coding, String> {
        Ok(match self {
            Self::Q4_0 => Coding::new(Code::Four { centre: 8 }, Scaling::Halves),
            Self::Q4_1 => Coding::new(Code::Four { centre: 0 }, Scaling::HalvesMinima),
            Self::Q5_0 | Self::Q8_0 | Self::Iq4Nl => Coding::new(Code::Eight, Scaling::Halves),
            Self::Q5_1 => Coding::new(Code::Eight, Scaling::HalvesMinima),
            Self::Q2K => Coding::new(Code::Four { centre: 0 }, Scaling::SixteensMinima),
            Self::Q3K => Coding::new(Code::Four { centre: 8 }, Scaling::Sixteens),
            Self::Q4K => Coding::new(Code::Four { centre: 0 }, Scaling::Blocks),
            Self::Q5K => Coding::new(Code::Eight, Scaling::Blocks),
            Self::Q6K | Self::Iq4Xs => Coding::new(Code::Eight, Scaling::Sixteens),
        })
    }

    fn read(&self, stored: &[u8], _columns: usize, row: &mut Row) {
        let mut block = Block::default();
        let targets = row.codes.chunks_mut(self.len()).zip(row.scales.chunks_mut(self.len() / STEP));
        for (stored, (codes, scales)) in stored.chunks_exact(self.bytes()).zip(targets) {
            self.decode(stored, &mut block);
            codes.copy_from_slice(&block.codes[..codes.len()]);
            for (at, to) in scales.iter_mut().enumerate() {
                let group = at * STEP / self.group();
                *to = Scales {
                    scale: block.scale_of(group),
                    minimum: block.minimum_of(group),
                    whole: block.scale,
                    step: block.scales[group],
                    whole_minimum: block.minimum,
                    minimum_step: block.minima[group],
                };
            }
        }
    }
}
