//! The thread that owns the engine. Handlers submit requests to it; what happens to their requests comes back to them.

use super::gate::Pass;
use crate::batch::Written;
use crate::monitor::Monitor;
use crate::openai::ApiError;
use axum::http::StatusCode;
use eesd::engine::{Completion, Emission, Engine, EngineError, Event, Finish, Request};
use std::collections::BTreeMap;
use std::ops::{ControlFlow, Range};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// What a handler wants of the engine.
enum Command {
    /// Answer requests.
    Submit(Submission),
    /// End those that have not ended.
    Cancel(Range<usize>),
    /// Drop everything and end.
    Stop,
}

/// Requests that stand or fall together.
struct Submission {
    /// The engine's name for the first; the others have those that follow.
    first: usize,
    requests: Vec<Request>,
    /// Tokens are wanted as they come.
    stream: bool,
    to: UnboundedSender<Happening>,
    /// One for each.
    places: OwnedSemaphorePermit,
}

/// What happens to a submission, or to the one of its answers that has this number in it.
pub enum Happening {
    /// All of it can be answered.
    Taken,
    /// Tokens became certain.
    Tokens(usize, Vec<Emission>),
    /// An answer is finished.
    Done(usize, Box<Completion>),
    /// Nothing more comes.
    Failed(EngineError),
}

/// Where requests are submitted.
#[derive(Clone)]
pub struct EngineHandle {
    commands: Sender<Command>,
    places: Arc<Semaphore>,
    /// Answers at a time, waiting ones among them.
    most: usize,
    next: Arc<AtomicUsize>,
}

impl EngineHandle {
    /// Answers at a time, waiting ones among them.
    pub fn most(&self) -> usize {
        self.most
    }

    /// Submits requests, which are cancelled where their answers are dropped.
    ///
    /// # Errors
    /// If too many answers wait already, or there is no engine any more.
    pub fn submit(&self, requests: Vec<Request>, stream: bool, pass: Pass) -> Result<Answers, ApiError> {
        let count = requests.len();
        let places = u32::try_from(count).ok().and_then(|count| self.places.clone().try_acquire_many_owned(count).ok());
        let places = places.ok_or_else(|| ApiError::overloaded(self.most))?;
        let first = self.next.fetch_add(count, Ordering::Relaxed);
        let (to, events) = unbounded_channel();
        let submission = Submission { first, requests, stream, to, places };
        self.commands.send(Command::Submit(submission)).map_err(|_| cut_off())?;
        Ok(Answers { events, commands: self.commands.clone(), names: first..first + count, left: count, _pass: pass })
    }

    /// Drops everything that has not ended, and the engine ends.
    pub fn stop(&self) {
        // Where there is none, it has ended.
        let _ = self.commands.send(Command::Stop);
    }
}

/// The error of an answer that the end of the engine has cut off.
fn cut_off() -> ApiError {
    ApiError::unavailable("the server is ending, or has failed: the answer was cut off")
}

/// The answers to a submission; who drops them does not want the rest.
pub struct Answers {
    events: UnboundedReceiver<Happening>,
    commands: Sender<Command>,
    names: Range<usize>,
    /// Answers that have not ended.
    left: usize,
    _pass: Pass,
}

impl Answers {
    /// How many there will be.
    pub fn count(&self) -> usize {
        self.names.len()
    }

    /// What happens next; `None`: all answers have ended.
    pub fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Happening, ApiError>>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        let happening = match ready!(self.events.poll_recv(context)) {
            None => Err(cut_off()),
            Some(Happening::Failed(error)) => Err(error.into()),
            Some(happening) => Ok(happening),
        };
        match &happening {
            Ok(Happening::Done(..)) => self.left -= 1,
            Ok(_) => {}
            Err(error) => {
                // Of several answers, others may be under way; of a bad request, none is.
                if error.status == StatusCode::BAD_REQUEST {
                    self.left = 0;
                }
            }
        }
        Poll::Ready(Some(happening))
    }

    /// The same, waited for.
    pub async fn next(&mut self) -> Option<Result<Happening, ApiError>> {
        std::future::poll_fn(|context| self.poll(context)).await
    }
}

impl Drop for Answers {
    fn drop(&mut self) {
        if self.left > 0 {
            // Where the engine is gone, so are its requests.
            let _ = self.commands.send(Command::Cancel(self.names.clone()));
        }
    }
}

/// Where the events of one request go.
struct Route {
    /// Its number in the submission.
    answer: usize,
    stream: bool,
    to: UnboundedSender<Happening>,
    /// Tokens that have not been handed out.
    held: Vec<Emission>,
    _place: Option<OwnedSemaphorePermit>,
}

impl Route {
    /// Hands out what is held. Who does not listen any more will say so.
    fn deliver(&mut self) {
        if !self.held.is_empty() {
            let _ = self.to.send(Happening::Tokens(self.answer, std::mem::take(&mut self.held)));
        }
    }
}

