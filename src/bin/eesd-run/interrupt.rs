//! Ctrl-C: the first one asks the work in progress to stop, a second one ends the program.

use std::sync::atomic::{AtomicUsize, Ordering};

static PRESSED: AtomicUsize = AtomicUsize::new(0);
/// What a shell reports for a program that an interrupt ended.
const INTERRUPTED: i32 = 130;

/// Starts listening, and says so to nobody but who asks.
pub fn listen() {
    listen_with(|| {});
}

/// Starts listening; the first one is told of, too, in a thread of its own. Without a handler (which only an exotic system refuses) Ctrl-C just ends the program.
pub fn listen_with(told: impl Fn() + Send + 'static) {
    let _ = ctrlc::set_handler(move || {
        if PRESSED.fetch_add(1, Ordering::SeqCst) > 0 {
            std::process::exit(INTERRUPTED);
        }
        told();
    });
}

/// Has Ctrl-C been pressed since the start or the last [`forget`]?
pub fn pressed() -> bool {
    PRESSED.load(Ordering::SeqCst) > 0
}

/// The interrupt has been dealt with.
pub fn forget() {
    PRESSED.store(0, Ordering::SeqCst);
}
