//! Rounds of several sequences: texts that join and leave a batch, on machines where rows cost what they do on
//! memory-bound and on arithmetic-bound ones.

use super::rounds::{self, Machine, Running};
use super::streams::Kind;
use super::{Position, Replay};
use eesd::control::{Controller, ControllerSpec};
use eesd::sample::{Philox, Purpose};
use rand::RngExt;

/// Fewest and most tokens of a text.
const LENGTHS: std::ops::Range<usize> = 60..600;
/// Fixed lengths that a controller is compared with, beside none.
const LENGTHS_TRIED: [usize; 6] = [1, 2, 3, 4, 6, 8];
/// Rounds after which the machine falls to half its speed, and after as many more is back.
const SLOW_EVERY: usize = 400;

/// What passes cost by their rows, in passes of one row.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Regime {
    /// Reading the weights hides the arithmetic of 64 rows.
    MemoryBound,
    /// Each row costs, and the one that opens a tile of six costs most.
    Tiles,
    /// Arithmetic is the limit from eight rows on.
    ArithmeticBound,
}

impl Regime {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::MemoryBound, Self::Tiles, Self::ArithmeticBound];

    /// As the table names it.
    pub fn name(self) -> &'static str {
        match self {
            Self::MemoryBound => "memory-bound to 64 rows",
            Self::Tiles => "rows cost, tiles of 6",
            Self::ArithmeticBound => "arithmetic-bound from 8 rows",
        }
    }

    /// Verification of `rows >= 1` rows, and all else of a round but its draft steps.
    pub fn verify(self, rows: usize) -> f64 {
        let beyond = |rows: usize, hidden: usize| rows.saturating_sub(hidden) as f64 / hidden as f64;
        match self {
            Self::MemoryBound => 1.0 + 0.001 * (rows - 1) as f64 + beyond(rows, 64),
            // 0.15 a row in all: 0.075 for each, and six times as much more for each further tile.
            Self::Tiles => 1.0 + 0.075 * (rows - 1) as f64 + 0.45 * ((rows - 1) / 6) as f64,
            Self::ArithmeticBound => 1.0 + beyond(rows, 8),
        }
    }

    /// A draft step of this many sequences.
    pub fn draft(self, sequences: usize) -> f64 {
        let share = if self == Self::Tiles { 0.2 } else { 0.1 };
        share * self.verify(sequences)
    }
}

/// What the sequences of a batch are like.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Mix {
    /// All the same.
    Of(Kind),
    /// Each of one of these, in turn.
    Mixed(&'static [Kind]),
}

impl Mix {
    /// As the table names it.
    pub fn name(self) -> String {
        match self {
            Self::Of(kind) => kind.name(),
            Self::Mixed(kinds) => {
                kinds.iter().map(|kind| kind.name().replace("i.i.d. ", "")).collect::<Vec<_>>().join(" / ")
            }
        }
    }

    /// Texts of `tokens` tokens and somewhat more in all, cut from streams of these kinds.
    fn texts(self, tokens: usize, seed: u64) -> Vec<Vec<Position>> {
        let kinds = match &self {
            Self::Of(kind) => std::slice::from_ref(kind),
            Self::Mixed(kinds) => kinds,
        };
        let streams: Vec<Vec<Position>> = kinds.iter().map(|kind| kind.stream(seed).texts.concat()).collect();
        let mut rng = Philox::new(seed, 1, Purpose::Draft, 0);
        let (mut texts, mut cut) = (Vec::new(), 0);
        while cut < tokens {
            let stream = &streams[texts.len() % streams.len()];
            let length = rng.random_range(LENGTHS);
            let from = rng.random_range(0..stream.len() - length);
            texts.push(stream[from..from + length].to_vec());
            cut += length;
        }
        texts
    }
}

/// How many sequences run at a time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Load {
    /// Always this many, until no text is left to join.
    Steady(usize),
    /// From 1 to this many and back, a little further every 100 tokens.
    Changing(usize),
}

