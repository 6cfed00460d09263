//! What is timed before the first answer: which batch size it suggests, and how long it may take, on machines of
//! simulated speed.

use crate::common::timed_backend::{Cost, TimedBackend};
use eesd::backend::Limits;
use eesd::control::{Controller, ControllerSpec, Outcome, RoundTimes, Step};
use eesd::draft::Sources;
use eesd::engine::{Clock, Engine, Request};
use eesd::sample::Philox;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Bound by the weights' bytes up to 64 rows: about 1 B parameters on a desktop processor.
fn large(rows: usize) -> f64 {
    0.1 + 0.002 * rows as f64
}

/// From four rows on each row takes the same.
fn bound_by_sums(rows: usize) -> f64 {
    0.02 * rows.max(4) as f64
}

/// Tiles of sixteen rows: the second four are for nothing.
fn tiled(rows: usize) -> f64 {
    if rows <= 4 { 0.01 } else { 0.02 * rows.div_ceil(16) as f64 }
}

/// A small model, about 4 M parameters.
fn small(rows: usize) -> f64 {
    0.001 + 0.0002 * rows as f64
}

/// A model that hardly fits the machine.
fn huge(rows: usize) -> f64 {
    7.0 + 0.1 * rows as f64
}

/// Passes and rounds: two numbers of each, among them its sequences.
type Seen = Arc<Mutex<Vec<(usize, usize)>>>;

/// An engine of 32 slots that drafts as its controller says, with its clock and the rows of its passes.
fn engine(cost: Cost, controller: Box<dyn Controller>) -> (Engine, Clock, Seen) {
    let limits = Limits { pages: 64, slots: 32, max_draft: 8, context: 128 };
    let (backend, clock) = TimedBackend::new(limits, cost);
    let verified = Arc::clone(&backend.verified);
    (Engine::new(Box::new(backend), controller, None, Vec::new()).with_clock(clock.clone()), clock, verified)
}

fn off() -> Box<dyn Controller> {
    "off".parse::<ControllerSpec>().unwrap().build()
}

#[test]
fn the_batch_suggested_is_the_smallest_of_the_best() {
    for (name, cost, expected, largest) in [
        ("large", large as Cost, 32, 32),
        ("bound by sums", bound_by_sums, 4, 16),
        ("tiled", tiled, 16, 32),
        ("small", small, 32, 32),
        ("huge", huge, 32, 32),
    ] {
        let (mut engine, ..) = engine(cost, off());
        let suggested = engine.suggested_batch().unwrap();
        let rate = |batch: usize| batch as f64 / cost(batch);
        let best = [1, 2, 4, 8, 16, 32].map(rate).into_iter().fold(0.0, f64::max);
        assert_eq!(suggested, expected, "{name}: {} of {best} tokens a second", rate(suggested));
        assert_eq!(engine.suggested_batch().unwrap(), expected, "asked again");
        let (mut engine, _, verified) = self::engine(cost, off());
        engine.suggested_batch().unwrap();
        assert_eq!(verified.lock().unwrap().iter().map(|&(_, batch)| batch).max(), Some(largest), "{name}");
    }
}

/// Counts the rounds that it is told of, and drafts nothing.
struct Told(Seen);

impl Controller for Told {
    fn spec(&self) -> String {
        "told".into()
    }

    fn start(&mut self, _slot: usize) {}

    fn proceed(&mut self, _step: &Step<'_>, _rng: &mut Philox) -> bool {
        false
    }

    fn wants_step_times(&self) -> bool {
        true
    }

    fn observe_times(&mut self, times: &RoundTimes<'_>) {
        self.0.lock().unwrap().push((times.batch, times.draft_steps.len()));
    }

