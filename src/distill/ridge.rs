//! Ridge regression from the hidden states that a block reads to the model's last ones, in double precision.
//!
//! `A` is what makes `Σ |A h - t|² + Σ_i λ_i |A_{·i}|²` least, with `λ_i` a small part of `Σ h_i²`, so that it does not
//! matter in what units a coordinate is: `A = T (H + Λ)⁻¹` with `H = Σ h hᵀ`, `T = Σ t hᵀ`.

use super::error::DistillError;
use crate::backend::training::gemm::{Mat, gemm};
use rayon::prelude::*;

/// `λ_i` over `Σ h_i²`.
const PART: f64 = 1e-4;

/// Sums over pairs of states.
pub struct Ridge {
    width: usize,
    /// `H` and `T`, `[width, width]`.
    inputs: Vec<f64>,
    targets: Vec<f64>,
    pairs: usize,
}

impl Ridge {
    /// No pairs yet, of states of this width.
    pub fn new(width: usize) -> Self {
        Self { width, inputs: vec![0.0; width * width], targets: vec![0.0; width * width], pairs: 0 }
    }

    /// Adds pairs: states `[pairs, width]` and those that they are to become.
    ///
    /// # Panics
    /// If there are not as many of both.
    pub fn add(&mut self, from: &[f32], to: &[f32]) {
        assert_eq!(from.len(), to.len(), "pairs");
        let (width, pairs) = (self.width, from.len() / self.width);
        let [from, to] = [from, to].map(|x| x.iter().map(|&x| f64::from(x)).collect::<Vec<f64>>());
        let from = Mat::new(&from, pairs, width);
        gemm(1.0, from.t(), from, 1.0, &mut self.inputs, width);
        gemm(1.0, Mat::new(&to, pairs, width).t(), from, 1.0, &mut self.targets, width);
        self.pairs += pairs;
    }

    /// `A`, `[width, width]`.
    ///
    /// # Errors
    /// If there are no pairs, or they are not finite numbers.
    pub fn solve(mut self) -> Result<Vec<f32>, DistillError> {
        let refused = |found: String| DistillError::Input { found, expected: "finite hidden states to fit it to" };
        if self.pairs == 0 {
            return Err(refused("no positions".into()));
        }
        for i in 0..self.width {
            let square = &mut self.inputs[i * self.width + i];
            // A coordinate that is always 0 has a column of zeros.
            *square = if *square == 0.0 { 1.0 } else { *square * (1.0 + PART) };
        }
        if !factorise(&mut self.inputs, self.width) {
            return Err(refused("hidden states that are not finite, or depend on each other".into()));
        }
        let (factor, width) = (&self.inputs, self.width);
        self.targets.par_chunks_exact_mut(width).for_each(|row| substitute(factor, width, row));
        match self.targets.iter().find(|x| !x.is_finite()) {
            Some(found) => Err(refused(format!("{found} in it"))),
            None => Ok(self.targets.into_iter().map(|x| x as f32).collect()),
        }
    }
}

/// Turns the lower triangle of a symmetric positive matrix into `L` of `L Lᵀ` (Cholesky); whether it is one.
fn factorise(matrix: &mut [f64], width: usize) -> bool {
    for j in 0..width {
        let (above, below) = matrix.split_at_mut((j + 1) * width);
        let row = &mut above[j * width..];
        let square = row[j] - dot(&row[..j], &row[..j]);
        if square.is_nan() || square <= 0.0 || square.is_infinite() {
            return false;
        }
        row[j] = square.sqrt();
        let row = &row[..=j];
        below.par_chunks_exact_mut(width).with_min_len(16).for_each(|other| {
            other[j] = (other[j] - dot(&other[..j], &row[..j])) / row[j];
        });
    }
    true
}

/// Solves `L Lᵀ x = b` in place.
fn substitute(factor: &[f64], width: usize, b: &mut [f64]) {
    for i in 0..width {
        let row = &factor[i * width..];
        b[i] = (b[i] - dot(&row[..i], &b[..i])) / row[i];
    }
    for i in (0..width).rev() {
        let row = &factor[i * width..];
        b[i] /= row[i];
        let (before, at) = b.split_at_mut(i);
        before.iter_mut().zip(row).for_each(|(b, l)| *b -= at[0] * l);
    }
}

