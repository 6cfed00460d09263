//! Drafting: one draft for each sequence of a batch, or all drafts of one sequence's round in a loop on the device.
//!
//! A loop is one graph: a copy of the first pass's inputs and the plan, the draft pass and `next_draft` over and over,
//! and a copy of what was drafted. All its drafts are made one way. Batches are drafted step by step: their sequences would need passes of their own
//! shapes as soon as one of them stops.

use super::CudaBackend;
use super::driver::Driver;
use super::inbox::{Kind, MOST_BINS};
use super::kernels::{Address, DraftLoop, DraftRule, RowChoice};
use super::pass::Pass;
use super::rounds::judged;
use super::views::Views;
use crate::TokenId;
use crate::backend::{BackendError, Draft, Sequence};
use crate::control::{DraftPlan, Way};
use crate::sample::History;

impl<D: Driver> CudaBackend<D> {
    /// One draft for each sequence, all of them made one way.
    pub(super) fn draft_each(&mut self, way: Way, batch: &[Sequence<'_>]) -> Result<Vec<Draft>, BackendError> {
        let max_draft = self.limits.max_draft;
        let kind = match way {
            Way::FirstLayers => Kind::Draft,
            Way::Continued => Kind::Continued,
            Way::Recurrent => Kind::Recurrent,
        };
        let rows_before: Vec<usize> = match way {
            Way::Continued => {
                let row = |sequence: &Sequence<'_>| self.slots[sequence.slot].kept.row_before(sequence);
                batch.iter().map(row).collect::<Result<_, _>>()?
            }
            Way::FirstLayers | Way::Recurrent => Vec::new(),
        };
        self.forget_fresh(batch);
        self.count(batch)?;
        let views = Views::new(kind, batch);
        let shape = self.shape(kind, batch, &views, batch.len(), 0);
        let row_of_draft = |sequence: &Sequence<'_>| row_of_draft(sequence, max_draft);
        let judged: Vec<_> = batch
            .iter()
            .enumerate()
            .map(|(index, sequence)| judged(index, sequence, sequence.drafted(), row_of_draft(sequence)))
            .collect();
        let kept = batch.iter().zip(rows_before).map(|(sequence, row)| (sequence.slot * self.rows.round + row) as u32);
        let kept: Vec<u32> = kept.collect();
        let inbox = self.tell(&shape, batch, &views, |layout, inbox| {
            layout.judged.put(inbox, judged);
            layout.gather.put(inbox, kept);
        })?;
        let bytes = self.limits.slots * max_draft * size_of::<RowChoice>();
        // SAFETY: the inbox holds a pass of this shape within the limits.
        unsafe { self.round(shape, &inbox, self.model.work.draft_choices, bytes) }?;
        let choices: &[RowChoice] = bytemuck::cast_slice(&self.host.outbox.contents()[..bytes]);
        let drafts: Vec<_> = batch.iter().map(|sequence| choices[row_of_draft(sequence)]).collect();
        for (sequence, choice) in batch.iter().zip(&drafts) {
            self.slots[sequence.slot].draft(sequence, way, [choice.token]);
        }
        Ok(drafts.iter().map(draft).collect())
    }

    /// A round's drafts as the plan has them, `plan.limit` of at least 1 within the limits, in one launch and with one
    /// wait. `None` if that cannot be done: the device has no loops, or none for so large a plan, the drafts are made in
    /// different ways, or other biases may hold from some draft on, of which a loop knows nothing.
    pub(super) fn draft_in_a_loop(
        &mut self,
        sequence: &Sequence<'_>,
        plan: &DraftPlan,
        ends: &[TokenId],
    ) -> Result<Option<Vec<Draft>>, BackendError> {
        let mixed = plan.limit > 1 && plan.way(sequence.drafted()) != plan.later;
        if !self.loops || mixed || plan.bins() > MOST_BINS || ends.len() > DraftLoop::LANES {
            return Ok(None);
        }
        let history = History { tokens: sequence.tokens, prompt: sequence.prompt };
        if !sequence.sampler.biases_stay(history, plan.limit - 1) {
            return Ok(None);
        }
        let (batch, max_draft) = (&[*sequence], self.limits.max_draft);
        let from = sequence.tokens.len() - 1;
        self.non_finite.forget(sequence.pages, from..from + plan.limit);
        self.count(batch)?;
        let way = plan.way(sequence.drafted());
        let kind = match way {
            Way::FirstLayers => Kind::DraftLoop,
            Way::Continued | Way::Recurrent => Kind::RecurrentLoop,
        };
        let views = Views::new(kind, batch);
        let shape = self.shape(kind, batch, &views, 1, plan.limit - 1);
        let first = row_of_draft(sequence, max_draft);
        let rule = |rule: &crate::control::Rule| DraftRule { kept: rule.kept, worth: rule.worth };
        let state = DraftLoop {
            survival: 1.0,
            limit: plan.limit as u32,
            drafted: 0,
            edges: plan.edges.len() as u32,
            has_rules: (!plan.rules.is_empty()).into(),
            ends: ends.len() as u32,
            go_on: 0,
        };
        let inbox = self.tell(&shape, batch, &views, |layout, inbox| {
            layout.judged.put(inbox, [judged(0, sequence, sequence.drafted(), first)]);
            layout.draft_loop.put(inbox, [state]);
            layout.edges.put(inbox, plan.edges.iter().copied());
            layout.rules.put(inbox, plan.rules.iter().take((plan.limit - 1) * plan.bins()).map(rule));
            layout.ends.put(inbox, ends.iter().copied());
        })?;
        self.forget_logits();
        let Self { driver, model, host, graphs, .. } = self;
        let pass = Pass { on: &**driver, model, inbox: &inbox, shape };
        let choices = self.limits.slots * max_draft * size_of::<RowChoice>();
        let all = || {
            // SAFETY: all sides have room, the outbox for the choices and the state behind them; inbox and outbox are
            // left alone until the loop is waited for; the inbox holds a pass of this shape, and the plan's limit
            // keeps all passes that follow within the limits.
            unsafe {
                driver.copy_to_device(inbox.at, host.inbox.at(), inbox.layout.bytes)?;
                pass.draft_loop()?;
                driver.copy_to_host(host.outbox.at(), model.work.draft_choices, choices)?;
                let state: Address = inbox.of(&inbox.layout.draft_loop);
                driver.copy_to_host(host.outbox.at().add(choices), state, size_of::<DraftLoop>())
            }
        };
        // Twice: what a driver refused the first time may have been kernels that overlap in a loop. One that refuses
        // this loop refuses all: from here on drafts are made step by step, and whatever else is wrong is told there.
        let mut recorded = || graphs.record(driver, shape, &all).unwrap_or(false);
        if !recorded() && !recorded() {
            self.loops = false;
            return Ok(None);
        }
        // SAFETY: the same addresses serve every loop of a shape.
        let queued = unsafe { graphs.replay(driver, shape) };
        // Even after a failure: what is queued reads the inbox.
        driver.wait().and(queued)?;
        let (choices, state) = host.outbox.contents()[..choices + size_of::<DraftLoop>()].split_at(choices);
        let state: DraftLoop = bytemuck::pod_read_unaligned(state);
        let drafted = state.drafted as usize;
        if drafted == 0 || drafted > plan.limit {
            return Err(BackendError::Device(format!("{drafted} drafts (expected 1 to {})", plan.limit)));
        }
        let choices = &bytemuck::cast_slice::<u8, RowChoice>(choices)[first..][..drafted];
        self.slots[sequence.slot].draft(sequence, way, choices.iter().map(|choice| choice.token));
        Ok(Some(choices.iter().map(draft).collect()))
    }
}

/// Where the outcome of a sequence's next draft goes.
fn row_of_draft(sequence: &Sequence<'_>, max_draft: usize) -> usize {
    sequence.slot * max_draft + sequence.drafted()
}

fn draft(choice: &RowChoice) -> Draft {
    Draft { token: choice.token, confidence: choice.confidence }
}
