//! The table of recorded lookups: their choice in every round against fixed lengths, on machines as they were measured or
//! are expected to be, by batch size.

use crate::simulator::rounds::Machine;
use crate::simulator::sources::{Drafter, Played, Sourced, play_together};
use crate::table::in_parallel;
use eesd::sample::{Philox, Purpose};

/// Tokens of each lookup that finds something.
const LENGTHS: [usize; 8] = [1, 2, 3, 4, 5, 6, 8, 16];
/// Texts that a batch has for each of its places, one after the other, at least.
const DEEP: usize = 4;

/// What a pass costs by its rows, and the batch sizes of the table. Between two numbers of rows costs are interpolated, beyond
/// the last two extrapolated.
struct Costs {
    name: &'static str,
    rows: &'static [(f64, f64)],
    batches: &'static [usize],
}

const MACHINES: [Costs; 3] = [
    // As `benches/cpu.rs` measured SmolLM2-135M on two cores, in the one and the other state of a machine's memory.
    Costs {
        name: "processor, fast memory",
        rows: &[(1.0, 1.0), (2.0, 1.12), (4.0, 1.3), (8.0, 1.5), (16.0, 2.5), (32.0, 4.6)],
        batches: &[1, 4, 8, 16],
    },
    Costs {
        name: "processor, slow arithmetic",
        rows: &[(1.0, 1.0), (2.0, 1.25), (4.0, 1.6), (8.0, 2.2), (16.0, 3.8), (32.0, 7.2)],
        batches: &[1, 4, 8, 16],
    },
    // A layer of 13B in µs, from the tables of cuda/README.md; its forty with the head's share cost in proportion.
    Costs {
        name: "H200, 13B, predicted",
        rows: &[
            (1.0, 151.0),
            (16.0, 151.0),
            (17.0, 424.0),
            (128.0, 424.0),
            (256.0, 614.0),
            (1024.0, 2095.0),
            (4096.0, 7597.0),
        ],
        batches: &[1, 2, 4, 8, 16, 32, 64, 128, 256],
    },
];

impl Costs {
    fn at(&self, rows: f64) -> f64 {
        let upper = self.rows.iter().position(|&(known, _)| rows <= known).unwrap_or(self.rows.len() - 1).max(1);
        let [(from, low), (to, high)] = [self.rows[upper - 1], self.rows[upper]];
        (low + (high - low) * (rows - from) / (to - from)) / self.rows[0].1
    }
}

/// A machine whose times vary by a tenth, one in a hundred being ten times too long.
struct Noisy<'a> {
    costs: &'a Costs,
    noise: Philox,
}

impl Machine for Noisy<'_> {
    fn draft(&self, _sequences: usize) -> f64 {
        f64::INFINITY
    }

    fn verify(&self, _batch: usize, rows: usize) -> f64 {
        self.costs.at(rows as f64)
    }

    fn measured(&mut self, time: f64) -> f64 {
        let disturbed = if self.noise.uniform() < 0.01 { 10.0 } else { 1.0 };
        time * (0.9 + 0.2 * self.noise.uniform()) * disturbed
    }
}

/// Plays the table and writes it in Markdown.
pub fn markdown(texts: &[Vec<Sourced>], seed: u64) -> String {
    let mut table = "| machine | batch | best length | its speed over none | by choice | over the best length | slowest text |\n\
                     |---|--:|--:|--:|--:|--:|--:|\n"
        .to_owned();
    let cases: Vec<(&Costs, usize)> =
        MACHINES.iter().flat_map(|costs| costs.batches.iter().map(move |&batch| (costs, batch))).collect();
    let lines = in_parallel(cases.len(), |case| {
        let (costs, batch) = cases[case];
        let count = texts.len().max(DEEP * batch);
        let many: Vec<&[Sourced]> = texts.iter().map(Vec::as_slice).cycle().take(count).collect();
        let play = |drafter: &Drafter| -> Played {
            let noise = Philox::new(seed, 0, Purpose::Bonus, 0);
            play_together(drafter, &many, batch, &mut Noisy { costs, noise }, seed)
        };
        // Nothing drafts where nothing is taken of what was found.
        let plain = play(&Drafter::Lookup(0)).total;
        let speed = |played: &Played| plain.time / played.total.time;
        let fixed = LENGTHS.map(|length| (length, speed(&play(&Drafter::Lookup(length)))));
        let (length, best) = fixed.into_iter().fold((0, 1.0), |a, b| if b.1 > a.1 { b } else { a });
        let chosen = play(&Drafter::Lookups);
        let (speed, slowest) = (speed(&chosen), chosen.slowest);
        let over = 100.0 * (speed / best - 1.0);
        format!("| {} | {batch} | {length} | {best:.3} | {speed:.3} | {over:+.1} % | {slowest:.2} |\n", costs.name)
    });
    table.extend(lines);
    table
}