/// In four lanes, always the same ones.
fn dot(a: &[f64], b: &[f64]) -> f64 {
    let mut sums = [0.0; 4];
    let (whole_a, whole_b) = (a.chunks_exact(4), b.chunks_exact(4));
    let rest: f64 = whole_a.remainder().iter().zip(whole_b.remainder()).map(|(a, b)| a * b).sum();
    for (a, b) in whole_a.zip(whole_b) {
        sums.iter_mut().zip(a).zip(b).for_each(|((sum, a), b)| *sum += a * b);
    }
    sums.iter().sum::<f64>() + rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::{Philox, Purpose};

    fn noise(seed: u64, len: usize) -> Vec<f32> {
        let value = |i| Philox::new(seed, i, Purpose::Controller, 0).uniform() as f32 - 0.5;
        (0..len).map(value).collect()
    }

    /// Targets that a matrix makes of the states are found again, whatever the units of coordinates.
    #[test]
    fn a_linear_map_is_found() {
        for (width, pairs) in [(1, 3), (7, 40), (33, 300)] {
            let map = noise(1, width * width);
            let units: Vec<f32> = (0..width).map(|i| 10f32.powi(i as i32 % 7 - 3)).collect();
            let from: Vec<f32> = noise(2, pairs * width).iter().zip(units.iter().cycle()).map(|(x, u)| x * u).collect();
            let times = |map: &[f32], x: &[f32]| -> Vec<f32> {
                let row = |row: &[f32]| row.iter().zip(x).zip(&units).map(|((a, x), u)| a / u * x).sum();
                map.chunks_exact(width).map(row).collect()
            };
            let to: Vec<f32> = from.chunks_exact(width).flat_map(|x| times(&map, x)).collect();
            let mut ridge = Ridge::new(width);
            let half = pairs / 2 * width;
            ridge.add(&from[..half], &to[..half]);
            ridge.add(&from[half..], &to[half..]);
            let found = ridge.solve().unwrap();
            for (at, (found, expected)) in found.iter().zip(&map).enumerate() {
                let found = found * units[at % width];
                assert!((found - expected).abs() < 2e-3, "{width}, {at}: {found} (expected {expected})");
            }
        }
    }

    /// The gradient of what is made least is zero there, on states that no matrix maps exactly.
    #[test]
    fn nothing_near_it_is_better() {
        let (width, pairs) = (9, 60);
        let (from, to) = (noise(3, pairs * width), noise(4, pairs * width));
        let mut ridge = Ridge::new(width);
        ridge.add(&from, &to);
        let found = ridge.solve().unwrap();
        let squares: Vec<f64> =
            (0..width).map(|i| from.chunks_exact(width).map(|h| f64::from(h[i]).powi(2)).sum()).collect();
        for (o, row) in found.chunks_exact(width).enumerate() {
            for i in 0..width {
                let error = |h: &[f32], t: &[f32]| {
                    row.iter().zip(h).map(|(a, h)| f64::from(*a) * f64::from(*h)).sum::<f64>() - f64::from(t[o])
                };
                let pairs = from.chunks_exact(width).zip(to.chunks_exact(width));
                let slope: f64 = pairs.map(|(h, t)| error(h, t) * f64::from(h[i])).sum();
                let penalty = PART * squares[i] * f64::from(row[i]);
                assert!((slope + penalty).abs() < 1e-5, "{o}, {i}: {slope} {penalty}");
            }
        }
    }

    #[test]
    fn what_cannot_be_fitted_is_an_error() {
        assert!(Ridge::new(3).solve().unwrap_err().to_string().contains("no positions"));
        let mut ridge = Ridge::new(2);
        ridge.add(&[1.0, f32::NAN], &[1.0, 1.0]);
        assert!(ridge.solve().unwrap_err().to_string().contains("not finite"));
        let mut ridge = Ridge::new(2);
        ridge.add(&[1.0, 0.0, 2.0, 0.0], &[3.0, 3.0, 6.0, 6.0]);
        let found = ridge.solve().unwrap();
        assert!((found[0] - 3.0).abs() < 1e-3 && found[1] == 0.0, "a coordinate that is always 0: {found:?}");
    }
}
