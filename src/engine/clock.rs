//! Where an engine takes the time from.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A clock: the machine's, or one that a simulation moves, so that what follows from times is the same on every machine.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> Duration + Send + Sync>);

impl Clock {
    /// A clock that `now` reads: the time since any moment, which never goes back.
    pub fn new(now: impl Fn() -> Duration + Send + Sync + 'static) -> Self {
        Self(Arc::new(now))
    }

    /// The time by now.
    pub fn now(&self) -> Duration {
        (self.0)()
    }

    /// The time that has passed since `moment`.
    pub fn since(&self, moment: Duration) -> Duration {
        self.now().saturating_sub(moment)
    }
}

impl Default for Clock {
    /// The machine's.
    fn default() -> Self {
        let start = Instant::now();
        Self::new(move || start.elapsed())
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Clock").field(&self.now()).finish()
    }
}
