//! Controllers that go by how long steps take, told of simulated times: what they do is the same on every machine.

use eesd::control::{Controller, ControllerSpec, DraftPlan, DraftStep, Outcome, RoundTimes, Step};
use eesd::sample::Philox;

/// The controller of a specification, on a machine of simulated speed.
pub fn controller(spec: &str) -> Box<dyn Controller> {
    let mut inner = spec.parse::<ControllerSpec>().unwrap().build();
    if inner.wants_step_times() {
        for (batch, drafts) in [1, 2, 4, 8].into_iter().flat_map(|batch| [0, 1, 2, 4, 8].map(|drafts| (batch, drafts)))
        {
            tell(&mut *inner, batch, &vec![batch; drafts], batch * (drafts + 1));
        }
    }
    Box::new(Simulated(inner))
}

struct Simulated(Box<dyn Controller>);

/// Seconds of a draft step of so many sequences.
fn draft_step(sequences: usize) -> f64 {
    1e-4 * (1.0 + 0.1 * sequences as f64)
}

/// Seconds of everything else in a round, with so many rows to verify.
fn rest(rows: usize) -> f64 {
    1e-3 * (1.0 + 0.02 * rows as f64)
}

fn tell(controller: &mut dyn Controller, batch: usize, steps: &[usize], rows: usize) {
    let step = |&sequences: &usize| DraftStep::through_layers(sequences, draft_step(sequences));
    let draft_steps: Vec<DraftStep> = steps.iter().map(step).collect();
    controller.observe_times(&RoundTimes {
        batch,
        proposed: 0,
        recurrent: 0,
        draft_steps: &draft_steps,
        rows,
        verify_seconds: rest(rows),
    });
}

impl Controller for Simulated {
    fn spec(&self) -> String {
        self.0.spec()
    }

    fn start(&mut self, slot: usize) {
        self.0.start(slot);
    }

    fn proceed(&mut self, step: &Step<'_>, rng: &mut Philox) -> bool {
        self.0.proceed(step, rng)
    }

    fn proceed_together(&mut self, steps: &[Step<'_>], rows: usize, draws: &mut [Philox]) -> Vec<bool> {
        self.0.proceed_together(steps, rows, draws)
    }

    fn observe_times(&mut self, times: &RoundTimes<'_>) {
        let steps: Vec<usize> = times.draft_steps.iter().map(|step| step.sequences).collect();
        tell(&mut *self.0, times.batch, &steps, times.rows);
    }

    fn plan(&mut self, step: &Step<'_>, draws: &dyn Fn(usize) -> Philox) -> Option<DraftPlan> {
        self.0.plan(step, draws)
    }

    fn observe(&mut self, outcome: &Outcome<'_>) {
        let draft_seconds = vec![draft_step(outcome.batch); outcome.draft_seconds.len()];
        let verify_seconds = rest(outcome.rows);
        self.0.observe(&Outcome { draft_seconds: &draft_seconds, verify_seconds, ..*outcome });
    }

    fn state(&self) -> serde_json::Value {
        self.0.state()
    }
}
