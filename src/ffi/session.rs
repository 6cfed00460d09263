//! Sessions: an engine over a model, on a thread of its own.

use super::argument::{Place, Versioned, fixed, string};
use super::handle::{self, Handled, Object};
use super::log::{LogLevel, log};
use super::mailbox::Mailbox;
use super::model::Model;
use super::places::Places;
use super::session_params::{Plan, SessionParams, plan};
use super::status::{Failure, Outcome, Status, entry, with_causes};
use super::worker::{self, Command, Route, serve};
use crate::backend::cpu::{CpuBackend, CpuOptions};
use crate::backend::cuda::driver::Driver;
use crate::backend::cuda::gpu::Gpu;
use crate::backend::cuda::{CudaBackend, CudaOptions, loop_probe};
use crate::backend::{Backend, Device, KvFormat, Limits};
use crate::engine::{Engine, Request};
use crate::kv::PAGE_TOKENS;
use crate::load::ExitBlock;
use std::cell::RefCell;
use std::ffi::c_char;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

/// What a session has.
#[repr(C)]
pub struct SessionInfo {
    /// sizeof(eesd_session_info); to be set before the call.
    pub struct_size: usize,
    /// The device and how it is used, as in "cpu, 2 threads, avx512, bf16 weights".
    pub device: [c_char; 256],
    /// The controller, as eesd_session_params has it.
    pub controller: [c_char; 128],
    /// Who drafts, as eesd_session_params has it: "exit,lookup", ..., or "off".
    pub draft: [c_char; 64],
    /// Requests worked on side by side.
    pub slots: usize,
    /// Requests that may wait beside those.
    pub max_waiting: usize,
    /// Longest sequence, in tokens.
    pub context: usize,
    /// Tokens that the KV cache holds.
    pub cache_tokens: usize,
    /// How it is kept: "f32" or "q8", and "" in the 16 bits of a GPU's weights.
    pub kv: [c_char; 16],
    /// Most drafts in one round.
    pub draft_max: usize,
    /// Layers before the exit block; 0: none drafts.
    pub exit_layer: usize,
}

// SAFETY: repr(C), struct_size first, integers.
unsafe impl Versioned for SessionInfo {
    const NAME: &'static str = "eesd_session_info";
}

/// An engine over a model, with a thread of its own. Any thread may use it.
pub struct Session {
    pub(super) model: Arc<Model>,
    pub(super) limits: Limits,
    pub(super) events: Arc<Mailbox>,
    device: String,
    kv: String,
    controller: String,
    draft: String,
    max_waiting: usize,
    /// Requests that are taken.
    places: Places,
    exit_layer: Option<usize>,
    commands: Sender<Command>,
    thread: Mutex<Option<JoinHandle<()>>>,
    next_id: AtomicU64,
}

impl Handled for Session {
    const KIND: &'static str = "session";

    fn of(object: &Object) -> Option<&Arc<Self>> {
        match object {
            Object::Session(session) => Some(session),
            Object::Model(_) => None,
        }
    }

    fn into_object(this: Arc<Self>) -> Object {
        Object::Session(this)
    }
}

/// What the engine's thread says when it is ready.
type Started = Outcome<(String, Limits, Option<usize>)>;

impl Session {
    fn start(model: Arc<Model>, plan: Plan) -> Outcome<Self> {
        let (commands, inbox) = mpsc::channel();
        let (tell, started) = mpsc::channel();
        let events = Arc::new(Mailbox::default());
        let (controller, draft) = (plan.drafting.controller.to_string(), plan.drafting.in_words(&model));
        let max_waiting = plan.max_waiting;
        let places = Places::new(plan.slots.saturating_add(max_waiting));
        let kv = match (plan.device, plan.kv) {
            (Device::Cuda(_), KvFormat::Full) => String::new(),
            (_, kv) => kv.to_string(),
        };
        let thread = std::thread::Builder::new().name("eesd-engine".into()).spawn({
            let (model, events) = (model.clone(), events.clone());
            move || {
                // Device contexts and the threads of a pool belong to the thread that made them.
                let ended = catch_unwind(AssertUnwindSafe(|| run(&model, &plan, &tell, inbox)));
                events.close(ended.map_or_else(|payload| Failure::panic(&*payload), |()| Failure::closed()));
            }
        });
        let failed = |what: String| Failure::new(Status::DeviceFailed, what);
        let thread = thread.map_err(|error| failed(format!("the engine's thread: {error}")))?;
        let started = started.recv().unwrap_or_else(|_| {
            Err(Failure::new(Status::Internal, "internal error: the engine's thread panicked while it was made"))
        });
        let (device, limits, exit_layer) = started?;
        let (thread, next_id) = (Mutex::new(Some(thread)), AtomicU64::new(1));
        Ok(Self {
            model,
            limits,
            events,
            device,
            kv,
            controller,
            draft,
            max_waiting,
            places,
            exit_layer,
            commands,
            thread,
            next_id,
        })
    }

