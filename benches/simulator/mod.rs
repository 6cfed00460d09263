//! Replays streams of drafts to controllers: what the speculative loop would do, without a model.
//!
//! With greedy verification the draft at a position depends on the text before it alone, so a whole
//! text is one list of (confidence, accepted) by position: a [`Stream`]. A round drafts along it,
//! keeps what is accepted up to the first miss, and the token after that comes from the model. On
//! the wrong path after a miss the confidences would be others; here they are the right path's.

pub mod batches;
mod found;
pub mod recorded;
mod recording;
pub mod requests;
mod rounds;
pub mod sources;
pub mod streams;

use eesd::control::{Controller, ControllerSpec, Outcome, Step};
use eesd::sample::{Philox, Purpose};

/// Most drafts of a round.
pub const MAX_DRAFT: usize = 16;

/// One position of a text: what drafting its token gives.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Position {
    /// The draft's confidence.
    pub confidence: f32,
    /// Whether the draft is the model's own token.
    pub accepted: bool,
}

/// Texts, one after the other.
#[derive(Debug, Clone)]
pub struct Stream {
    /// Sequences of positions; a controller is told where each starts.
    pub texts: Vec<Vec<Position>>,
}

/// What time costs, in units of a plain round.
#[derive(Debug, Clone, Copy)]
pub struct Costs {
    /// `r`: one draft step.
    pub draft: f64,
    /// Verification by its rows.
    pub rows: Rows,
    /// Measured times vary by this factor either way, and one in a hundred is ten times too long.
    pub jitter: f64,
    /// Rounds after which the machine falls to half its speed, and after as many more is back; 0: never.
    /// The controller sees the times double. They are counted in plain rounds of the same moment, which
    /// double too, so that speeds can be compared.
    pub slow_every: usize,
    /// What the first plain round after one with drafts takes more than plain rounds among themselves; each after it
    /// takes three quarters of that more.
    pub aftermath: f64,
}

/// What verification costs by its rows, in units of one row's.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Rows {
    /// Each row beyond the first costs the same.
    Even(f64),
    /// As measured on two CPU cores with a model of 330 million parameters: reading the weights hides the
    /// arithmetic of the first rows and not that of later ones.
    MemoryBound,
    /// As measured there with the bundled model of 4 million parameters, whose weights come from the caches: the
    /// kernels of a single row are the fastest, a second row costs as much as the first, and two more nothing.
    SingleRowFast,
}

/// One to nine rows; six and eight of the first are interpolated. Each row after them costs about what those bound by
/// arithmetic do.
const MEMORY_BOUND: ([f64; 9], f64) = ([1.0, 1.01, 1.06, 1.19, 1.43, 1.79, 2.15, 2.25, 2.35], 0.23);
const SINGLE_ROW_FAST: ([f64; 9], f64) = ([1.0, 2.0, 1.9, 1.8, 2.2, 2.9, 3.0, 3.1, 3.6], 0.5);

impl Rows {
    /// The cost of `rows >= 1` rows.
    fn cost(self, rows: usize) -> f64 {
        let (measured, further) = match self {
            Rows::Even(row) => return 1.0 + row * (rows - 1) as f64,
            Rows::MemoryBound => MEMORY_BOUND,
            Rows::SingleRowFast => SINGLE_ROW_FAST,
        };
        let known = rows.min(measured.len());
        measured[known - 1] + further * (rows - known) as f64
    }
}

impl Costs {
    /// Draft steps of `draft` plain rounds each, and times that do not vary.
    pub fn exact(draft: f64, rows: Rows) -> Self {
        Self { draft, rows, jitter: 0.0, slow_every: 0, aftermath: 0.0 }
    }

    /// The verification of `rows` rows, `since` rounds after one with drafts, if there was one.
    fn verify(&self, rows: usize, since: Option<usize>) -> f64 {
        let aftermath =
            since.filter(|_| rows == 1).map_or(0.0, |since| self.aftermath * 0.75f64.powi(since as i32 - 1));
        self.rows.cost(rows) + aftermath
    }

    /// A time of a certain round as the controller gets to see it.
    fn measured(&self, round: usize, seconds: f64, rng: &mut Philox) -> f64 {
        let slow = round.checked_div(self.slow_every).is_some_and(|stretch| stretch % 2 == 1);
        let seconds = if slow { 2.0 * seconds } else { seconds };
        if self.jitter == 0.0 {
            return seconds;
        }
        let factor = 1.0 + self.jitter * (2.0 * rng.uniform() - 1.0);
        seconds * factor * if rng.uniform() < 0.01 { 10.0 } else { 1.0 }
    }
}

