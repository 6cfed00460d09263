//! Many short requests one after the other, in each of some slots, while what drafting them is worth changes: how well
//! their drafts are accepted, and what passes cost.
//!
//! A controller is held against plain decoding and, change by change, against the fixed length that would have been best
//! from each change to the next.

use super::rounds::{self, Machine, Running};
use super::{Position, Replay, Rows};
use eesd::control::{Controller, ControllerSpec};
use eesd::sample::{Philox, Purpose};
use rand::RngExt;
use std::ops::{Range, RangeInclusive};

/// Fixed lengths that are tried, beside none.
const LENGTHS_TRIED: [usize; 8] = [1, 2, 3, 4, 6, 8, 12, 16];
/// Tokens over which a controller has to be as fast as is asked to count as back.
const BACK_OVER: usize = 1500;
/// Share of the best fixed length's speed at which it does.
const BACK_AT: f64 = 0.95;
/// Jitter of measured times; one time in a hundred is also ten times too long.
const JITTER: f64 = 0.1;

/// How well the drafts of one request after the other are accepted. Confidences tell nothing.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Drafts {
    /// All with this chance.
    Chance(f64),
    /// Every so many-th request with the second chance, the others with the first.
    Rare(f64, f64, usize),
    /// From the first chance to the second and back.
    Drift(f64, f64),
}

/// What another program takes of the machine.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Busy {
    /// Nothing.
    No,
    /// All passes take twice as long.
    All,
    /// Only those that verify drafts do: one core fewer is felt where arithmetic is the limit.
    Wide,
}

/// Requests under the same conditions.
#[derive(Debug, Clone)]
pub struct Phase {
    /// How many there are.
    pub requests: usize,
    /// Their tokens.
    pub tokens: RangeInclusive<usize>,
    /// How their drafts are accepted.
    pub drafts: Drafts,
    /// What else the machine does.
    pub busy: Busy,
}

/// What a case is about.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Change {
    /// Drafts are accepted well, badly, and well again.
    GoodBadGood,
    /// Few badly accepted tokens, in requests of 60, and then good ones.
    ShortlyBad,
    /// Good requests, thousands of one token, good requests.
    OneToken,
    /// The same with some of two or three tokens, whose drafts are refused.
    FewTokens,
    /// Badly accepted from the start, and then well.
    BadAtFirst,
    /// One request in ten is accepted well.
    RareGood,
    /// Acceptance drifts up and down over a thousand requests.
    Drift,
    /// Another program slows all passes down for a while.
    AllSlow,
    /// Another program slows the verification of drafts down for a while, so that few pay.
    WideSlow,
}

impl Change {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::GoodBadGood,
        Self::ShortlyBad,
        Self::OneToken,
        Self::FewTokens,
        Self::BadAtFirst,
        Self::RareGood,
        Self::Drift,
        Self::AllSlow,
        Self::WideSlow,
    ];

    /// As the table names it.
    pub fn name(self) -> &'static str {
        match self {
            Self::GoodBadGood => "good, bad, good",
            Self::ShortlyBad => "good, 900 bad tokens, good",
            Self::OneToken => "good, 6,000 of one token, good",
            Self::FewTokens => "good, 1,500 bad of 1 to 3 tokens, good",
            Self::BadAtFirst => "bad, good",
            Self::RareGood => "one good in ten",
            Self::Drift => "slow drift",
            Self::AllSlow => "all passes twice as slow for a while",
            Self::WideSlow => "only wide passes twice as slow for a while",
        }
    }

    fn phases(self) -> Vec<Phase> {
        let phase = |requests, tokens, drafts, busy| Phase { requests, tokens, drafts, busy };
        let (usual, good, bad) = (1..=300, Drafts::Chance(0.9), Drafts::Chance(0.1));
        let calm = |requests, drafts| phase(requests, usual.clone(), drafts, Busy::No);
        match self {
            Self::GoodBadGood => vec![calm(200, good), calm(400, bad), calm(200, good)],
            Self::ShortlyBad => {
                let never = Drafts::Chance(0.0);
                [(60, good), (15, never), (200, good)].map(|(n, drafts)| phase(n, 60..=60, drafts, Busy::No)).into()
            }
            Self::OneToken => {
                let good = Drafts::Chance(0.8);
                vec![calm(60, good), phase(6000, 1..=1, bad, Busy::No), calm(200, good)]
            }
            Self::FewTokens => vec![calm(60, good), phase(1500, 1..=3, bad, Busy::No), calm(200, good)],
            Self::BadAtFirst => vec![calm(300, bad), calm(200, good)],
            Self::RareGood => vec![calm(600, Drafts::Rare(0.1, 0.9, 10))],
            Self::Drift => vec![calm(1000, Drafts::Drift(0.1, 0.9))],
            Self::AllSlow => {
                [Busy::No, Busy::All, Busy::No].map(|busy| phase(150, usual.clone(), Drafts::Chance(0.7), busy)).into()
            }
            Self::WideSlow => {
                [Busy::No, Busy::Wide, Busy::No].map(|busy| phase(150, usual.clone(), Drafts::Chance(0.7), busy)).into()
            }
        }
    }
}

