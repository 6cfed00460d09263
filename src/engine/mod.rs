//! The speculative loop under continuous batching: requests join and leave between rounds.
//!
//! ```text
//! submit -> admit -> prefill -> ( draft -> verify -> accept -> emit )* -> retire
//!             ^          \                        /
//!             '------ swapped out <-- preempted -'
//! ```
//!
//! A [`step`](Engine::step) admits what fits, takes in a piece of the prompts that are not complete, and plays one round
//! of all sequences that are. First come, first served: no request is admitted before one that was submitted earlier,
//! and where pages of the cache run out, the one that came last gives its own up until there are some again. So the
//! oldest request always goes on, and every other one gets its turn.
//!
//! The engine knows tokens, pages and clocks; it knows no device ([`Backend`]) and no rule for the
//! draft's length ([`Controller`]).
//!
//! Several requests at once, each under a name of the caller's choice:
//!
//! ```
//! use eesd::backend::cpu::{CpuBackend, CpuOptions};
//! use eesd::control::Off;
//! use eesd::engine::{Engine, Event, Request};
//! use eesd::load::Checkpoint;
//! use std::ops::ControlFlow;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let checkpoint = Checkpoint::open("models/pycode-4m".as_ref())?;
//! let options = CpuOptions { slots: 2, context: 128, ..CpuOptions::default() };
//! let backend = CpuBackend::new(checkpoint.geometry(), &checkpoint.weights(), None, &options)?;
//! let mut engine = Engine::new(backend, Box::new(Off), None, Vec::new());
//! engine.submit(10, Request::new(vec![1, 2, 3], 5));
//! engine.submit(11, Request::new(vec![1, 2], 7));
//! let mut lengths = Vec::new();
//! while !engine.is_idle() {
//!     let _ = engine.step(&mut |name, event| {
//!         if let Event::Done(answer) = event {
//!             lengths.push((name, answer.tokens.len()));
//!         }
//!         ControlFlow::Continue(())
//!     })?;
//! }
//! assert_eq!(lengths, [(10, 5), (11, 7)]);
//! # Ok(())
//! # }
//! ```

mod admit;
mod clock;
mod ending;
mod error;
mod metrics;
mod output;
mod pages;
mod prefill;
mod propose;
mod request;
mod round;
mod running;
pub mod settings;
mod step_times;
mod stop;

pub use clock::Clock;
pub use error::EngineError;
pub use metrics::{Snapshot, Totals};
pub use propose::Proposing;
pub use request::{Completion, Emission, Finish, Request, SourceStats, Stats};

use crate::TokenId;
use crate::backend::{Backend, BackendError};
use crate::control::Controller;
use crate::draft::{Proposer, Source};
use crate::load::Tokenizer;
use admit::Waiting;
use pages::{Pages, SwappedOut};
use running::Running;
use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::Arc;
use step_times::Timed;

/// How an engine schedules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EngineOptions {
    /// Tokens that a step takes in at most, of prompts and pending ones together, but 64 of prompts in any case: what
    /// it takes to read a long prompt is spread over rounds of the others. Prompts that may not be cut
    /// ([`Backend::prefill_is_exact`]) are taken in whole.
    pub token_budget: usize,
    /// Keep full pages of texts, and take prompts that begin alike from them. Never where a prompt may not be cut.
    pub reuse_prefixes: bool,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self { token_budget: 512, reuse_prefixes: true }
    }
}

/// Runs requests on a backend.
pub struct Engine {
    backend: Box<dyn Backend>,
    controller: Box<dyn Controller>,
    tokenizer: Option<Arc<Tokenizer>>,
    end_tokens: Vec<TokenId>,
    options: EngineOptions,
    clock: Clock,
    proposing: Proposing,
    pages: Pages,
    /// Slots that no sequence has.
    free_slots: Vec<usize>,
    /// Requests submitted so far.
    arrivals: u64,
    /// Submitted, not admitted yet. Each queue is in order of arrival, and all of `prefilling` and `running` came
    /// before all of `swapped_out`, those before all of `waiting`.
    waiting: VecDeque<Waiting>,
    /// Preempted: their pages are in the host's memory.
    swapped_out: VecDeque<SwappedOut>,
    /// Admitted, their prompts not in the cache yet.
    prefilling: Vec<Running>,
    /// In the rounds.
    running: Vec<Running>,
    totals: Totals,
    /// Rounds that were played to be timed.
    timed: Timed,
    /// The controller has been told of them.
    times_told: bool,
}

