//! What the passes of a round of several sequences take: a table of step times, filled by rounds played to be timed
//! and refined by every round.
//!
//! A draft step's time depends on its [way](Way) and on its rows, one for each sequence in it. The rest of a round runs the first layers on the
//! fresh rows, which are each sequence's last token and what was proposed or drafted recurrently, and all others on every row, so its time is a
//! function of the rows plus a share per fresh one. The share is what tells passes with the same rows of different numbers
//! of fresh ones apart.
//!
//! The machine's speed wanders: other programs come and go, contexts grow. A common factor follows it fast, and what
//! the table keeps are times at its first speed, each number of rows by a trimmed mean. Decisions need ratios of
//! times, for which the factor does not matter, so one slow pass changes nothing.

mod moved;

use super::curve::{Curve, Point};
use super::recent::{Recent, median};
use super::{DraftStep, RoundTimes, Way};
use moved::Moved;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Rows up to which each number has a cell of its own; above, an octave has [`CELLS_AN_OCTAVE`].
const EXACT_ROWS: usize = 64;
const CELLS_AN_OCTAVE: f64 = 16.0;
/// Passes of more rows, if ever there are any, count as this large.
const MAX_ROWS: usize = 1 << 16;
/// Rounds after which a cell that was not measured again counts for half.
const FRESH_FOR: f64 = 500.0;
/// Rounds after which all but the last few of a cell's times are dropped when there is a new one, and how many these are.
const LONG_AGO: usize = 100;
const KEPT_LONG: usize = 6;
/// Fresh rows over all rows in a cell that most likely tells of plain rounds.
const MOSTLY_PLAIN: f64 = 0.8;
/// Passes in a cell before it is a measure of the machine's speed.
const KNOWN: usize = 4;
/// Rounds that tell the speed, without the fastest and the slowest quarter.
const SPEED_ROUNDS: usize = 8;
/// How far off the speed a round may be, either way, for its times to be kept.
const STEADY: f64 = 1.4;
/// How far off a time may be from what was expected, either way; beyond, it counts as this far off.
const CREDIBLE: f64 = 2.0;
/// Passes after which a cell's mean number of fresh rows forgets.
const SPREAD_MEMORY: f64 = 50.0;
/// Pulls the share per fresh row to 0 as passes of numbers of them this far apart (relative) would.
const SHARE_PRIOR: f64 = 0.05;
/// A fit takes microseconds, and a further round changes it the less the more there were: with each further so many
/// rounds one more goes by without a fit, up to this many.
const ROUNDS_TO_FIT: usize = 64;
const MOST_TO_FIT: usize = 7;
/// Passes with several sequences' rows, and draft steps, that are measured before the table is used.
const ENOUGH: usize = 3;

/// Step times as they were measured.
#[derive(Debug, Clone, Default)]
pub struct StepTimes {
    /// By way, and by sequences in the step.
    draft: [Cells; Way::COUNT],
    /// How a round's first draft is made, and those after it, as far as is known.
    first: Way,
    later: Way,
    /// By rows.
    verify: Cells,
    /// Time over the table's, of recent rounds.
    speeds: Recent<SPEED_ROUNDS>,
    rounds: usize,
    /// Rows of the last round, and whether it took about what was expected.
    rows: usize,
    steady: bool,
    /// Whether it drafted.
    drafted: bool,
    moved: Moved,
    costs: Option<StepCosts>,
    /// Rounds observed since `costs` were fitted.
    since_fit: usize,
}

/// What passes cost, in seconds at the table's speed.
#[derive(Debug, Clone)]
pub struct StepCosts {
    /// By way; `None` while no such draft was measured.
    draft: [Option<Curve>; Way::COUNT],
    first: Way,
    later: Way,
    rows: Curve,
    /// What decisions take rows to cost: what is thought dear by mistake is never tried again, what is thought cheap is.
    hopeful: Curve,
    per_fresh: f64,
}

impl StepCosts {
    /// A draft step of this many sequences; one that was never measured costs what a round's first one does.
    pub fn step(&self, way: Way, sequences: usize) -> f64 {
        let curve = self.draft[way as usize].as_ref().or(self.draft[self.first as usize].as_ref());
        if sequences == 0 { 0.0 } else { curve.map_or(f64::INFINITY, |draft| draft.at(sequences as f64)) }
    }

    /// Whether a round's first draft was measured.
    fn knows_drafts(&self) -> bool {
        self.draft[self.first as usize].is_some()
    }