/// What a replay came to.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Replay {
    /// Tokens emitted.
    pub tokens: usize,
    /// Rounds played.
    pub rounds: usize,
    /// Drafts made.
    pub drafts: usize,
    /// Time spent, in plain rounds.
    pub time: f64,
}

impl Replay {
    /// Tokens per plain round's time: the speed-up over plain decoding.
    pub fn speedup(&self) -> f64 {
        self.tokens as f64 / self.time
    }
}

/// Plays `stream` to its end with the controller `spec`.
pub fn replay(spec: &ControllerSpec, stream: &Stream, costs: Costs, seed: u64) -> Replay {
    replay_with(spec.build().as_mut(), stream, costs, seed)
}

/// Plays `stream` to its end with the controller `spec`, which forgets all it learned every `rounds`
/// rounds: what many short runs come to.
pub fn replay_short(spec: &ControllerSpec, rounds: usize, stream: &Stream, costs: Costs, seed: u64) -> Replay {
    let mut controller = Forgetful { spec, controller: spec.build(), rounds, left: rounds };
    replay_with(&mut controller, stream, costs, seed)
}

/// A controller that is made anew after a number of rounds.
struct Forgetful<'a> {
    spec: &'a ControllerSpec,
    controller: Box<dyn Controller>,
    rounds: usize,
    left: usize,
}

impl Controller for Forgetful<'_> {
    fn spec(&self) -> String {
        self.controller.spec()
    }

    fn start(&mut self, slot: usize) {
        self.controller.start(slot);
    }

    fn proceed(&mut self, step: &Step<'_>, rng: &mut Philox) -> bool {
        self.controller.proceed(step, rng)
    }

    fn observe(&mut self, outcome: &Outcome<'_>) {
        self.controller.observe(outcome);
        self.left -= 1;
        if self.left == 0 {
            self.controller = self.spec.build();
            self.left = self.rounds;
        }
    }

    fn state(&self) -> serde_json::Value {
        self.controller.state()
    }
}

/// Plays `stream` to its end with `controller`.
pub fn replay_with(controller: &mut dyn Controller, stream: &Stream, costs: Costs, seed: u64) -> Replay {
    let mut total = Replay::default();
    let mut confidences = Vec::with_capacity(MAX_DRAFT);
    let mut draft_seconds = Vec::with_capacity(MAX_DRAFT);
    let mut since_draft = None;
    for text in &stream.texts {
        controller.start(0);
        let mut at = 0;
        while at < text.len() {
            // The last token of a text need not be drafted: the model's own one follows anyway.
            let limit = MAX_DRAFT.min(text.len() - at - 1);
            confidences.clear();
            draft_seconds.clear();
            let mut noise = Philox::new(seed, total.tokens, Purpose::Bonus, 0);
            loop {
                let step = Step { slot: 0, batch: 1, confidences: &confidences, limit };
                let index = confidences.len() as u32;
                let mut rng = Philox::new(seed, total.tokens, Purpose::Controller, index);
                if !controller.proceed(&step, &mut rng) {
                    break;
                }
                confidences.push(text[at + confidences.len()].confidence);
                draft_seconds.push(costs.measured(total.rounds, costs.draft, &mut noise));
            }
            let drafts = confidences.len();
            let accepted = text[at..at + drafts].iter().take_while(|p| p.accepted).count();
            since_draft = if drafts > 0 { Some(0) } else { since_draft.map(|since| since + 1) };
            let verify = costs.verify(drafts + 1, since_draft);
            controller.observe(&Outcome {
                slot: 0,
                batch: 1,
                rows: drafts + 1,
                confidences: &confidences,
                accepted,
                draft_seconds: &draft_seconds,
                verify_seconds: costs.measured(total.rounds, verify, &mut noise),
            });
            at += accepted + 1;
            total.tokens += accepted + 1;
            total.rounds += 1;
            total.drafts += drafts;
            total.time += verify + costs.draft * drafts as f64;
        }
    }
    total
}

/// The fixed length that would have been fastest on this stream, and its replay.
pub fn best_fixed(stream: &Stream, costs: Costs) -> (usize, Replay) {
    let play = |length| (length, replay(&ControllerSpec::Fixed(length), stream, costs, 0));
    let faster = |a: (usize, Replay), b: (usize, Replay)| if b.1.speedup() > a.1.speedup() { b } else { a };
    (1..=MAX_DRAFT).map(play).fold((0, replay(&ControllerSpec::Off, stream, costs, 0)), faster)
}
