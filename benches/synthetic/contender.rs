//! One controller's turns: what it wrote, what its rounds did and took.

use crate::costs::Round;
use eesd::TokenId;
use eesd::control::{Controller, DraftPlan, Outcome, RoundTimes, Step};
use eesd::engine::{Engine, Request};
use eesd::sample::Philox;
use std::error::Error;
use std::mem;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A controller, what it has learned so far, and its turns of the repetition in progress and of all.
pub struct Contender {
    /// The controller's name and argument.
    pub name: String,
    recorded: Recorded,
    /// Tokens and seconds of decoding of each repetition.
    pub repetitions: Vec<(usize, f64)>,
    /// Every round of the repetitions.
    pub rounds: Vec<Round>,
    /// Drafts tested and accepted.
    pub tested: (usize, usize),
}

impl Contender {
    /// A controller that knows nothing yet.
    pub fn new(controller: Box<dyn Controller>) -> Self {
        let name = controller.spec();
        let recorded = Recorded(Arc::new(Mutex::new(Record { controller, rounds: Vec::new(), tested: (0, 0) })));
        Self { name, recorded, repetitions: Vec::new(), rounds: Vec::new(), tested: (0, 0) }
    }

    /// Forgets all measurements, but nothing of what the controller has learned.
    pub fn reset(&mut self) {
        (self.repetitions, self.rounds, self.tested) = Default::default();
    }

    /// Answers one request, as a part of the current repetition.
    ///
    /// # Errors
    /// If a pass fails, or the tokens are not `expected`, where some are: then no speed counts.
    pub fn play(
        &mut self,
        engine: &mut Engine,
        request: &Request,
        expected: Option<&[TokenId]>,
    ) -> Result<Vec<TokenId>, Box<dyn Error>> {
        engine.set_controller(Box::new(self.recorded.clone()));
        let done = engine.generate(request, &mut |_| ControlFlow::Continue(()))?;
        if let Some(expected) = expected.filter(|expected| *expected != done.tokens) {
            let at = std::iter::zip(expected, &done.tokens).take_while(|(a, b)| a == b).count();
            let (name, found) = (&self.name, done.tokens.get(at));
            return Err(format!(
                "not lossless: token {at} is {found:?} under {name}, {:?} under off",
                expected.get(at)
            )
            .into());
        }
        let mut record = self.recorded.lock();
        self.rounds.append(&mut record.rounds);
        let (tested, accepted) = mem::take(&mut record.tested);
        self.tested = (self.tested.0 + tested, self.tested.1 + accepted);
        if let Some((tokens, seconds)) = self.repetitions.last_mut() {
            *tokens += done.stats.generated;
            *seconds += done.stats.decode.as_secs_f64();
        }
        Ok(done.tokens)
    }

    /// Tokens of all repetitions.
    pub fn tokens(&self) -> usize {
        self.repetitions.iter().map(|(tokens, _)| tokens).sum()
    }

    /// Tokens per second of each repetition.
    pub fn speeds(&self) -> impl Iterator<Item = f64> {
        self.repetitions.iter().map(|&(tokens, seconds)| tokens as f64 / seconds)
    }

    /// The share of the decoding time that is spent outside the passes: in the engine and the controller.
    pub fn overhead(&self) -> f64 {
        let decoding: f64 = self.repetitions.iter().map(|(_, seconds)| seconds).sum();
        1.0 - self.rounds.iter().map(Round::seconds).sum::<f64>() / decoding
    }
}

/// Drafts of one length after the other, for rounds that measure what passes cost.
pub struct Ladder {
    /// The lengths.
    pub lengths: &'static [usize],
    /// Rounds played.
    pub round: usize,
}

impl Controller for Ladder {
    fn spec(&self) -> String {
        "ladder".into()
    }

    fn start(&mut self, _slot: usize) {}

    fn proceed(&mut self, step: &Step<'_>, _rng: &mut Philox) -> bool {
        step.confidences.len() < self.lengths[self.round % self.lengths.len()]
    }

    fn observe(&mut self, _outcome: &Outcome<'_>) {
        self.round += 1;
    }

    fn state(&self) -> serde_json::Value {
        serde_json::json!({ "round": self.round })
    }
}

/// A controller that keeps what it learned when another takes its place in the engine, and a record
/// of its rounds. One sequence runs at a time, so an outcome is a round.
#[derive(Clone)]
struct Recorded(Arc<Mutex<Record>>);

struct Record {
    controller: Box<dyn Controller>,
    rounds: Vec<Round>,
    tested: (usize, usize),
}

impl Recorded {
    fn lock(&self) -> MutexGuard<'_, Record> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Controller for Recorded {
    fn spec(&self) -> String {
        self.lock().controller.spec()
    }

    fn start(&mut self, slot: usize) {
        self.lock().controller.start(slot);
    }

    fn proceed(&mut self, step: &Step<'_>, rng: &mut Philox) -> bool {
        self.lock().controller.proceed(step, rng)
    }

    fn proceed_together(&mut self, steps: &[Step<'_>], rows: usize, draws: &mut [Philox]) -> Vec<bool> {
        self.lock().controller.proceed_together(steps, rows, draws)
    }

    fn plan(&mut self, step: &Step<'_>, draws: &dyn Fn(usize) -> Philox) -> Option<DraftPlan> {
        self.lock().controller.plan(step, draws)
    }

    fn wants_step_times(&self) -> bool {
        self.lock().controller.wants_step_times()
    }

    fn observe_times(&mut self, times: &RoundTimes<'_>) {
        self.lock().controller.observe_times(times);
    }

    fn observe(&mut self, outcome: &Outcome<'_>) {
        let mut record = self.lock();
        record.controller.observe(outcome);
        let (accepted, refused) = outcome.tested();
        record.tested = (record.tested.0 + accepted + refused, record.tested.1 + accepted);
        record.rounds.push(Round {
            drafts: outcome.confidences.len(),
            draft_seconds: outcome.draft_seconds.to_vec(),
            verify_seconds: outcome.verify_seconds,
        });
    }

    fn state(&self) -> serde_json::Value {
        self.lock().controller.state()
    }
}
