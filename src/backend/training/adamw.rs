//! AdamW (Loshchilov and Hutter, arXiv 1711.05101) on a flat vector of parameters.

use rayon::prelude::*;
use std::ops::Range;

/// One update's settings.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamStep {
    /// Number of the update, from 1.
    pub number: u64,
    /// Learning rate.
    pub rate: f64,
    /// Decay of the mean gradient.
    pub beta1: f64,
    /// Decay of the mean squared gradient.
    pub beta2: f64,
    /// Added to the root of the mean square.
    pub epsilon: f64,
    /// Weight decay of matrices, per unit of learning rate.
    pub decay: f64,
    /// The largest norm of the gradient; a larger one is scaled down to it.
    pub clip: f64,
}

/// Elements whose squares are summed before the sums are: one order on any number of threads.
const CHUNK: usize = 1 << 14;

/// The Euclidean norm.
pub fn norm(gradient: &[f32]) -> f64 {
    let square = |chunk: &[f32]| chunk.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>();
    gradient.par_chunks(CHUNK).map(square).collect::<Vec<f64>>().into_iter().sum::<f64>().sqrt()
}

/// Moves `values` against `scale` times `gradient`; `mean` and `square` are the optimiser's memory, `decayed` the
/// elements that weight decay applies to.
pub fn update(
    step: &AdamStep,
    scale: f64,
    gradient: &[f32],
    values: &mut [f32],
    mean: &mut [f32],
    square: &mut [f32],
    decayed: &[Range<usize>],
) {
    let shrink = (1.0 - step.rate * step.decay) as f32;
    decayed.iter().for_each(|range| values[range.clone()].par_iter_mut().for_each(|x| *x *= shrink));
    let exponent = i32::try_from(step.number).unwrap_or(i32::MAX);
    let corrected = |beta: f64| (1.0 - beta.powi(exponent)).recip() as f32;
    let (by_mean, by_square) = (corrected(step.beta1), corrected(step.beta2));
    let [rate, beta1, beta2, epsilon, scale] =
        [step.rate, step.beta1, step.beta2, step.epsilon, scale].map(|x| x as f32);
    let elements = values.par_iter_mut().zip(mean).zip(square).zip(gradient);
    elements.for_each(|(((value, mean), square), &gradient)| {
        let gradient = gradient * scale;
        *mean = beta1 * *mean + (1.0 - beta1) * gradient;
        *square = beta2 * *square + (1.0 - beta2) * gradient * gradient;
        *value -= rate * (*mean * by_mean) / ((*square * by_square).sqrt() + epsilon);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_those_of_the_paper() {
        let step = AdamStep { number: 1, rate: 0.1, beta1: 0.9, beta2: 0.99, epsilon: 1e-8, decay: 0.5, clip: 1.0 };
        let gradients = [[0.5f32, -2.0, 0.0], [1.0, 0.25, 0.0]];
        let mut found = ([1.0f32, -1.0, 3.0], [0f32; 3], [0f32; 3]);
        let mut expected = ([1.0f64, -1.0, 3.0], [0f64; 3], [0f64; 3]);
        for (number, gradient) in (1..).zip(gradients) {
            let step = AdamStep { number, ..step };
            let decayed = 1..3;
            let (values, decayed) = (&mut found.0, std::slice::from_ref(&decayed));
            update(&step, 2.0, &gradient, values, &mut found.1, &mut found.2, decayed);
            for (i, &gradient) in gradient.iter().enumerate() {
                let g = 2.0 * f64::from(gradient);
                expected.1[i] = 0.9 * expected.1[i] + 0.1 * g;
                expected.2[i] = 0.99 * expected.2[i] + 0.01 * g * g;
                let (m, v) = (
                    expected.1[i] / (1.0 - 0.9f64.powi(number as i32)),
                    expected.2[i] / (1.0 - 0.99f64.powi(number as i32)),
                );
                let decay = if i > 0 { 0.5 } else { 0.0 };
                expected.0[i] -= 0.1 * (m / (v.sqrt() + 1e-8) + decay * expected.0[i]);
                assert!((f64::from(found.0[i]) - expected.0[i]).abs() < 1e-6, "{found:?} {expected:?}");
            }
        }
    }

    #[test]
    fn norms_are_the_same_on_any_number_of_threads() {
        let gradient: Vec<f32> = (0..100_000).map(|i| ((i * 7919) % 1013) as f32 * 1e-3 - 0.5).collect();
        let on =
            |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(|| norm(&gradient));
        let expected = gradient.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
        assert!((on(1) - expected).abs() < 1e-9 * expected);
        assert_eq!(on(1).to_bits(), on(3).to_bits());
    }
}
