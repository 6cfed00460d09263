//! RMSNorm, `x / sqrt(mean(x²) + ε) · weight`.

use super::lanes::{Kernel, LANES, Lanes};
use super::math::sum;

/// Normalises one row. The squares are summed in 16 lanes by index modulo 16, then by one tree.
pub struct RmsNorm<'a> {
    /// The row, padded with zeros to whole vectors.
    pub x: &'a [f32],
    /// The weight, padded likewise.
    pub weight: &'a [f32],
    /// The row's true length.
    pub len: usize,
    /// Added to the mean square.
    pub epsilon: f32,
    /// Where the result goes, padding included.
    pub out: *mut f32,
}

impl Kernel for RmsNorm<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Lanes>(self) {
        let vectors = self.len.div_ceil(LANES);
        assert!(self.x.len() >= vectors * LANES && self.weight.len() >= vectors * LANES);
        let (x, weight) = (self.x.as_ptr(), self.weight.as_ptr());
        let mut squares = V::splat(0.0);
        for i in 0..vectors {
            // SAFETY: inside the row, as just checked.
            let x = unsafe { V::load(x.add(i * LANES)) };
            squares = x.fma(x, squares);
        }
        let scale = V::splat(1.0 / (sum(squares) / self.len as f32 + self.epsilon).sqrt());
        for i in 0..vectors {
            // SAFETY: inside row and weight, as just checked.
            let (x, weight) = unsafe { (V::load(x.add(i * LANES)), V::load(weight.add(i * LANES))) };
            // SAFETY: `out` has room for whole vectors.
            unsafe { x.mul(scale).mul(weight).store(self.out.add(i * LANES)) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::gemm::tests::{levels, noise};
    use super::*;

    #[test]
    fn every_instruction_set_gives_the_same_norm_and_the_right_one() {
        for len in [8, 64, 100, 1024] {
            let mut x = noise(5, len);
            let mut weight = noise(6, len);
            let truth = x.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>() / len as f64;
            let expected: Vec<f64> =
                x.iter().zip(&weight).map(|(x, w)| f64::from(*x) * f64::from(*w) / (truth + 1e-5).sqrt()).collect();
            x.resize(len.next_multiple_of(LANES), 0.0);
            weight.resize(len.next_multiple_of(LANES), 0.0);
            let run = |level: super::super::Simd| {
                let mut out = vec![0.0f32; x.len()];
                level.run(RmsNorm { x: &x, weight: &weight, len, epsilon: 1e-5, out: out.as_mut_ptr() });
                out.truncate(len);
                out
            };
            let first = run(super::super::Simd::Portable);
            assert!(first.iter().zip(&expected).all(|(a, b)| (f64::from(*a) - b).abs() < 1e-6));
            for level in levels() {
                assert!(run(level).iter().zip(&first).all(|(a, b)| a.to_bits() == b.to_bits()), "{level}, {len}");
            }
        }
    }
}
