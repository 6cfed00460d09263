//! What the C interface costs: the same answers through `Engine::generate` and through `eesd_generate`, in turns.
//!
//! `cargo bench --bench c_api [-- REPETITIONS TOKENS]`. The bundled model is the worst case: its step is a hundredth of a
//! useful model's, and a token's way from the engine's thread to the caller's costs the same for both. Processor time is that
//! of all threads, the caller's included, and other programs disturb it less than they disturb the clock.

use eesd::backend::cpu::{CpuBackend, CpuOptions};
use eesd::control::ControllerSpec;
use eesd::engine::{Engine, Request};
use eesd::ffi::{self, Completion, Model, ModelParams, Session, SessionParams, Status, Token};
use eesd::load::{BUNDLED_EXIT, Checkpoint, Tokenizer};
use std::ffi::c_void;
use std::mem::MaybeUninit;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

const PROMPT: &str = "def fibonacci(n):";
const CONTEXT: usize = 512;

fn main() {
    let numbers: Vec<usize> = std::env::args().filter_map(|argument| argument.parse().ok()).collect();
    let (repetitions, tokens) = (numbers.first().map_or(40, |&n| n.max(1)), numbers.get(1).map_or(256, |&n| n));
    println!("| controller | Rust API | C API | processor time | a round | by the clock |");
    println!("|---|--:|--:|--:|--:|--:|");
    for spec in ["off", "fixed:4"] {
        let mut rust = Rust::new(spec);
        let mut c = C::new(spec);
        let (mut of_rust, mut of_c, mut rounds) = (Times::default(), Times::default(), 0);
        for _ in 0..repetitions {
            let (expected, played) = of_rust.time(|| rust.generate(tokens));
            rounds = played;
            let found = of_c.time(|| c.generate(tokens));
            assert_eq!(found, expected, "{spec}");
        }
        let (rust, c) = (of_rust.lower_quartiles(), of_c.lower_quartiles());
        let more = |c: Duration, rust: Duration| (c.as_secs_f64() / rust.as_secs_f64() - 1.0) * 100.0;
        println!(
            "| {spec} | {:.2} ms | {:.2} ms | {:+.2} % | {:+.2} µs of {:.0} | {:+.2} % |",
            rust.processor.as_secs_f64() * 1e3,
            c.processor.as_secs_f64() * 1e3,
            more(c.processor, rust.processor),
            (c.processor.as_secs_f64() - rust.processor.as_secs_f64()) / rounds as f64 * 1e6,
            rust.processor.as_secs_f64() / rounds as f64 * 1e6,
            more(c.clock, rust.clock),
        );
    }
}

/// One answer's time.
#[derive(Default, Clone, Copy)]
struct Time {
    processor: Duration,
    clock: Duration,
}

#[derive(Default)]
struct Times(Vec<Time>);

impl Times {
    fn time<T>(&mut self, work: impl FnOnce() -> T) -> T {
        let (processor, clock) = (processor_time(), Instant::now());
        let result = work();
        self.0.push(Time { processor: processor_time() - processor, clock: clock.elapsed() });
        result
    }

    /// Other programs make times longer and never shorter; the very shortest is luck.
    fn lower_quartiles(&self) -> Time {
        let quartile = |of: fn(&Time) -> Duration| {
            let mut times: Vec<Duration> = self.0.iter().map(of).collect();
            times.sort();
            times[times.len() / 4]
        };
        Time { processor: quartile(|time| time.processor), clock: quartile(|time| time.clock) }
    }
}

/// Processor time of this process.
fn processor_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes one time.
    assert_eq!(unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut time) }, 0);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

struct Rust {
    engine: Engine,
    tokenizer: Arc<Tokenizer>,
}

impl Rust {
    fn new(spec: &str) -> Self {
        let checkpoint = Checkpoint::bundled().expect("the bundled model");
        let spec = ControllerSpec::parse(spec).expect("a controller");
        let blocks = checkpoint.exit_blocks().expect("its exit blocks");
        let exit = blocks.iter().find(|block| block.after() == BUNDLED_EXIT).filter(|_| spec != ControllerSpec::Off);
        let options =
            CpuOptions { threads: Some(1), simd: None, slots: 1, context: CONTEXT, max_draft: 16, pages: None };
        let exit = exit.map(|block| block.weights());
        let backend = CpuBackend::new(checkpoint.geometry(), &checkpoint.weights(), exit.as_ref(), &options);
        let tokenizer = checkpoint.tokenizer().cloned().expect("its tokenizer");
        let end_tokens = checkpoint.generation().end_tokens.clone();
        let backend = backend.expect("a backend");
        Self { engine: Engine::new(backend, spec.build(), Some(tokenizer.clone()), end_tokens), tokenizer }
    }

    /// Tokens and rounds.
    fn generate(&mut self, tokens: usize) -> (Vec<u32>, usize) {
        let mut text = String::new();
        let prompt = self.tokenizer.encode(PROMPT, true).expect("the prompt's tokens");
        let request = Request { ignore_end: true, ..Request::new(prompt, tokens) };
        let completion = self.engine.generate(&request, &mut |emission| {
            text.push_str(&emission.text);
            ControlFlow::Continue(())
        });
        let completion = completion.expect("an answer");
        (completion.tokens, completion.stats.rounds)
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
    fn new(spec: &str) -> Self {
        let spec = std::ffi::CString::new(spec).expect("no zero in it");
        let mut model_params = MaybeUninit::<ModelParams>::uninit();
        let mut params = MaybeUninit::<SessionParams>::uninit();
        let (mut model, mut session): (*mut Model, *mut Session) = (std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: each structure is filled in before it is read, and of the size that is told.
        unsafe {
            ok(ffi::eesd_model_params_default(model_params.as_mut_ptr(), size_of::<ModelParams>()));
            ok(ffi::eesd_model_load(model_params.as_ptr(), &mut model));
            ok(ffi::eesd_session_params_default(params.as_mut_ptr(), size_of::<SessionParams>()));
            let params = params.assume_init_mut();
            params.controller = spec.as_ptr();
            (params.threads, params.slots, params.context) = (1, 1, CONTEXT);
            ok(ffi::eesd_session_create(model, params, &mut session));
        }
        ok(ffi::eesd_model_free(model));
        Self { session }
    }

    fn generate(&mut self, tokens: usize) -> Vec<u32> {
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
            std::slice::from_raw_parts(completion.tokens, completion.token_count).to_vec()
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
