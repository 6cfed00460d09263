//! The table of rounds of several sequences: goodput-ts against the best fixed length, by batch size.

use crate::simulator::batches::{Case, Load, Mix, Regime};
use crate::simulator::streams::Kind;
use crate::table::{in_parallel, spread};
use eesd::control::{Controller, ControllerSpec, Outcome, RoundTimes, Step};
use eesd::sample::Philox;
use std::time::{Duration, Instant};

/// Batch sizes of the table, in its order; the last column is of one that changes all the time.
const LOADS: [Load; 7] = [
    Load::Steady(1),
    Load::Steady(2),
    Load::Steady(4),
    Load::Steady(8),
    Load::Steady(16),
    Load::Steady(32),
    Load::Changing(32),
];

/// What the batches of the table are made of.
pub const MIXES: [Mix; 8] = [
    Mix::Of(Kind::Iid(0.5)),
    Mix::Of(Kind::Iid(0.7)),
    Mix::Of(Kind::Iid(0.85)),
    Mix::Of(Kind::Iid(0.95)),
    Mix::Mixed(&[Kind::Iid(0.5), Kind::Iid(0.7), Kind::Iid(0.85), Kind::Iid(0.95)]),
    Mix::Mixed(&[Kind::Iid(0.3), Kind::Iid(0.95)]),
    Mix::Of(Kind::Drift),
    Mix::Of(Kind::Informative),
];

/// Plays the table and writes it in Markdown: a cell is the best fixed length, and the speed over its.
pub fn markdown(rounds: usize, profiled: bool, seeds: &[u64], mix: &str) -> String {
    let mixes: Vec<Mix> = MIXES.into_iter().filter(|m| m.name().contains(mix)).collect();
    let case = |regime, mix, load, seed| Case { regime, load, mix, rounds, profiled, seed };
    let cases: Vec<Case> = Regime::ALL
        .iter()
        .flat_map(|&regime| mixes.iter().map(move |&mix| (regime, mix)))
        .flat_map(|(regime, mix)| LOADS.map(|load| (regime, mix, load)))
        .flat_map(|(regime, mix, load)| seeds.iter().map(move |&seed| case(regime, mix, load, seed)))
        .collect();
    let played = play(&cases);
    let mut cells = played.chunks(seeds.len());
    let mut text = String::new();
    for regime in Regime::ALL {
        text += &format!("| {}", regime.name());
        for load in LOADS {
            text += &match load {
                Load::Steady(batch) => format!(" | batch {batch}"),
                Load::Changing(batch) => format!(" | 1 to {batch}"),
            };
        }
        text += &format!(" |\n|---{}|\n", "|---".repeat(LOADS.len()));
        for mix in &mixes {
            text += &format!("| {}", mix.name());
            for cell in cells.by_ref().take(LOADS.len()) {
                let lengths = cell.iter().map(|(length, _)| *length);
                let (low, high) = (lengths.clone().min().unwrap_or(0), lengths.max().unwrap_or(0));
                let gains: Vec<f64> = cell.iter().map(|(_, gain)| *gain).collect();
                let (mean, deviation) = spread(&gains);
                let length = if low == high { format!("k={low}") } else { format!("k={low}–{high}") };
                text += &format!(" | {length}: {:+.1} ± {:.1} %", 100.0 * mean, 100.0 * deviation);
            }
            text += " |\n";
        }
        text += "\n";
    }
    text
}

/// The best fixed length of each case, and the speed of goodput-ts over its, less 1.
fn play(cases: &[Case]) -> Vec<(usize, f64)> {
    in_parallel(cases.len(), |index| {
        let case = cases[index];
        let texts = case.texts();
        let (length, best) = case.best_fixed(&texts);
        (length, case.play(&texts, &ControllerSpec::default()).speedup() / best.speedup() - 1.0)
    })
}

/// What deciding takes: the median of a decision and of a round's decisions, by the batch size, while drafts are long.
pub fn decision_times(rounds: usize, seed: u64) -> String {
    let mut text = "| batch | decisions a round | a decision | all of a round |\n|--:|--:|--:|--:|\n".to_string();
    for batch in [2, 8, 32] {
        let (regime, load, mix) = (Regime::MemoryBound, Load::Steady(batch), Mix::Of(Kind::Iid(0.95)));
        let case = Case { regime, load, mix, rounds, profiled: true, seed };
        let mut timed =
            Timed { controller: ControllerSpec::default().build(), decisions: Vec::new(), rounds: Vec::new() };
        case.play_with(&case.texts(), &mut timed);
        let count = timed.decisions.len() as f64 / timed.rounds.len().max(1) as f64;
        let (decision, round) = (microseconds(&mut timed.decisions), microseconds(&mut timed.rounds));
        text += &format!("| {batch} | {count:.1} | {decision:.1} µs | {round:.1} µs |\n");
    }
    text
}

/// The median, in microseconds.
fn microseconds(times: &mut [Duration]) -> f64 {
    times.sort();
    times.get(times.len() / 2).map_or(0.0, |time| time.as_secs_f64() * 1e6)
}

/// A controller on the clock.
struct Timed {
    controller: Box<dyn Controller>,
    decisions: Vec<Duration>,
    /// Decisions and what is learned of times, by rounds.
    rounds: Vec<Duration>,
}

impl Controller for Timed {
    fn spec(&self) -> String {
        self.controller.spec()
    }

    fn start(&mut self, slot: usize) {
        self.controller.start(slot);
    }

    fn proceed(&mut self, step: &Step<'_>, rng: &mut Philox) -> bool {
        self.controller.proceed(step, rng)
    }

    fn proceed_together(&mut self, steps: &[Step<'_>], rows: usize, draws: &mut [Philox]) -> Vec<bool> {
        let start = Instant::now();
        let proceed = self.controller.proceed_together(steps, rows, draws);
        let took = start.elapsed();
        self.decisions.push(took);
        match self.rounds.last_mut() {
            Some(round) if steps.iter().all(|step| !step.confidences.is_empty()) => *round += took,
            _ => self.rounds.push(took),
        }
        proceed
    }

    fn wants_step_times(&self) -> bool {
        self.controller.wants_step_times()
    }

    fn observe_times(&mut self, times: &RoundTimes<'_>) {
        let start = Instant::now();
        self.controller.observe_times(times);
        if let Some(round) = self.rounds.last_mut() {
            *round += start.elapsed();
        }
    }

    fn observe(&mut self, outcome: &Outcome<'_>) {
        self.controller.observe(outcome);
    }

    fn state(&self) -> serde_json::Value {
        self.controller.state()
    }
}
