//! Generating: by a callback, or by events that are pulled.

use super::answer::{Completion, KeptCompletion, KeptToken, NO_MESSAGE, Token, keep, message};
use super::argument::{Place, Versioned, fill};
use super::mailbox::{Happening, Mailbox};
use super::request::Request;
use super::request_reading::read;
use super::session::{self, Session};
use super::status::{Failure, Outcome, Status, entry};
use super::worker::Command;
use crate::engine;
use std::any::Any;
use std::ffi::{c_char, c_void};
use std::sync::Arc;
use std::time::Duration;

/// Receives a token, which is good for the call alone, and the pointer that was given beside the callback. 0 goes on,
/// anything else cancels. It is called on the thread that called eesd_generate(), must not throw, and cannot call functions
/// of the same session (EESD_STATUS_REENTRANT); those of models and of other sessions it can.
pub type TokenCallback = Option<unsafe extern "C" fn(token: *const Token, user_data: *mut c_void) -> i32>;

/// What an event tells.
#[repr(i32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventKind {
    /// A token became certain: token.
    Token = 1,
    /// The request is finished: completion. Nothing more comes of it.
    Done = 2,
    /// The request failed: status and message. Nothing more comes of it.
    Failed = 3,
}

/// What happened to a submitted request.
#[repr(C)]
pub struct Event {
    /// sizeof(eesd_event); to be set before the call.
    pub struct_size: usize,
    /// What this tells.
    pub kind: EventKind,
    /// Why the request failed; else EESD_STATUS_OK.
    pub status: Status,
    /// The request's number, from eesd_submit().
    pub request: u64,
    /// The token, in events of that kind.
    pub token: Token,
    /// The answer, in events of that kind.
    pub completion: Completion,
    /// Why the request failed, in words; else empty.
    pub message: *const c_char,
}

// SAFETY: repr(C), struct_size first; only written here.
unsafe impl Versioned for Event {
    const NAME: &'static str = "eesd_event";
}

/// Answers a request and returns when it is answered.
///
/// callback (may be NULL) gets each token as it becomes certain; when it cancels, the status is EESD_STATUS_OK and the
/// completion has what the callback was given, finish EESD_FINISH_CANCELLED (its statistics count what the engine had
/// decoded further). *completion (may be NULL) is filled in when the status is EESD_STATUS_OK; what it points to stays until
/// the same thread's next eesd_generate() or eesd_next_event() returns, and until the thread ends. Several threads may
/// generate on one session: their requests are worked on side by side.
///
/// # Safety
///
/// `request` is NULL or as its struct_size says, with arrays as long as their counts say; `callback` may be called with
/// `user_data`; `completion` is NULL, or as its struct_size, which is set, says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eesd_generate(
    session: *const Session,
    request: *const Request,
    callback: TokenCallback,
    user_data: *mut c_void,
    completion: *mut Completion,
) -> Status {
    entry(|| {
        let session = session::find(session)?;
        // SAFETY: the caller vouches for it.
        let place = if completion.is_null() { None } else { Some(unsafe { Place::structure(completion) }?) };
        // SAFETY: the same.
        let (request, _) = unsafe { read(&session, request) }?.alone()?;
        let mut on_token = |token: KeptToken| match callback {
            // SAFETY: the same; the token lives until the call has returned.
            Some(callback) => session::calling(&session, || unsafe { callback(&token.view(), user_data) }) == 0,
            None => true,
        };
        let kept = KeptCompletion::new(answer(&session, request, callback.is_some(), &mut on_token)?);
        let completion = kept.view();
        keep(Box::new(kept))?;
        if let Some(place) = place {
            place.write(completion);
        }
        Ok(())
    })
}

/// Runs one request to its end.
fn answer(
    session: &Session,
    request: engine::Request,
    stream: bool,
    on_token: &mut dyn FnMut(KeptToken) -> bool,
) -> Outcome<engine::Completion> {
    let mailbox = Arc::new(Mailbox::default());
    let id = session.submit(vec![request], &mailbox, stream)?;
    let (mut tokens, mut text, mut cancelled) = (0, 0, false);
    loop {
        match mailbox.take(None)?.1 {
            // Decoded before the cancellation arrived.
            Happening::Token(_) if cancelled => {}
            Happening::Token(emission) => {
                tokens += 1;
                text += emission.text.len();
                if !on_token(KeptToken::new(emission)) {
                    cancelled = true;
                    session.send(Command::Cancel(id))?;
                }
            }
            Happening::Done(mut completion) => {
                if cancelled && (tokens < completion.tokens.len() || completion.finish == engine::Finish::Cancelled) {
                    completion.tokens.truncate(tokens);
                    completion.logprobs.truncate(tokens);
                    completion.text.truncate(text);
                    completion.finish = engine::Finish::Cancelled;
                }
                return Ok(*completion);
            }
            Happening::Failed(failure) => return Err(failure),
        }
    }
}

