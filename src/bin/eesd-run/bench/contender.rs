//! One contender's part in a benchmark: its turns, its tokens, its times.

use super::costs::Round;
use crate::failure::{Failure, Outcome, with_causes};
use crate::interrupt;
use eesd::TokenId;
use eesd::control::{Controller, ControllerSpec, DraftPlan, Outcome as RoundOutcome, RoundTimes, Step};
use eesd::draft::{Source, Sources};
use eesd::engine::{Engine, EngineError, Event, Proposing, Request, Stats};
use eesd::profile;
use eesd::sample::Philox;
use std::mem;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A controller with sources of drafts, what they have learned so far, and how they did.
pub struct Contender {
    /// The controller's name and argument; where it is off, the sources that draft.
    pub name: String,
    spec: ControllerSpec,
    /// Those beside the exit block.
    sources: Sources,
    /// Which prompts, for people: nothing, or ` of ` and the set.
    of: String,
    watched: Watched,
    proposing: Proposing,
    /// Tokens and seconds of decoding of each repetition.
    pub repetitions: Vec<(usize, f64)>,
    /// Seconds of decoding of each prompt's answer in each repetition.
    pub answers: Vec<Vec<f64>>,
    /// Counts over all repetitions.
    pub stats: Stats,
    /// Every round of the repetitions.
    pub rounds: Vec<Round>,
}

/// One turn on a chunk of prompts.
pub struct Turn {
    /// Tokens of each prompt's answer.
    pub tokens: Vec<Vec<TokenId>>,
    /// Number of the first prompt.
    first: usize,
    /// Seconds from the end of prefill to the last token, of each answer.
    seconds: Vec<f64>,
    stats: Stats,
    /// Every round played.
    pub rounds: Vec<Round>,
}

impl Contender {
    /// A controller, and sources beside the exit block, that know nothing yet.
    pub fn new(spec: &ControllerSpec, sources: Sources) -> Self {
        let sources = sources.with(Source::Exit, false);
        Self {
            name: if *spec == ControllerSpec::Off { sources.to_string() } else { spec.to_string() },
            watched: Watched::new(spec),
            proposing: sources.proposers().into(),
            spec: spec.clone(),
            sources,
            of: String::new(),
            repetitions: Vec::new(),
            answers: Vec::new(),
            stats: Stats::default(),
            rounds: Vec::new(),
        }
    }

    /// The same, on the prompts of this set.
    pub fn on(self, set: &str) -> Self {
        Self { of: format!(" of {set}"), ..self }
    }

    /// Whether this is plain decoding.
    pub fn is_plain(&self) -> bool {
        self.spec == ControllerSpec::Off && self.sources.is_off()
    }

    /// Answers all prompts of a chunk, numbered from `first`, side by side; `None` if interrupted.
    ///
    /// # Errors
    /// If a request is malformed or a pass fails.
    pub fn play(&mut self, engine: &mut Engine, chunk: &[Request], first: usize) -> Outcome<Option<Turn>> {
        engine.set_controller(Box::new(self.watched.clone()));
        engine.set_proposing(mem::take(&mut self.proposing));
        let before = engine.snapshot().totals.rounds;
        let ran = self.run(engine, chunk, first);
        self.proposing = engine.set_proposing(Proposing::default());
        let played = engine.snapshot().totals.rounds - before;
        // Those before them were played for nothing but to time them.
        let mut rounds = mem::take(&mut self.watched.lock().rounds);
        let rounds = rounds.split_off(rounds.len().saturating_sub(played));
        Ok(ran?.map(|turn| Turn { rounds, ..turn }))
    }

    fn run(&self, engine: &mut Engine, chunk: &[Request], first: usize) -> Outcome<Option<Turn>> {
        let Self { name, of, .. } = self;
        let _range = profile::range(format!("{name} on prompts {first} to {}{of}", first + chunk.len() - 1));
        let (tokens, seconds) = (vec![Vec::new(); chunk.len()], vec![0.0; chunk.len()]);
        let mut turn = Turn { tokens, first, seconds, stats: Stats::default(), rounds: Vec::new() };
        let mut failed: Option<(usize, EngineError)> = None;
        engine.run(&mut chunk.iter().cloned(), chunk.len(), &mut |index, event| {
            match event {
                Event::Prefilled { .. } | Event::Token(_) => {}
                Event::Done(completion) => {
                    turn.seconds[index] = completion.stats.decode.as_secs_f64();
                    turn.stats.add(&completion.stats);
                    turn.tokens[index] = completion.tokens;
                }
                Event::Failed(error) => failed = Some((first + index, error)),
            }
            if interrupt::pressed() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        match failed {
            Some((prompt, error)) => Err(Failure::failed(format!("prompt {prompt}{of}: {}", with_causes(&error)))),
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
                    "not lossless, so no speed is reported: prompt {}{}, token {at}: {} gave {:?}, off gave {:?}",
                    first + i,
                    self.of,
                    self.name,
                    found.get(at),
                    expected.get(at)
                )));
            }
        }
        Ok(())
    }

    /// A new repetition begins, as a run of its own: what was learned is forgotten, so that nothing is answered by
    /// somebody who has seen the answer.
    pub fn begin_repetition(&mut self) {
        self.watched = Watched::new(&self.spec);
        self.proposing = self.sources.proposers().into();
        self.repetitions.push((0, 0.0));
    }

    /// Counts a turn for the current repetition.
    pub fn count(&mut self, turn: &Turn) {
        if let Some((tokens, seconds)) = self.repetitions.last_mut() {
            *tokens += turn.stats.generated;
            *seconds += turn.seconds.iter().copied().fold(0.0, f64::max);
        }
        self.answers.resize(self.answers.len().max(turn.first + turn.seconds.len()), Vec::new());
        self.answers[turn.first..].iter_mut().zip(&turn.seconds).for_each(|(of, &seconds)| of.push(seconds));
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
}

impl Watched {
    /// A controller that knows nothing yet.
    fn new(spec: &ControllerSpec) -> Self {
        Self(Arc::new(Mutex::new(Watch { controller: spec.build(), rounds: Vec::new() })))
    }

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

    fn is_off(&self) -> bool {
        self.lock().controller.is_off()
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
        let mut watch = self.lock();
        watch.controller.observe_times(times);
        watch.rounds.push(Round {
            rows: times.rows,
            draft_seconds: times.draft_steps.iter().map(|step| step.seconds).collect(),
            verify_seconds: times.verify_seconds,
        });
    }

    fn observe(&mut self, outcome: &RoundOutcome<'_>) {
        self.lock().controller.observe(outcome);
    }

    fn state(&self) -> serde_json::Value {
        self.lock().controller.state()
    }
}
