//! What draft steps and rounds of a sequence that runs alone cost, measured as they happen.
//!
//! Decisions need ratios of costs alone, and the machine's speed changes: other programs come and go,
//! processors grow hot. So the unit is the draft step; through the first layers, where later drafts of a round are
//! recurrent and cost less. A round's verification is kept as its time over
//! that of the draft steps around it, which other programs slowed down as much. The verifications
//! of recent rounds with a number of rows count by their trimmed mean, because a page fault or a
//! preemption makes single times many times too long.
//!
//! More rows never cost less, and of several each costs at least what the one before it did: the arithmetic of
//! the first ones hides behind reading the weights. So the cost of verifying them is the convex chain of
//! lines that best joins those means. A single row may be another matter: where it has kernels of its own, plain
//! rounds cost less than the chain says, and then they are no part of it.

mod chain;

use super::aftermath::{Aftermath, SOON};
use super::recent::Recent;
use super::{Outcome, Way};
use chain::{Chain, Point};
use std::collections::BTreeMap;

/// What a round costs, in draft steps.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RoundCosts<'a> {
    /// Seconds of a round's first draft step, lately.
    pub step_seconds: f64,
    /// A later one.
    later: f64,
    /// Of a plain round soon after drafts, what is left of it where it is not.
    aftermath: f64,
    verify: &'a Fit,
}

impl RoundCosts<'_> {
    /// A round with `drafts` drafts.
    pub fn round(&self, drafts: usize) -> f64 {
        if drafts == 0 {
            return self.plain();
        }
        1.0 + (drafts - 1) as f64 * self.later + self.verify.at(drafts + 1)
    }

    /// A round that drafts nothing, among others.
    pub fn plain(&self) -> f64 {
        self.verify.plain * self.aftermath
    }

    /// What a round with `drafts` drafts takes more than a plain one, and what the plain ones soon after it do.
    pub fn probe(&self, drafts: usize) -> f64 {
        self.round(drafts) - self.plain() + SOON as f64 * (self.verify.plain - self.plain())
    }

    /// One more draft after `drafts`, at least one: a draft step and one more row to verify. Never less than the draft
    /// before it.
    pub fn next(&self, drafts: usize) -> f64 {
        self.round(drafts + 1) - self.round(drafts)
    }
}

/// Measured costs.
#[derive(Debug, Clone, Default)]
pub struct Costs {
    /// Seconds.
    draft: Recent<8>,
    /// How drafts after a round's first one are made, and what a recurrent one takes, in first ones.
    pub later: Way,
    recurrent: Recent<8>,
    /// Rounds since a draft step was measured.
    since_draft: usize,
    /// Rounds by rows verified.
    verify: BTreeMap<usize, Rounds>,
    rounds: usize,
    plain_rounds: usize,
    since_plain: usize,
    aftermath: Aftermath,
    fit: Option<Fit>,
}

/// What verification costs, in draft steps.
#[derive(Debug, Clone, PartialEq)]
struct Fit {
    /// Of one row, soon after drafts.
    plain: f64,
    /// Of more.
    rows: Chain,
}

/// Rounds that verified the same number of rows.
#[derive(Debug, Clone, Default)]
struct Rounds {
    /// Draft steps that verification took.
    steps: Recent<63>,
    /// 1 when measured last, decaying since.
    freshness: f64,
}

