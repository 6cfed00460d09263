//! What the C interface costs: the same answers through `Engine::generate` and through `eesd_generate`, in turns.
//!
//! `cargo bench --bench c_api [-- REPETITIONS TOKENS [FOLDER]]`: the bundled model, or that in a folder with one exit block.
//! The speed of two engines in one process differs by more than what is looked for (by where their weights happen to lie), so
//! compared is what an answer takes beside the engine's own passes, which both ways report: prefill, drafting and verification.
//! The bundled model is the worst case: its round is a hundredth of a useful model's, and a token's way from the engine's
//! thread to the caller's costs the same for both.

use eesd::backend::cpu::{CpuBackend, CpuOptions};
use eesd::control::ControllerSpec;
use eesd::engine::{Engine, Request};
use eesd::ffi::{self, Completion, Model, ModelParams, Session, SessionParams, Status, Token};
use eesd::load::{BUNDLED_EXIT, Checkpoint, ExitBlock, Tokenizer};
use std::ffi::c_void;
use std::mem::MaybeUninit;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

const PROMPT: &str = "def fibonacci(n):";
const CONTEXT: usize = 512;

fn main() {
    let numbers: Vec<usize> = std::env::args().filter_map(|argument| argument.parse().ok()).collect();
    let folder = std::env::args().skip(1).find(|argument| Path::new(argument).is_dir());
    let folder = folder.as_deref();
    let (repetitions, tokens) = (numbers.first().map_or(100, |&n| n.max(1)), numbers.get(1).map_or(256, |&n| n));
    println!("| controller | passes of a round | beside them, Rust API | C API | more | of a round |");
    println!("|---|--:|--:|--:|--:|--:|");
    for spec in ["off", "fixed:4"] {
        let mut rust = Rust::new(spec, folder);
        let mut c = C::new(spec, folder);
        let (mut of_rust, mut of_c) = (Vec::new(), Vec::new());
        for _ in 0..repetitions {
            let (expected, time) = rust.generate(tokens);
            of_rust.push(time);
            let (found, time) = c.generate(tokens);
            of_c.push(time);
            assert_eq!(found, expected, "{spec}");
        }
        let passes = lower_quartile(of_rust.iter().chain(&of_c).map(|time| time.passes));
        let [rust, c] = [of_rust, of_c].map(|times| lower_quartile(times.iter().map(|time| time.beside)));
        println!(
            "| {spec} | {:.1} µs | {:.2} µs | {:.2} µs | {:+.2} µs | {:+.2} % |",
            passes * 1e6,
            rust * 1e6,
            c * 1e6,
            (c - rust) * 1e6,
            (c - rust) / (passes + rust) * 100.0
        );
    }
}

/// Seconds of an answer, over its rounds.
struct Time {
    passes: f64,
    /// All else, from the call to its return.
    beside: f64,
}

impl Time {
    fn new(begun: Instant, passes: f64, rounds: usize) -> Self {
        let whole = begun.elapsed().as_secs_f64();
        Self { passes: passes / rounds as f64, beside: (whole - passes) / rounds as f64 }
    }
}

/// Other programs make times longer and never shorter; the very shortest is luck.
fn lower_quartile(times: impl Iterator<Item = f64>) -> f64 {
    let mut times: Vec<f64> = times.collect();
    times.sort_by(f64::total_cmp);
    times[times.len() / 4]
}

struct Rust {
    engine: Engine,
    tokenizer: Arc<Tokenizer>,
}

impl Rust {
    fn new(spec: &str, folder: Option<&str>) -> Self {
        let checkpoint =
            folder.map_or_else(Checkpoint::bundled, |folder| Checkpoint::open(folder.as_ref())).expect("a model");
        let spec = ControllerSpec::parse(spec).expect("a controller");
        let blocks = checkpoint.exit_blocks().expect("its exit blocks");
        let best = |block: &&ExitBlock| folder.is_some() || block.after() == BUNDLED_EXIT;
        let exit = blocks.iter().find(best).filter(|_| spec != ControllerSpec::Off);
        let options =
            CpuOptions { threads: Some(1), slots: 1, context: CONTEXT, max_draft: 16, ..CpuOptions::default() };
        let exit = exit.map(|block| block.weights());
        let backend = CpuBackend::new(checkpoint.geometry(), &checkpoint.weights(), exit.as_ref(), &options);
        let tokenizer = checkpoint.tokenizer().cloned().expect("its tokenizer");
        let end_tokens = checkpoint.generation().end_tokens.clone();
        let backend = backend.expect("a backend");
        Self { engine: Engine::new(backend, spec.build(), Some(tokenizer.clone()), end_tokens), tokenizer }
    }

