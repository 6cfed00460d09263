//! The thread that owns an engine. Calls hand it messages; what happens to requests goes to mailboxes.

use super::log::{LogLevel, log};
use super::mailbox::{Happening, Letter, Mailbox};
use super::places::TakenPlace;
use super::status::{Failure, Outcome, Status};
use crate::TokenId;
use crate::draft::Source;
use crate::engine::{Engine, Request, Snapshot};
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SendError, Sender, TryRecvError};
use std::time::{Duration, Instant};

/// What a thread wants of the engine.
pub(super) enum Command {
    /// Answer requests: in one message, so that the engine gets all of them or none.
    Submit(Vec<(Request, Route)>),
    /// End a request where it is.
    Cancel(u64),
    /// Say what is going on.
    Snapshot(Sender<Snapshot>),
    /// Say which texts others' drafts are looked up in; `None`: in none.
    Texts(Sender<Option<Vec<TokenId>>>),
    /// Drop everything and end.
    Stop,
}

/// Where the events of one request go: tokens if wanted, and exactly one last event, whatever becomes of the engine.
pub(super) struct Route {
    id: u64,
    mailbox: Arc<Mailbox>,
    /// Tokens are wanted as they come.
    stream: bool,
    /// Given back before the last event tells of it; `None`: it has ended.
    place: Option<TakenPlace>,
}

impl Route {
    pub fn new(id: u64, mailbox: Arc<Mailbox>, stream: bool, place: TakenPlace) -> Self {
        mailbox.expect(id);
        Self { id, mailbox, stream, place: Some(place) }
    }

    /// Nobody is told anything: the request was not taken, and whoever made it knows.
    pub fn withdraw(mut self) {
        self.place = None;
        self.mailbox.forget(self.id);
    }

    fn end(mut self, last: Happening) {
        self.place = None;
        self.mailbox.post([(self.id, last)]);
    }
}

impl Drop for Route {
    /// The engine is gone, or the message never reached it.
    fn drop(&mut self) {
        if self.place.take().is_some() {
            let failure = match std::thread::panicking() {
                true => Failure::new(Status::Internal, "internal error: the engine's thread panicked"),
                false => Failure::closed(),
            };
            self.mailbox.post([(self.id, Happening::Failed(failure))]);
        }
    }
}

/// Hands requests to the engine's thread, all of them or none: of none nobody is told anything.
pub(super) fn submit_all(commands: &Sender<Command>, requests: Vec<(Request, Route)>) -> Outcome {
    commands.send(Command::Submit(requests)).map_err(|SendError(command)| {
        if let Command::Submit(requests) = command {
            requests.into_iter().for_each(|(_, route)| route.withdraw());
        }
        ended()
    })
}

/// The engine's thread is not there any more.
pub(super) fn ended() -> Failure {
    Failure::new(Status::Closed, "the session's engine has ended")
}

/// Tokens of a step so soon after the last ones that went out wait for those of the next step. To wake a reader takes the
/// engine's thread some microseconds, which rounds of a small model would feel, and nobody sees five milliseconds. Where the
/// next step takes a prompt in, they do not wait for it.
const HELD: Duration = Duration::from_millis(5);

/// Steps the engine while there is something to do, and sleeps where there is not, until told to stop.
pub(super) fn serve(mut engine: Engine, commands: Receiver<Command>) {
    let mut routes = BTreeMap::new();
    let mut events: Vec<Letter> = Vec::new();
    let mut delivered = Instant::now();
    loop {
        while let Some(command) = next(&commands, engine.is_idle()) {
            match command {
                Command::Submit(requests) => {
                    for (request, route) in requests {
                        engine.submit(route.id as usize, request);
                        routes.insert(route.id, route);
                    }
                }
                Command::Cancel(id) => {
                    deliver(&mut routes, &mut events); // before the last one
                    if let (Some(completion), Some(route)) = (engine.cancel(id as usize), routes.remove(&id)) {
                        route.end(Happening::Done(Box::new(completion)));
                    }
                }
                // Who asked may have given up.
                Command::Snapshot(reply) => drop(reply.send(engine.snapshot())),
                Command::Texts(reply) => drop(reply.send(engine.kept(Source::Shared))),
                Command::Stop => return,
            }
        }
        if engine.has_prompts_to_take_in() && !events.is_empty() {
            deliver(&mut routes, &mut events);
            delivered = Instant::now();
        }
        let step = engine.step(&mut |id, event| {
            events.extend(Happening::of(event).map(|happening| (id as u64, happening)));
            ControlFlow::Continue(())
        });
        let only_tokens = events.iter().all(|(_, happening)| matches!(happening, Happening::Token(_)));
        if !only_tokens || step.is_err() || delivered.elapsed() >= HELD {
            deliver(&mut routes, &mut events);
            delivered = Instant::now();
        }
        if let Err(error) = step {
            // The engine has dropped every request, and is ready for new ones.
            let failure = Failure::from(error);
            log(LogLevel::Error, || format!("a pass failed: {}", failure.message));
            std::mem::take(&mut routes).into_values().for_each(|route| route.end(Happening::Failed(failure.clone())));
        }
    }
}

/// The next command, waited for where there is nothing else to do.
fn next(commands: &Receiver<Command>, idle: bool) -> Option<Command> {
    if idle {
        return Some(commands.recv().unwrap_or(Command::Stop));
    }
    match commands.try_recv() {
        Ok(command) => Some(command),
        Err(TryRecvError::Empty) => None,
        Err(TryRecvError::Disconnected) => Some(Command::Stop),
    }
}

/// Takes a step's events to their mailboxes: what goes to one of them in a row, at once, so that its reader is woken once.
fn deliver(routes: &mut BTreeMap<u64, Route>, events: &mut Vec<Letter>) {
    let mut bag: Vec<Letter> = Vec::new();
    let mut whose: Option<Arc<Mailbox>> = None;
    for (id, happening) in events.drain(..) {
        let is_token = matches!(happening, Happening::Token(_));
        let Some(route) = routes.get_mut(&id).filter(|route| route.stream || !is_token) else { continue };
        if let Some(mailbox) = whose.replace(route.mailbox.clone())
            && !Arc::ptr_eq(&mailbox, &route.mailbox)
        {
            mailbox.post(bag.drain(..));
        }
        bag.push((id, happening));
        if !is_token {
            route.place = None;
            routes.remove(&id);
        }
    }
    if let Some(mailbox) = whose {
        mailbox.post(bag);
    }
}

#[cfg(test)]
mod tests;