/// What [`Rounds::freshness`] is multiplied by per measured round.
const FRESHNESS_DECAY: f64 = 0.997;
/// Times in a row that tell of a change.
const MOVED: usize = 4;
/// What freshness is multiplied by when the cost of another number of rows has changed.
const MOVED_FRESHNESS: f64 = 0.1;
/// Rounds after which the last draft steps tell the machine's speed no more.
const SPEED_KNOWN: usize = 8;
/// Rounds with a number of rows after which a further one is compared with them, and not with what the fit expects.
const KNOWN: usize = 4;
/// A number of rows that fewer rounds had lately tells nothing, but joins its neighbours so loosely that they would not
/// tell of each other either.
const FEWEST: f64 = 0.5;
/// How far below the chain of other rounds a plain one may be, relative to it, and still be part of it.
const OFF_THE_CHAIN: f64 = 0.1;
/// Rounds that measure costs and nothing else, at first: a slow pass must not decide.
const WARM_UP: usize = 5;
/// Drafts of every other one of them.
const WARM_UP_DRAFTS: usize = 3;
/// Plain round `n` is due at round `8n²`: often while little is known, and then ever more rarely.
const PLAIN_SPACING: usize = 8;
/// Most rounds from one plain round to the next.
const PLAIN_EVERY: usize = 500;
/// Kept numbers of rows; longer drafts count as this long.
const MAX_ROWS: usize = 64;

impl Costs {
    /// Learns from a finished round's times; times that are no times are ignored.
    pub fn observe(&mut self, outcome: &Outcome<'_>) {
        let rows = outcome.rows.clamp(1, MAX_ROWS);
        self.rounds += 1;
        self.plain_rounds += usize::from(rows == 1);
        self.since_plain = if rows == 1 { 0 } else { self.since_plain + 1 };
        self.aftermath.observe(outcome.draft_seconds.len(), outcome.verify_seconds);
        // The first round of all warms caches up, and each of its parts is slow in its own way.
        if self.rounds > 1 {
            self.measure(rows, outcome);
        }
    }

    /// What rounds cost; `None` before a draft step and a verification have been measured.
    pub fn round(&self) -> Option<RoundCosts<'_>> {
        let (step_seconds, aftermath) = (self.draft.mean()?, self.aftermath.ratio());
        let later = match self.later {
            Way::Recurrent => self.recurrent.mean().unwrap_or(1.0),
            Way::FirstLayers | Way::Continued => 1.0,
        };
        Some(RoundCosts { step_seconds, later, aftermath, verify: self.fit.as_ref()? })
    }

    /// What the last observed round, which had so many drafts, took in plain rounds.
    pub fn last_round(&self, drafts: usize) -> Option<f64> {
        let costs = self.round()?;
        let took = if self.aftermath.is_soon() { costs.verify.plain } else { costs.round(drafts) };
        Some(took / costs.plain())
    }

    /// Whether the next round should be plain to find out what plain rounds cost that follow each other, where drafting
    /// is thought to gain this many tokens a plain round's time.
    pub fn wants_plain(&mut self, gain: f64) -> bool {
        self.aftermath.wants_plain(gain)
    }

    /// How many drafts a round should make for the sake of the costs, if any: short and plain rounds in
    /// turn at first, then plain rounds ever more rarely, so that the cost of a row stays known however
    /// little draft lengths vary.
    pub fn wanted_drafts(&self) -> Option<usize> {
        let (rounds, plain) = (self.rounds, self.plain_rounds);
        if rounds < WARM_UP {
            return Some(if rounds == 0 || rounds % 2 == 1 { WARM_UP_DRAFTS } else { 0 });
        }
        let due = rounds >= PLAIN_SPACING * plain * plain && self.since_plain > 0 || self.since_plain >= PLAIN_EVERY;
        due.then_some(0)
    }

    fn measure(&mut self, rows: usize, outcome: &Outcome<'_>) {
        for (drafted, &seconds) in outcome.draft_seconds.iter().enumerate() {
            let recurrent = drafted > 0 && self.later == Way::Recurrent;
            match self.draft.mean().filter(|_| recurrent) {
                Some(first) => self.recurrent.follow(seconds / first, MOVED),
                None => self.draft.follow(seconds, MOVED),
            };
        }
        self.since_draft = if outcome.draft_seconds.is_empty() { self.since_draft + 1 } else { 0 };
        let Some(step) = self.draft.mean().filter(|_| self.since_draft <= SPEED_KNOWN) else { return };
        // The only round with its number of rows may be far from the others and so turn the whole fit.
        let steps = outcome.verify_seconds / step;
        if !steps.is_finite() || steps < 0.0 {
            return;
        }
        let expected = self.fit.as_ref().filter(|_| self.rounds > WARM_UP).map(|fit| fit.at(rows));
        self.verify.values_mut().for_each(|rounds| rounds.freshness *= FRESHNESS_DECAY);
        let rounds = self.verify.entry(rows).or_default();
        let known = rounds.steps.mean().filter(|_| rounds.steps.len() >= KNOWN);
        let steps = known.or(expected).map_or(steps, |credible| steps.clamp(credible / 2.0, credible * 2.0));
        rounds.freshness = 1.0;
        if self.since_draft > 1 {
            // What looks like another cost may be another speed.
            rounds.steps.extend(&[steps]);
        } else if rounds.steps.follow(steps, MOVED) {
            // Most likely so have those of other numbers of rows.
            let others = self.verify.iter_mut().filter(|(others, _)| **others != rows);
            others.for_each(|(_, rounds)| rounds.freshness *= MOVED_FRESHNESS);
        }
        self.fit = self.fit();
    }

    fn fit(&self) -> Option<Fit> {
        let point = |(&rows, rounds): (&usize, &Rounds)| {
            let weight = rounds.freshness * rounds.steps.len() as f64;
            Some(Point { rows: rows as f64, cost: rounds.steps.mean()?, weight })
        };
        let mut points: Vec<Point> = self.verify.iter().filter_map(point).collect();
        let most = points.iter().map(|p| p.weight).fold(0.0, f64::max);
        points.retain(|p| p.weight >= FEWEST.min(most));
        let [first, others @ ..] = &points[..] else { return None };
        if let (1.0, [_, _, ..], Some(rows)) = (first.rows, others, Chain::fit(others))
            && first.cost < (1.0 - OFF_THE_CHAIN) * rows.at(1.0)
        {
            return Some(Fit { plain: first.cost, rows });
        }
        let rows = Chain::fit(&points)?;
        Some(Fit { plain: rows.at(1.0), rows })
    }
}

