//! The table of several sources: their choice in every round against each of them alone.

use crate::simulator::Costs;
use crate::simulator::sources::{Drafter, best_single, passages, play};
use crate::table::{in_parallel, spread};
use eesd::control::ControllerSpec;

/// Positions of a text, and of a passage of one that changes.
const TOKENS: usize = 20_000;
const PASSAGE: usize = 300;
/// A name, and in turn the chances that a draft of the exit block is right, and a token that a lookup finds.
const TEXTS: [(&str, &[(f64, f64)]); 7] = [
    ("neither is good", &[(0.1, 0.1)]),
    ("the exit block is good", &[(0.8, 0.1)]),
    ("lookups are good", &[(0.1, 0.8)]),
    ("both are fair", &[(0.5, 0.5)]),
    ("both are good", &[(0.8, 0.9)]),
    ("good in turn", &[(0.9, 0.1), (0.1, 0.9)]),
    ("good, and not, in turn", &[(0.8, 0.9), (0.1, 0.1)]),
];

/// Speeds over plain decoding.
struct Played {
    best: f64,
    /// The exit block alone, lookups alone, both.
    speeds: [f64; 3],
}

/// Plays the table and writes it in Markdown: speeds over plain decoding, and over the best single source at its best
/// length in hindsight.
pub fn markdown(costs: Costs, seeds: &[u64]) -> String {
    let drafters =
        [Drafter::Exit(ControllerSpec::default()), Drafter::Lookups, Drafter::Both(ControllerSpec::default())];
    let played = in_parallel(TEXTS.len() * seeds.len(), |index| {
        let (text, seed) = (TEXTS[index / seeds.len()].1, seeds[index % seeds.len()]);
        let passage = if text.len() > 1 { PASSAGE } else { TOKENS };
        let text = passages(TOKENS, passage, text, seed);
        let speeds = drafters.each_ref().map(|drafter| play(drafter, &text, costs, seed).speedup());
        Played { best: best_single(&text, costs), speeds }
    });
    let mut table = format!(
        "| r = {} | best single | exit alone | lookups alone | both | both over best single |\n|---|--:|--:|--:|--:|--:|\n",
        costs.draft
    );
    for ((name, _), runs) in TEXTS.iter().zip(played.chunks(seeds.len())) {
        let mean = |value: &dyn Fn(&Played) -> f64| spread(&runs.iter().map(value).collect::<Vec<_>>()).0;
        let [exit, lookups, both] = std::array::from_fn(|i| mean(&|run| run.speeds[i]));
        let (best, over) = (mean(&|run| run.best), 100.0 * (mean(&|run| run.speeds[2] / run.best) - 1.0));
        table += &format!("| {name} | {best:.3} | {exit:.3} | {lookups:.3} | {both:.3} | {over:+.1} % |\n");
    }
    table
}