    /// Hands requests to the engine, all of them or none; their events go to `mailbox`. Returns the number of the first; those
    /// of the others follow.
    pub(super) fn submit(&self, requests: Vec<Request>, mailbox: &Arc<Mailbox>, stream: bool) -> Outcome<u64> {
        let places = self.places.take(requests.len())?;
        let first = self.next_id.fetch_add(requests.len() as u64, Ordering::Relaxed);
        let routed = (first..).zip(requests.into_iter().zip(places));
        let routed = routed.map(|(id, (request, place))| (request, Route::new(id, mailbox.clone(), stream, place)));
        worker::submit_all(&self.commands, routed.collect())?;
        Ok(first)
    }

    /// Tells the engine something.
    pub(super) fn send(&self, command: Command) -> Outcome {
        self.commands.send(command).map_err(|_| worker::ended())
    }

    /// Has the engine's thread say something, after the step that it is at.
    pub(super) fn ask<T>(&self, question: impl FnOnce(Sender<T>) -> Command) -> Outcome<T> {
        let (reply, answer) = mpsc::channel();
        self.send(question(reply))?;
        answer.recv().map_err(|_| Failure::closed())
    }

    /// Ends the engine's thread, after the step that it is at.
    fn close(&self) {
        let _ = self.send(Command::Stop);
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        // A panic there was caught there.
        let _ = thread.map(JoinHandle::join);
    }
}

/// The engine's thread.
fn run(model: &Model, plan: &Plan, tell: &Sender<Started>, inbox: Receiver<Command>) {
    match engine(model, plan) {
        Ok(engine) => {
            let backend = engine.backend();
            let started = (backend.describe(), backend.limits(), backend.exit_layer());
            if tell.send(Ok(started)).is_ok() {
                serve(engine, inbox);
            }
        }
        // Who asked waits for it.
        Err(failure) => drop(tell.send(Err(failure))),
    }
}

fn engine(model: &Model, plan: &Plan) -> Outcome<Engine> {
    let checkpoint = &model.checkpoint;
    let drafting = &plan.drafting;
    let exit = drafting.exit(model).map(ExitBlock::weights);
    let (geometry, weights) = (checkpoint.geometry(), model.weights());
    let Plan { slots, context, pages, kv, .. } = *plan;
    let max_draft = drafting.draft_max.min(context);
    let backend: Box<dyn Backend> = match plan.device {
        Device::Auto | Device::Cpu => {
            let threads = plan.threads;
            let options = CpuOptions { threads, slots, context, max_draft, kv, pages, ..CpuOptions::default() };
            CpuBackend::new(geometry, &weights, exit.as_ref(), &options)?
        }
        Device::Cuda(number) => {
            let probed = exit.as_ref().and(plan.loop_probe.as_ref()).map(|path| loop_probe::ask_program(path, number));
            let gpu = Arc::new(Gpu::open(number)?);
            if let Some(probed) = probed {
                gpu.allow_loops(probed.loops);
                probed.note().into_iter().for_each(|note| log(LogLevel::Warning, || note));
            }
            log(LogLevel::Warning, || "the CUDA engine has not been run on a GPU yet".into());
            let defaults = CudaOptions::default();
            let (memory_fraction, prefill) = (plan.memory_fraction, plan.prefill);
            let options = CudaOptions { slots, context, max_draft, kv, pages, memory_fraction, prefill, ..defaults };
            CudaBackend::new(gpu, geometry, &weights, exit.as_ref(), &options)?
        }
    };
    let end_tokens = checkpoint.generation().end_tokens.clone();
    let engine = Engine::new(backend, drafting.controller.build(), checkpoint.tokenizer().cloned(), end_tokens);
    Ok(engine.with_options(plan.options).with_proposers(drafting.sources.proposers_with(&drafting.kept)))
}