/// Hands in a request; *id gets its number, by which events name it, the first one 1.
///
/// A request that is malformed, or has too long a prompt, is refused at once: it has no number and no events. One that the
/// cache cannot hold, or whose pass fails, fails by an event of kind EESD_EVENT_KIND_FAILED. Events that nobody pulls are
/// kept until the session is freed.
///
/// # Safety
///
/// `request` is NULL or as its struct_size says, with arrays as long as their counts say; `id` is NULL or good to write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eesd_submit(session: *const Session, request: *const Request, id: *mut u64) -> Status {
    entry(|| {
        let session = session::find(session)?;
        // SAFETY: the caller vouches for both.
        let (place, asked) = unsafe { (Place::new(id, "id")?, read(&session, request)?) };
        let (request, stream) = asked.alone()?;
        place.write(session.submit(vec![request], &session.events, stream)?);
        Ok(())
    })
}

/// Hands in a request for n answers, as n requests whose prompt is read once: ids gets their numbers, in order, and each has
/// events of its own. *needed (may be NULL) gets n, which json may say; where that is more than capacity, nothing is handed in,
/// and the status is EESD_STATUS_BUFFER_TOO_SMALL.
///
/// # Safety
///
/// `request` is NULL or as its struct_size says, with arrays as long as their counts say; `ids` is good to write for
/// `capacity` numbers; `needed` is NULL or good to write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eesd_submit_n(
    session: *const Session,
    request: *const Request,
    ids: *mut u64,
    capacity: usize,
    needed: *mut usize,
) -> Status {
    entry(|| {
        let session = session::find(session)?;
        // SAFETY: the caller vouches for it.
        let asked = unsafe { read(&session, request) }?;
        let zeros = vec![0; asked.requests.len()];
        // SAFETY: the same. Where there is no room, nothing is to be handed in.
        unsafe { fill(&zeros, ids, capacity, needed) }?;
        let first = session.submit(asked.requests, &session.events, asked.stream)?;
        let numbers: Vec<u64> = (first..).take(zeros.len()).collect();
        // SAFETY: the same.
        unsafe { fill(&numbers, ids, capacity, needed) }
    })
}

/// Waits for the next event of any request that was submitted, by any thread: each event is handed out once. What it points
/// to stays until the same thread's next eesd_next_event() or eesd_generate() returns, and until the thread ends.
///
/// timeout_ms: longest time to wait, in milliseconds; 0 looks and returns, below 0 waits as long as it takes, for requests
/// that are yet to be submitted too. EESD_STATUS_TIMEOUT if there was no event, EESD_STATUS_CLOSED if the session was freed.
///
/// # Safety
///
/// `event` is NULL, or as its struct_size, which is set, says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eesd_next_event(session: *const Session, timeout_ms: i64, event: *mut Event) -> Status {
    entry(|| {
        let session = session::find(session)?;
        // SAFETY: the caller vouches for it.
        let place = unsafe { Place::structure(event) }?;
        let patience = u64::try_from(timeout_ms).ok().map(Duration::from_millis);
        let (request, happening) = session.events.take(patience)?;
        let mut event = Event {
            struct_size: size_of::<Event>(),
            kind: EventKind::Token,
            status: Status::Ok,
            request,
            token: Token::NONE,
            completion: Completion::NONE,
            message: NO_MESSAGE,
        };
        let kept: Box<dyn Any> = match happening {
            Happening::Token(emission) => {
                let kept = KeptToken::new(emission);
                event.token = kept.view();
                Box::new(kept)
            }
            Happening::Done(completion) => {
                let kept = KeptCompletion::new(*completion);
                event.kind = EventKind::Done;
                event.completion = kept.view();
                Box::new(kept)
            }
            Happening::Failed(failure) => {
                let kept = message(&failure);
                event.kind = EventKind::Failed;
                (event.status, event.message) = (failure.status, kept.as_ptr());
                Box::new(kept)
            }
        };
        keep(kept)?;
        place.write(event);
        Ok(())
    })
}

/// Ends a submitted request where it is. Its last event comes in any case: EESD_EVENT_KIND_DONE with finish
/// EESD_FINISH_CANCELLED, or another one if it was finished before. Tokens that the engine decoded before it saw the
/// cancellation still come; how many differs from run to run. The answer's text may end with what was held back in case
/// it became a stop string.
///
/// EESD_STATUS_NOT_FOUND if there is no unfinished request of this number.
#[unsafe(no_mangle)]
pub extern "C" fn eesd_cancel(session: *const Session, id: u64) -> Status {
    entry(|| {
        let session = session::find(session)?;
        if !session.events.expects(id) {
            return Err(Failure::new(Status::NotFound, format!("no unfinished request {id}")));
        }
        session.send(Command::Cancel(id))
    })
}