    fn generate(&mut self, tokens: usize) -> (Vec<u32>, Time) {
        let begun = Instant::now();
        let mut text = String::new();
        let prompt = self.tokenizer.encode(PROMPT, true).expect("the prompt's tokens");
        let request = Request { ignore_end: true, ..Request::new(prompt, tokens) };
        let completion = self.engine.generate(&request, &mut |emission| {
            text.push_str(&emission.text);
            ControlFlow::Continue(())
        });
        let completion = completion.expect("an answer");
        let stats = &completion.stats;
        let passes = stats.prefill + stats.draft + stats.verify;
        let time = Time::new(begun, passes.as_secs_f64(), stats.rounds);
        (completion.tokens, time)
    }
}

struct C {
    session: *mut Session,
}

unsafe extern "C" fn take_text(token: *const Token, user_data: *mut c_void) -> i32 {
    // SAFETY: the library's token and this file's string, both good for the call.
    let (text, token) = unsafe { (&mut *user_data.cast::<Vec<u8>>(), &*token) };
    // SAFETY: as long as it says.
    text.extend_from_slice(unsafe { std::slice::from_raw_parts(token.text.data.cast(), token.text.length) });
    0
}

impl C {
    fn new(spec: &str, folder: Option<&str>) -> Self {
        let spec = std::ffi::CString::new(spec).expect("no zero in it");
        let folder = folder.map(|folder| std::ffi::CString::new(folder).expect("no zero in it"));
        let mut model_params = MaybeUninit::<ModelParams>::uninit();
        let mut params = MaybeUninit::<SessionParams>::uninit();
        let (mut model, mut session): (*mut Model, *mut Session) = (std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: each structure is filled in before it is read, and of the size that is told.
        unsafe {
            ok(ffi::eesd_model_params_default(model_params.as_mut_ptr(), size_of::<ModelParams>()));
            let model_params = model_params.assume_init_mut();
            model_params.folder = folder.as_ref().map_or(std::ptr::null(), |folder| folder.as_ptr());
            ok(ffi::eesd_model_load(model_params, &mut model));
            ok(ffi::eesd_session_params_default(params.as_mut_ptr(), size_of::<SessionParams>()));
            let params = params.assume_init_mut();
            params.controller = spec.as_ptr();
            (params.threads, params.slots, params.context) = (1, 1, CONTEXT);
            ok(ffi::eesd_session_create(model, params, &mut session));
        }
        ok(ffi::eesd_model_free(model));
        Self { session }
    }

    fn generate(&mut self, tokens: usize) -> (Vec<u32>, Time) {
        let begun = Instant::now();
        let mut request = MaybeUninit::<ffi::Request>::uninit();
        let mut completion = MaybeUninit::<Completion>::uninit();
        let mut text: Vec<u8> = Vec::new();
        // SAFETY: each structure is filled in before it is read, and of the size that is told; the answer is looked at
        // before this thread's next one.
        unsafe {
            ok(ffi::eesd_request_default(std::ptr::null(), request.as_mut_ptr(), size_of::<ffi::Request>()));
            let request = request.assume_init_mut();
            (request.prompt, request.prompt_length) = (PROMPT.as_ptr().cast(), PROMPT.len());
            (request.max_tokens, request.ignore_end) = (tokens, 1);
            completion.as_mut_ptr().cast::<usize>().write(size_of::<Completion>());
            let user_data = (&raw mut text).cast();
            ok(ffi::eesd_generate(self.session, request, Some(take_text), user_data, completion.as_mut_ptr()));
            let completion = completion.assume_init_ref();
            let stats = &completion.stats;
            let time = Time::new(begun, stats.prefill + stats.draft + stats.verify, stats.rounds);
            (std::slice::from_raw_parts(completion.tokens, completion.token_count).to_vec(), time)
        }
    }
}

impl Drop for C {
    fn drop(&mut self) {
        ok(ffi::eesd_session_free(self.session));
    }
}

fn ok(status: Status) {
    assert_eq!(status, Status::Ok);
}
