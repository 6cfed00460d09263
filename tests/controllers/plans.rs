//! Rounds planned ahead against rounds decided draft by draft, on simulated streams: the same lengths from the same
//! draws, or lengths that are worth as much.

use crate::simulator::streams::{Kind, recorded, shuffled};
use crate::simulator::{Costs, Rows, Stream, replay_with};
use eesd::control::{Controller, ControllerSpec, DraftPlan, Outcome, Step};
use eesd::sample::{Philox, Purpose};
use serde_json::Value;
use std::path::Path;

/// What decides.
#[derive(Debug, Clone, Copy, PartialEq)]
enum By {
    Asking,
    Planning,
}

/// Asks a controller draft by draft and makes a plan of each round too, both with the same draws.
struct Both {
    controller: Box<dyn Controller>,
    by: By,
    /// What the draws of the round in progress come from.
    seed: u64,
    plan: DraftPlan,
    /// Drafts that the plan and the controller had of this round; a plan may have stopped before.
    planned: usize,
    asked: usize,
    rounds: usize,
    equal: usize,
}

impl Both {
    fn new(spec: &str, by: By) -> Self {
        let controller = spec.parse::<ControllerSpec>().unwrap().build();
        let plan = DraftPlan::of_length(0);
        Self { controller, by, seed: 0, plan, planned: 0, asked: 0, rounds: 0, equal: 0 }
    }

    /// The length that the plan makes of these confidences and those that may follow, as far as they are known.
    fn by_plan(&self, confidences: &[f32]) -> usize {
        let mut following = self.plan.follow();
        let going = confidences.iter().take_while(|&&confidence| following.goes_on(confidence)).count();
        self.plan.limit.min(1 + going)
    }
}

impl Controller for Both {
    fn spec(&self) -> String {
        self.controller.spec()
    }

    fn start(&mut self, slot: usize) {
        self.controller.start(slot);
    }

    fn proceed(&mut self, step: &Step<'_>, rng: &mut Philox) -> bool {
        let drafts = step.confidences.len();
        if drafts == 0 {
            self.seed = u64::from(rng.word());
            let seed = self.seed;
            let draws = |drafts| Philox::new(seed, drafts, Purpose::Controller, 0);
            self.plan = self.controller.plan(step, &draws).expect("a controller that plans");
            assert!(self.plan.limit <= step.limit);
        }
        let asked = self.controller.proceed(step, &mut Philox::new(self.seed, drafts, Purpose::Controller, 0));
        (self.planned, self.asked) = (self.by_plan(step.confidences), drafts + usize::from(asked));
        match self.by {
            By::Asking => asked,
            By::Planning => self.planned > drafts,
        }
    }

    fn observe(&mut self, outcome: &Outcome<'_>) {
        self.rounds += 1;
        self.equal += usize::from(self.planned == self.asked && self.asked == outcome.confidences.len());
        self.controller.observe(outcome);
    }

    fn state(&self) -> Value {
        self.controller.state()
    }
}

fn exact(draft: f64) -> Costs {
    Costs::exact(draft, Rows::Even(0.02))
}

/// Speed-up over plain decoding, and the share of rounds in which both had the same length.
fn play(spec: &str, by: By, stream: &Stream, costs: Costs) -> (f64, f64) {
    let mut both = Both::new(spec, by);
    let speedup = replay_with(&mut both, stream, costs, 1).speedup();
    (speedup, both.equal as f64 / both.rounds as f64)
}

#[test]
fn rules_that_can_be_told_ahead_are() {
    for kind in [Kind::Iid(0.8), Kind::Informative, Kind::Bursts] {
        let stream = kind.stream(3);
        for spec in ["off", "fixed:4", "fixed:99", "threshold:0.6", "threshold:0", "beta-ts", "beta-ts:prior=0.5"] {
            for by in [By::Asking, By::Planning] {
                assert_eq!(play(spec, by, &stream, exact(0.1)).1, 1.0, "{spec} {by:?} {}", kind.name());
            }
        }
    }
}

#[test]
fn calibration_ts_wants_to_be_asked() {
    let step = Step { slot: 0, batch: 1, confidences: &[], limit: 4 };
    let draws = |drafts| Philox::new(0, drafts, Purpose::Controller, 0);
    let mut controller = "calibration-ts".parse::<ControllerSpec>().unwrap().build();
    assert_eq!(controller.plan(&step, &draws), None);
}

#[test]
fn no_plan_goes_beyond_its_limit() {
    let draws = |drafts| Philox::new(5, drafts, Purpose::Controller, 0);
    for spec in ["off", "fixed:9", "threshold:0.5", "beta-ts", "goodput-ts"] {
        for limit in 0..4 {
            let mut controller = spec.parse::<ControllerSpec>().unwrap().build();
            let step = Step { slot: 2, batch: 1, confidences: &[], limit };
            let plan = controller.plan(&step, &draws).unwrap();
            assert!(plan.limit <= limit, "{spec}: {plan:?}");
            assert!(plan.rules.is_empty() || plan.rules.len() >= (plan.limit - 1) * plan.bins(), "{spec}: {plan:?}");
        }
    }
}

/// `goodput-ts` tells ahead but for the level's path: mostly the same length, and on the whole as good a one.
#[test]
fn goodput_ts_planned_is_worth_goodput_ts_asked() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/traces/pycode-4m-exit2.jsonl");
    let trace = ("trace".into(), shuffled(&recorded(&path).unwrap(), 7));
    let kinds = [Kind::Iid(0.5), Kind::Iid(0.95), Kind::Bursts, Kind::Informative, Kind::DriftInformative];
    let made_up = kinds.map(|kind| (kind.name(), kind.stream(7)));
    for (name, stream) in made_up.into_iter().chain([trace]) {
        for draft in [0.05, 0.2] {
            let (asked, equal) = play("goodput-ts", By::Asking, &stream, exact(draft));
            let (planned, _) = play("goodput-ts", By::Planning, &stream, exact(draft));
            // Seen: 87.4 % on the trace at 0.05, where drafts are longest; 93.6 to 99.9 % elsewhere.
            assert!(equal > 0.85, "{name}, r = {draft}: {equal} of rounds had the same length");
            // Seen: 0.3 % at most, either way.
            let gain = planned / asked - 1.0;
            assert!(gain.abs() < 0.008, "{name}, r = {draft}: {asked} asked, {planned} planned");
        }
    }
}
