//! From a submitted request to a running sequence: checks, slot, pages, prefill.

use super::output::Output;
use super::running::Running;
use super::{Engine, EngineError, Event, Finish, Request};
use crate::backend::{BackendError, Chunk};
use crate::kv::{BlockTable, PAGE_TOKENS};
use crate::profile;
use crate::sample::Sampler;
use std::ops::ControlFlow;
use std::time::Instant;

impl Engine {
    /// Admits requests while there are slots and pages, first come, first served, and fills their
    /// prompts into the cache. A malformed request fails here, alone.
    pub(super) fn admit(
        &mut self,
        on_event: &mut dyn FnMut(usize, Event) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, BackendError> {
        let already_running = self.running.len();
        while let Some(&slot) = self.free_slots.last()
            && let Some((id, request)) = self.queue.pop_front()
        {
            let (sampler, room) = match self.check(&request) {
                Ok(checked) => checked,
                Err(error) => {
                    let flow = on_event(id, Event::Failed(error));
                    if flow.is_break() {
                        return Ok(flow);
                    }
                    continue;
                }
            };
            let mut table = BlockTable::default();
            if table.reserve(request.prompt.len() + room, &mut self.pool).is_err() {
                self.queue.push_front((id, request)); // a running sequence will give pages back
                break;
            }
            self.free_slots.pop();
            self.controller.start(slot);
            let output = self.output(&request, room);
            self.running.push(Running::new(id, slot, request, sampler, table, output));
        }
        self.prefill(already_running)?;
        Ok(ControlFlow::Continue(()))
    }

    /// Checks a request; returns its sampler and how many tokens it has room for.
    fn check(&self, request: &Request) -> Result<(Sampler, usize), EngineError> {
        let vocab = self.backend.geometry().vocab_size;
        let context = self.backend.limits().context;
        let prompt = request.prompt.len();
        if prompt == 0 {
            return Err(EngineError::EmptyPrompt);
        }
        if let Some(&token) = request.prompt.iter().find(|&&token| token as usize >= vocab) {
            return Err(EngineError::UnknownToken { token, vocab });
        }
        if prompt >= context {
            return Err(EngineError::PromptTooLong { prompt, context });
        }
        if request.max_tokens == 0 {
            return Err(EngineError::NothingToGenerate);
        }
        if request.stop.iter().any(String::is_empty) {
            return Err(EngineError::EmptyStop);
        }
        if !request.stop.is_empty() && self.tokenizer.is_none() {
            return Err(EngineError::StopNeedsTokenizer);
        }
        let room = request.max_tokens.min(context - prompt);
        let needed = (prompt + room).div_ceil(PAGE_TOKENS);
        if needed > self.pool.total() {
            return Err(EngineError::CacheTooSmall { needed, total: self.pool.total() });
        }
        Ok((Sampler::new(request.sampling.clone(), vocab)?, room))
    }

    fn output(&self, request: &Request, room: usize) -> Output {
        let stream = self.tokenizer.as_ref().map(|tokenizer| tokenizer.stream_continuing());
        let end_tokens = if request.ignore_end { Vec::new() } else { self.end_tokens.clone() };
        let at_limit = if room == request.max_tokens { Finish::Length } else { Finish::Context };
        Output::new(stream, request.stop.clone(), end_tokens, room, at_limit)
    }

    /// Fills the prompts of the sequences from `first` on into the cache, in one pass.
    fn prefill(&mut self, first: usize) -> Result<(), BackendError> {
        let start = Instant::now();
        let chunks: Vec<Chunk<'_>> = self.running[first..]
            .iter()
            .map(|s| Chunk { pages: s.table.pages(), start: 0, tokens: s.prompt_to_fill() })
            .filter(|chunk| !chunk.tokens.is_empty())
            .collect();
        if !chunks.is_empty() {
            let _range = profile::range("prefill");
            self.backend.prefill(&chunks)?;
        }
        let took = start.elapsed();
        self.running[first..].iter_mut().for_each(|sequence| sequence.prefilled(took));
        Ok(())
    }
}