/// Makes a session over a model; *session gets a handle for eesd_session_free().
///
/// Lays the weights out for the device, reserves the cache and starts threads: this takes a while and memory of the model's
/// size, so make one session and share it. The session keeps the model: its handle may be freed at once.
///
/// With "goodput-ts" and more than one slot the first request waits up to about a second longer, in which steps are timed.
/// To have that behind, generate a token.
///
/// # Safety
///
/// `params` is NULL or as its struct_size says, its texts end in zeros; `session` is NULL or good to write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eesd_session_create(
    model: *const Model,
    params: *const SessionParams,
    session: *mut *mut Session,
) -> Status {
    entry(|| {
        let model = handle::find(model)?;
        // SAFETY: the caller vouches for each of them.
        let (place, plan) = unsafe { (Place::new(session, "session")?, plan(&model, params)?) };
        let session = Session::start(model, plan)?;
        log(LogLevel::Info, || {
            let (name, slots, context) =
                (session.model.checkpoint.name(), session.limits.slots, session.limits.context);
            let (device, draft, controller) = (&session.device, &session.draft, &session.controller);
            format!("session over {name}: {device}, {slots} slots, context {context}, drafts by {draft}, {controller}")
        });
        place.write(handle::register(Arc::new(session))?);
        Ok(())
    })
}

/// Frees a session: ends its threads after the step that they are at, and drops its requests and all events that nobody has
/// pulled; NULL does nothing.
///
/// Other threads may be in calls of the session, which end with EESD_STATUS_CLOSED; to be freed it needs no care. Not to
/// be called from the session's own callback (EESD_STATUS_REENTRANT: nothing is freed).
#[unsafe(no_mangle)]
pub extern "C" fn eesd_session_free(session: *mut Session) -> Status {
    entry(|| {
        if session.is_null() {
            return Ok(());
        }
        find(session)?;
        let session = handle::remove(session)?;
        session.close();
        log(LogLevel::Info, || format!("session over {} freed", session.model.checkpoint.name()));
        Ok(())
    })
}

/// Describes a session.
///
/// # Safety
///
/// `info` is NULL, or as its struct_size, which is set, says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eesd_session_get_info(session: *const Session, info: *mut SessionInfo) -> Status {
    entry(|| {
        let session = find(session)?;
        // SAFETY: the caller vouches for it.
        unsafe { Place::structure(info) }?.write(SessionInfo {
            struct_size: size_of::<SessionInfo>(),
            device: fixed(&session.device),
            controller: fixed(&session.controller),
            draft: fixed(&session.draft),
            slots: session.limits.slots,
            max_waiting: session.max_waiting,
            context: session.limits.context,
            cache_tokens: session.limits.pages * PAGE_TOKENS,
            kv: fixed(&session.kv),
            draft_max: session.limits.max_draft,
            exit_layer: session.exit_layer.unwrap_or(0),
        });
        Ok(())
    })
}

/// Writes the texts that "shared" looks up, prompts and answers of requests that were finished, in the place of a file, for
/// draft_index of later sessions and eesd-run's --draft-index. It holds them as tokens: keep it as you would keep the texts.
///
/// EESD_STATUS_UNSUPPORTED if the session does without "shared".
///
/// # Safety
///
/// `path` is NULL or ends in a zero.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eesd_session_write_draft_index(session: *const Session, path: *const c_char) -> Status {
    entry(|| {
        let session = find(session)?;
        // SAFETY: the caller vouches for it.
        let path = unsafe { string(path, "path") }?;
        let none = || {
            let found = format!("the session drafts by {} (expected \"shared\" among its sources)", session.draft);
            Failure::new(Status::Unsupported, found)
        };
        let texts = session.ask(Command::Texts)?.ok_or_else(none)?;
        let written = session.model.checkpoint.write_draft_index(path.as_ref(), &texts);
        written.map_err(|error| Failure::new(Status::IoFailed, with_causes(&error)))
    })
}

thread_local! {
    /// Sessions whose callbacks this thread is in.
    static CALLING: RefCell<Vec<*const Session>> = const { RefCell::new(Vec::new()) };
}

/// The session of a handle, unless this thread is in one of its callbacks.
pub(super) fn find(handle: *const Session) -> Outcome<Arc<Session>> {
    let session = handle::find(handle)?;
    if CALLING.with_borrow(|calling| calling.contains(&Arc::as_ptr(&session))) {
        let found = "a callback cannot call functions of the session that called it";
        return Err(Failure::new(Status::Reentrant, found));
    }
    Ok(session)
}

/// Runs a session's callback, during which this thread does not find the session. The host's code does not unwind.
pub(super) fn calling<T>(session: &Arc<Session>, callback: impl FnOnce() -> T) -> T {
    CALLING.with_borrow_mut(|calling| calling.push(Arc::as_ptr(session)));
    let result = callback();
    CALLING.with_borrow_mut(|calling| calling.pop());
    result
}
