//! Replays streams of drafts to controllers: what the speculative loop would do, without a model.
//!
//! With greedy verification the draft at a position depends on the text before it alone, so a whole
//! text is one list of (confidence, accepted) by position: a [`Stream`]. A round drafts along it,
//! keeps what is accepted up to the first miss, and the token after that comes from the model. On
//! the wrong path after a miss the confidences would be others; here they are the right path's.

mod recording;
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
    /// Each verified row beyond the first.
    pub row: f64,
    /// Measured times vary by this factor either way, and one in a hundred is ten times too long.
    pub jitter: f64,
}

impl Costs {
    /// A time as the controller gets to see it.
    fn measured(&self, seconds: f64, rng: &mut Philox) -> f64 {
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

/// Plays `stream` to its end with `controller`.
pub fn replay_with(controller: &mut dyn Controller, stream: &Stream, costs: Costs, seed: u64) -> Replay {
    let mut total = Replay::default();
    let mut confidences = Vec::with_capacity(MAX_DRAFT);
    let mut draft_seconds = Vec::with_capacity(MAX_DRAFT);
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
                draft_seconds.push(costs.measured(costs.draft, &mut noise));
            }
            let drafts = confidences.len();
            let accepted = text[at..at + drafts].iter().take_while(|p| p.accepted).count();
            let verify = 1.0 + costs.row * drafts as f64;
            controller.observe(&Outcome {
                slot: 0,
                batch: 1,
                rows: drafts + 1,
                confidences: &confidences,
                accepted,
                draft_seconds: &draft_seconds,
                verify_seconds: costs.measured(verify, &mut noise),
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
