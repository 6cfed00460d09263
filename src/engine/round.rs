//! One round: draft, verify, accept, emit.

use super::running::Running;
use super::{Engine, Event};
use crate::backend::{BackendError, Sequence};
use crate::control::{Outcome, Step};
use crate::profile;
use crate::sample::Verdict;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

impl Engine {
    /// Plays one round for every running sequence (EESD section 3.1; invariants: at its start and
    /// end, a sequence's last committed token is pending and the cache is complete before it).
    pub(super) fn round(
        &mut self,
        on_event: &mut dyn FnMut(usize, Event) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, BackendError> {
        let _range = profile::range("round");
        let start = Instant::now();
        let drafting = self.draft()?;
        let verdicts = self.verify()?;
        let took = start.elapsed();
        self.accept(&verdicts, took.saturating_sub(drafting));
        Ok(self.emit(&verdicts, took, on_event))
    }

    /// Drafts in lock-step until the controller has stopped every sequence; returns the time it took.
    fn draft(&mut self) -> Result<Duration, BackendError> {
        let start = Instant::now();
        if self.backend.exit_layer().is_none() {
            return Ok(Duration::ZERO);
        }
        if self.draft_planned()? {
            return Ok(start.elapsed());
        }
        let mut active: Vec<usize> = (0..self.running.len()).collect();
        loop {
            active.retain(|&i| self.wants_draft(i));
            if active.is_empty() {
                return Ok(start.elapsed());
            }
            let _range = profile::range("draft step");
            let step = Instant::now();
            let batch: Vec<Sequence<'_>> = active.iter().map(|&i| self.running[i].as_sequence()).collect();
            let drafts = self.backend.draft(&batch)?;
            let seconds = step.elapsed().as_secs_f64();
            for (&i, draft) in active.iter().zip(drafts) {
                self.running[i].push_draft(draft, seconds);
            }
        }
    }

    /// Drafts the whole round by a plan, where a sequence runs alone, its controller can plan, and the
    /// backend is the faster for it; else returns false, and drafts nothing.
    fn draft_planned(&mut self) -> Result<bool, BackendError> {
        let limits = self.backend.limits();
        let [sequence] = &mut self.running[..] else { return Ok(false) };
        let limit = sequence.most_drafts(&limits);
        if !self.backend.follows_plans() || !sequence.speculate || limit == 0 {
            return Ok(false);
        }
        let step = Step { slot: sequence.slot, batch: 1, confidences: &[], limit };
        let draws = |drafts| sequence.draws(sequence.committed() + drafts);
        let Some(plan) = self.controller.plan(&step, &draws) else { return Ok(false) };
        if plan.limit == 0 {
            return Ok(true);
        }
        let _range = profile::range("draft loop");
        let start = Instant::now();
        let drafts = self.backend.draft_planned(&sequence.as_sequence(), &plan, sequence.output.end_tokens())?;
        // Nobody sees where one draft ends and the next begins, and each costs the same but for its longer context.
        let seconds = start.elapsed().as_secs_f64() / drafts.len().max(1) as f64;
        drafts.into_iter().for_each(|draft| sequence.push_draft(draft, seconds));
        Ok(true)
    }

    /// Whether sequence `i` drafts one more token in this round.
    fn wants_draft(&mut self, i: usize) -> bool {
        let batch = self.running.len();
        let sequence = &self.running[i];
        let limit = sequence.most_drafts(&self.backend.limits());
        if !sequence.speculate || sequence.drafted() >= limit || sequence.drafted_an_end() {
            return false;
        }
        let step = Step { slot: sequence.slot, batch, confidences: &sequence.confidences, limit };
        self.controller.proceed(&step, &mut sequence.draws(sequence.position()))
    }

    /// Checks all drafts in one pass.
    fn verify(&mut self) -> Result<Vec<Verdict>, BackendError> {
        let _range = profile::range("verify");
        let batch: Vec<Sequence<'_>> = self.running.iter().map(Running::as_sequence).collect();
        self.backend.verify(&batch)
    }

    /// Tells the controller how the drafts fared, and commits what was accepted.
    fn accept(&mut self, verdicts: &[Verdict], verifying: Duration) {
        let _range = profile::range("accept");
        let batch = self.running.len();
        let rows = self.running.iter().map(|s| s.drafted() + 1).sum();
        for (sequence, verdict) in self.running.iter_mut().zip(verdicts) {
            if sequence.speculate {
                self.controller.observe(&Outcome {
                    slot: sequence.slot,
                    batch,
                    rows,
                    confidences: &sequence.confidences,
                    accepted: verdict.accepted,
                    draft_seconds: &sequence.draft_seconds,
                    verify_seconds: verifying.as_secs_f64(),
                });
            }
            sequence.commit(verdict);
        }
    }

    /// Hands out the committed tokens up to where each answer ends; nothing after that is emitted,
    /// kept or counted.
    fn emit(
        &mut self,
        verdicts: &[Verdict],
        round: Duration,
        on_event: &mut dyn FnMut(usize, Event) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        let mut flow = ControlFlow::Continue(());
        for (sequence, verdict) in self.running.iter_mut().zip(verdicts) {
            let tokens = sequence.last(verdict.accepted + 1).to_vec();
            let mut emitted = 0;
            while flow.is_continue() && emitted < tokens.len() && sequence.output.finish.is_none() {
                let drafted = emitted < verdict.accepted;
                let logprobs = verdict.logprobs.get(emitted).cloned();
                let emission = sequence.output.push(tokens[emitted], drafted, logprobs);
                emitted += 1;
                sequence.clock();
                flow = on_event(sequence.id, Event::Token(emission));
            }
            sequence.drop_last(tokens.len() - emitted);
            let tested = sequence.confidences.len().min(emitted);
            sequence.count_round(tested, verdict.accepted.min(emitted), emitted, round);
        }
        flow
    }
}
