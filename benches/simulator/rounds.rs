//! Rounds of texts that run side by side, as an engine plays them.

use super::{MAX_DRAFT, Position, Replay};
use eesd::control::{Controller, DraftStep, Outcome, RoundTimes, Step};
use eesd::sample::{Philox, Purpose};

/// What passes take.
pub trait Machine {
    /// The time of a draft step of this many sequences.
    fn draft(&self, sequences: usize) -> f64;

    /// The time of verifying `rows` rows of `batch` sequences, and of all else of a round but its draft steps.
    fn verify(&self, batch: usize, rows: usize) -> f64;

    /// A time as the controller gets to see it, in seconds.
    fn measured(&mut self, time: f64) -> f64;

    /// A round is over.
    fn next_round(&mut self) {}
}

/// A text on its way.
pub struct Running<'a> {
    /// Its slot.
    pub slot: usize,
    text: &'a [Position],
    at: usize,
    confidences: Vec<f32>,
    seconds: Vec<f64>,
}

impl<'a> Running<'a> {
    /// Starts a text in the first slot that none of `running` has.
    pub fn start(text: &'a [Position], running: &[Self], controller: &mut dyn Controller) -> Self {
        let slot = (0..).find(|slot| running.iter().all(|r| r.slot != *slot)).unwrap_or_default();
        controller.start(slot);
        Self { slot, text, at: 0, confidences: Vec::new(), seconds: Vec::new() }
    }

    /// Whether all of it is written.
    pub fn is_done(&self) -> bool {
        self.at >= self.text.len()
    }

    /// The last token of a text need not be drafted: the model's own one follows anyway.
    fn limit(&self) -> usize {
        MAX_DRAFT.min(self.text.len() - self.at - 1)
    }

    fn accepted(&self) -> usize {
        self.text[self.at..][..self.confidences.len()].iter().take_while(|p| p.accepted).count()
    }
}

/// Asks who goes on, beside the verification of `rows` rows; the draws come from a seed and the rounds so far.
pub fn go_on(
    controller: &mut dyn Controller,
    asked: &[Step<'_>],
    rows: usize,
    (seed, rounds): (u64, usize),
) -> Vec<bool> {
    let draw = |step: &Step<'_>| {
        let index = (step.slot * 1000 + step.confidences.len()) as u32;
        Philox::new(seed, rounds, Purpose::Controller, index)
    };
    let mut draws: Vec<Philox> = asked.iter().map(draw).collect();
    controller.proceed_together(asked, rows, &mut draws)
}

/// Plays a round, adds it to `total`, and tells the controller of it; its draws come from `seed` and the rounds so far.
pub fn play(
    controller: &mut dyn Controller,
    running: &mut [Running<'_>],
    machine: &mut dyn Machine,
    seed: u64,
    total: &mut Replay,
) {
    let batch = running.len();
    let mut drafting: Vec<usize> = (0..batch).collect();
    let mut steps: Vec<DraftStep> = Vec::new();
    loop {
        drafting.retain(|&i| running[i].confidences.len() < running[i].limit());
        if drafting.is_empty() {
            break;
        }
        let rows = running.iter().map(|r| r.confidences.len() + 1).sum();
        let asked: Vec<Step<'_>> = drafting
            .iter()
            .map(|&i| &running[i])
            .map(|r| Step { slot: r.slot, batch, confidences: &r.confidences, limit: r.limit() })
            .collect();
        let mut proceed = go_on(controller, &asked, rows, (seed, total.rounds)).into_iter();
        drafting.retain(|_| proceed.next() == Some(true));
        if drafting.is_empty() {
            break;
        }
        let time = machine.draft(drafting.len());
        total.time += time;
        let seconds = machine.measured(time);
        steps.push(DraftStep::through_layers(drafting.len(), seconds));
        for &i in &drafting {
            let r = &mut running[i];
            r.confidences.push(r.text[r.at + r.confidences.len()].confidence);
            r.seconds.push(seconds);
        }
    }
    let rows = running.iter().map(|r| r.confidences.len() + 1).sum();
    let time = machine.verify(batch, rows);
    total.time += time;
    let verify_seconds = machine.measured(time);
    let (proposed, recurrent, draft_steps) = (0, 0, &steps[..]);
    controller.observe_times(&RoundTimes { batch, proposed, recurrent, draft_steps, rows, verify_seconds });
    for r in running {
        let accepted = r.accepted();
        controller.observe(&Outcome {
            slot: r.slot,
            batch,
            rows,
            confidences: &r.confidences,
            accepted,
            draft_seconds: &r.seconds,
            verify_seconds,
        });
        r.at += accepted + 1;
        total.tokens += accepted + 1;
        total.drafts += r.confidences.len();
        r.confidences.clear();
        r.seconds.clear();
    }
    total.rounds += 1;
}

/// Plays rounds to time them, as an engine does before its first one.
pub fn profile(controller: &mut dyn Controller, machine: &mut dyn Machine, slots: usize) {
    /// Drafts of each of these rounds.
    const DRAFTS: [usize; 5] = [0, 1, 2, 4, 8];
    let sizes = std::iter::successors(Some(1), |size| Some(2 * size)).take_while(|&size| size <= slots);
    for (batch, drafts) in sizes.flat_map(|batch| DRAFTS.map(|drafts| (batch, drafts))) {
        let step = machine.draft(batch);
        let steps: Vec<DraftStep> =
            (0..drafts).map(|_| DraftStep::through_layers(batch, machine.measured(step))).collect();
        let rows = batch * (drafts + 1);
        let verify = machine.verify(batch, rows);
        let verify_seconds = machine.measured(verify);
        let (proposed, recurrent, draft_steps) = (0, 0, &steps[..]);
        controller.observe_times(&RoundTimes { batch, proposed, recurrent, draft_steps, rows, verify_seconds });
    }
}