/// What passes cost.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pass {
    /// A draft step of one sequence, in plain rounds of one.
    pub draft: f64,
    /// Passes by their rows.
    pub rows: Rows,
}

impl Pass {
    /// As on a GPU: rows are nearly free.
    pub const ROWS_FREE: Self = Self { draft: 0.1, rows: Rows::Even(0.01) };
    /// Every row costs a tenth of a plain round.
    pub const ROWS_COST: Self = Self { draft: 0.2, rows: Rows::Even(0.1) };
    /// A model that keeps a processor busy with reading its weights.
    pub const MEMORY_BOUND: Self = Self { draft: 0.22, rows: Rows::MemoryBound };
    /// A model that fits in the processor's caches.
    pub const CACHED: Self = Self { draft: 0.25, rows: Rows::SingleRowFast };
    /// All of them.
    pub const ALL: [Self; 4] = [Self::ROWS_FREE, Self::ROWS_COST, Self::MEMORY_BOUND, Self::CACHED];

    /// As the table names it.
    pub fn name(self) -> String {
        let rows = match self.rows {
            Rows::Even(row) => format!("+{} % a row", 100.0 * row),
            Rows::MemoryBound => "memory-bound rows".into(),
            Rows::SingleRowFast => "one row fast".into(),
        };
        format!("r = {}, {rows}", self.draft)
    }
}

/// A case of the table.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    /// What changes.
    pub change: Change,
    /// What passes cost.
    pub pass: Pass,
    /// Requests at a time.
    pub slots: usize,
    /// What texts, noise and draws come from.
    pub seed: u64,
}

/// What was played once a request was done.
type Mark = Replay;

/// How a controller fared after a change.
#[derive(Debug, Clone, Copy)]
pub struct Recovery {
    /// Requests and rounds from the change on until it was back; none if it never was.
    pub back: Option<(usize, usize)>,
}

/// How a controller fared in a case.
#[derive(Debug, Clone)]
pub struct Verdict {
    /// Its speed over that of plain decoding.
    pub of_plain: f64,
    /// And over that of the fixed lengths that were best from one change to the next.
    pub of_best: f64,
    /// Change by change.
    pub recoveries: Vec<Recovery>,
}

/// The texts of a case, and what fixed lengths come to.
pub struct Played {
    case: Case,
    texts: Vec<Vec<Position>>,
    phases: Vec<Range<usize>>,
    busy: Vec<Busy>,
    plain: Vec<Mark>,
    /// Of each phase, by the length that is best there.
    best: Vec<(usize, Vec<Mark>)>,
}

struct Shared {
    pass: Pass,
    busy: Busy,
    noise: Philox,
}

impl Machine for Shared {
    fn draft(&self, sequences: usize) -> f64 {
        self.pass.draft * self.pass.rows.cost(sequences) * if self.busy == Busy::All { 2.0 } else { 1.0 }
    }

    fn verify(&self, batch: usize, rows: usize) -> f64 {
        let slow = self.busy == Busy::All || self.busy == Busy::Wide && rows > batch;
        self.pass.rows.cost(rows) * if slow { 2.0 } else { 1.0 }
    }

    fn measured(&mut self, time: f64) -> f64 {
        let jitter = 1.0 + JITTER * (2.0 * self.noise.uniform() - 1.0);
        let disturbed = if self.noise.uniform() < 0.01 { 10.0 } else { 1.0 };
        time * jitter * disturbed * 0.001
    }
}

impl Case {
    /// Makes the texts and plays them with every fixed length.
    pub fn prepare(self) -> Played {
        let mut rng = Philox::new(self.seed, 0, Purpose::Draft, 0);
        let (mut texts, mut phases, mut busy) = (Vec::new(), Vec::new(), Vec::new());
        for phase in self.change.phases() {
            let from = texts.len();
            texts.extend((0..phase.requests).map(|i| phase.text(i, &mut rng)));
            phases.push(from..texts.len());
            busy.resize(texts.len(), phase.busy);
        }
        let (plain, best) = (Vec::new(), Vec::new());
        let mut played = Played { case: self, texts, phases, busy, plain, best };
        played.plain = played.play(ControllerSpec::Off.build().as_mut());
        let fixed = LENGTHS_TRIED.map(|length| (length, played.play(ControllerSpec::Fixed(length).build().as_mut())));
        let mut lengths = vec![(0, played.plain.clone())];
        lengths.extend(fixed);
        let best = |phase: &Range<usize>| {
            lengths.iter().max_by(|a, b| speed(&a.1, phase).total_cmp(&speed(&b.1, phase))).cloned().unwrap_or_default()
        };
        played.best = played.phases.iter().map(best).collect();
        played
    }
}

