//! The table of rounds of several sequences: goodput-ts against the best fixed length, by batch size.

use crate::simulator::batches::{Case, Load, Mix, Regime};
use crate::simulator::streams::Kind;
use crate::table::spread;
use eesd::control::ControllerSpec;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

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
    let played: Mutex<Vec<(usize, (usize, f64))>> = Mutex::new(Vec::new());
    let next = AtomicUsize::new(0);
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let (index, Some(case)) = {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    (index, cases.get(index))
                } {
                    let (length, best) = case.best_fixed();
                    let gain = case.play(&ControllerSpec::default()).speedup() / best.speedup() - 1.0;
                    played.lock().expect("a replay panicked").push((index, (length, gain)));
                }
            });
        }
    });
    let mut played = played.into_inner().expect("a replay panicked");
    played.sort_by_key(|(index, _)| *index);
    played.into_iter().map(|(_, cell)| cell).collect()
}
