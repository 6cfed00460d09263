//! The entries as several threads of a host call them at the same time: for the sanitizers of `.ci/sanitize`, which do
//! not see the hosts in C.

use super::*;
use crate::TokenId;
use crate::load::Checkpoint;
use crate::model::Encoder;
use std::ffi::{CStr, CString, c_char, c_void};
use std::mem::MaybeUninit;
use std::num::NonZeroUsize;
use std::ops::ControlFlow;
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
    opened(|_| (), |_| ()).unwrap()
}

/// A model and a session, or the message of the call that failed.
fn opened(
    change_model: impl FnOnce(&mut ModelParams),
    change_session: impl FnOnce(&mut SessionParams),
) -> Result<Handles, String> {
    let (mut model, mut session) = (null_mut(), null_mut());
    let mut params = MaybeUninit::<ModelParams>::uninit();
    let mut of_session = MaybeUninit::<SessionParams>::uninit();
    // SAFETY: structures of the sizes that they say, filled before they are read; texts that end in a zero.
    unsafe {
        assert_eq!(eesd_model_params_default(params.as_mut_ptr(), size_of::<ModelParams>()), Status::Ok);
        params.assume_init_mut().folder = FOLDER.as_ptr().cast();
        change_model(params.assume_init_mut());
        let done = |status| match status {
            Status::Ok => Ok(()),
            _ => Err(CStr::from_ptr(eesd_last_error()).to_str().unwrap().to_owned()),
        };
        done(eesd_model_load(params.as_ptr(), &mut model))?;
        assert_eq!(eesd_session_params_default(of_session.as_mut_ptr(), size_of::<SessionParams>()), Status::Ok);
        let settings = of_session.assume_init_mut();
        (settings.threads, settings.slots, settings.context) = (2, 3, 128);
        settings.controller = c"off".as_ptr();
        change_session(settings);
        done(eesd_session_create(model, of_session.as_ptr(), &mut session)).inspect_err(|_| {
            assert_eq!(eesd_model_free(model), Status::Ok);
        })?;
    }
    Ok(Handles(model, session))
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

/// What a model and a session say of themselves.
fn infos(Handles(model, session): Handles) -> (ModelInfo, SessionInfo) {
    let mut infos = (MaybeUninit::<ModelInfo>::zeroed(), MaybeUninit::<SessionInfo>::zeroed());
    // SAFETY: zeros are such structures; they say their sizes.
    unsafe {
        infos.0.assume_init_mut().struct_size = size_of::<ModelInfo>();
        infos.1.assume_init_mut().struct_size = size_of::<SessionInfo>();
        assert_eq!(eesd_model_get_info(model, infos.0.as_mut_ptr()), Status::Ok);
        assert_eq!(eesd_session_get_info(session, infos.1.as_mut_ptr()), Status::Ok);
        (infos.0.assume_init(), infos.1.assume_init())
    }
}

fn text(fixed: &[c_char]) -> String {
    fixed.iter().take_while(|&&byte| byte != 0).map(|&byte| byte as u8 as char).collect()
}

fn free(Handles(model, session): Handles) {
    assert_eq!((eesd_session_free(session), eesd_model_free(model)), (Status::Ok, Status::Ok));
}

#[test]
fn weights_and_cache_have_as_many_bits_as_are_asked() {
    let plain = open();
    let (whole, usual) = infos(plain);
    assert_eq!((text(&whole.quantized), text(&usual.kv)), (String::new(), "f32".into()));
    free(plain);
    let mut last = whole.bytes;
    for (scheme, format) in [(c"q8", "q8_0 weights"), (c"q4", "q4_0 + q8_0 weights")] {
        let open = || opened(|model| model.quantize = scheme.as_ptr(), |session| session.kv = c"q8".as_ptr()).unwrap();
        let (first, second) = (open(), open());
        let (model, session) = infos(first);
        assert_eq!((&*text(&model.quantized), &*text(&session.kv)), (scheme.to_str().unwrap(), "q8"));
        assert!(text(&session.device).ends_with(format), "{}", text(&session.device));
        assert!(model.bytes < last, "{scheme:?}: {} of {last} bytes", model.bytes);
        last = model.bytes;
        assert_eq!(generate(first), generate(second));
        free(first);
        free(second);
    }
}

#[test]
fn bits_that_there_are_not_are_refused_by_name() {
    let quantise = |name: &'static CStr| opened(|model| model.quantize = name.as_ptr(), |_| ()).err();
    let keep = |name: &'static CStr| opened(|_| (), |session| session.kv = name.as_ptr()).err();
    for name in [c"q5", c"Q8", c""] {
        let expected = |key: &str, others: &str| Some(format!("{key}: {name:?} (expected {others} or NULL)"));
        assert_eq!(quantise(name), expected("quantize", "\"q8\", \"q4\""));
        assert_eq!(keep(name), expected("kv", "\"f32\", \"q8\""));
    }
    let on_gpu = |session: &mut SessionParams| (session.kv, session.device) = (c"f32".as_ptr(), c"cuda:0".as_ptr());
    let refused = "kv: \"f32\", but a GPU keeps keys and values in the model's 16 bits, or in 8 (expected \"q8\" or NULL, or \
                   device \"cpu\")";
    assert_eq!(opened(|_| (), on_gpu).err().as_deref(), Some(refused));

    // What is quantised already has nothing left to do.
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("again.gguf");
    let model = Checkpoint::open(FOLDER.trim_end_matches('\0').as_ref()).unwrap();
    let go_on = &mut |_, _| ControlFlow::Continue(());
    crate::load::export::quantise(&model, &file, Encoder::Q8_0, NonZeroUsize::MIN, go_on).unwrap();
    let file = CString::new(file.to_str().unwrap()).unwrap();
    let again = |model: &mut ModelParams| (model.folder, model.quantize) = (file.as_ptr(), c"q4".as_ptr());
    let refused = opened(again, |_| ()).err().unwrap();
    assert!(refused.starts_with("quantize: q4: again: no matrix to quantise: they are in q8_0"), "{refused}");
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
