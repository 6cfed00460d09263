//! How far to draft.
//!
//! A [`Controller`] is asked before every draft token whether to go on, sees the confidences of the
//! drafts so far and nothing of the token it decides about, and learns after the round how many were
//! accepted. That keeps sampling exact whatever it answers: a drafted token is always verified. Where it
//! can, it answers for a whole round beforehand, by a [`DraftPlan`] that a device follows alone.
//!
//! ```
//! use eesd::control::{ControllerSpec, Step};
//! use eesd::sample::{Philox, Purpose};
//!
//! # fn main() -> Result<(), eesd::control::ControllerError> {
//! let mut controller = "threshold:0.6".parse::<ControllerSpec>()?.build();
//! let mut goes_on = |confidences: &[f32]| {
//!     let step = Step { slot: 0, batch: 1, confidences, limit: 8 };
//!     controller.proceed(&step, &mut Philox::new(1, 0, Purpose::Controller, 0))
//! };
//! assert!(goes_on(&[0.9]));
//! assert!(!goes_on(&[0.9, 0.4]));
//! # Ok(())
//! # }
//! ```

mod aftermath;
mod beta_ts;
mod calibration;
mod calibration_ts;
mod costs;
mod curve;
mod fixed;
mod goodput_ts;
mod ledger;
mod plan;
mod posterior;
mod recent;
mod sources;
mod spec;
mod step_times;
mod threshold;

pub use beta_ts::BetaTs;
pub use calibration_ts::CalibrationTs;
pub use fixed::{Fixed, Off};
pub use goodput_ts::GoodputTs;
pub use plan::{DraftPlan, Following, Rule, Way};
pub use sources::{Asked, Choice, Judged, Offer, SourceTs, Told};
pub use spec::{ControllerError, ControllerSpec};
pub use threshold::Threshold;

use crate::sample::Philox;

/// What a controller sees when it decides about one more draft token.
#[derive(Debug, Clone, Copy)]
pub struct Step<'a> {
    /// The sequence's slot, `0..` (see [`Controller::start`]).
    pub slot: usize,
    /// Sequences in this round's passes.
    pub batch: usize,
    /// Confidences `c_1..c_j` of the drafts made so far in this round; empty at its start.
    pub confidences: &'a [f32],
    /// Most drafts this round may make (context, token budget, `--draft-max`).
    pub limit: usize,
}

/// How one sequence's round went.
#[derive(Debug, Clone, Copy)]
pub struct Outcome<'a> {
    /// The sequence's slot.
    pub slot: usize,
    /// Sequences in this round's passes.
    pub batch: usize,
    /// Rows of the verification pass, over all its sequences.
    pub rows: usize,
    /// Confidences of the `k` drafts.
    pub confidences: &'a [f32],
    /// Drafts accepted; right-censored at `k`: position `accepted + 1` failed only if `accepted < k`.
    pub accepted: usize,
    /// Seconds of each of the round's draft steps, in which this sequence took part; equal shares of all of them
    /// where they were made by a plan.
    pub draft_seconds: &'a [f64],
    /// Seconds of everything else in the round: verification, acceptance, bookkeeping.
    pub verify_seconds: f64,
}

/// A draft step, as it was measured.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DraftStep {
    /// How its drafts were made.
    pub way: Way,
    /// Sequences in it.
    pub sequences: usize,
    /// What it took; an equal share of all steps of its round where they were made by a plan.
    pub seconds: f64,
}

impl DraftStep {
    /// One through the first layers.
    pub fn through_layers(sequences: usize, seconds: f64) -> Self {
        Self { way: Way::FirstLayers, sequences, seconds }
    }
}

/// What the passes of one round took, over all its sequences.
#[derive(Debug, Clone, Copy)]
pub struct RoundTimes<'a> {
    /// Sequences in the round.
    pub batch: usize,
    /// Tokens that were proposed, over all sequences.
    pub proposed: usize,
    /// Drafts that were made [recurrently](Way::is_recurrent) and left the rows that they began from without hidden states,
    /// over all sequences.
    pub recurrent: usize,
    /// Each draft step.
    pub draft_steps: &'a [DraftStep],
    /// Rows of the verification pass, over all sequences.
    pub rows: usize,
    /// Seconds of everything but the draft steps.
    pub verify_seconds: f64,
}

