//! One round: draft, verify, accept, emit.

use super::running::{Broken, Running, take_broken};
use super::{Engine, Event};
use crate::backend::{BackendError, Sequence};
use crate::constrain::Standing;
use crate::control::{DraftPlan, DraftStep, Outcome, RoundTimes, Step, Way};
use crate::profile;
use crate::sample::{Philox, Verdict};
use std::ops::ControlFlow;
use std::time::Duration;

impl Engine {
    /// Plays one round for every running sequence (EESD section 3.1; invariants: at its start and
    /// end, a sequence's last committed token is pending and the cache is complete before it).
    pub(super) fn round(
        &mut self,
        on_event: &mut dyn FnMut(usize, Event) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, BackendError> {
        let mut range = profile::range("round");
        range.note("controller", || self.controller.state());
        range.note("choice", || self.proposing.choice.state());
        let start = self.clock.now();
        self.propose();
        let proposed = self.clock.since(start);
        let draft_steps = self.draft()?;
        let drafting = self.clock.since(start).saturating_sub(proposed);
        let mut verdicts = self.verify()?;
        let took = self.clock.since(start);
        range.note("sequences", || self.describe_round(&verdicts));
        let mut broken = self.cut_at_broken(&mut verdicts);
        let mut flow = ControlFlow::Continue(());
        if !self.running.is_empty() {
            self.accept(&verdicts, &draft_steps, took.saturating_sub(drafting));
            flow = self.emit(&verdicts, took, on_event);
            broken.extend(take_broken(&mut self.running));
        }
        Ok(self.fail(broken, flow, on_event))
    }

    /// Cuts verdicts down to what was certain before the first position that is not finite: where the answer ends there,
    /// plain decoding would not have come any further. Sequences of which nothing is certain leave the round. A refused
    /// draft may have any numbers: they are computed anew.
    fn cut_at_broken(&mut self, verdicts: &mut Vec<Verdict>) -> Vec<Broken> {
        let mut leaving = Vec::new();
        for (sequence, verdict) in self.running.iter_mut().zip(&mut *verdicts) {
            let pending = sequence.committed() - 1;
            let complete = pending..sequence.committed() + verdict.accepted;
            sequence.non_finite = self.backend.first_non_finite(sequence.table.pages(), complete);
            let certain = sequence.non_finite.map(|position| position - pending);
            if let Some(accepted) = certain.and_then(|certain| certain.checked_sub(1)) {
                verdict.next = sequence.tokens[sequence.committed() + accepted];
                verdict.accepted = accepted;
                verdict.logprobs.truncate(accepted + 1);
            }
            leaving.push(certain == Some(0));
        }
        if !leaving.contains(&true) {
            return Vec::new();
        }
        let (mut of_verdicts, mut of_sequences) = (leaving.iter(), leaving.iter());
        verdicts.retain(|_| of_verdicts.next() == Some(&false));
        let leaves = |_: &mut Running| of_sequences.next() == Some(&true);
        self.running.extract_if(.., leaves).filter_map(Running::broken).collect()
    }

    /// Drafts in lock-step until the controller has stopped every sequence; returns the steps.
    fn draft(&mut self) -> Result<Vec<DraftStep>, BackendError> {
        if self.backend.exit_layer().is_none() {
            return Ok(Vec::new());
        }
        if let Some(steps) = self.draft_planned()? {
            return Ok(steps);
        }
        let mut steps = Vec::new();
        let may_draft = |i: &usize| self.running[*i].may_sample() && self.running[*i].can_begin(&*self.backend);
        let mut active: Vec<usize> = (0..self.running.len()).filter(may_draft).collect();
        loop {
            active = self.who_drafts(active);
            if active.is_empty() {
                return Ok(steps);
            }
            let mut range = profile::range("draft step");
            range.note("sequences", || active.len().into());
            let step = self.clock.now();
            let batch: Vec<Sequence<'_>> = active.iter().map(|&i| self.running[i].as_sequence()).collect();
            // All of them have made a draft in every step so far.
            let way = self.backend.way_of_next(steps.len(), true);
            let drafts = self.backend.draft_by(way, &batch)?;
            let seconds = self.clock.since(step).as_secs_f64();
            steps.push(DraftStep { way, sequences: active.len(), seconds });
            for (&i, draft) in active.iter().zip(drafts) {
                self.running[i].push_draft(draft, way, seconds);
            }
        }
    }

    /// Drafts the whole round by a plan, where a sequence runs alone, its controller can plan, and the
    /// backend is the faster for it; else returns nothing, and drafts nothing.
    fn draft_planned(&mut self) -> Result<Option<Vec<DraftStep>>, BackendError> {
        let limits = self.backend.limits();
        let [sequence] = &mut self.running[..] else { return Ok(None) };
        let limit = sequence.drafts_with_room(&limits);
        let may_draft = limit > 0 && sequence.may_sample() && sequence.can_begin(&*self.backend);
        if !self.backend.follows_plans() || !may_draft {
            return Ok(None);
        }
        let step = Step { slot: sequence.slot, batch: 1, confidences: &[], limit };
        let draws = |drafts| sequence.draws(sequence.committed() + drafts);
        let Some(plan) = self.controller.plan(&step, &draws) else { return Ok(None) };
        if plan.limit == 0 {
            return Ok(Some(Vec::new()));
        }
        let mut plan = DraftPlan { later: self.backend.way_of_next(1, true), ..plan };
        let _range = profile::range("draft loop");
        let mut steps = Vec::new();
        if plan.later == Way::Recurrent {
            // Its first draft costs another time, and is measured apart.
            let start = self.clock.now();
            let way = self.backend.way_of_next(0, true);
            let first = self.backend.draft_by(way, &[sequence.as_sequence()])?;
            let step = DraftStep { way, sequences: 1, seconds: self.clock.since(start).as_secs_f64() };
            first.iter().for_each(|&draft| sequence.push_draft(draft, step.way, step.seconds));
            steps.push(step);
            let rest = first.first().and_then(|draft| plan.rest(draft.confidence));
            let Some(rest) = rest.filter(|_| !sequence.drafted_an_end()) else { return Ok(Some(steps)) };
            plan = rest;
        }
        let way = plan.way(sequence.drafted());
        let start = self.clock.now();
        let drafts = self.backend.draft_planned(&sequence.as_sequence(), &plan, sequence.output.end_tokens())?;
        // Nobody sees where one draft ends and the next begins, and each costs the same but for its longer context.
        let seconds = self.clock.since(start).as_secs_f64() / drafts.len().max(1) as f64;
        for draft in drafts {
            steps.push(DraftStep { way, sequences: 1, seconds });
            sequence.push_draft(draft, way, seconds);
        }
        Ok(Some(steps))
    }

    /// Those of the `active` sequences that draft one more token in this round.
    fn who_drafts(&mut self, mut active: Vec<usize>) -> Vec<usize> {
        let limits = self.backend.limits();
        active.retain(|&i| {
            let sequence = &self.running[i];
            sequence.drafted() < sequence.drafts_with_room(&limits) && !sequence.drafted_an_end()
        });
        if active.is_empty() {
            return active;
        }
        let batch = self.running.len();
        let step = |&i: &usize| {
            let Running { slot, confidences, .. } = &self.running[i];
            Step { slot: *slot, batch, confidences, limit: self.running[i].drafts_with_room(&limits) }
        };
        let steps: Vec<Step<'_>> = active.iter().map(step).collect();
        let mut draws: Vec<Philox> =
            active.iter().map(|&i| self.running[i].draws(self.running[i].position())).collect();
        let rows = self.running.iter().map(|sequence| sequence.drafted() + 1).sum();
        let mut goes_on = self.controller.proceed_together(&steps, rows, &mut draws).into_iter();
        active.retain(|_| goes_on.next().unwrap_or(false));
        active
    }

    /// Checks all drafts in one pass.
    fn verify(&mut self) -> Result<Vec<Verdict>, BackendError> {
        let mut range = profile::range("verify");
        let batch: Vec<Sequence<'_>> = self.running.iter().map(Running::as_sequence).collect();
        range.note("rows", || batch.iter().map(|sequence| sequence.drafted() + 1).sum::<usize>().into());
        self.backend.verify(&batch)
    }

    /// Tells the controller how the drafts fared, and commits what was accepted.
    fn accept(&mut self, verdicts: &[Verdict], draft_steps: &[DraftStep], verifying: Duration) {
        let _range = profile::range("accept");
        let batch = self.running.len();
        let rows = self.running.iter().map(|s| s.drafted() + 1).sum();
        self.totals.rounds += 1;
        self.totals.sequences += batch;
        self.totals.rows += rows;
        self.totals.draft_steps += draft_steps.len();
        let verify_seconds = verifying.as_secs_f64();
        let proposed = self.running.iter().map(Running::proposed).sum();
        let recurrent = self.running.iter().map(|sequence| sequence.as_sequence().recurrent).sum();
        let times = RoundTimes { batch, proposed, recurrent, draft_steps, rows, verify_seconds };
        self.controller.observe_times(&times);
        let reuse = self.reuses_prefixes();
        for (sequence, verdict) in self.running.iter_mut().zip(verdicts) {
            // Whose round was proposed tells nothing of how the exit block does.
            if sequence.may_sample() {
                self.controller.observe(&Outcome {
                    slot: sequence.slot,
                    batch,
                    rows,
                    confidences: &sequence.confidences,
                    accepted: verdict.accepted,
                    draft_seconds: &sequence.draft_seconds,
                    verify_seconds,
                });
            }
            sequence.commit(verdict);
            if reuse {
                sequence.kept = self.pages.keep(&mut sequence.table, &sequence.tokens, sequence.kept);
            }
        }
        self.judge_proposals(&times, verdicts);
    }

    /// A verified round in a trace: what each sequence drafted, how sure it was, and what was accepted.
    fn describe_round(&self, verdicts: &[Verdict]) -> serde_json::Value {
        let sequence = |(sequence, verdict): (&Running, &Verdict)| {
            serde_json::json!({
                "id": sequence.id,
                "position": sequence.committed(),
                "drafted": sequence.drafted(),
                "source": (sequence.drafted() > 0).then(|| sequence.drafter().name()),
                "confidences": sequence.confidences,
                "accepted": verdict.accepted,
            })
        };
        self.running.iter().zip(verdicts).map(sequence).collect()
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
                let drafted = sequence.author(emitted, verdict.accepted);
                let logprobs = verdict.logprobs.get(emitted).cloned();
                let standing = sequence.judge(sequence.committed() - tokens.len() + emitted + 1);
                if let Standing::Broken(_) = standing {
                    break;
                }
                let complete = standing == Standing::Complete;
                let emission = sequence.output.push(tokens[emitted], complete, drafted, logprobs);
                emitted += 1;
                sequence.take_times();
                flow = on_event(sequence.id, Event::Token(emission));
            }
            sequence.drop_last(tokens.len() - emitted);
            let tested = (sequence.confidences.len() + sequence.proposed()).min(emitted);
            let accepted = verdict.accepted.min(emitted);
            if let Some((source, counts)) = sequence.count_round(tested, accepted, emitted, round) {
                self.totals.by_source[source as usize].add(counts);
            }
            self.totals.generated += emitted;
            self.totals.drafted += tested;
            self.totals.accepted += accepted;
        }
        flow
    }
}