    /// The next draft of this many sequences after so many drafts of each, but for its rows' share of verification that
    /// every row has: a row that is drafted from without hidden states needs the first layers then.
    pub fn draft(&self, drafted: usize, sequences: usize) -> f64 {
        let way = if drafted == 0 { self.first } else { self.later };
        let fresh = if way.is_recurrent() { sequences } else { 0 };
        self.step(way, sequences) + self.per_fresh * fresh as f64
    }

    /// The rest of a round: verifying `rows` rows, of which `fresh` come without hidden states, and all else.
    pub fn verify(&self, fresh: usize, rows: usize) -> f64 {
        self.rows.at(rows as f64) + self.per_fresh * fresh as f64
    }

    /// The same, as low as it may be after what was measured.
    pub fn hoped_verify(&self, fresh: usize, rows: usize) -> f64 {
        self.hopeful.at(rows as f64) + self.per_fresh * fresh as f64
    }

    /// A round that drafts nothing.
    pub fn plain(&self, batch: usize) -> f64 {
        self.verify(batch, batch)
    }

    /// A whole round.
    pub fn round(&self, times: &RoundTimes<'_>) -> f64 {
        let drafting: f64 = times.draft_steps.iter().map(|step| self.step(step.way, step.sequences)).sum();
        drafting + self.verify(times.fresh(), times.rows)
    }

    /// The same without its draft steps and their rows.
    pub fn undrafted(&self, times: &RoundTimes<'_>) -> f64 {
        self.verify(times.undrafted(), times.undrafted())
    }
}

/// Times of passes by their rows.
#[derive(Debug, Clone, Default)]
struct Cells(BTreeMap<usize, Cell>);

/// Passes with about the same number of rows.
#[derive(Debug, Clone, Default)]
struct Cell {
    seconds: Recent<63>,
    /// Round of the last one.
    seen: usize,
    passes: f64,
    /// Means of rows, of fresh ones, and of seconds.
    rows: f64,
    fresh: f64,
    mean: f64,
    /// Sums of squared differences of fresh rows, and of their products with those of seconds.
    spread: f64,
    product: f64,
}

/// A pass as it was measured.
#[derive(Debug, Clone, Copy)]
struct Pass {
    rows: usize,
    fresh: usize,
    seconds: f64,
}

impl StepTimes {
    /// Learns from a round's times; what is no time is ignored.
    pub fn observe(&mut self, times: &RoundTimes<'_>) {
        self.rounds += 1;
        self.drafted = !times.draft_steps.is_empty();
        self.first = times.draft_steps.first().map_or(self.first, |step| step.way);
        self.later = times.draft_steps.get(1).map_or(self.later, |step| step.way);
        let verify = Pass { rows: times.rows, fresh: times.fresh(), seconds: times.verify_seconds };
        let steps =
            || times.draft_steps.iter().map(|step| (step.way, Pass::of(step))).filter(|(_, pass)| pass.is_one());
        let ratio = |(pass, expected): (Pass, Option<f64>)| expected.map(|expected| pass.seconds / expected);
        let drafting = median(steps().filter_map(|(way, pass)| ratio((pass, self.expected_draft(way, pass)))));
        let verifying = Some(verify).filter(Pass::is_one).and_then(|pass| ratio((pass, self.expected_verify(pass))));
        let present = match (drafting, verifying) {
            // Nothing makes a pass too short.
            (Some(a), Some(b)) if a.max(b) > STEADY * a.min(b) => Some(a.min(b)),
            // Each for itself: draft steps are short, and would else say nothing of verification that is misjudged.
            (Some(a), Some(b)) => Some((a + b) / 2.0),
            (a, b) => a.or(b),
        };
        self.speeds.extend(present.as_slice());
        self.since_fit += 1;
        // Where the curve is not what it is fitted as, passes that it only reckons with are always off.
        if let (Some(drafting), Some(expected)) = (drafting, self.measured_verify(verify))
            && let Some(moved) = self.moved.observe(verify, drafting, verify.seconds / expected)
        {
            self.start_over(moved);
            return;
        }
        let speed = self.speed();
        // While the speed changes nobody knows which times are whose. A single odd round among others is another matter.
        let steady = present.is_none_or(|present| present.max(speed) <= STEADY * present.min(speed));
        let same = std::mem::replace(&mut self.rows, times.rows) == times.rows;
        let was_steady = std::mem::replace(&mut self.steady, steady);
        if !steady && (same || !was_steady) {
            return;
        }
        for (way, pass) in steps() {
            let pass = pass.credible(speed, self.expected_draft(way, pass));
            self.draft[way as usize].measure(pass, self.rounds);
        }
        if verify.is_one() {
            let pass = verify.credible(speed, self.expected_verify(verify));
            self.verify.measure(pass, self.rounds);
        }
    }