impl RoundTimes<'_> {
    /// Rows of the verification pass that came without hidden states: one for each sequence, and for each token that was
    /// proposed or drafted recurrently.
    pub fn fresh(&self) -> usize {
        self.undrafted() + self.recurrent
    }

    /// Rows that the pass would have had without any draft of the exit block.
    pub fn undrafted(&self) -> usize {
        self.batch + self.proposed
    }
}

impl Outcome<'_> {
    /// Drafts that verification told something about: how many were accepted, and whether (1 or 0) one
    /// was refused after them. Later drafts were not observed.
    pub fn tested(&self) -> (usize, usize) {
        let accepted = self.accepted.min(self.confidences.len());
        (accepted, usize::from(accepted < self.confidences.len()))
    }
}

/// Decides how long each draft is. One controller serves all sequences of an engine.
pub trait Controller: Send {
    /// The name and argument that `--controller` would take to make this one again.
    fn spec(&self) -> String;

    /// A new sequence takes `slot`: what was learned about the old one is forgotten.
    fn start(&mut self, slot: usize);

    /// Never drafts: whoever else may, does.
    fn is_off(&self) -> bool {
        false
    }

    /// Draft one more token? Never asked beyond `step.limit`. `rng` is fresh for every decision.
    fn proceed(&mut self, step: &Step<'_>, rng: &mut Philox) -> bool;

    /// One more draft token for each of several sequences, which draft in lock-step? Of a round of several sequences all
    /// that may go on are asked about at once; those that do not are not asked about again in this round. Answers
    /// `steps` in order. `rows` are those that the verification pass has if none goes on; `draws` has a random stream
    /// for each of the steps, as [`proceed`](Self::proceed) gets one.
    fn proceed_together(&mut self, steps: &[Step<'_>], rows: usize, draws: &mut [Philox]) -> Vec<bool> {
        let _ = rows;
        steps.iter().zip(draws).map(|(step, rng)| self.proceed(step, rng)).collect()
    }

    /// Learns what time is worth where others draft too: the tokens that a sequence made lately in a plain round's time. A
    /// draft that earns less is not worth its time, whatever it earns over plain decoding.
    fn observe_pace(&mut self, _tokens: f64) {}

    /// Whether [`observe_times`](Self::observe_times) should be told, before the first round, of rounds that were played
    /// for nothing but to time them.
    fn wants_step_times(&self) -> bool {
        false
    }

    /// Learns what a round's passes took; comes before the round's [`observe`](Self::observe)s, and for rounds that were
    /// played to be timed, alone.
    fn observe_times(&mut self, _times: &RoundTimes<'_>) {}

    /// The whole round at once, if this controller can tell ahead, in place of asking it after every draft:
    /// `step` is the round's first, and `draws(j)` is the random stream of the decision after `j` drafts.
    /// `None`: it wants to be asked.
    fn plan(&mut self, _step: &Step<'_>, _draws: &dyn Fn(usize) -> Philox) -> Option<DraftPlan> {
        None
    }

    /// Learns from a finished round, `k = 0` rounds included.
    fn observe(&mut self, outcome: &Outcome<'_>);

    /// What it believes now, for people: posteriors, costs, rates.
    fn state(&self) -> serde_json::Value;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tested_is_censored_at_the_draft_length() {
        let tested = |drafts: usize, accepted| {
            let confidences = &vec![0.5; drafts];
            let (draft_seconds, verify_seconds) = (&[][..], 1.0);
            Outcome { slot: 0, batch: 1, rows: drafts + 1, confidences, accepted, draft_seconds, verify_seconds }
                .tested()
        };
        assert_eq!(tested(0, 0), (0, 0));
        assert_eq!(tested(4, 0), (0, 1));
        assert_eq!(tested(4, 3), (3, 1));
        assert_eq!(tested(4, 4), (4, 0));
        assert_eq!(tested(4, 9), (4, 0));
    }
}
