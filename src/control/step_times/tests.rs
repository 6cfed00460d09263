//! The table of step times on a made-up machine.

use super::*;
use crate::sample::{Philox, Purpose};

/// A machine on which a sequence costs beside its rows, and each row from the ninth on.
struct Machine {
    noise: Philox,
    speed: f64,
    /// How it makes later drafts; recurrent ones take a quarter.
    later: Way,
}

fn draft(sequences: usize) -> f64 {
    0.1 + 0.005 * sequences as f64
}

fn verify(batch: usize, rows: usize) -> f64 {
    1.0 + 0.02 * batch as f64 + 0.1 * rows.saturating_sub(8) as f64
}

impl Machine {
    fn new() -> Self {
        Self { noise: Philox::new(3, 0, Purpose::Bonus, 0), speed: 1.0, later: Way::FirstLayers }
    }

    fn measured(&mut self, seconds: f64) -> f64 {
        let slow = if self.noise.uniform() < 0.02 { 20.0 } else { 1.0 };
        seconds * self.speed * slow * (0.95 + 0.1 * self.noise.uniform())
    }

    fn round(&mut self, table: &mut StepTimes, batch: usize, drafts: usize) {
        let mut steps = Vec::new();
        for drafted in 0..drafts {
            let way = if drafted == 0 { Way::FirstLayers } else { self.later };
            let part = if way == Way::Recurrent { 0.25 } else { 1.0 };
            steps.push(DraftStep { way, sequences: batch, seconds: self.measured(part * draft(batch)) });
        }
        let rows = batch * (drafts + 1);
        let recurrent = batch * steps.iter().filter(|step| step.way == Way::Recurrent).count();
        let verify_seconds = self.measured(verify(batch + recurrent, rows));
        table.observe(&RoundTimes { batch, proposed: 0, recurrent, draft_steps: &steps, rows, verify_seconds });
        table.costs();
    }

    fn profile(&mut self, table: &mut StepTimes, times: usize) {
        for batch in [1, 2, 4, 8, 16] {
            for drafts in [0, 1, 2, 4, 8] {
                (0..times).for_each(|_| self.round(table, batch, drafts));
            }
        }
    }
}

/// The worst error of rounds, in parts of them, where each unit of the table is `speed` seconds.
fn worst(costs: &StepCosts, speed: f64) -> f64 {
    let sizes = [1, 2, 3, 5, 8, 11, 16].into_iter();
    let rounds = sizes.flat_map(|batch| [0, 1, 3, 6].map(|drafts| (batch, drafts)));
    let error = |(batch, drafts): (usize, usize)| {
        let rows = batch * (drafts + 1);
        let found = drafts as f64 * costs.draft(0, batch) + costs.verify(batch, rows);
        let expected = drafts as f64 * draft(batch) + verify(batch, rows);
        (found / expected / speed - 1.0).abs()
    };
    rounds.map(error).fold(0.0, f64::max)
}

#[test]
fn rounds_of_sizes_between_those_profiled_are_known() {
    let (mut table, mut machine) = (StepTimes::default(), Machine::new());
    machine.profile(&mut table, 5);
    let costs = table.costs().unwrap();
    assert!(worst(costs, 1.0) < 0.12, "{}", worst(costs, 1.0));
    assert!((costs.per_fresh - 0.02).abs() < 0.01, "{}", costs.per_fresh);
}

/// A recurrent draft's own step is cheap, but its row needs the first layers when it is verified.
#[test]
fn recurrent_drafts_are_known_apart_from_first_ones() {
    let (mut table, mut machine) = (StepTimes::default(), Machine { later: Way::Recurrent, ..Machine::new() });
    machine.profile(&mut table, 5);
    let costs = table.costs().unwrap();
    for batch in [1, 4, 8] {
        for (drafted, expected) in [(0, draft(batch)), (1, 0.25 * draft(batch) + 0.02 * batch as f64)] {
            let found = costs.draft(drafted, batch);
            let off = (found - expected).abs();
            assert!(off < 0.05 * expected + 0.01 * batch as f64, "{batch}, after {drafted}: {found} for {expected}");
        }
        let rows = 4 * batch;
        let steps = [Way::FirstLayers, Way::Recurrent, Way::Recurrent];
        let steps = steps.map(|way| DraftStep { way, sequences: batch, seconds: 0.0 });
        let (recurrent, draft_steps) = (2 * batch, &steps[..]);
        let times = RoundTimes { batch, proposed: 0, recurrent, draft_steps, rows, verify_seconds: 0.0 };
        let expected = 1.5 * draft(batch) + verify(3 * batch, rows);
        assert!((costs.round(&times) / expected - 1.0).abs() < 0.12, "{batch}: {}", costs.round(&times));
        assert!((costs.undrafted(&times) / verify(batch, batch) - 1.0).abs() < 0.1, "{batch}");
    }
}

