//! Status codes, a message per thread, and the boundary that no panic crosses.

use crate::backend::BackendError;
use crate::control::ControllerError;
use crate::draft::SourceError;
use crate::engine::EngineError;
use crate::load::{LoadError, PromptError};
use crate::sample::ParamError;
use std::any::Any;
use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// What became of a call. Later versions may add codes: treat one that you do not know as a failure.
#[repr(i32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Done.
    Ok = 0,
    /// An argument is NULL, misaligned or out of range, or cannot be understood.
    InvalidArgument = 1,
    /// The handle is not alive: freed already, of another kind, or never made by this library.
    InvalidHandle = 2,
    /// struct_size is not the size of this library's structure: header and library do not belong together.
    InvalidStructSize = 3,
    /// A text is not UTF-8.
    InvalidUtf8 = 4,
    /// The caller's buffer is too small; the length that it needs was written, and nothing else.
    BufferTooSmall = 5,
    /// Nothing happened in the time given.
    Timeout = 6,
    /// A callback called a function of the session that had called it, or set a log callback from one.
    Reentrant = 7,
    /// There is no unfinished request of this number.
    NotFound = 8,
    /// The model has no tokenizer, no chat template, or no exit block, and the call needs one.
    Unsupported = 9,
    /// A model, tokenizer or exit block could not be opened.
    LoadFailed = 10,
    /// The prompt does not fit the context, or prompt and answer the cache. (An answer that reaches the context's end is
    /// cut there, which is no failure: EESD_FINISH_CONTEXT.)
    TooLong = 11,
    /// Memory could not be had, of the host or of the device.
    OutOfMemory = 12,
    /// The device, or a thread, failed.
    DeviceFailed = 13,
    /// The session was freed while the call waited.
    Closed = 14,
    /// A bug in this library: a panic was caught. The handles of the call should be freed.
    Internal = 15,
    /// The model's numbers for this request are not finite: its weights hold such a number, or what they give is too large for
    /// its format. The session's other requests go on.
    NotFinite = 16,
    /// As many requests wait as may (max_waiting of eesd_session_params): try again when one has ended.
    Overloaded = 17,
    /// A file could not be written.
    IoFailed = 18,
}

/// Why a call fails.
#[derive(Debug, Clone)]
pub(super) struct Failure {
    pub(super) status: Status,
    pub(super) message: String,
}

/// What a fallible part of a call returns.
pub(super) type Outcome<T = ()> = Result<T, Failure>;

impl Failure {
    pub(super) fn new(status: Status, message: impl Into<String>) -> Self {
        Self { status, message: message.into() }
    }

    pub(super) fn argument(message: impl Into<String>) -> Self {
        Self::new(Status::InvalidArgument, message)
    }

    /// What a caught panic becomes.
    pub(super) fn panic(payload: &(dyn Any + Send)) -> Self {
        let text = payload.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("no message");
        Self::new(Status::Internal, format!("internal error, please report it: {text}"))
    }

    /// A text that a tokenizer or a chat template, whole themselves, do not take.
    pub(super) fn refused(error: &LoadError) -> Self {
        Self::argument(with_causes(error))
    }

    /// The session was freed.
    pub(super) fn closed() -> Self {
        Self::new(Status::Closed, "the session was freed")
    }
}

impl From<&LoadError> for Failure {
    fn from(error: &LoadError) -> Self {
        Self::new(Status::LoadFailed, with_causes(error))
    }
}

impl From<LoadError> for Failure {
    fn from(error: LoadError) -> Self {
        Self::from(&error)
    }
}

impl From<PromptError> for Failure {
    fn from(error: PromptError) -> Self {
        match error {
            PromptError::NoTokenizer | PromptError::NoTemplate(_) => Self::new(Status::Unsupported, error.to_string()),
            PromptError::Refused(error) => Self::refused(&error),
        }
    }
}

impl From<ControllerError> for Failure {
    fn from(error: ControllerError) -> Self {
        Self::argument(with_causes(&error))
    }
}

impl From<SourceError> for Failure {
    fn from(error: SourceError) -> Self {
        Self::argument(format!("draft: {error}"))
    }
}

impl From<ParamError> for Failure {
    fn from(error: ParamError) -> Self {
        Self::argument(error.to_string())
    }
}

impl From<BackendError> for Failure {
    fn from(error: BackendError) -> Self {
        let status = match error {
            BackendError::OutOfMemory { .. } | BackendError::DeviceMemory(_) => Status::OutOfMemory,
            BackendError::Model(_) | BackendError::Exit(_) => Status::LoadFailed,
            BackendError::NonFinite { .. } => Status::NotFinite,
            _ => Status::DeviceFailed,
        };
        Self::new(status, with_causes(&error))
    }
}

