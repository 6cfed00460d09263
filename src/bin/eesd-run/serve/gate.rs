//! The way in, which is closed once when the server ends; and who is still inside.

use std::convert::Infallible;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Lets requests in until it is closed.
pub struct Gate(Mutex<Option<Sender<Infallible>>>);

/// Those who are inside.
pub struct Inside(Receiver<Infallible>);

/// Whoever has it is inside.
pub struct Pass(#[expect(dead_code, reason = "held, and never sent on")] Sender<Infallible>);

impl Gate {
    /// An open one.
    pub fn open() -> (Self, Inside) {
        let (pass, inside) = mpsc::channel();
        (Self(Mutex::new(Some(pass))), Inside(inside))
    }

    /// Lets in, unless it is closed.
    pub fn pass(&self) -> Option<Pass> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone().map(Pass)
    }

    /// Lets nobody in any more.
    pub fn close(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Nobody is let in any more.
    pub fn is_closed(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_none()
    }
}

impl Inside {
    /// Waits until everybody has left through the closed gate, at most this long; whether they have.
    pub fn wait(&self, patience: Duration) -> bool {
        matches!(self.0.recv_timeout(patience), Err(RecvTimeoutError::Disconnected))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closed_gate_is_left_and_not_entered() {
        let (gate, inside) = Gate::open();
        let passes = [gate.pass().unwrap(), gate.pass().unwrap()];
        assert!(!inside.wait(Duration::ZERO) && !gate.is_closed(), "it is open");
        gate.close();
        assert!(gate.is_closed() && gate.pass().is_none());
        assert!(!inside.wait(Duration::ZERO), "two are inside");
        drop(passes);
        assert!(inside.wait(Duration::MAX));
    }
}