impl Load {
    fn most(self) -> usize {
        match self {
            Self::Steady(batch) | Self::Changing(batch) => batch,
        }
    }

    /// Sequences wanted once so many tokens are out.
    fn wanted(self, tokens: usize) -> usize {
        match self {
            Self::Steady(batch) => batch,
            Self::Changing(batch) => {
                let swing = tokens / 100 % (2 * batch);
                if swing < batch { swing + 1 } else { 2 * batch - swing }
            }
        }
    }
}

/// A case of the table.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    /// What passes cost.
    pub regime: Regime,
    /// Sequences at a time.
    pub load: Load,
    /// What they are like.
    pub mix: Mix,
    /// Plain rounds that the texts are long enough for.
    pub rounds: usize,
    /// Whether rounds are played to be timed before the first one.
    pub profiled: bool,
    /// What streams and draws come from.
    pub seed: u64,
}

/// The machine as a controller gets to see it: times jitter by a tenth, one in a hundred is ten times too long, and its
/// speed swings slowly by a third and falls to half for 400 rounds at a time. Time itself is counted at full speed.
struct Wavering {
    regime: Regime,
    round: usize,
    noise: Philox,
}

impl Machine for Wavering {
    fn draft(&self, sequences: usize) -> f64 {
        self.regime.draft(sequences)
    }

    fn verify(&self, _batch: usize, rows: usize) -> f64 {
        self.regime.verify(rows)
    }

    fn measured(&mut self, time: f64) -> f64 {
        let slow = if self.round / SLOW_EVERY % 2 == 1 { 2.0 } else { 1.0 };
        let swing = (0.3 * (self.round as f64 / 700.0).sin()).exp();
        let jitter = 1.0 + 0.1 * (2.0 * self.noise.uniform() - 1.0);
        let disturbed = if self.noise.uniform() < 0.01 { 10.0 } else { 1.0 };
        time * slow * swing * jitter * disturbed * 0.01
    }
}

impl Case {
    /// The texts, the last one first to join.
    pub fn texts(&self) -> Vec<Vec<Position>> {
        self.mix.texts(self.rounds * self.load.most(), self.seed)
    }

    /// Plays `texts` with the controller `spec`.
    pub fn play(&self, texts: &[Vec<Position>], spec: &ControllerSpec) -> Replay {
        self.play_with(texts, spec.build().as_mut())
    }

    /// Plays `texts` with `controller`, until fewer are left than should run.
    pub fn play_with(&self, texts: &[Vec<Position>], controller: &mut dyn Controller) -> Replay {
        let mut waiting: Vec<&[Position]> = texts.iter().map(Vec::as_slice).collect();
        let noise = Philox::new(self.seed, 0, Purpose::Bonus, 0);
        let mut machine = Wavering { regime: self.regime, round: 0, noise };
        if self.profiled && controller.wants_step_times() {
            rounds::profile(controller, &mut machine, self.load.most());
        }
        let mut running: Vec<Running<'_>> = Vec::new();
        let mut total = Replay::default();
        loop {
            while running.len() < self.load.wanted(total.tokens) {
                let Some(text) = waiting.pop() else { return total };
                running.push(Running::start(text, &running, controller));
            }
            rounds::play(controller, &mut running, &mut machine, self.seed, &mut total);
            machine.round += 1;
            running.retain(|r| !r.is_done());
        }
    }

    /// The fixed length, 0 included, that is fastest on `texts`, and its replay.
    pub fn best_fixed(&self, texts: &[Vec<Position>]) -> (usize, Replay) {
        let play = |length| (length, self.play(texts, &ControllerSpec::Fixed(length)));
        let faster = |a: (usize, Replay), b: (usize, Replay)| if b.1.speedup() > a.1.speedup() { b } else { a };
        LENGTHS_TRIED.into_iter().map(play).fold((0, self.play(texts, &ControllerSpec::Off)), faster)
    }
}