/// Whatever the machine's speed became meanwhile, costs stay in proportion, those not measured since too.
#[test]
fn a_machine_that_changes_speed_changes_no_proportion() {
    let (mut table, mut machine) = (StepTimes::default(), Machine::new());
    machine.profile(&mut table, 5);
    for speed in [3.0, 0.7, 2.0] {
        machine.speed = speed;
        for i in 0..120 {
            machine.round(&mut table, 8, [2, 1, 2, 2, 0, 2][i % 6]);
        }
        assert!((table.speed() / speed - 1.0).abs() < 0.12, "{} at {speed}", table.speed());
    }
    let costs = table.costs().unwrap();
    assert!(worst(costs, 1.0) < 0.15, "{}", worst(costs, 1.0));
}

#[test]
fn one_absurdly_slow_pass_changes_next_to_nothing() {
    let (mut table, mut machine) = (StepTimes::default(), Machine::new());
    machine.profile(&mut table, 3);
    (0..20).for_each(|_| machine.round(&mut table, 4, 1));
    let before = table.costs().unwrap().clone();
    let steps = [DraftStep::through_layers(4, 1000.0 * draft(4))];
    table.observe(&RoundTimes {
        batch: 4,
        proposed: 0,
        recurrent: 0,
        draft_steps: &steps,
        rows: 8,
        verify_seconds: 1000.0 * verify(4, 8),
    });
    let after = table.costs().unwrap();
    for (batch, rows) in [(4, 4), (4, 8), (4, 12), (8, 8), (8, 16)] {
        let moved = after.verify(batch, rows) / before.verify(batch, rows) - 1.0;
        assert!(moved.abs() < 0.02, "{batch}, {rows}: {moved}");
    }
    assert!((table.speed() - 1.0).abs() < 0.1, "{}", table.speed());
}

#[test]
fn the_first_rounds_draft_and_do_not_in_turn_until_both_are_known() {
    let (mut table, mut machine) = (StepTimes::default(), Machine::new());
    let mut lengths = Vec::new();
    while let Some(drafts) = table.wanted_drafts() {
        assert!(table.costs().is_none());
        lengths.push(drafts);
        machine.round(&mut table, 8, drafts);
    }
    assert_eq!(lengths, [1, 0, 1, 0, 1, 0]);
    let costs = table.costs().unwrap();
    let row = costs.verify(8, 64) - costs.verify(8, 63);
    assert!(row > 0.0 && row < costs.plain(8) / 8.0, "{row}: between nothing and a plain round's");
}

#[test]
fn what_is_no_time_is_ignored() {
    let (mut table, mut machine) = (StepTimes::default(), Machine::new());
    machine.profile(&mut table, 2);
    let before = table.costs().unwrap().clone();
    for seconds in [f64::NAN, f64::INFINITY, -1.0] {
        table.observe(&RoundTimes {
            batch: 4,
            proposed: 0,
            recurrent: 0,
            draft_steps: &[DraftStep::through_layers(4, seconds)],
            rows: 8,
            verify_seconds: seconds,
        });
    }
    let draft_steps = &[DraftStep::through_layers(0, 1.0)];
    table.observe(&RoundTimes { batch: 0, proposed: 0, recurrent: 0, draft_steps, rows: 0, verify_seconds: 1.0 });
    let after = table.costs().unwrap();
    assert!((after.verify(4, 8) / before.verify(4, 8) - 1.0).abs() < 0.01);
    assert!((after.draft(0, 4) / before.draft(0, 4) - 1.0).abs() < 0.01);
}