/// Tokens of a step so soon after the last ones that went out wait for those of the next step. To wake the thread that writes
/// them takes the engine's some microseconds, which rounds of a small model would feel, and nobody sees five milliseconds.
/// Where the next step takes a prompt in, they do not wait for it.
const HELD: Duration = Duration::from_millis(5);

/// Steps an engine while there is something to do, and sleeps where there is not.
pub struct Worker {
    engine: Engine,
    commands: Receiver<Command>,
    monitor: Monitor,
    written: Written,
    routes: BTreeMap<usize, Route>,
    delivered: Instant,
}

impl Worker {
    /// Of an engine that answers so many requests side by side, while so many more wait.
    pub fn new(engine: Engine, monitor: Monitor, side_by_side: usize, waiting: usize) -> (Self, EngineHandle) {
        let (sender, commands) = channel();
        let most = side_by_side + waiting;
        let places = Arc::new(Semaphore::new(most));
        let handle = EngineHandle { commands: sender, places, most, next: Arc::default() };
        let (written, routes, delivered) = (Written::default(), BTreeMap::new(), Instant::now());
        (Self { engine, commands, monitor, written, routes, delivered }, handle)
    }

    /// Works until told to stop; returns the engine.
    pub fn run(mut self) -> Engine {
        loop {
            while let Some(command) = self.next() {
                match command {
                    Command::Submit(submission) => self.submit(submission),
                    Command::Cancel(names) => names.for_each(|name| self.cancel(name)),
                    Command::Stop => return self.engine,
                }
            }
            self.monitor.look(&self.engine, self.written);
            self.step();
        }
    }

    /// The next command, waited for where there is nothing else to do.
    fn next(&mut self) -> Option<Command> {
        if self.engine.is_idle() {
            self.monitor.look_before_reading(&self.engine, self.written);
            return Some(self.commands.recv().unwrap_or(Command::Stop));
        }
        match self.commands.try_recv() {
            Ok(command) => Some(command),
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Disconnected) => Some(Command::Stop),
        }
    }

    fn submit(&mut self, submission: Submission) {
        let Submission { first, requests, stream, to, mut places } = submission;
        let checked = requests.iter().try_for_each(|request| self.engine.check(request));
        if let Err(error) = checked {
            let _ = to.send(Happening::Failed(error));
            return;
        }
        let _ = to.send(Happening::Taken);
        for (answer, request) in requests.into_iter().enumerate() {
            let route = Route { answer, stream, to: to.clone(), held: Vec::new(), _place: places.split(1) };
            self.routes.insert(first + answer, route);
            self.engine.submit(first + answer, request);
        }
    }

    fn cancel(&mut self, name: usize) {
        if let Some(completion) = self.engine.cancel(name) {
            self.monitor.ended(&completion.stats);
            self.written.cut_short += 1;
        }
        self.routes.remove(&name);
    }

    fn step(&mut self) {
        let Self { engine, monitor, written, routes, .. } = self;
        let step = engine.step(&mut |name, event| {
            match event {
                Event::Prefilled { .. } => {}
                Event::Token(emission) => {
                    routes
                        .get_mut(&name)
                        .filter(|route| route.stream)
                        .into_iter()
                        .for_each(|r| r.held.push(emission.clone()));
                }
                Event::Done(completion) => {
                    monitor.ended(&completion.stats);
                    match completion.finish {
                        Finish::Cancelled => written.cut_short += 1,
                        _ => written.answered += 1,
                    }
                    if let Some(mut route) = routes.remove(&name) {
                        route.deliver();
                        let _ = route.to.send(Happening::Done(route.answer, Box::new(completion)));
                    }
                }
                Event::Failed(error) => {
                    written.failed += 1;
                    if let Some(route) = routes.remove(&name) {
                        let _ = route.to.send(Happening::Failed(error));
                    }
                }
            }
            ControlFlow::Continue(())
        });
        if let Err(error) = step {
            // The engine has dropped every request, and is ready for new ones.
            for route in std::mem::take(routes).into_values() {
                written.failed += 1;
                let _ = route.to.send(Happening::Failed(error.clone()));
            }
        }
        if self.delivered.elapsed() >= HELD || self.engine.has_prompts_to_take_in() {
            self.routes.values_mut().for_each(Route::deliver);
            self.delivered = Instant::now();
        }
    }
}

/// Answers without an engine: what happens to them is the test's to say, and what they want is the test's to hear.
#[cfg(test)]
pub fn answers_of_nobody(count: usize) -> (Answers, UnboundedSender<Happening>, impl Fn() -> Option<Range<usize>>) {
    let (to, events) = unbounded_channel();
    let (commands, heard) = channel();
    let (gate, _) = super::gate::Gate::open();
    let answers = Answers { events, commands, names: 7..7 + count, left: count, _pass: gate.pass().unwrap() };
    let cancelled = move || match heard.try_recv() {
        Ok(Command::Cancel(names)) => Some(names),
        _ => None,
    };
    (answers, to, cancelled)
}