impl Fit {
    fn at(&self, rows: usize) -> f64 {
        if rows == 1 { self.plain } else { self.rows.at(rows as f64).max(self.plain) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round(drafts: usize, draft: f64, verify: f64) -> impl FnOnce(&mut Costs) {
        round_of(vec![draft; drafts], verify)
    }

    fn round_of(draft_seconds: Vec<f64>, verify_seconds: f64) -> impl FnOnce(&mut Costs) {
        move |costs| {
            let (drafts, draft_seconds) = (draft_seconds.len(), &draft_seconds[..]);
            let (rows, confidences) = (drafts + 1, &vec![0.5; drafts][..]);
            costs.observe(&Outcome {
                slot: 0,
                batch: 1,
                rows,
                confidences,
                accepted: 0,
                draft_seconds,
                verify_seconds,
            });
        }
    }

    /// What fits tell about rounds with up to six drafts, in plain rounds.
    fn found(costs: &Costs) -> [f64; 7] {
        let found = costs.round().unwrap();
        std::array::from_fn(|drafts| found.round(drafts) / found.plain())
    }
    fn close(found: [f64; 7], expected: impl Fn(usize) -> f64) -> bool {
        found.iter().enumerate().all(|(drafts, &cost)| (cost - expected(drafts)).abs() < 0.03 * expected(drafts))
    }

    #[test]
    fn costs_are_found_through_outliers() {
        let mut costs = Costs::default();
        for i in 0..400 {
            let drafts = i % 5;
            // The very first round, and then every 37th, is far too long.
            let slow = if i % 37 == 0 { 10.0 } else { 1.0 };
            round(drafts, 0.2, (1.0 + 0.1 * drafts as f64) * slow)(&mut costs);
        }
        assert!(close(found(&costs), |drafts| 1.0 + 0.3 * drafts as f64), "{:?}", found(&costs));
    }

    /// A round's first draft costs much, and later ones a quarter of it.
    #[test]
    fn recurrent_drafts_cost_what_they_cost() {
        let mut costs = Costs { later: Way::Recurrent, ..Costs::default() };
        for i in 0..400 {
            let (drafts, slow) = (i % 5, if i / 100 % 2 == 1 { 3.0 } else { 1.0 });
            let step = |drafted| if drafted == 0 { 0.4 * slow } else { 0.1 * slow };
            round_of((0..drafts).map(step).collect(), slow * (1.0 + 0.05 * drafts as f64))(&mut costs);
        }
        let cost = |drafts| if drafts == 0 { 1.0 } else { 1.3 + 0.15 * drafts as f64 };
        assert!(close(found(&costs), cost), "{:?}", found(&costs));
    }

    /// Rows that cost nothing and then much: what a further one costs is not what they cost on average.
    #[test]
    fn convex_costs_are_found_on_a_machine_that_changes_speed() {
        let cost = |drafts: usize| 1.0 + 0.2 * drafts as f64 + 0.4 * drafts.saturating_sub(2) as f64;
        let mut costs = Costs::default();
        for i in 0..800 {
            let slow = if i / 100 % 2 == 1 { 3.0 } else { 1.0 };
            // Mostly short drafts, and hardly a plain round while the machine is fast.
            let drafts = if i % 100 == 60 { 0 } else { [1, 2, 1, 2, 3, 4][i % 6] };
            round(drafts, 0.2 * slow, (cost(drafts) - 0.2 * drafts as f64) * slow)(&mut costs);
        }
        assert!(close(found(&costs), cost), "{:?}", found(&costs));
    }

    #[test]
    fn a_single_row_with_kernels_of_its_own_does_not_bend_the_chain() {
        let cost = |drafts: usize| [1.0, 2.5, 2.6, 2.7, 3.1][drafts];
        let mut costs = Costs::default();
        (0..400).for_each(|i| round(i % 5, 0.1, cost(i % 5) - 0.1 * (i % 5) as f64)(&mut costs));
        let found = found(&costs);
        assert!((0..5).all(|drafts| (found[drafts] - cost(drafts)).abs() < 0.08 * cost(drafts)), "{found:?}");
    }

    #[test]
    fn a_plain_round_is_not_measured_against_draft_steps_of_long_ago() {
        let mut costs = Costs::default();
        (0..20).for_each(|i| round(i % 3, 0.2, 1.0)(&mut costs));
        let before = found(&costs);
        (0..=SPEED_KNOWN).for_each(|_| round(0, 0.0, 1.0)(&mut costs));
        (0..100).for_each(|_| round(0, 0.0, 5.0)(&mut costs));
        assert!(close(found(&costs), |drafts| before[drafts]), "{before:?} {:?}", found(&costs));
    }

    #[test]
    fn what_is_no_time_is_ignored() {
        let mut costs = Costs::default();
        for seconds in [f64::NAN, f64::INFINITY, -1.0] {
            round(2, seconds, seconds)(&mut costs);
        }
        assert_eq!(costs.round(), None);
        round(2, 0.0, 0.0)(&mut costs);
        let found = costs.round().unwrap();
        assert!(found.plain() > 0.0 && found.next(0) > 0.0, "{found:?}");
    }

    #[test]
    fn plain_rounds_become_rare() {
        let mut costs = Costs::default();
        let mut plain = Vec::new();
        for i in 0..6000 {
            let drafts = costs.wanted_drafts().unwrap_or(4);
            plain.extend((drafts == 0).then_some(i));
            round(drafts, 0.1, 1.0)(&mut costs);
        }
        assert!(plain.len() < 40, "{plain:?}");
        assert!(plain.windows(2).all(|p| p[1] - p[0] <= PLAIN_EVERY + 1), "{plain:?}");
    }
}
