//! Do counts follow their exact probabilities, and p-values the uniform distribution?

use statrs::distribution::{ChiSquared, ContinuousCDF};

/// Pearson's χ² test of how often each text was seen against its chance; 0 where an impossible text
/// was. Rare texts share a cell, so that every cell expects enough for the χ² approximation.
pub fn p_value(counts: &[usize], chances: &[f64]) -> f64 {
    let texts = counts.iter().sum::<usize>() as f64;
    let mut rare = (0.0, 0.0);
    let (mut statistic, mut cells) = (0.0, 0);
    let mut add = |count: f64, expected: f64| {
        statistic += (count - expected).powi(2) / expected;
        cells += 1;
    };
    for (&count, &chance) in counts.iter().zip(chances) {
        if chance == 0.0 && count > 0 {
            return 0.0;
        } else if chance * texts < 10.0 {
            rare = (rare.0 + count as f64, rare.1 + chance * texts);
        } else {
            add(count as f64, chance * texts);
        }
    }
    if rare.1 > 0.0 {
        add(rare.0, rare.1);
    }
    let freedom = f64::from(cells - 1);
    ChiSquared::new(freedom).expect("at least two cells").sf(statistic)
}

/// Kolmogorov–Smirnov: the chance that uniform numbers are at least this far from uniform.
pub fn uniformity(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let n = values.len() as f64;
    let gaps = values.iter().enumerate().map(|(i, &v)| (v - i as f64 / n).max((i + 1) as f64 / n - v));
    let d = gaps.fold(0.0, f64::max);
    let lambda = (n.sqrt() + 0.12 + 0.11 / n.sqrt()) * d;
    let series = (1..100).map(f64::from).map(|j| (-1f64).powf(j - 1.0) * (-2.0 * (j * lambda).powi(2)).exp());
    (2.0 * series.sum::<f64>()).clamp(0.0, 1.0)
}
