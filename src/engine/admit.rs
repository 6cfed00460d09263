//! From a submitted request to a sequence with a slot and pages.

use super::output::Output;
use super::running::Running;
use super::{Completion, Engine, EngineError, Event, Finish, Request, Stats};
use crate::backend::BackendError;
use crate::kv::{BlockTable, PAGE_TOKENS};
use crate::sample::{Rule, Sampler};
use std::ops::ControlFlow;
use std::time::Duration;

/// A request in the queue.
pub(super) struct Waiting {
    /// The caller's name for it.
    pub id: usize,
    /// Its number among all submitted.
    arrival: u64,
    request: Request,
    /// When, by the engine's clock.
    submitted: Duration,
}

impl Waiting {
    pub fn new(id: usize, arrival: u64, request: Request, now: Duration) -> Self {
        Self { id, arrival, request, submitted: now }
    }

    /// The answer of a request that was cancelled before it had its turn.
    pub fn into_completion(self, now: Duration) -> Completion {
        let queued = now.saturating_sub(self.submitted);
        let stats = Stats { prompt_tokens: self.request.prompt.len(), queued, ..Stats::default() };
        Completion {
            tokens: Vec::new(),
            text: String::new(),
            logprobs: Vec::new(),
            finish: Finish::Cancelled,
            seed: self.request.sampling.seed.filter(|_| self.request.sampling.rule() == Rule::Coupled),
            stats,
        }
    }
}

impl Engine {
    /// Admits requests while there are slots and pages, first come, first served, preempted ones before new ones. A
    /// malformed request fails here, alone.
    pub(super) fn admit(
        &mut self,
        on_event: &mut dyn FnMut(usize, Event) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, BackendError> {
        self.tell_step_times()?;
        while let Some(&slot) = self.free_slots.last() {
            if !self.swapped_out.is_empty() {
                if !self.swap_in(slot)? {
                    break; // a running sequence will give pages back
                }
                continue;
            }
            let Some(waiting) = self.waiting.pop_front() else { break };
            let (sampler, room) = match self.prepared(waiting.arrival, &waiting.request) {
                Ok(checked) => checked,
                Err(error) => {
                    self.totals.failed += 1;
                    let flow = on_event(waiting.id, Event::Failed(error));
                    if flow.is_break() {
                        return Ok(flow);
                    }
                    continue;
                }
            };
            let mut table = BlockTable::default();
            let prompt = &waiting.request.prompt;
            if self.reuses_prefixes() {
                self.pages.adopt(&mut table, &prompt[..prompt.len() - 1]);
            }
            if !self.pages.reserve(&mut table, prompt.len(), self.pages_to_spare()) {
                self.pages.release(&mut table);
                self.waiting.push_front(waiting); // a running sequence will give pages back
                break;
            }
            self.free_slots.pop();
            self.controller.start(slot);
            self.proposing.choice.start(slot);
            let output = self.output(&waiting.request, room);
            let Waiting { id, arrival, request, submitted } = waiting;
            let mut sequence = Running::new((id, arrival), slot, request, sampler, table, output, self.clock.clone());
            sequence.stats.queued = self.clock.since(submitted);
            sequence.count_reused(sequence.table.len());
            self.totals.reused_tokens += sequence.table.len();
            self.totals.prompt_tokens += sequence.stats.prompt_tokens;
            self.prefilling.push(sequence);
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Whether a request can be answered here at all; else it would fail, alone.
    ///
    /// # Errors
    /// Why not.
    pub fn check(&self, request: &Request) -> Result<(), EngineError> {
        self.prepared(0, request).map(drop)
    }

    /// Checks a request, by its number among all submitted; returns its sampler and how many tokens it has room for.
    fn prepared(&self, arrival: u64, request: &Request) -> Result<(Sampler, usize), EngineError> {
        let vocab = self.backend.geometry().vocab_size;
        let context = self.backend.limits().context;
        let prompt = request.prompt.len();
        request.check(vocab)?;
        if prompt >= context {
            return Err(EngineError::PromptTooLong { prompt, context });
        }
        if !request.stop.is_empty() && self.tokenizer.is_none() {
            return Err(EngineError::StopNeedsTokenizer);
        }
        // Alone, every admitted sequence has room to its end: whoever is preempted gets its turn.
        let room = request.max_tokens.min(context - prompt);
        let needed = (prompt + room).div_ceil(PAGE_TOKENS);
        if needed > self.pages.total() {
            return Err(EngineError::CacheTooSmall { needed, total: self.pages.total() });
        }
        let ends = request.ends(&self.end_tokens);
        let mut sampler = Sampler::new(request.sampling.clone(), vocab)?.of_request(arrival);
        if let Some(constraint) = &request.constraint {
            sampler = sampler.constrained(constraint.clone(), ends.clone());
        }
        Ok((sampler.forbidding_among_first(request.min_tokens, ends), room))
    }

    fn output(&self, request: &Request, room: usize) -> Output {
        let stream = self.tokenizer.as_ref().map(|tokenizer| tokenizer.stream_continuing());
        let stream = stream.map(|stream| stream.spelling(&request.spelled_tokens));
        let at_limit = if room == request.max_tokens { Finish::Length } else { Finish::Context };
        Output::new(stream, request, request.ends(&self.end_tokens), room, at_limit)
    }
}
