//! What a round should cost, from passes timed apart from the run that is predicted.

use std::collections::BTreeMap;

/// What one round did and took.
#[derive(Debug, Clone)]
pub struct Round {
    /// Rows of its verification pass.
    pub rows: usize,
    /// Seconds of each draft step.
    pub draft_seconds: Vec<f64>,
    /// Seconds of verification and acceptance.
    pub verify_seconds: f64,
}

/// Median seconds of a round's first draft step, of its later ones, and of a verification pass by its rows.
#[derive(Debug, Clone, PartialEq)]
pub struct Costs {
    first_draft: f64,
    later_draft: f64,
    verify: BTreeMap<usize, f64>,
}

impl Costs {
    /// Costs of the rounds of a warm-up.
    pub fn measured(rounds: impl IntoIterator<Item = Round>) -> Self {
        let (mut first, mut later) = (Vec::new(), Vec::new());
        let mut by_rows: BTreeMap<usize, Vec<f64>> = BTreeMap::new();
        for round in rounds {
            first.extend(round.draft_seconds.first());
            later.extend(round.draft_seconds.iter().skip(1));
            by_rows.entry(round.rows).or_default().push(round.verify_seconds);
        }
        let verify = by_rows.into_iter().map(|(rows, mut seconds)| (rows, median(&mut seconds))).collect();
        let first_draft = median(&mut first);
        let later_draft = if later.is_empty() { first_draft } else { median(&mut later) };
        Self { first_draft, later_draft, verify }
    }

    /// Seconds of a round's first draft step.
    pub fn draft(&self) -> f64 {
        self.first_draft
    }

    /// Seconds of all draft steps of a round with so many.
    pub fn drafts(&self, count: usize) -> f64 {
        if count == 0 { 0.0 } else { self.first_draft + (count - 1) as f64 * self.later_draft }
    }

    /// Seconds of a verification pass over `rows` rows: as measured, or on the line between its
    /// neighbours, or as the nearest one.
    pub fn verify(&self, rows: usize) -> f64 {
        let below = self.verify.range(..=rows).next_back();
        let above = self.verify.range(rows..).next();
        match (below, above) {
            (Some((&r0, &s0)), Some((&r1, &s1))) if r1 > r0 => s0 + (s1 - s0) * (rows - r0) as f64 / (r1 - r0) as f64,
            (Some((_, &seconds)), _) | (None, Some((_, &seconds))) => seconds,
            (None, None) => 0.0,
        }
    }

    /// Seconds that these rounds should take.
    pub fn predict(&self, rounds: &[Round]) -> f64 {
        rounds.iter().map(|round| self.verify(round.rows) + self.drafts(round.draft_seconds.len())).sum()
    }
}

/// The middle value; 0 of nothing.
pub fn median(values: &mut [f64]) -> f64 {
    let middle = values.len() / 2;
    if values.is_empty() { 0.0 } else { *values.select_nth_unstable_by(middle, f64::total_cmp).1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn costs_are_medians_and_lines_between_them() {
        let round = |rows, drafts, verify_seconds| Round { rows, draft_seconds: vec![0.5; drafts], verify_seconds };
        let costs = Costs::measured([round(1, 0, 1.0), round(1, 0, 1.0), round(1, 0, 9.0), round(5, 4, 2.0)]);
        assert_eq!(costs.verify(1), 1.0);
        assert_eq!(costs.verify(3), 1.5);
        assert_eq!(costs.verify(9), 2.0);
        assert_eq!(costs.predict(&[round(3, 2, 7.0)]), 2.5);
        let recurrent = Costs::measured([Round { rows: 4, draft_seconds: vec![0.5, 0.1, 0.1], verify_seconds: 1.0 }]);
        assert_eq!([0, 1, 2, 6].map(|count| recurrent.drafts(count)), [0.0, 0.5, 0.6, 1.0]);
    }
}
