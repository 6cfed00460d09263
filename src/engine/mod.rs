//! The speculative loop: requests are admitted, their prompts filled into the cache, and rounds
//! played until each has its answer.
//!
//! ```text
//! submit -> admit -> prefill -> ( draft -> verify -> accept -> emit )* -> retire
//! ```
//!
//! The engine knows tokens, pages and clocks; it knows no device ([`Backend`]) and no rule for the
//! draft's length ([`Controller`]).

mod admit;
mod error;
mod output;
mod request;
mod round;
mod running;
mod stop;

pub use error::EngineError;
pub use request::{Completion, Emission, Finish, Request, Stats};

use crate::TokenId;
use crate::backend::{Backend, BackendError};
use crate::control::Controller;
use crate::kv::PagePool;
use crate::load::Tokenizer;
use running::Running;
use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::Arc;

/// Runs requests on a backend.
pub struct Engine {
    backend: Box<dyn Backend>,
    controller: Box<dyn Controller>,
    tokenizer: Option<Arc<Tokenizer>>,
    end_tokens: Vec<TokenId>,
    pool: PagePool,
    /// Slots that no sequence has.
    free_slots: Vec<usize>,
    /// Submitted, not admitted yet; first come, first served.
    queue: VecDeque<(usize, Request)>,
    running: Vec<Running>,
}

/// What happens to a request.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "the large one comes once per request; boxing it would burden receivers")]
pub enum Event {
    /// A token became certain.
    Token(Emission),
    /// The request is finished.
    Done(Completion),
    /// The request is malformed; the others go on.
    Failed(EngineError),
}

impl Engine {
    /// An engine over `backend`. Without a tokenizer, answers have tokens and no text. `end_tokens`
    /// end an answer.
    pub fn new(
        backend: Box<dyn Backend>,
        controller: Box<dyn Controller>,
        tokenizer: Option<Arc<Tokenizer>>,
        end_tokens: Vec<TokenId>,
    ) -> Self {
        let limits = backend.limits();
        Self {
            backend,
            controller,
            tokenizer,
            end_tokens,
            pool: PagePool::new(limits.pages),
            free_slots: (0..limits.slots).rev().collect(),
            queue: VecDeque::new(),
            running: Vec::new(),
        }
    }

    /// The backend.
    pub fn backend(&self) -> &dyn Backend {
        &*self.backend
    }

    /// The controller in charge.
    pub fn controller(&self) -> &dyn Controller {
        &*self.controller
    }

    /// Puts another controller in charge; sequences already running are new to it.
    pub fn set_controller(&mut self, controller: Box<dyn Controller>) {
        self.controller = controller;
        self.running.iter().for_each(|sequence| self.controller.start(sequence.slot));
    }

    /// Runs one request on an idle engine; `on_token` sees each token as it becomes certain and may cancel.
    ///
    /// # Errors
    /// If the request is malformed or a pass fails.
    pub fn generate(
        &mut self,
        request: &Request,
        on_token: &mut dyn FnMut(&Emission) -> ControlFlow<()>,
    ) -> Result<Completion, EngineError> {
        let mut result = None;
        self.run(&mut std::iter::once(request.clone()), 1, &mut |_, event| {
            match event {
                Event::Token(emission) => return on_token(&emission),
                Event::Done(completion) => result = Some(Ok(completion)),
                Event::Failed(error) => result = Some(Err(error)),
            }
            ControlFlow::Continue(())
        })?;
        result.expect("a submitted request is done or failed when nothing runs any more")
    }

    /// Runs many requests on an idle engine, up to `batch` of them at a time (never more than the
    /// backend's slots), in order of arrival. `on_event` gets the request's index in the iterator; when
    /// it breaks, everything still running is cancelled, each with its [`Event::Done`].
    ///
    /// # Errors
    /// If a pass fails; a malformed request fails alone, by [`Event::Failed`].
    pub fn run(
        &mut self,
        requests: &mut dyn Iterator<Item = Request>,
        batch: usize,
        on_event: &mut dyn FnMut(usize, Event) -> ControlFlow<()>,
    ) -> Result<(), EngineError> {
        let batch = batch.clamp(1, self.backend.limits().slots);
        let mut requests = requests.enumerate();
        loop {
            while self.queue.len() + self.running.len() < batch
                && let Some((id, request)) = requests.next()
            {
                self.submit(id, request);
            }
            if self.is_idle() || self.step(on_event)?.is_break() {
                return Ok(());
            }
        }
    }

    /// Queues a request under a name of the caller's choice.
    pub fn submit(&mut self, id: usize, request: Request) {
        self.queue.push_back((id, request));
    }

    /// Nothing is running or queued.
    pub fn is_idle(&self) -> bool {
        self.running.is_empty() && self.queue.is_empty()
    }

    /// Admits what fits, plays one round, retires what is finished. Breaks if `on_event` did:
    /// then everything running is cancelled, each with its [`Event::Done`], what is queued is dropped,
    /// and the engine is idle.
    ///
    /// # Errors
    /// If a pass fails: then every request is dropped, and the engine is ready for new ones.
    pub fn step(
        &mut self,
        on_event: &mut dyn FnMut(usize, Event) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, EngineError> {
        let flow = self.try_step(on_event).inspect_err(|_| {
            self.queue.clear();
            while let Some(sequence) = self.running.pop() {
                self.retire(sequence);
            }
        })?;
        if flow.is_break() {
            self.cancel(on_event);
        }
        Ok(flow)
    }

    /// Slots and ids of the running sequences, in the order of the passes' batch.
    pub fn running(&self) -> impl Iterator<Item = (usize, usize)> {
        self.running.iter().map(|sequence| (sequence.slot, sequence.id))
    }

    /// Pages that no sequence holds.
    pub fn free_pages(&self) -> usize {
        self.pool.free()
    }

    fn try_step(
        &mut self,
        on_event: &mut dyn FnMut(usize, Event) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, BackendError> {
        let flow = self.admit(on_event)?;
        if flow.is_break() || self.running.is_empty() {
            return Ok(flow);
        }
        let flow = self.round(on_event)?;
        while let Some(i) = self.running.iter().position(|s| s.output.finish.is_some()) {
            let sequence = self.running.remove(i);
            let (id, completion) = self.retire(sequence);
            if on_event(id, Event::Done(completion)).is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(flow)
    }

    /// Gives a sequence's slot and pages back.
    fn retire(&mut self, mut sequence: Running) -> (usize, Completion) {
        sequence.table.release(&mut self.pool);
        self.free_slots.push(sequence.slot);
        (sequence.id, sequence.into_completion())
    }

    /// Ends everything running where it is, and forgets what is queued.
    fn cancel(&mut self, on_event: &mut dyn FnMut(usize, Event) -> ControlFlow<()>) {
        self.queue.clear();
        for mut sequence in std::mem::take(&mut self.running) {
            if sequence.output.finish.is_none() {
                sequence.output.cancel();
            }
            let (id, completion) = self.retire(sequence);
            // The receiver has asked to stop already: there is nothing more its answer could change.
            let _ = on_event(id, Event::Done(completion));
        }
    }
}