    /// Forgets what verifying drafts took, but for these passes, measured since that changed.
    fn start_over(&mut self, moved: Vec<(Pass, f64)>) {
        self.verify.0.retain(|_, cell| cell.fresh >= MOSTLY_PLAIN * cell.rows);
        self.speeds = Recent::default();
        for (pass, speed) in moved {
            self.speeds.extend(&[speed]);
            self.verify.measure(pass.credible(speed, None), self.rounds);
        }
        self.costs = self.fit().or(self.costs.take());
        self.since_fit = 0;
    }

    /// Whether nothing was observed yet.
    pub fn is_empty(&self) -> bool {
        self.rounds == 0
    }

    /// What passes cost by now; `None` while too little was measured.
    pub fn costs(&mut self) -> Option<&StepCosts> {
        self.verify_costs().filter(|costs| costs.knows_drafts())
    }

    /// The same as far as verification goes: with or without draft steps measured.
    pub fn verify_costs(&mut self) -> Option<&StepCosts> {
        let every = (self.rounds / ROUNDS_TO_FIT).min(MOST_TO_FIT);
        if self.since_fit > every || self.since_fit > 0 && self.costs.is_none() {
            self.since_fit = 0;
            self.costs = self.fit();
        }
        self.costs.as_ref()
    }

    /// How many drafts a sequence should make for the sake of the table, if any: one and none in turn while nothing is
    /// known.
    pub fn wanted_drafts(&self) -> Option<usize> {
        let known = self.costs.as_ref().is_some_and(StepCosts::knows_drafts) || self.knows_drafts();
        (!known).then_some(usize::from(!self.drafted))
    }

    fn knows_drafts(&self) -> bool {
        self.draft[self.first as usize].passes() >= ENOUGH && self.verify.passes() >= 2 * ENOUGH
    }

    /// The machine's present time over that of the table.
    pub fn speed(&self) -> f64 {
        self.speeds.mean().unwrap_or(1.0)
    }

    fn fit(&self) -> Option<StepCosts> {
        let per_fresh = self.verify.per_fresh();
        let rows = Curve::fit(&self.verify.points(per_fresh, self.rounds))?;
        let known = self.wanted_drafts().is_none();
        let fit = |cells: &Cells| Curve::fit(&cells.points(0.0, self.rounds)).filter(|_| known);
        let draft = self.draft.each_ref().map(fit);
        Some(StepCosts { draft, first: self.first, later: self.later, hopeful: rows.hopeful(), rows, per_fresh })
    }

    /// A draft step's time at the table's speed, if much is known of steps like it.
    fn expected_draft(&self, way: Way, pass: Pass) -> Option<f64> {
        let way = way as usize;
        let fitted = || self.costs.as_ref().and_then(|costs| costs.draft[way].as_ref()?.known(pass.rows as f64));
        self.draft[way].expected(pass, 0.0).or_else(fitted)
    }

    /// The same of a verification.
    fn expected_verify(&self, pass: Pass) -> Option<f64> {
        let fresh = pass.fresh as f64;
        let fitted = |costs: &StepCosts| Some(costs.rows.known(pass.rows as f64)? + costs.per_fresh * fresh);
        self.measured_verify(pass).or_else(|| self.costs.as_ref().and_then(fitted))
    }

    /// The same, by passes of the same number of rows alone.
    fn measured_verify(&self, pass: Pass) -> Option<f64> {
        let per_fresh = self.costs.as_ref().map_or(0.0, |costs| costs.per_fresh);
        self.verify.expected(pass, per_fresh).filter(|_| pass.is_one())
    }

    /// The table in milliseconds at the present speed, for people.
    pub fn state(&self) -> Value {
        let speed = self.speed();
        let corner = |&(rows, cost): &(f64, f64)| json!([rows, cost * speed * 1e3]);
        let milliseconds = |curve: Option<&Curve>| -> Vec<Value> {
            curve.map_or(&[][..], Curve::corners).iter().map(corner).collect()
        };
        self.fit().map_or(Value::Object(Default::default()), |costs| {
            json!({
                "speed": speed,
                "draft_milliseconds_by_sequences": milliseconds(costs.draft[Way::FirstLayers as usize].as_ref()),
                "continued_draft_milliseconds_by_sequences": milliseconds(costs.draft[Way::Continued as usize].as_ref()),
                "recurrent_draft_milliseconds_by_sequences": milliseconds(costs.draft[Way::Recurrent as usize].as_ref()),
                "verify_milliseconds_by_rows": milliseconds(Some(&costs.rows)),
                "verify_milliseconds_per_fresh_row": costs.per_fresh * speed * 1e3,
            })
        })
    }
}

