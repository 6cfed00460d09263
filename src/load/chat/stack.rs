//! Room for templates that nest deeply.

use crate::load::limits;
use std::io;
use std::thread;

/// Does `work` on a stack that a hostile template cannot overflow: minijinja parses, prints, compares and drops nested
/// values by recursion.
///
/// # Errors
/// If there is no room for another thread, or the work panics.
pub(super) fn with_room<T: Send>(work: impl FnOnce() -> T + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let worker = thread::Builder::new()
            .name("chat template".into())
            .stack_size(limits::TEMPLATE_STACK)
            .spawn_scoped(scope, work)?;
        worker.join().map_err(|_| io::Error::other("the template engine failed"))
    })
}
