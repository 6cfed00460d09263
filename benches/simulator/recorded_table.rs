//! The table of recorded lookups: their choice in every round against fixed lengths, by machine and batch size.

use crate::cascade;
use crate::simulator::recorded::{Case, MACHINES};
use crate::simulator::sources::{Drafter, Sourced, with_made_up_drafts};
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

/// How often the made-up exit blocks beside recorded lookups are right.
const RIGHT: [f64; 7] = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6];

/// Plays exit blocks beside lookups, one text at a time, and writes their table: the block that was recorded, if one was, and
/// made-up ones that are right so often. A block that is worth nothing should cost little.
pub fn beside(texts: &[Vec<Sourced>], seeds: &[u64]) -> String {
    let recorded = texts.iter().flatten().any(|position| position.exit.accepted).then_some(None);
    let blocks: Vec<Option<f64>> = recorded.into_iter().chain(RIGHT.map(Some)).collect();
    let drafters =
        [Drafter::Lookups, Drafter::Exit(ControllerSpec::default()), Drafter::Both(ControllerSpec::default())];
    let mut table =
        "| machine | block right in | best lengths of lookups and drafts | lookups alone | block alone | both | over lookups alone | slowest text |\n\
                     |---|--:|--:|--:|--:|--:|--:|--:|\n"
            .to_owned();
    table.extend(in_parallel(MACHINES.len() * blocks.len(), |index| {
        let (costs, right) = (&MACHINES[index / blocks.len()], blocks[index % blocks.len()]);
        let texts = right.map_or_else(|| texts.to_vec(), |right| with_made_up_drafts(texts, right, seeds[0]));
        let [(lengths, best), _] = cascade::best(costs, &texts);
        let case = Case::new(costs, 1, &texts);
        let mean = |drafter: &Drafter| {
            let (speeds, slowest): (Vec<f64>, Vec<f64>) = seeds.iter().map(|&seed| case.chosen(drafter, seed)).unzip();
            (spread(&speeds).0, spread(&slowest).0)
        };
        let [(lookups, _), (exit, _), (both, slowest)] = drafters.each_ref().map(mean);
        let (name, over) = (costs.name, 100.0 * (both / lookups - 1.0));
        let right = right.map_or("recorded".to_owned(), |right| right.to_string());
        format!(
            "| {name} | {right} | {best:.3} ({lengths}) | {lookups:.3} | {exit:.3} | {both:.3} | {over:+.1} % | {slowest:.2} |\n"
        )
    }));
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
