//! Pearson's χ² test.

/// How well counts agree with expectations.
#[derive(Debug, Clone, Copy)]
pub struct Test {
    /// `Σ (observed - expected)² / expected`.
    pub statistic: f64,
    /// Cells less one.
    pub degrees: usize,
    /// Chance of a statistic at least as large where the expectations are right.
    pub p: f64,
}

/// Tests counts against expected counts of the same total.
pub fn test(expected: &[f64], observed: &[f64]) -> Test {
    let statistic = expected.iter().zip(observed).map(|(e, o)| (o - e).powi(2) / e).sum();
    let degrees = expected.len().saturating_sub(1);
    let p = if degrees == 0 { 1.0 } else { upper_gamma(degrees as f64 / 2.0, statistic / 2.0) };
    Test { statistic, degrees, p }
}

/// The regularised upper incomplete gamma function `Q(a, x)` for `a` a multiple of ½: the finite
/// sums that repeated integration by parts gives (Abramowitz and Stegun, 26.4.4 and 26.4.5), with
/// terms taken as logarithms so that none overflows.
fn upper_gamma(a: f64, x: f64) -> f64 {
    if x <= 0.0 {
        return 1.0;
    }
    let whole = a.fract() == 0.0;
    // Q(a, x) = Q(a₀, x) + Σ x^s e^{-x} / Γ(s + 1) over s = a₀, a₀ + 1, …, a - 1.
    let (mut sum, mut s, mut log_gamma) =
        if whole { ((-x).exp(), 1.0, 0.0) } else { (erfc(x.sqrt()), 0.5, (std::f64::consts::PI.sqrt() / 2.0).ln()) };
    while s < a - 0.25 {
        sum += (s * x.ln() - x - log_gamma).exp();
        s += 1.0;
        log_gamma += s.ln();
    }
    sum.min(1.0)
}

/// The complementary error function for `z ≥ 0`: its series for small `z`, its continued fraction else.
fn erfc(z: f64) -> f64 {
    let scale = (-z * z).exp() / std::f64::consts::PI.sqrt();
    if z < 2.0 {
        let (mut term, mut sum) = (2.0 * z, 2.0 * z);
        for n in 1..100 {
            term *= 2.0 * z * z / f64::from(2 * n + 1);
            sum += term;
        }
        1.0 - scale * sum
    } else {
        let fraction = (1..=60).rev().fold(0.0, |below, n| f64::from(n) / 2.0 / (z + below));
        scale / (z + fraction)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use statrs::distribution::{ChiSquared, ContinuousCDF};

    #[test]
    fn tail_agrees_with_a_statistics_library() {
        for degrees in [1, 2, 3, 4, 7, 30, 31, 200, 201] {
            let reference = ChiSquared::new(degrees as f64).unwrap();
            for factor in [0.01, 0.3, 0.8, 1.0, 1.3, 2.0, 4.0] {
                let x = degrees as f64 * factor;
                let p = upper_gamma(degrees as f64 / 2.0, x / 2.0);
                assert!((p - reference.sf(x)).abs() < 1e-9, "{degrees} degrees, {x}: {p} vs {}", reference.sf(x));
            }
        }
    }

    #[test]
    fn a_biased_die_is_found_out() {
        assert!(test(&[100.0; 6], &[98.0, 103.0, 99.0, 101.0, 95.0, 104.0]).p > 0.5);
        assert!(test(&[100.0; 6], &[150.0, 90.0, 90.0, 90.0, 90.0, 90.0]).p < 1e-4);
    }
}
