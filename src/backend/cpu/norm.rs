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
    /// Where element 0 goes.
    pub out: *mut f32,
    /// From one element of the result to the next.
    pub stride: usize,
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
            let y = x.mul(scale).mul(weight);
            if self.stride == 1 && (i + 1) * LANES <= self.len {
                // SAFETY: `out` has room for `len` elements.
                unsafe { y.store(self.out.add(i * LANES)) };
            } else {
                for (lane, &y) in y.to_array()[..LANES.min(self.len - i * LANES)].iter().enumerate() {
                    // SAFETY: `out` has room for `len` elements, `stride` apart.
                    unsafe { self.out.add((i * LANES + lane) * self.stride).write(y) };
                }
            }
        }
    }
}