/// What happens to a request.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "the large one comes once per request; boxing it would burden receivers")]
pub enum Event {
    /// Another piece of the prompt is in the cache; not told of a prompt that was found there.
    Prefilled {
        /// Positions that are, by now.
        done: usize,
        /// Positions that have to be before the first token.
        of: usize,
    },
    /// A token became certain.
    Token(Emission),
    /// The request is finished.
    Done(Completion),
    /// The request is malformed, or its numbers are not finite; the others go on.
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
            options: EngineOptions::default(),
            clock: Clock::default(),
            proposing: Proposing::default(),
            pages: Pages::new(limits.pages),
            free_slots: (0..limits.slots).rev().collect(),
            arrivals: 0,
            waiting: VecDeque::new(),
            swapped_out: VecDeque::new(),
            prefilling: Vec::new(),
            running: Vec::new(),
            totals: Totals::default(),
            timed: Timed::default(),
            times_told: false,
        }
    }

    /// The same engine with these options.
    #[must_use]
    pub fn with_options(mut self, options: EngineOptions) -> Self {
        self.options = options;
        if !self.reuses_prefixes() {
            self.pages.forget_prefixes();
        }
        self
    }

    /// The same engine with sources of drafts beside the exit block.
    #[must_use]
    pub fn with_proposers(mut self, proposers: Vec<Box<dyn Proposer>>) -> Self {
        self.proposing = proposers.into();
        self
    }

    /// Puts other sources of drafts in place of those beside the exit block, with what they have learned, and returns
    /// those that were; sequences already running are new to them.
    pub fn set_proposing(&mut self, proposing: Proposing) -> Proposing {
        self.times_told = false;
        let before = std::mem::replace(&mut self.proposing, proposing);
        self.prefilling.iter().chain(&self.running).for_each(|sequence| self.proposing.choice.start(sequence.slot));
        before
    }

    /// What a source has to begin with another time to know what it knows now; `None`: there is no such source here, or
    /// it starts afresh.
    pub fn kept(&self, source: Source) -> Option<Vec<TokenId>> {
        self.proposing.proposers.iter().find(|proposer| proposer.source() == source)?.kept()
    }

    /// The same engine by this clock, in place of the machine's.
    #[must_use]
    pub fn with_clock(mut self, clock: Clock) -> Self {
        self.clock = clock;
        self
    }

    /// The backend.
    pub fn backend(&self) -> &dyn Backend {
        &*self.backend
    }

    /// As [`Backend::set_profiling`].
    ///
    /// # Errors
    /// If the device fails.
    pub fn set_profiling(&mut self, on: bool) -> Result<bool, BackendError> {
        self.backend.set_profiling(on)
    }

    /// The controller in charge.
    pub fn controller(&self) -> &dyn Controller {
        &*self.controller
    }

    /// Puts another controller in charge and returns the one that was; sequences already running are new to it.
    pub fn set_controller(&mut self, controller: Box<dyn Controller>) -> Box<dyn Controller> {
        self.times_told = false;
        let before = std::mem::replace(&mut self.controller, controller);
        self.prefilling.iter().chain(&self.running).for_each(|sequence| self.controller.start(sequence.slot));
        before
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
                Event::Prefilled { .. } => {}
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
    /// If a pass fails; a request that is malformed, or whose numbers are not finite, fails alone, by
    /// [`Event::Failed`].
    pub fn run(
        &mut self,
        requests: &mut dyn Iterator<Item = Request>,
        batch: usize,
        on_event: &mut dyn FnMut(usize, Event) -> ControlFlow<()>,
    ) -> Result<(), EngineError> {
        let batch = batch.clamp(1, self.backend.limits().slots);
        let mut requests = requests.enumerate();
        loop {
            while self.unfinished() < batch
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
        self.waiting.push_back(Waiting::new(id, self.arrivals, request, self.clock.now()));
        self.arrivals += 1;
    }

    /// Requests submitted and not done or failed yet.
    pub fn unfinished(&self) -> usize {
        self.waiting.len() + self.swapped_out.len() + self.prefilling.len() + self.running.len()
    }

    /// Nothing is running or queued.
    pub fn is_idle(&self) -> bool {
        self.unfinished() == 0
    }

    /// The next step takes prompts in, or would: it may last much longer than one that only plays a round.
    pub fn has_prompts_to_take_in(&self) -> bool {
        !self.prefilling.is_empty() || !self.waiting.is_empty() && !self.free_slots.is_empty()
    }

    /// Admits what fits, takes prompts in, plays one round, retires what is finished. Breaks if `on_event` did:
    /// then everything admitted is cancelled, each with its [`Event::Done`], what is queued is dropped,
    /// and the engine is idle.
    ///
    /// # Errors
    /// If a pass fails: then every request is dropped, and the engine is ready for new ones.
    pub fn step(
        &mut self,
        on_event: &mut dyn FnMut(usize, Event) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, EngineError> {
        let flow = self.try_step(on_event).inspect_err(|_| {
            self.totals.failed += self.unfinished();
            self.waiting.clear();
            self.swapped_out.drain(..).for_each(|swapped| self.proposing.end(&swapped.sequence, false));
            while let Some(sequence) = self.running.pop().or_else(|| self.prefilling.pop()) {
                self.retire(sequence);
            }
            // Nobody knows what the failed pass has left in them.
            self.pages.forget_prefixes();
        })?;
        if flow.is_break() {
            self.cancel_all(on_event);
        }
        Ok(flow)
    }

    fn try_step(
        &mut self,
        on_event: &mut dyn FnMut(usize, Event) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, BackendError> {
        let flow = self.admit(on_event)?;
        if flow.is_break() {
            return Ok(flow);
        }
        let flow = self.prefill(on_event)?;
        if flow.is_break() {
            return Ok(flow);
        }
        self.secure_pages()?;
        if self.running.is_empty() {
            return Ok(flow);
        }
        let flow = self.round(on_event)?;
        while let Some(i) = self.running.iter().position(|s| s.output.finish.is_some()) {
            let sequence = self.running.remove(i);
            let (id, completion) = self.retire(sequence);
            self.totals.finished += 1;
            if on_event(id, Event::Done(completion)).is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(flow)
    }

    /// Prompts are taken from pages kept, and pages are kept for others.
    fn reuses_prefixes(&self) -> bool {
        self.options.reuse_prefixes && self.backend.prefill_is_exact()
    }
}
