//! How many requests a session takes at a time: those worked on, and those that may wait.

use super::status::{Failure, Outcome, Status};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The places of a session's requests.
pub(super) struct Places {
    most: usize,
    taken: Arc<AtomicUsize>,
}

/// A place that is a request's until this is dropped.
pub(super) struct TakenPlace(Arc<AtomicUsize>);

impl Places {
    pub fn new(most: usize) -> Self {
        Self { most, taken: Arc::default() }
    }

    /// Places for so many requests, all of them or none.
    pub fn take(&self, count: usize) -> Outcome<Vec<TakenPlace>> {
        let with = |taken: usize| taken.checked_add(count).filter(|&taken| taken <= self.most);
        let taken = self.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, with);
        taken.map_err(|taken| {
            let most = self.most;
            let found = format!("{count} requests beside the {taken} that the session has (expected {most} at most)");
            Failure::new(Status::Overloaded, found)
        })?;
        Ok((0..count).map(|_| TakenPlace(self.taken.clone())).collect())
    }
}

impl Drop for TakenPlace {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_given_all_or_none_and_come_back() {
        let places = Places::new(3);
        let two = places.take(2).unwrap_or_else(|failure| panic!("{}", failure.message));
        let refused = places.take(2).err().expect("one is left");
        assert_eq!(refused.status, Status::Overloaded);
        assert_eq!(refused.message, "2 requests beside the 2 that the session has (expected 3 at most)");
        let one = places.take(1).ok();
        assert!(one.is_some() && places.take(1).is_err() && places.take(usize::MAX).is_err());
        drop(two);
        assert_eq!(places.take(2).map(|taken| taken.len()).ok(), Some(2));
        assert!(Places::new(usize::MAX).take(1).is_ok());
    }
}