impl From<EngineError> for Failure {
    fn from(error: EngineError) -> Self {
        match error {
            EngineError::Backend(error) => error.into(),
            EngineError::PromptTooLong { .. } | EngineError::CacheTooSmall { .. } => {
                Self::new(Status::TooLong, error.to_string())
            }
            EngineError::StopNeedsTokenizer => Self::new(Status::Unsupported, error.to_string()),
            _ => Self::argument(error.to_string()),
        }
    }
}

/// The error and what is behind it, on one line.
pub(super) fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let message = error.to_string();
        if !text.contains(&message) {
            text = format!("{text}: {message}");
        }
        cause = error.source();
    }
    text
}

thread_local! {
    static LAST_ERROR: RefCell<Option<CString>> = const { RefCell::new(None) };
}

/// Runs the body of an entry: a failure leaves its message for the thread, a panic ends here.
pub(super) fn entry(body: impl FnOnce() -> Outcome) -> Status {
    let failure = match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => return Status::Ok,
        Ok(Err(failure)) => failure,
        Err(payload) => Failure::panic(&*payload),
    };
    let mut message = failure.message.into_bytes();
    message.retain(|&byte| byte != 0);
    let message = CString::new(message).ok();
    // A thread that is being taken down has nobody left to ask.
    let _ = LAST_ERROR.try_with(|last| last.replace(message));
    failure.status
}

/// The message of this thread's last call that did not return EESD_STATUS_OK; empty if there was none.
///
/// Never NULL. The text is this library's: it stays until the next failing call of the same thread.
#[unsafe(no_mangle)]
pub extern "C" fn eesd_last_error() -> *const c_char {
    let last = LAST_ERROR.try_with(|last| last.borrow().as_ref().map(|message| message.as_ptr()));
    last.ok().flatten().unwrap_or(c"".as_ptr())
}

/// The name of a status, as in "EESD_STATUS_TIMEOUT"; "unknown status" for a number that is none.
///
/// Never NULL; a constant.
#[unsafe(no_mangle)]
pub extern "C" fn eesd_status_name(status: i32) -> *const c_char {
    let name: &'static CStr = match status {
        0 => c"EESD_STATUS_OK",
        1 => c"EESD_STATUS_INVALID_ARGUMENT",
        2 => c"EESD_STATUS_INVALID_HANDLE",
        3 => c"EESD_STATUS_INVALID_STRUCT_SIZE",
        4 => c"EESD_STATUS_INVALID_UTF8",
        5 => c"EESD_STATUS_BUFFER_TOO_SMALL",
        6 => c"EESD_STATUS_TIMEOUT",
        7 => c"EESD_STATUS_REENTRANT",
        8 => c"EESD_STATUS_NOT_FOUND",
        9 => c"EESD_STATUS_UNSUPPORTED",
        10 => c"EESD_STATUS_LOAD_FAILED",
        11 => c"EESD_STATUS_TOO_LONG",
        12 => c"EESD_STATUS_OUT_OF_MEMORY",
        13 => c"EESD_STATUS_DEVICE_FAILED",
        14 => c"EESD_STATUS_CLOSED",
        15 => c"EESD_STATUS_INTERNAL",
        16 => c"EESD_STATUS_NOT_FINITE",
        17 => c"EESD_STATUS_OVERLOADED",
        18 => c"EESD_STATUS_IO_FAILED",
        _ => c"unknown status",
    };
    name.as_ptr()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn last_error() -> String {
        // SAFETY: terminated, and this thread makes no call meanwhile.
        unsafe { CStr::from_ptr(eesd_last_error()) }.to_string_lossy().into_owned()
    }

    #[test]
    fn a_failure_leaves_its_message_for_its_thread_alone() {
        assert_eq!(last_error(), "");
        assert_eq!(entry(|| Err(Failure::new(Status::NotFound, "no\0 request 7"))), Status::NotFound);
        assert_eq!(last_error(), "no request 7");
        assert_eq!(entry(|| Ok(())), Status::Ok);
        assert_eq!(last_error(), "no request 7", "success leaves it");
        std::thread::spawn(|| assert_eq!(last_error(), "")).join().unwrap();
    }

    #[test]
    fn a_panic_becomes_a_status() {
        assert_eq!(entry(|| panic!("seven {}", 7)), Status::Internal);
        assert_eq!(last_error(), "internal error, please report it: seven 7");
    }
}