    fn observe(&mut self, _outcome: &Outcome<'_>) {}

    fn state(&self) -> serde_json::Value {
        serde_json::Value::Null
    }
}

#[test]
fn a_controller_is_told_what_there_is_time_for_before_the_first_answer() {
    let most: Vec<(usize, usize)> =
        [0, 1, 2, 4].into_iter().flat_map(|drafts| [1, 2, 4, 8, 16, 32].map(|batch| (batch, drafts))).collect();
    for (name, cost, most_seconds) in [
        ("large", large as Cost, 1.0),
        ("bound by sums", bound_by_sums, 1.0),
        ("tiled", tiled, 1.0),
        ("small", small, 0.5),
        // Its own first round, which tells at least something.
        ("huge", huge, 7.2),
    ] {
        let told = Arc::new(Mutex::new(Vec::new()));
        let (mut engine, clock, _) = engine(cost, Box::new(Told(Arc::clone(&told))));
        let request = Request::new(vec![3], 1);
        engine.generate(&request, &mut |_| ControlFlow::Continue(())).unwrap();
        let profile = clock.now() - Duration::from_secs_f64(cost(1));
        assert!(profile <= Duration::from_secs_f64(most_seconds), "{name}: {profile:?}");
        let mut told = told.lock().unwrap().clone();
        assert_eq!(told.pop(), Some((1, 0)), "the request's own round is the last");
        assert!(told.contains(&(1, 0)), "{name}: {told:?}");
        if name == "small" {
            assert!(most.iter().all(|round| told.contains(round)), "{told:?}");
        }
        if name == "bound by sums" {
            assert!(!told.contains(&(8, 2)), "longer drafts cannot pay where one does not: {told:?}");
        }
    }
}

#[test]
fn a_suggested_batch_is_timed_once_for_the_controller_too() {
    let told = Arc::new(Mutex::new(Vec::new()));
    let (mut engine, _, verified) = engine(large, Box::new(Told(Arc::clone(&told))));
    assert_eq!(engine.suggested_batch().unwrap(), 32);
    let plain = verified.lock().unwrap().len();
    engine.generate(&Request::new(vec![3], 1), &mut |_| ControlFlow::Continue(())).unwrap();
    let without_drafts = |rounds: &[(usize, usize)]| rounds.iter().filter(|(rows, batch)| rows == batch).count();
    assert_eq!(without_drafts(&verified.lock().unwrap()), plain + 1, "only the request's own");
    let told = told.lock().unwrap();
    assert!([1, 2, 4, 8, 16, 32].iter().all(|&batch| told.contains(&(batch, 0))), "{told:?}");
    assert!(told.iter().any(|&(_, drafts)| drafts > 0), "{told:?}");
}

/// Where nothing but proposals drafts, what their rows cost is found out before the first answer too, and once.
#[test]
fn rounds_of_proposals_are_timed_once_before_the_first_answer() {
    let (engine, clock, verified) = engine(small, off());
    let sources: Sources = "lookup".parse().unwrap();
    let mut engine = engine.with_proposers(sources.proposers());
    let answer = |engine: &mut Engine| {
        engine.generate(&Request::new(vec![3], 1), &mut |_| ControlFlow::Continue(())).unwrap();
        std::mem::take(&mut *verified.lock().unwrap())
    };
    let rounds = answer(&mut engine);
    let timed: Vec<(usize, usize)> = [0, 1, 2, 4]
        .into_iter()
        .flat_map(|length| [1, 2, 4, 8, 16, 32].map(|batch| (batch * (length + 1), batch)))
        .collect();
    assert!(timed.iter().all(|round| rounds.contains(round)), "{rounds:?}");
    assert!(clock.now() <= Duration::from_secs_f64(0.5 + small(1)), "{:?}", clock.now());
    assert_eq!(answer(&mut engine), [(1, 1)], "its own round");
    let learned = engine.set_proposing(sources.proposers().into());
    assert_eq!(answer(&mut engine), [(1, 1)], "others are told of the same rounds");
    engine.set_proposing(learned);
    assert_eq!(answer(&mut engine), [(1, 1)]);
}
