//! RMSNorm over rows, and its gradient.

use super::real::Real;
use rayon::prelude::*;

/// `y = x r w` for each row, `r = 1 / sqrt(mean(x²) + epsilon)`. `x` and `y` `[rows, w.len()]`; returns each row's `r`.
pub fn rms_norm<R: Real>(x: &[R], weight: &[R], epsilon: f64, y: &mut [R]) -> Vec<R> {
    let width = weight.len();
    let rows = x.par_chunks_exact(width).zip(y.par_chunks_exact_mut(width));
    rows.map(|(x, y)| {
        let squares: R = x.iter().map(|&x| x * x).sum();
        let factor = R::of(1.0) / (squares / R::of(width as f64) + R::of(epsilon)).sqrt();
        y.iter_mut().zip(x).zip(weight).for_each(|((y, &x), &w)| *y = x * factor * w);
        factor
    })
    .collect()
}

/// Adds the gradients of [`rms_norm`] to `dx` `[rows, width]` (if wanted) and `dw` `[width]`, given `dy`.
///
/// With `g = dy w`: `dx = r g - x r³ (g·x) / width`, and `dw` sums `dy x r` over rows in their order.
pub fn rms_norm_backward<R: Real>(x: &[R], weight: &[R], factors: &[R], dy: &[R], dx: Option<&mut [R]>, dw: &mut [R]) {
    let width = weight.len();
    for ((x, dy), &factor) in x.chunks_exact(width).zip(dy.chunks_exact(width)).zip(factors) {
        dw.iter_mut().zip(x).zip(dy).for_each(|((dw, &x), &dy)| *dw += dy * x * factor);
    }
    let Some(dx) = dx else { return };
    let rows = x.par_chunks_exact(width).zip(dy.par_chunks_exact(width)).zip(factors);
    rows.zip(dx.par_chunks_exact_mut(width)).for_each(|(((x, dy), &factor), dx)| {
        let dot: R = x.iter().zip(dy).zip(weight).map(|((&x, &dy), &w)| x * dy * w).sum();
        let pull = dot * factor * factor * factor / R::of(width as f64);
        let terms = x.iter().zip(dy).zip(weight);
        dx.iter_mut().zip(terms).for_each(|(dx, ((&x, &dy), &w))| *dx += factor * dy * w - x * pull);
    });
}
