//! The table of recorded lookups: their choice in every round against fixed lengths, by machine and batch size.

use crate::cascade;
use crate::simulator::recorded::{Case, MACHINES};
use crate::simulator::sources::{Drafter, Sourced};
use crate::table::{in_parallel, spread};
use eesd::control::ControllerSpec;

/// Plays the table and writes it in Markdown.
pub fn markdown(texts: &[Vec<Sourced>], seeds: &[u64]) -> String {
    let cases: Vec<_> =
        MACHINES.iter().flat_map(|costs| costs.batches.iter().map(move |&batch| (costs, batch))).collect();
    let line = |index: usize| {
        let (costs, batch) = cases[index];
        let case = Case::new(costs, batch, texts);
        let (length, best) = case.best_length();
        let chosen: Vec<(f64, f64)> = seeds.iter().map(|&seed| case.chosen(&Drafter::Lookups, seed)).collect();
        let (speed, apart) = spread(&chosen.iter().map(|(speed, _)| *speed).collect::<Vec<_>>());
        let (slowest, _) = spread(&chosen.iter().map(|(_, slowest)| *slowest).collect::<Vec<_>>());
        let over = 100.0 * (speed / best - 1.0);
        let name = costs.name;
        format!("| {name} | {batch} | {length} | {best:.3} | {speed:.3} ± {apart:.3} | {over:+.1} % | {slowest:.2} |\n")
    };
    let mut table =
        "| machine | batch | best length | its speed over none | by choice | over the best length | slowest text |\n\
                     |---|--:|--:|--:|--:|--:|--:|\n"
            .to_owned();
    table.extend(in_parallel(cases.len(), line));
    table
}

/// Plays the cascade, one text at a time, and writes its table: what fixed policies come to, chosen in hindsight, and the choice
/// among sources, which has no cascade.
pub fn cascade(texts: &[Vec<Sourced>], seeds: &[u64]) -> String {
    let mut table =
        "| machine | best lengths of lookups and drafts | with the cascade | its gain | by choice, without it |\n\
                     |---|--:|--:|--:|--:|\n"
            .to_owned();
    let drafter = Drafter::Both(ControllerSpec::default());
    table.extend(in_parallel(MACHINES.len(), |index| {
        let costs = &MACHINES[index];
        let [(without, slower), (with, faster)] = cascade::best(costs, texts);
        let case = Case::new(costs, 1, texts);
        let chosen: Vec<f64> = seeds.iter().map(|&seed| case.chosen(&drafter, seed).0).collect();
        let (chosen, gain) = (spread(&chosen).0, 100.0 * (faster / slower - 1.0));
        format!("| {} | {slower:.3} ({without}) | {faster:.3} ({with}) | {gain:+.1} % | {chosen:.3} |\n", costs.name)
    }));
    table
}
