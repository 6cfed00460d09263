//! Room for templates that nest deeply.

use std::io;
use std::thread;

/// Nothing that a template of [`super::LARGEST`] bytes can say, or its fuel can build, needs more. Only what is used of
/// it is ever taken from the system.
const STACK: usize = 512 << 20;

/// Does `work` on a stack that a hostile template cannot overflow: minijinja parses, prints, compares and drops nested
/// values by recursion.
///
/// # Errors
/// If there is no room for another thread, or the work panics.
pub(super) fn with_room<T: Send>(work: impl FnOnce() -> T + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let worker = thread::Builder::new().name("chat template".into()).stack_size(STACK).spawn_scoped(scope, work)?;
        worker.join().map_err(|_| io::Error::other("the template engine failed"))
    })
}
