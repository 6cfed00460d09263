//! One controller's part in a benchmark: its turns, its tokens, its times.

use super::costs::Round;
use crate::failure::{Failure, Outcome, with_causes};
use crate::interrupt;
use eesd::TokenId;
use eesd::control::{Controller, ControllerSpec, DraftPlan, Outcome as RoundOutcome, RoundTimes, Step};
use eesd::engine::{Engine, EngineError, Event, Request, Stats};
use eesd::profile;
use eesd::sample::Philox;
use std::mem;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A controller, what it has learned so far, and how it did.
pub struct Contender {
    /// The controller's name and argument.
    pub spec: ControllerSpec,
    watched: Watched,
    /// Tokens and seconds of decoding of each repetition.
    pub repetitions: Vec<(usize, f64)>,
    /// Counts over all repetitions.
    pub stats: Stats,
    /// Every round of the repetitions.
    pub rounds: Vec<Round>,
}

/// One turn on a chunk of prompts.
pub struct Turn {
    /// Tokens of each prompt's answer.
    pub tokens: Vec<Vec<TokenId>>,
    /// Seconds from the end of prefill to the last token.
    seconds: f64,
    stats: Stats,
    /// Every round played.
    pub rounds: Vec<Round>,
}

impl Contender {
    /// A controller that knows nothing yet.
    pub fn new(spec: &ControllerSpec) -> Self {
        let watched = Watched(Arc::new(Mutex::new(Watch { controller: spec.build(), rounds: Vec::new(), told: 0 })));
        Self { spec: spec.clone(), watched, repetitions: Vec::new(), stats: Stats::default(), rounds: Vec::new() }
    }

    /// Answers all prompts of a chunk, numbered from `first`, side by side; `None` if interrupted.
    ///
    /// # Errors
    /// If a request is malformed or a pass fails.
    pub fn play(&mut self, engine: &mut Engine, chunk: &[Request], first: usize) -> Outcome<Option<Turn>> {
        engine.set_controller(Box::new(self.watched.clone()));
        let _range = profile::range(format!("{} on prompts {first} to {}", self.spec, first + chunk.len() - 1));
        let mut turn =
            Turn { tokens: vec![Vec::new(); chunk.len()], seconds: 0.0, stats: Stats::default(), rounds: Vec::new() };
        let mut failed: Option<(usize, EngineError)> = None;
        engine.run(&mut chunk.iter().cloned(), chunk.len(), &mut |index, event| {
            match event {
                Event::Prefilled { .. } | Event::Token(_) => {}
                Event::Done(completion) => {
                    turn.seconds = turn.seconds.max(completion.stats.decode.as_secs_f64());
                    turn.stats.add(&completion.stats);
                    turn.tokens[index] = completion.tokens;
                }
                Event::Failed(error) => failed = Some((first + index, error)),
            }
            if interrupt::pressed() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        turn.rounds = mem::take(&mut self.watched.lock().rounds);
        match failed {
            Some((prompt, error)) => Err(Failure::failed(format!("prompt {prompt}: {}", with_causes(&error)))),
            None if interrupt::pressed() => Ok(None),
            None => Ok(Some(turn)),
        }
    }

    /// Compares answers with those of plain decoding; prompts are numbered from `first`.
    ///
    /// # Errors
    /// Where they differ: no speed counts then.
    pub fn check(&self, expected: &[Vec<TokenId>], found: &[Vec<TokenId>], first: usize) -> Outcome {
        for (i, (expected, found)) in expected.iter().zip(found).enumerate() {
            if expected != found {
                let at = expected.iter().zip(found).take_while(|(a, b)| a == b).count();
                return Err(Failure::failed(format!(
                    "not lossless, so no speed is reported: prompt {}, token {at}: {} gave {:?}, off gave {:?}",
                    first + i,
                    self.spec,
                    found.get(at),
                    expected.get(at)
                )));
            }
        }
        Ok(())
    }

    /// A new repetition begins.
    pub fn begin_repetition(&mut self) {
        self.repetitions.push((0, 0.0));
    }

    /// Counts a turn for the current repetition.
    pub fn count(&mut self, turn: &Turn) {
        if let Some((tokens, seconds)) = self.repetitions.last_mut() {
            *tokens += turn.stats.generated;
            *seconds += turn.seconds;
        }
        self.stats.add(&turn.stats);
        self.rounds.extend_from_slice(&turn.rounds);
    }
}

/// A controller that keeps what it learned when another takes its place in the engine, with a
/// record of what each round cost.
#[derive(Clone)]
struct Watched(Arc<Mutex<Watch>>);

struct Watch {
    controller: Box<dyn Controller>,
    rounds: Vec<Round>,
    /// Sequences that have reported the last round.
    told: usize,
}

impl Watched {
    fn lock(&self) -> MutexGuard<'_, Watch> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Controller for Watched {
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

    fn observe(&mut self, outcome: &RoundOutcome<'_>) {
        self.lock().observe(outcome);
    }

    fn state(&self) -> serde_json::Value {
        self.lock().controller.state()
    }
}

impl Watch {
    /// Each sequence of a batch reports the round; together they are one.
    fn observe(&mut self, outcome: &RoundOutcome<'_>) {
        self.controller.observe(outcome);
        if self.told == 0 {
            self.rounds.push(Round {
                rows: outcome.rows,
                drafts: Vec::new(),
                draft_seconds: Vec::new(),
                verify_seconds: outcome.verify_seconds,
            });
        }
        if let Some(round) = self.rounds.last_mut() {
            round.drafts.push(outcome.confidences.len());
            if round.draft_seconds.len() < outcome.draft_seconds.len() {
                round.draft_seconds = outcome.draft_seconds.to_vec();
            }
        }
        self.told = (self.told + 1) % outcome.batch;
    }
}
