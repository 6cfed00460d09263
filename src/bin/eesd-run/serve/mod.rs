//! `eesd-run serve`: OpenAI's HTTP interface over the batching engine.
//!
//! Two threads: one for all connections, which reads requests and writes answers, and one that owns the engine and steps it
//! ([`engine`]). What a body asks is read by `openai`, which `generate` reads lines of batches with too; answers that are wanted as
//! they come are written by `stream`. Each endpoint has a file and a line in `routes`. The main thread loads the model, and
//! waits for the end.

mod app;
mod auth;
mod body;
mod completions;
mod engine;
mod error;
mod gate;
mod health;
mod models;
mod names;
mod page;
mod routes;
mod stream;
mod tokens;

use crate::args::{BatchSize, ServeArgs};
use crate::drafting::Drafting;
use crate::failure::{Failure, Outcome};
use crate::http::{Limits, Listening};
use crate::interrupt;
use crate::machine::Machine;
use crate::monitor::{Listeners, Monitor, Subject};
use crate::openai;
use crate::report::Reporter;
use crate::settings::{self, Model};
use app::{App, Loaded};
use auth::ApiKeys;
use engine::Worker;
use gate::Gate;
use names::Names;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

const LIMITS: Limits = Limits {
    connections: 1024,
    head_bytes: 64 << 10,
    head_time: Duration::from_secs(30),
    whole_time: None,
    unread_time: Duration::from_secs(60),
    keep_alive: true,
    last_answers: Duration::from_secs(5),
};

/// Why the server ends.
enum Ending {
    /// Somebody asked it to.
    Asked,
    /// The thread of the engine is gone.
    NoEngine,
}

/// Listens, loads, answers, and ends when it is asked to.
pub fn run(args: ServeArgs) -> Outcome {
    let reporter = Reporter::new(args.quiet);
    let keys = ApiKeys::new(&args.api_key, args.api_key_file.as_deref())?;
    if keys.is_empty() && !args.host.is_loopback() {
        reporter.note(&format!("--host {} without --api-key: whoever reaches it may use the model", args.host));
    }
    let listening = Listening::at("--host and --port", &SocketAddr::new(args.host, args.port).to_string())?;
    let address = listening.address();
    let (end, ending) = channel();
    let asked = end.clone();
    // Where nobody waits for it any more, the server is ending.
    interrupt::listen_with(move || drop(asked.send(Ending::Asked)));

    let (gate, inside) = Gate::open();
    let app = Arc::new(App::new(gate));
    let (listeners, metrics) = Listeners::page_elsewhere();
    let names = Names::new(args.host, &keys);
    let server = listening.serve(routes::routes(Arc::clone(&app), names, keys, metrics), LIMITS)?;
    reporter.note(&format!("loading the model for http://{address}"));
    let service = Service::open(&args, listeners, end, reporter)?;
    let handle = service.loaded.engine.clone();
    let serving = format!("serving {} at http://{address}, {} side by side", service.loaded.name, service.batch);
    app.begin(service.loaded);
    reporter.note(&serving);

    let why = ending.recv().unwrap_or(Ending::NoEngine);
    app.gate.close();
    let patience = Duration::from_secs(args.shutdown_timeout);
    let all_answered = match why {
        Ending::Asked => {
            reporter.note(&format!("ending: what was taken is answered, for {} s at most", args.shutdown_timeout));
            inside.wait(patience)
        }
        Ending::NoEngine => false,
    };
    handle.stop();
    let ended = service.thread.join();
    drop(server);
    let engine = ended.map_err(|_| Failure::failed("the thread of the engine panicked"))?;
    if let Ok(loaded) = app.loaded() {
        service.drafting.keep_texts(&loaded.model, &engine)?;
    }
    match all_answered {
        true => Ok(()),
        false => Err(Failure::failed("--shutdown-timeout: answers were cut off")),
    }
}

/// A model that has been made ready, and the thread that answers with it.
struct Service {
    loaded: Loaded,
    drafting: Drafting,
    batch: usize,
    thread: JoinHandle<eesd::engine::Engine>,
}

impl Service {
    /// Decides and loads, and starts the thread.
    fn open(args: &ServeArgs, listeners: Listeners, end: Sender<Ending>, reporter: Reporter) -> Outcome<Self> {
        let model = Model::open(&args.model, reporter)?.with_template(&args.template)?;
        let reporter = reporter.with_quantised(model.scheme);
        let tokenizer = model.tokenizer()?;
        let sampling = settings::sampling(&args.sampling, &model, reporter)?;
        let base = settings::request(args.max_tokens, sampling, &args.sampling, &model);
        if let Err(why) = model.chat_template() {
            reporter.note(&format!("conversations will be refused: {why}"));
        }
        // Texts of one client are not looked up for another, unless the flags say so.
        let drafting = Drafting::new(&args.draft, &model, false, reporter)?;
        let most = args.batch_size.most();
        let (prefill, draft_max) = (args.prefill.prefill.into(), args.draft.by.draft_max);
        let machine = Machine::new(&args.machine, prefill, &model, most, draft_max, reporter)?;
        let backend = machine.backend(&model, drafting.exit.as_ref(), reporter)?;
        let mut engine = drafting.engine(&model, backend);
        let batch = match args.batch_size {
            BatchSize::Auto => reporter.wait("timing batches", || engine.suggested_batch())?,
            BatchSize::Fixed(_) => machine.slots(),
        };
        let name = args.alias.clone().unwrap_or_else(|| model.checkpoint.name().to_owned());
        let device = engine.backend().describe();
        let subject = Subject { model: name.clone(), device, batch, requests: None };
        let monitor = Monitor::new(subject, listeners, reporter)?;
        let (worker, handle) = Worker::new(engine, monitor, batch, args.max_waiting);
        let thread = spawn(worker, end)?;
        let loaded = Loaded { model, tokenizer, name, base, engine: handle, since: openai::now(), named: 0.into() };
        Ok(Self { loaded, drafting, batch, thread })
    }
}

/// Starts the thread of the engine; its end is told of, whatever it comes of.
fn spawn(worker: Worker, end: Sender<Ending>) -> Outcome<JoinHandle<eesd::engine::Engine>> {
    struct Told(Sender<Ending>);
    impl Drop for Told {
        fn drop(&mut self) {
            // Where nobody waits for it, the server is ending already.
            let _ = self.0.send(Ending::NoEngine);
        }
    }
    let told = Told(end);
    let run = move || {
        let _told = told;
        worker.run()
    };
    let thread = std::thread::Builder::new().name("engine".into()).spawn(run);
    thread.map_err(|error| Failure::failed(format!("there is no thread for the engine: {error}")))
}
