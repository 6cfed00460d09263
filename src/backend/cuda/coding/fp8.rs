//! 8-bit floating-point numbers with a scale for each block of outputs and inputs, or each output: E4M3 of folders.

use super::{Code, Coding, Row, STEP, Scales, Scaling, Source};
use crate::backend::cuda::pack::CHUNK;
use crate::model::{Fp8, e4m3, floats};

impl Source for Fp8 {
    fn coding(&self, columns: usize) -> Result<Coding, String> {
        let is_multiple = |of: usize| self.size.is_multiple_of(of) || self.size >= columns;
        if !is_multiple(STEP) {
            return Err(format!("groups of a multiple of {STEP}"));
        }
        let scaling = match (is_multiple(CHUNK), is_multiple(CHUNK / 2)) {
            (true, _) => Scaling::Float,
            (false, true) => Scaling::Floats,
            (false, false) => Scaling::Wide,
        };
        Ok(Coding::new(Code::E4m3, scaling))
    }

    /// The scale of a group with something in it that is NaN is NaN, as on the processor: kernels take its codes for numbers.
    fn read(&self, stored: &[u8], columns: usize, row: &mut Row) {
        let (scales, codes) = stored.split_at(stored.len() - columns);
        let is_broken = |codes: &[u8]| codes.iter().any(|&code| e4m3(code).is_nan());
        let groups = floats(scales).zip(codes.chunks(self.size));
        let scales: Vec<f32> = groups.map(|(scale, codes)| if is_broken(codes) { f32::NAN } else { scale }).collect();
        for (to, &code) in row.codes.iter_mut().zip(codes) {
            *to = code as i8;
        }
        for (at, to) in row.scales[..columns.div_ceil(STEP)].iter_mut().enumerate() {
            // Minus zero: added to a weight, it changes not even the sign of a zero.
            *to = Scales { scale: scales[at * STEP / self.size], minimum: -0.0, ..Scales::default() };
        }
    }
}
