//! Recorded lookups on machines as they were measured or are expected to be, several texts side by side.

use super::rounds::Machine;
use super::sources::{Drafter, Played, Sourced, play_together};
use eesd::sample::{Philox, Purpose};

/// Tokens of each lookup that finds something, of which the best is chosen in hindsight.
const LENGTHS: [usize; 8] = [1, 2, 3, 4, 5, 6, 8, 16];
/// Texts that a batch has for each of its places, one after the other, at least.
const DEEP: usize = 4;

/// What a pass costs by its rows, and the batch sizes of the table. Between two numbers of rows costs are interpolated, beyond
/// the last two extrapolated.
pub struct RowCosts {
    pub name: &'static str,
    rows: &'static [(f64, f64)],
    /// The first layers' share of a plain step, and that of a draft step, which goes through them and the exit block.
    first_layers: f64,
    draft: f64,
    pub batches: &'static [usize],
}

/// The machines of the table.
pub const MACHINES: [RowCosts; 3] = [
    // As `benches/cpu.rs` measured SmolLM2-135M on two cores, in the one and the other state of a machine's memory. The exit is after
    // four layers.
    RowCosts {
        name: "processor, fast memory",
        first_layers: 4.0 / 30.0,
        draft: 0.17,
        rows: &[(1.0, 1.0), (2.0, 1.12), (4.0, 1.3), (8.0, 1.5), (16.0, 2.5), (32.0, 4.6)],
        batches: &[1, 4, 8, 16],
    },
    RowCosts {
        name: "processor, slow arithmetic",
        first_layers: 4.0 / 30.0,
        draft: 0.17,
        rows: &[(1.0, 1.0), (2.0, 1.25), (4.0, 1.6), (8.0, 2.2), (16.0, 3.8), (32.0, 7.2)],
        batches: &[1, 4, 8, 16],
    },
    // A layer of 13B in µs, from the tables of cuda/README.md; its forty with the head's share cost in proportion.
    RowCosts {
        name: "H200, 13B, predicted",
        first_layers: 3.0 / 40.0,
        draft: 0.111,
        rows: &[
            (1.0, 151.0),
            (8.0, 151.0),
            (16.0, 173.0),
            (24.0, 202.0),
            (32.0, 231.0),
            (48.0, 288.0),
            (64.0, 346.0),
            (65.0, 424.0),
            (128.0, 424.0),
            (256.0, 614.0),
            (1024.0, 2095.0),
            (4096.0, 7597.0),
        ],
        batches: &[1, 2, 4, 8, 16, 32, 64, 128, 256],
    },
];

impl RowCosts {
    fn at(&self, rows: f64) -> f64 {
        let upper = self.rows.iter().position(|&(known, _)| rows <= known).unwrap_or(self.rows.len() - 1).max(1);
        let [(from, low), (to, high)] = [self.rows[upper - 1], self.rows[upper]];
        (low + (high - low) * (rows - from) / (to - from)) / self.rows[0].1
    }

    /// A pass of so many rows through the first layers and the exit block.
    pub fn draft(&self, rows: usize) -> f64 {
        self.draft * self.at(rows as f64)
    }

    /// The verification of so many rows, of which some come with hidden states.
    pub fn verify(&self, rows: usize, hidden: usize) -> f64 {
        let through = |rows: usize| if rows == 0 { 0.0 } else { self.at(rows as f64) };
        self.first_layers * through(rows - hidden) + (1.0 - self.first_layers) * through(rows)
    }
}

/// A machine whose times vary by a tenth, one in a hundred being ten times too long.
struct Noisy<'a> {
    costs: &'a RowCosts,
    noise: Philox,
}

impl Machine for Noisy<'_> {
    fn draft(&self, sequences: usize) -> f64 {
        self.costs.draft(sequences)
    }

    fn verify(&self, _batch: usize, rows: usize) -> f64 {
        self.costs.verify(rows, 0)
    }

    fn measured(&mut self, time: f64) -> f64 {
        let disturbed = if self.noise.uniform() < 0.01 { 10.0 } else { 1.0 };
        time * (0.9 + 0.2 * self.noise.uniform()) * disturbed
    }
}

/// Texts on a machine, so many side by side.
pub struct Case<'a> {
    costs: &'a RowCosts,
    batch: usize,
    texts: Vec<&'a [Sourced]>,
    /// Time without any drafts.
    plain: f64,
}

impl<'a> Case<'a> {
    pub fn new(costs: &'a RowCosts, batch: usize, texts: &'a [Vec<Sourced>]) -> Self {
        let texts = texts.iter().map(Vec::as_slice).cycle().take(texts.len().max(DEEP * batch)).collect();
        let mut case = Self { costs, batch, texts, plain: 1.0 };
        // Nothing drafts where nothing is taken of what was found.
        case.plain = case.play(&Drafter::Lookup(0), 0).total.time;
        case
    }

    fn play(&self, drafter: &Drafter, seed: u64) -> Played {
        let noise = Philox::new(seed, 0, Purpose::Bonus, 0);
        play_together(drafter, &self.texts, self.batch, &mut Noisy { costs: self.costs, noise }, seed)
    }

    /// The length that is best in hindsight, and its speed over plain decoding's.
    pub fn best_length(&self) -> (usize, f64) {
        let speed = |length| (length, self.plain / self.play(&Drafter::Lookup(length), 0).total.time);
        LENGTHS.map(speed).into_iter().fold((0, 1.0), |a, b| if b.1 > a.1 { b } else { a })
    }

    /// The speed of the choice among sources over plain decoding's, and of the text where that is least: of lookups alone, or
    /// of an exit block beside them.
    pub fn chosen(&self, drafter: &Drafter, seed: u64) -> (f64, f64) {
        let Played { total, slowest } = self.play(drafter, seed);
        (self.plain / total.time, slowest)
    }
}
