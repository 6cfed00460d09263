//! The best set of drafts that several sequences may make.

use super::sequence::Outlook;
use crate::control::calibration::Calibration;
use crate::control::step_times::StepCosts;

/// Draft steps that a decision looks ahead.
const HORIZON: usize = 32;
/// Further draft steps that may not pay before none is expected to.
const PATIENCE: usize = 3;

/// A draft that may be made.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    /// Index of its sequence among those asked.
    sequence: usize,
    /// Draft steps from now to its own.
    ahead: usize,
    /// Chance that it is accepted, with all drafts before it, times what a token of its sequence is worth.
    worth: f64,
}

/// What drafts cost beside the verification of certain rows, in seconds.
pub struct Prices<'a> {
    costs: &'a StepCosts,
    batch: usize,
    rows: usize,
    /// Of the next draft step, and of those after it, by their sequences.
    draft: [Vec<f64>; 2],
    /// Of verifying further rows, by their number.
    verify: Vec<f64>,
}

impl<'a> Prices<'a> {
    /// For a round of `batch` sequences, of which `drafting` may draft after `drafted` drafts each, beside the verification
    /// of `rows` rows.
    pub fn new(costs: &'a StepCosts, batch: usize, rows: usize, drafting: usize, drafted: usize) -> Self {
        let step = |drafted| (0..=drafting).map(|sequences| costs.draft(drafted, sequences)).collect();
        let draft = [step(drafted), step(drafted + 1)];
        Self { costs, batch, rows, draft, verify: vec![0.0] }
    }

    /// Knows the price of this many further rows from now on.
    fn extend(&mut self, drafts: usize) {
        let without = self.costs.hoped_verify(self.batch, self.rows);
        let further = self.verify.len()..=drafts;
        self.verify.extend(
            further.map(|drafts| self.costs.hoped_verify(self.batch, self.rows.saturating_add(drafts)) - without),
        );
    }
}

/// A set of drafts that is worth most.
pub struct BestSet {
    /// Its value.
    pub value: f64,
    /// By index of the sequences asked: whether its next draft is in the set.
    pub next: Vec<bool>,
}

impl BestSet {
    /// The set of the highest `value`, by its worth and its seconds, of all drafts of some sequences: each given by what
    /// its drafts are worth and the most that it may make.
    ///
    /// Whatever the number of draft steps, the drafts worth most are the best ones; but a step costs, so that those worth
    /// most of any number of steps need not be.
    pub fn of(
        mut sequences: Vec<(Outlook, usize)>,
        prices: &mut Prices<'_>,
        calibration: &Calibration,
        value: impl Fn(f64, f64) -> f64,
    ) -> Self {
        let mut best = Self { value: value(0.0, 0.0), next: vec![false; sequences.len()] };
        let mut candidates: Vec<Candidate> = Vec::with_capacity(8 * sequences.len());
        let mut without_gain = 0;
        for ahead in 0..HORIZON {
            let known = candidates.len();
            for (sequence, (outlook, _)) in sequences.iter_mut().enumerate().filter(|(_, (_, most))| ahead < *most) {
                candidates.push(Candidate { sequence, ahead, worth: outlook.next(calibration) });
            }
            if candidates.len() == known || without_gain == PATIENCE {
                break;
            }
            // Stable, so that of one sequence's drafts none comes before those that it needs.
            candidates.sort_by(|a, b| b.worth.total_cmp(&a.worth));
            prices.extend(candidates.len());
            without_gain = if best.improve(&candidates, prices, &value) { 0 } else { without_gain + 1 };
        }
        best
    }

    /// Takes the best set of the first so many candidates, if there is a better one.
    fn improve(&mut self, candidates: &[Candidate], prices: &Prices<'_>, value: &impl Fn(f64, f64) -> f64) -> bool {
        let (mut sequences, mut worth, mut drafting, mut drafts) = ([0; HORIZON], 0.0, 0.0, 0);
        for (i, candidate) in candidates.iter().enumerate() {
            let others: &mut usize = &mut sequences[candidate.ahead];
            let draft = &prices.draft[candidate.ahead.min(1)];
            drafting += draft[*others + 1] - draft[*others];
            *others += 1;
            worth += candidate.worth;
            let value = value(worth, drafting + prices.verify[i + 1]);
            if value > self.value {
                (self.value, drafts) = (value, i + 1);
            }
        }
        if drafts > 0 {
            self.next.fill(false);
            candidates[..drafts].iter().filter(|c| c.ahead == 0).for_each(|c| self.next[c.sequence] = true);
        }
        drafts > 0
    }
}