impl Phase {
    fn text(&self, request: usize, rng: &mut Philox) -> Vec<Position> {
        let chance = match self.drafts {
            Drafts::Chance(chance) => chance,
            Drafts::Rare(usual, rare, every) => {
                if request % every == every - 1 {
                    rare
                } else {
                    usual
                }
            }
            Drafts::Drift(low, high) => {
                let turn = request as f64 / self.requests as f64 * std::f64::consts::TAU;
                low + (high - low) * (0.5 - 0.5 * turn.cos())
            }
        };
        let tokens = rng.random_range(self.tokens.clone());
        (0..tokens).map(|_| Position { confidence: rng.random(), accepted: rng.random_bool(chance) }).collect()
    }
}

impl Played {
    /// The length that is best from one change to the next.
    pub fn best_lengths(&self) -> Vec<usize> {
        self.best.iter().map(|(length, _)| *length).collect()
    }

    /// Plays the requests with `controller`, and returns what was played when each was done, in that order.
    fn play(&self, controller: &mut dyn Controller) -> Vec<Mark> {
        let Case { pass, slots, seed, .. } = self.case;
        let mut machine = Shared { pass, busy: Busy::No, noise: Philox::new(seed, 0, Purpose::Bonus, 0) };
        if controller.wants_step_times() && slots > 1 {
            rounds::profile(controller, &mut machine, slots);
        }
        let mut waiting = self.texts.iter().zip(&self.busy);
        let mut running: Vec<Running<'_>> = Vec::new();
        let (mut total, mut marks) = (Replay::default(), Vec::with_capacity(self.texts.len()));
        loop {
            while running.len() < slots {
                let Some((text, &busy)) = waiting.next() else { break };
                machine.busy = busy;
                running.push(Running::start(text, &running, controller));
            }
            if running.is_empty() {
                return marks;
            }
            rounds::play(controller, &mut running, &mut machine, seed, &mut total);
            let before = running.len();
            running.retain(|r| !r.is_done());
            marks.resize(marks.len() + before - running.len(), total);
        }
    }

    /// How `controller` fares.
    pub fn judge(&self, controller: &mut dyn Controller) -> Verdict {
        let marks = self.play(controller);
        let time = |marks: &[Mark]| marks.last().map_or(0.0, |mark| mark.time);
        let best: f64 = self.phases.iter().zip(&self.best).map(|(phase, (_, best))| between(best, phase).time).sum();
        let recovery = |(phase, (_, best)): (&Range<usize>, &(usize, Vec<Mark>))| Recovery {
            back: phase.clone().find(|&from| is_back(&marks, best, from, phase.end)).map(|from| {
                let rounds = |request: usize| request.checked_sub(1).map_or(0, |before| marks[before].rounds);
                (from - phase.start, rounds(from) - rounds(phase.start))
            }),
        };
        Verdict {
            of_plain: time(&self.plain) / time(&marks),
            of_best: best / time(&marks),
            recoveries: self.phases.iter().zip(&self.best).map(recovery).collect(),
        }
    }
}

/// What was played from the end of the request before `requests` to that of their last one.
fn between(marks: &[Mark], requests: &Range<usize>) -> Replay {
    let before = requests.start.checked_sub(1).map(|before| marks[before]).unwrap_or_default();
    let after = requests.end.checked_sub(1).map(|last| marks[last]).unwrap_or_default();
    Replay {
        tokens: after.tokens - before.tokens,
        rounds: after.rounds - before.rounds,
        drafts: after.drafts - before.drafts,
        time: after.time - before.time,
    }
}

fn speed(marks: &[Mark], requests: &Range<usize>) -> f64 {
    between(marks, requests).speedup()
}

/// Whether the requests from one on are done about as fast as by the best fixed length: the next ones, and all of them up
/// to the next change.
fn is_back(marks: &[Mark], best: &[Mark], from: usize, end: usize) -> bool {
    let next = (from + 1..end).find(|&to| between(marks, &(from..to)).tokens >= BACK_OVER).unwrap_or(end);
    [next, end].into_iter().all(|to| {
        let requests = from..to;
        speed(marks, &requests) >= BACK_AT * speed(best, &requests)
    })
}
