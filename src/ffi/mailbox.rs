//! Where the engine's thread leaves events, and other threads wait for them.

use super::status::{Failure, Outcome, Status};
use crate::engine::{Completion, Emission, Event};
use std::collections::{BTreeSet, VecDeque};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What happened to a request.
pub(super) enum Happening {
    /// A token became certain.
    Token(Emission),
    /// It is finished.
    Done(Box<Completion>),
    /// It failed; there is nothing more of it.
    Failed(Failure),
}

impl Happening {
    /// What of the engine's events is told.
    pub fn of(event: Event) -> Option<Self> {
        match event {
            Event::Prefilled { .. } => None,
            Event::Token(emission) => Some(Self::Token(emission)),
            Event::Done(completion) => Some(Self::Done(Box::new(completion))),
            Event::Failed(error) => Some(Self::Failed(error.into())),
        }
    }

    /// There is nothing more of the request.
    fn is_last(&self) -> bool {
        !matches!(self, Self::Token(_))
    }
}

/// What happened to which request.
pub(super) type Letter = (u64, Happening);

/// A queue that several threads may wait at.
#[derive(Default)]
pub(super) struct Mailbox {
    inner: Mutex<Inner>,
    changed: Condvar,
}

#[derive(Default)]
struct Inner {
    events: VecDeque<Letter>,
    /// Requests whose last event has not been left here.
    unfinished: BTreeSet<u64>,
    /// Threads that wait. Where there are none, nobody is woken: that would be a call of the system per round.
    waiting: usize,
    /// Nothing will come any more, and why.
    closed: Option<Failure>,
}

impl Mailbox {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Events of this request will be left here.
    pub fn expect(&self, id: u64) {
        self.lock().unfinished.insert(id);
    }

    /// No event of this request will be left here.
    pub fn forget(&self, id: u64) {
        self.lock().unfinished.remove(&id);
    }

    /// More of this request will come.
    pub fn expects(&self, id: u64) -> bool {
        self.lock().unfinished.contains(&id)
    }

    /// Leaves events, in their order.
    pub fn post(&self, events: impl IntoIterator<Item = Letter>) {
        let mut inner = self.lock();
        for (id, happening) in events {
            if happening.is_last() {
                inner.unfinished.remove(&id);
            }
            inner.events.push_back((id, happening));
        }
        let waiting = inner.waiting > 0;
        drop(inner);
        if waiting {
            self.changed.notify_all();
        }
    }

    /// Nothing more will come: who waits or will wait is told why, once what there is has been taken.
    pub fn close(&self, why: Failure) {
        self.lock().closed = Some(why);
        self.changed.notify_all();
    }

    /// The next event, waited for at most this long (`None`: as long as it takes).
    pub fn take(&self, patience: Option<Duration>) -> Outcome<Letter> {
        // A time past the end of the clock is as good as none.
        let deadline = patience.and_then(|patience| Instant::now().checked_add(patience));
        let mut inner = self.lock();
        loop {
            if let Some(event) = inner.events.pop_front() {
                return Ok(event);
            }
            if let Some(why) = &inner.closed {
                return Err(why.clone());
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return Err(Failure::new(Status::Timeout, "no event in the time given"));
            }
            inner.waiting += 1;
            inner = match left {
                Some(left) => self.changed.wait_timeout(inner, left).unwrap_or_else(PoisonError::into_inner).0,
                None => self.changed.wait(inner).unwrap_or_else(PoisonError::into_inner),
            };
            inner.waiting -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn failed(message: &str) -> Happening {
        Happening::Failed(Failure::new(Status::NotFound, message))
    }

    #[test]
    fn events_come_in_order_and_then_the_reason() {
        let mailbox = Mailbox::default();
        mailbox.expect(2);
        assert!(mailbox.expects(2) && !mailbox.expects(1));
        mailbox.post([(1, failed("a")), (2, failed("b"))]);
        assert!(!mailbox.expects(2), "that was its last event");
        mailbox.close(Failure::closed());
        assert_eq!(mailbox.take(None).map(|(id, _)| id).ok(), Some(1));
        assert_eq!(mailbox.take(Some(Duration::ZERO)).map(|(id, _)| id).ok(), Some(2));
        assert_eq!(mailbox.take(None).err().map(|failure| failure.status), Some(Status::Closed));
    }

    #[test]
    fn waiting_ends_by_time_by_event_and_by_closing() {
        let mailbox = Arc::new(Mailbox::default());
        for patience in [Duration::ZERO, Duration::from_millis(5)] {
            let failure = mailbox.take(Some(patience)).err().map(|failure| failure.status);
            assert_eq!(failure, Some(Status::Timeout));
        }
        let waiting: Vec<_> = (0..3)
            .map(|_| {
                let mailbox = mailbox.clone();
                std::thread::spawn(move || mailbox.take(Some(Duration::MAX)).map(|(id, _)| id).map_err(|f| f.status))
            })
            .collect();
        mailbox.post([(7, failed("a"))]);
        mailbox.close(Failure::closed());
        let mut taken: Vec<_> = waiting.into_iter().map(|thread| thread.join().unwrap()).collect();
        taken.sort_by_key(Result::is_err);
        assert_eq!(taken, [Ok(7), Err(Status::Closed), Err(Status::Closed)]);
    }
}
