//! Groups of integer codes, as folders of Hugging Face have them.

use super::{Code, Coding, Row, STEP, Scales, Scaling, Source};
use crate::backend::cuda::pack::CHUNK;
use crate::model::{Groups, floats};

impl Source for Groups {
    fn coding(&self, columns: usize) -> Result<Coding, String> {
        let is_multiple = |of: usize| self.size.is_multiple_of(of) || self.size >= columns;
        if !is_multiple(STEP) {
            return Err(format!("groups of a multiple of {STEP}"));
        }
        let scaling = match (self.minima, is_multiple(CHUNK), is_multiple(CHUNK / 2)) {
            (false, true, _) => Scaling::Float,
            (false, false, true) => Scaling::Floats,
            (true, true, _) => Scaling::FloatMinimum,
            (_, false, _) => Scaling::Wide,
        };
        let code = match self.bits {
            4 => Code::Four { centre: if self.minima { 0 } else { 8 } },
            _ => Code::Eight,
        };
        Ok(Coding::new(code, scaling))
    }

    fn read(&self, stored: &[u8], columns: usize, row: &mut Row) {
        let (scales, minima, codes) = self.split(stored, columns);
        let (scales, minima): (Vec<f32>, Vec<f32>) = (floats(scales).collect(), floats(minima).collect());
        for (at, to) in row.codes[..columns].iter_mut().enumerate() {
            *to = self.code(codes, at);
        }
        for (at, to) in row.scales[..columns.div_ceil(STEP)].iter_mut().enumerate() {
            let group = at * STEP / self.size;
            *to = Scales {
                scale: scales[group],
                minimum: minima.get(group).copied().unwrap_or(0.0),
                ..Scales::default()
            };
        }
    }
}