impl Pass {
    fn of(step: &DraftStep) -> Self {
        Self { rows: step.sequences, fresh: step.sequences, seconds: step.seconds }
    }

    /// Whether it is one, of one or more rows, and its time is a time.
    fn is_one(&self) -> bool {
        self.rows > 0 && self.fresh > 0 && self.seconds.is_finite() && self.seconds >= 0.0
    }

    /// At the table's speed, and not too far from what was expected there.
    fn credible(self, speed: f64, expected: Option<f64>) -> Self {
        let seconds = (self.seconds / speed).clamp(1e-9, 1e6);
        let credible = |expected: f64| seconds.clamp(expected / CREDIBLE, expected * CREDIBLE);
        Self { seconds: expected.map_or(seconds, credible), ..self }
    }
}

impl Cells {
    fn key(rows: usize) -> usize {
        if rows <= EXACT_ROWS {
            return rows;
        }
        let octaves = (rows.min(MAX_ROWS) as f64 / EXACT_ROWS as f64).log2();
        EXACT_ROWS + 1 + (octaves * CELLS_AN_OCTAVE) as usize
    }

    fn measure(&mut self, pass: Pass, round: usize) {
        self.0.entry(Self::key(pass.rows)).or_default().measure(pass, round);
    }

    /// What the cell says of such a pass, if it knows.
    fn expected(&self, pass: Pass, per_fresh: f64) -> Option<f64> {
        let cell = self.0.get(&Self::key(pass.rows)).filter(|cell| cell.seconds.len() >= KNOWN)?;
        Some((cell.seconds.mean()? + per_fresh * (pass.fresh as f64 - cell.fresh)).max(1e-9))
    }

    /// Passes kept.
    fn passes(&self) -> usize {
        self.0.values().map(|cell| cell.seconds.len()).sum()
    }

    /// What a sequence costs where the number of rows stays the same: the slope within cells, over all of them.
    fn per_fresh(&self) -> f64 {
        let (mut products, mut spreads) = (0.0, f64::MIN_POSITIVE);
        for cell in self.0.values() {
            let square = cell.mean * cell.mean;
            products += cell.product / square;
            spreads += (cell.spread + SHARE_PRIOR * cell.fresh * cell.fresh) / square;
        }
        (products / spreads).max(0.0)
    }

    /// The cells in order, without what their fresh rows cost.
    fn points(&self, per_fresh: f64, round: usize) -> Vec<Point> {
        let point = |cell: &Cell| {
            let (seconds, passes) = (cell.seconds.mean()?, cell.seconds.len() as f64);
            // However much the fresh rows cost, some is left for the rows.
            let cost = (seconds - per_fresh * cell.fresh).max(0.05 * seconds);
            let weight = passes / (1.0 + (round - cell.seen) as f64 / FRESH_FOR);
            Some(Point { rows: cell.rows, cost, weight })
        };
        self.0.values().filter_map(point).collect()
    }
}

impl Cell {
    fn measure(&mut self, pass: Pass, round: usize) {
        // What is measured now is in proportion to all else that is; what was, may be no more.
        if round > self.seen + LONG_AGO {
            self.seconds.keep_latest(KEPT_LONG);
        }
        self.seen = round;
        self.seconds.extend(&[pass.seconds]);
        self.passes += 1.0;
        let rate = 1.0 / self.passes.min(SPREAD_MEMORY);
        let (rows, fresh) = (pass.rows.min(MAX_ROWS) as f64, pass.fresh.min(MAX_ROWS) as f64);
        self.rows += rate * (rows - self.rows);
        let apart = fresh - self.fresh;
        self.fresh += rate * apart;
        self.mean += rate * (pass.seconds - self.mean);
        self.spread += apart * (fresh - self.fresh);
        self.product += apart * (pass.seconds - self.mean);
        if self.passes > SPREAD_MEMORY {
            self.spread *= 1.0 - rate;
            self.product *= 1.0 - rate;
        }
    }
}

#[cfg(test)]
mod tests;
