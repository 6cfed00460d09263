//! AdamW on the device: the gradient's norm, and the update unless it is not finite, without the host in between.

use super::CudaStudent;
use crate::backend::BackendError;
use crate::backend::cuda::driver::Driver;
use crate::backend::cuda::kernels::Address;
use crate::backend::cuda::kernels::training::{AboutGradient, Adamw, GradientNorm, GradientSquares, Narrow};
use crate::backend::training::adamw::AdamStep;
use std::ops::Range;

impl<D: Driver> CudaStudent<D> {
    /// Makes the copies of all values that products read.
    pub(super) fn copy_values(&self) -> Result<(), BackendError> {
        let values = self.parameters.values;
        if values.factor == values.wide {
            return Ok(());
        }
        let arguments = Narrow { from: values.wide, to: values.factor, count: self.layout.len() as u64 };
        // SAFETY: planned for as many elements.
        unsafe { arguments.launch(&*self.driver) }
    }

    /// One update. Returns the gradient's norm before clipping; forgets the gradient.
    pub(super) fn queue_update(&mut self, step: &AdamStep) -> Result<f64, BackendError> {
        let (on, parameters, work) = (&*self.driver, &self.parameters, &self.work);
        let trained = self.layout.trained();
        let per_position = if self.weight > 0.0 { self.weight.recip() } else { 0.0 };
        let squares = GradientSquares { gradient: parameters.gradient, partial: work.squares, count: trained as u64 };
        let norm = GradientNorm {
            partial: work.squares,
            about: work.about,
            chunks: trained.div_ceil(GradientSquares::CHUNK) as i32,
            padding: 0,
            per_position,
            clip: step.clip,
        };
        // SAFETY: planned for the layout.
        unsafe {
            squares.launch(on)?;
            norm.launch(on)?;
            for (range, decays) in self.ranges() {
                self.adamw(step, range, decays).launch(on)?;
            }
            on.zero(parameters.gradient, trained * size_of::<f32>())?;
        }
        self.weight = 0.0;
        // SAFETY: written by the kernels above.
        let about: Vec<AboutGradient> = unsafe { self.host.answer(self.work.about, 1) }?;
        Ok(about[0].norm)
    }

    /// The trained elements in order, and whether weight decay applies to them.
    fn ranges(&self) -> Vec<(Range<usize>, bool)> {
        let mut decayed = self.layout.decayed();
        decayed.sort_by_key(|range| range.start);
        let mut ranges = Vec::new();
        let mut done = 0;
        for range in decayed {
            ranges.extend([(done..range.start, false), (range.clone(), true)]);
            done = range.end;
        }
        ranges.push((done..self.layout.trained(), false));
        ranges.retain(|(range, _)| !range.is_empty());
        ranges
    }

    fn adamw(&self, step: &AdamStep, range: Range<usize>, decays: bool) -> Adamw {
        let exponent = i32::try_from(step.number).unwrap_or(i32::MAX);
        let corrected = |beta: f64| (1.0 - beta.powi(exponent)).recip() as f32;
        let (parameters, wide) = (&self.parameters, size_of::<f32>());
        let from = |base: Address, bytes: usize| Address(base.0 + (range.start * bytes) as u64);
        let values = parameters.values;
        let copied = values.factor != values.wide;
        Adamw {
            about: self.work.about,
            gradient: from(parameters.gradient, wide),
            values: from(values.wide, wide),
            mean: from(parameters.mean, wide),
            square: from(parameters.square, wide),
            copy: if copied { from(values.factor, self.options.operands.number().bytes()) } else { Address(0) },
            count: range.len() as u64,
            shrink: if decays { (1.0 - step.rate * step.decay) as f32 } else { 1.0 },
            rate: step.rate as f32,
            beta1: step.beta1 as f32,
            beta2: step.beta2 as f32,
            epsilon: step.epsilon as f32,
            by_mean: corrected(step.beta1),
            by_square: corrected(step.beta2),
            padding: 0,
        }
    }
}
