//! Rounds whose first draft costs much and whose later ones cost little, because the exit block is recurrent.

use eesd::control::{Controller, ControllerSpec, DraftStep, Outcome, RoundTimes, Step, Way};
use eesd::sample::{Philox, Purpose};

const MOST_DRAFTS: usize = 8;
const ROUNDS: usize = 1500;

/// What passes take, in plain rounds of one sequence.
#[derive(Debug, Clone, Copy)]
struct Machine {
    /// How a round's first draft is made.
    first: Way,
    first_draft: f64,
    later_draft: f64,
    row: f64,
    /// Of the first layers, for a row that was drafted from without them.
    fresh: f64,
}

impl Machine {
    fn step(&self, drafted: usize, sequences: usize) -> DraftStep {
        let (way, seconds) =
            if drafted == 0 { (self.first, self.first_draft) } else { (Way::Recurrent, self.later_draft) };
        DraftStep { way, sequences, seconds: seconds * (1.0 + 0.05 * sequences as f64) }
    }

    /// Rows that come without hidden states, after so many drafts of a sequence, beside its last.
    fn recurrent(&self, drafts: usize) -> usize {
        if self.first.is_recurrent() { drafts } else { drafts.saturating_sub(1) }
    }

    fn verify(&self, rows: usize, recurrent: usize) -> f64 {
        1.0 + self.row * (rows - 1) as f64 + self.fresh * recurrent as f64
    }
}

/// Rounds that are played to be timed, as an engine has them before its first one.
fn profile(controller: &mut dyn Controller, machine: Machine, most: usize) {
    for (batch, drafts) in [1, 2, 4].into_iter().flat_map(|batch| [0, 1, 2, 4, 8].map(|drafts| (batch, drafts))) {
        let steps: Vec<DraftStep> = (0..drafts).map(|drafted| machine.step(drafted, batch)).collect();
        let (rows, recurrent) = (batch * (drafts + 1), batch * machine.recurrent(drafts));
        let (proposed, draft_steps, verify_seconds) = (0, &steps[..], machine.verify(rows, recurrent));
        if batch <= most {
            controller.observe_times(&RoundTimes { batch, proposed, recurrent, draft_steps, rows, verify_seconds });
        }
    }
}

/// Tokens in the time of a plain round, of `batch` sequences whose drafts are each accepted with chance `alpha`.
fn speed(controller: &mut dyn Controller, machine: Machine, alpha: f64, batch: usize) -> f64 {
    let (mut tokens, mut time) = (0, 0.0);
    if batch > 1 {
        profile(controller, machine, batch);
    }
    (0..batch).for_each(|slot| controller.start(slot));
    for round in 0..ROUNDS {
        let mut confidences = vec![Vec::new(); batch];
        let (mut drafting, mut steps): (Vec<usize>, Vec<DraftStep>) = ((0..batch).collect(), Vec::new());
        while steps.len() < MOST_DRAFTS {
            let step = |&slot: &usize| Step { slot, batch, confidences: &confidences[slot], limit: MOST_DRAFTS };
            let asked: Vec<Step<'_>> = drafting.iter().map(step).collect();
            let draw = |&slot: &usize| Philox::new(1, round, Purpose::Controller, (100 * slot + steps.len()) as u32);
            let mut draws: Vec<Philox> = drafting.iter().map(draw).collect();
            let rows = confidences.iter().map(|c: &Vec<f32>| c.len() + 1).sum();
            let mut proceed = controller.proceed_together(&asked, rows, &mut draws).into_iter();
            drafting.retain(|_| proceed.next() == Some(true));
            if drafting.is_empty() {
                break;
            }
            drafting.iter().for_each(|&slot| confidences[slot].push(alpha as f32));
            steps.push(machine.step(steps.len(), drafting.len()));
        }
        let rows = confidences.iter().map(|c| c.len() + 1).sum();
        let recurrent = confidences.iter().map(|c| machine.recurrent(c.len())).sum();
        let verify_seconds = machine.verify(rows, recurrent);
        controller.observe_times(&RoundTimes {
            batch,
            proposed: 0,
            recurrent,
            draft_steps: &steps,
            rows,
            verify_seconds,
        });
        time += verify_seconds + steps.iter().map(|step| step.seconds).sum::<f64>();
        for (slot, confidences) in confidences.iter().enumerate() {
            let mut luck = Philox::new(2, round, Purpose::Bonus, slot as u32);
            let accepted = confidences.iter().take_while(|_| luck.uniform() < alpha).count();
            let draft_seconds = &steps[..confidences.len()].iter().map(|step| step.seconds).collect::<Vec<_>>()[..];
            controller.observe(&Outcome { slot, batch, rows, confidences, accepted, draft_seconds, verify_seconds });
            tokens += accepted + 1;
        }
    }
    tokens as f64 / time
}

#[test]
fn goodput_ts_knows_the_first_drafts_cost_from_a_later_ones() {
    let build = |spec: &str| spec.parse::<ControllerSpec>().unwrap().build();
    let machines = [
        Machine { first: Way::FirstLayers, first_draft: 0.4, later_draft: 0.05, row: 0.02, fresh: 0.01 },
        Machine { first: Way::FirstLayers, first_draft: 0.8, later_draft: 0.05, row: 0.05, fresh: 0.05 },
        Machine { first: Way::FirstLayers, first_draft: 0.15, later_draft: 0.1, row: 0.1, fresh: 0.1 },
        Machine { first: Way::Continued, first_draft: 0.09, later_draft: 0.05, row: 0.1, fresh: 0.02 },
    ];
    for (machine, batch) in machines.into_iter().flat_map(|machine| [1, 4].map(|batch| (machine, batch))) {
        for alpha in [0.3, 0.6, 0.85] {
            let fixed = |drafts| speed(&mut *build(&format!("fixed:{drafts}")), machine, alpha, batch);
            let best = (1..=MOST_DRAFTS).map(fixed).chain([speed(&mut *build("off"), machine, alpha, batch)]);
            let best = best.fold(0.0, f64::max);
            let found = speed(&mut *build("goodput-ts"), machine, alpha, batch);
            assert!(found > 0.97 * best, "{machine:?}, {batch} side by side, {alpha}: {found:.3} of {best:.3}");
        }
    }
}
