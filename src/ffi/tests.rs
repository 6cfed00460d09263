//! The entries as several threads of a host call them at the same time: for the sanitizers of `.ci/sanitize`, which do
//! not see the hosts in C.

use super::*;
use crate::TokenId;
use std::ffi::{c_char, c_void};
use std::mem::MaybeUninit;
use std::ptr::null_mut;

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/hf/llama\0");
const PROMPT: [TokenId; 70] = [9; 70];
const LENGTH: usize = 6;

/// Handles as hosts pass them between threads.
#[derive(Clone, Copy)]
struct Handles(*mut Model, *mut Session);
// SAFETY: numbers in the clothes of pointers.
unsafe impl Send for Handles {}

fn open() -> Handles {
    let (mut model, mut session) = (null_mut(), null_mut());
    let mut params = MaybeUninit::<ModelParams>::uninit();
    let mut of_session = MaybeUninit::<SessionParams>::uninit();
    // SAFETY: structures of the sizes that they say, filled before they are read; texts that end in a zero.
    unsafe {
        assert_eq!(eesd_model_params_default(params.as_mut_ptr(), size_of::<ModelParams>()), Status::Ok);
        params.assume_init_mut().folder = FOLDER.as_ptr().cast();
        assert_eq!(eesd_model_load(params.as_ptr(), &mut model), Status::Ok);
        assert_eq!(eesd_session_params_default(of_session.as_mut_ptr(), size_of::<SessionParams>()), Status::Ok);
        let settings = of_session.assume_init_mut();
        (settings.threads, settings.slots, settings.context) = (2, 3, 128);
        settings.controller = c"off".as_ptr();
        assert_eq!(eesd_session_create(model, of_session.as_ptr(), &mut session), Status::Ok);
    }
    Handles(model, session)
}

fn request(model: *const Model) -> Request {
    let mut request = MaybeUninit::<Request>::uninit();
    // SAFETY: of the size that it says, and filled by the call.
    let mut request = unsafe {
        assert_eq!(eesd_request_default(model, request.as_mut_ptr(), size_of::<Request>()), Status::Ok);
        request.assume_init()
    };
    (request.tokens, request.token_count) = (PROMPT.as_ptr(), PROMPT.len());
    (request.max_tokens, request.ignore_end, request.temperature) = (LENGTH, 1, 0.0);
    request
}

unsafe extern "C" fn count(token: *const Token, counted: *mut c_void) -> i32 {
    // SAFETY: a token that is good for the call, and what the test gave beside the callback.
    unsafe {
        assert!((*token).id < 512);
        *counted.cast::<usize>() += 1;
    }
    0
}

unsafe extern "C" fn listen(_level: i32, message: *const c_char, _user_data: *mut c_void) {
    assert!(!message.is_null());
}

/// The file's name without its ending is the model's.
#[test]
fn a_file_is_a_model_too() {
    const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/gguf/llama-mixed.gguf\0");
    let mut model = null_mut();
    let mut params = MaybeUninit::<ModelParams>::uninit();
    let mut info = MaybeUninit::<ModelInfo>::zeroed();
    // SAFETY: structures of the sizes that they say, filled before they are read; a text that ends in a zero.
    unsafe {
        assert_eq!(eesd_model_params_default(params.as_mut_ptr(), size_of::<ModelParams>()), Status::Ok);
        params.assume_init_mut().folder = FILE.as_ptr().cast();
        assert_eq!(eesd_model_load(params.as_ptr(), &mut model), Status::Ok);
        info.assume_init_mut().struct_size = size_of::<ModelInfo>();
        assert_eq!(eesd_model_get_info(model, info.as_mut_ptr()), Status::Ok);
        let name = info.assume_init_ref().name.map(|byte| byte as u8);
        assert!(name.starts_with(b"llama-mixed\0"));
        assert_eq!(eesd_model_free(model), Status::Ok);
    }
}

/// One answer by callback.
fn generate(Handles(model, session): Handles) -> Vec<TokenId> {
    let (mut completion, mut counted) = (Completion::NONE, 0usize);
    // SAFETY: structures of the sizes that they say; the answer is this thread's until its next call.
    unsafe {
        let counter = (&raw mut counted).cast();
        let status = eesd_generate(session, &request(model), Some(count), counter, &mut completion);
        assert_eq!((status, counted), (Status::Ok, LENGTH));
        std::slice::from_raw_parts(completion.tokens, completion.token_count).to_vec()
    }
}

#[test]
fn threads_share_a_session() {
    // SAFETY: callable from any thread.
    assert_eq!(unsafe { eesd_set_log_callback(Some(listen), null_mut(), LogLevel::Info as i32) }, Status::Ok);
    let handles = open();
    let expected = generate(handles);
    assert_eq!(expected.len(), LENGTH);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(move || assert_eq!(generate(handles), generate(handles)));
        }
        scope.spawn(move || {
            let handles = handles;
            let mut snapshot = MaybeUninit::<Snapshot>::zeroed();
            // SAFETY: zeros are a snapshot; it says its size.
            unsafe {
                snapshot.assume_init_mut().struct_size = size_of::<Snapshot>();
                assert_eq!(eesd_session_get_snapshot(handles.1, snapshot.as_mut_ptr()), Status::Ok);
                assert_eq!(snapshot.assume_init_ref().totals.failed, 0);
            }
        });
        scope.spawn(move || by_events(handles));
    });
    assert_eq!(generate(handles), expected);
    let Handles(model, session) = handles;
    assert_eq!(eesd_model_free(model), Status::Ok, "sessions hold what they need of it");
    assert_eq!(generate(Handles(null_mut(), session)), expected);
    assert_eq!(eesd_session_free(session), Status::Ok);
    assert_eq!(eesd_session_free(session), Status::InvalidHandle);
    // SAFETY: NULL takes the callback away.
    assert_eq!(unsafe { eesd_set_log_callback(None, null_mut(), LogLevel::Info as i32) }, Status::Ok);
}

/// Two requests by events, one of which is cancelled: each has one last event.
fn by_events(Handles(model, session): Handles) {
    let mut ids = [0u64; 2];
    let mut event = MaybeUninit::<Event>::uninit();
    let mut ended = Vec::new();
    // SAFETY: structures of the sizes that they say; what events point to is this thread's until its next call.
    unsafe {
        for id in &mut ids {
            assert_eq!(eesd_submit(session, &request(model), id), Status::Ok);
        }
        // Whether it is done already is a matter of time.
        assert!(matches!(eesd_cancel(session, ids[1]), Status::Ok | Status::NotFound));
        while ended.len() < ids.len() {
            (&raw mut (*event.as_mut_ptr()).struct_size).write(size_of::<Event>());
            assert_eq!(eesd_next_event(session, -1, event.as_mut_ptr()), Status::Ok);
            let event = event.assume_init_ref();
            assert_ne!(event.kind, EventKind::Failed);
            if event.kind == EventKind::Done {
                let tokens = std::slice::from_raw_parts(event.completion.tokens, event.completion.token_count);
                assert!(tokens.len() <= LENGTH && tokens.iter().all(|&token| token < 512));
                ended.push(event.request);
            }
        }
    }
    ended.sort_unstable();
    assert_eq!(ended, ids);
}
