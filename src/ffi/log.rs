//! What the library has to say beside its answers.

use super::status::{Failure, Outcome, Status, entry};
use std::cell::Cell;
use std::ffi::{CString, c_char, c_void};
use std::sync::{PoisonError, RwLock};

/// How grave a message is.
#[repr(i32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    /// Something failed; a status or an event says so too.
    Error = 1,
    /// Something that was asked for changes nothing, or is not proven.
    Warning = 2,
    /// What was opened, made and freed.
    Info = 3,
}

/// Receives messages: a level (eesd_log_level), a text that is this library's and good for the call alone, and the
/// pointer that was given beside the callback. Any thread may call it, several at the same time. It must not throw.
pub type LogCallback = Option<unsafe extern "C" fn(level: i32, message: *const c_char, user_data: *mut c_void)>;

struct Logger {
    callback: unsafe extern "C" fn(i32, *const c_char, *mut c_void),
    user_data: *mut c_void,
    level: i32,
}

// SAFETY: the pointer is only handed back; what it points to is the host's, who is told of the threads.
unsafe impl Send for Logger {}
// SAFETY: the same.
unsafe impl Sync for Logger {}

static LOGGER: RwLock<Option<Logger>> = RwLock::new(None);

thread_local! {
    /// This thread is in the log callback.
    static LOGGING: Cell<bool> = const { Cell::new(false) };
}

/// Sets the callback of the whole process for messages up to a level (eesd_log_level); NULL: none, as in the beginning.
///
/// When this returns, the former callback is not running and will not be called again. Not to be called from a log
/// callback (EESD_STATUS_REENTRANT).
///
/// # Safety
///
/// `callback` stays callable with `user_data` from any thread until another one is set.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eesd_set_log_callback(callback: LogCallback, user_data: *mut c_void, level: i32) -> Status {
    entry(|| {
        if LOGGING.get() {
            return Err(Failure::new(Status::Reentrant, "a log callback cannot set log callbacks"));
        }
        check_level(level)?;
        let logger = callback.map(|callback| Logger { callback, user_data, level });
        *LOGGER.write().unwrap_or_else(PoisonError::into_inner) = logger;
        Ok(())
    })
}

fn check_level(level: i32) -> Outcome {
    if (LogLevel::Error as i32..=LogLevel::Info as i32).contains(&level) {
        return Ok(());
    }
    Err(Failure::argument(format!("level: {level} (expected 1, 2 or 3: errors, warnings too, everything)")))
}

/// Says `message` to whoever listens; what a log callback's own calls have to say is left out.
pub(super) fn log(level: LogLevel, message: impl FnOnce() -> String) {
    if LOGGING.get() {
        return;
    }
    let logger = LOGGER.read().unwrap_or_else(PoisonError::into_inner);
    let Some(logger) = logger.as_ref().filter(|logger| level as i32 <= logger.level) else { return };
    let Ok(message) = CString::new(message().replace('\0', "")) else { return };
    LOGGING.set(true);
    // SAFETY: set as a callback of this form and still set; the text ends in a zero.
    unsafe { (logger.callback)(level as i32, message.as_ptr(), logger.user_data) };
    LOGGING.set(false);
}
