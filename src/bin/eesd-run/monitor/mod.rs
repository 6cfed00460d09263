//! How a batch is going: for people who watch (`--stats`), for monitoring (`--metrics`), and in the end (`--stats-json`).
//!
//! Everything is looked at between two steps of the engine, at most as often as somebody wants to know, so it costs
//! generation next to nothing; requests over HTTP are answered by a thread of their own, from the last look.

mod display;
mod latency;
mod page;
mod prometheus;
mod summary;
mod target;

pub use page::{Seen, metrics as metrics_page};
pub use target::MetricsTarget;

use crate::args::MonitorArgs;
use crate::batch::Written;
use crate::failure::{Failure, Outcome};
use crate::report::Reporter;
use display::Display;
use eesd::control::Controller;
use eesd::engine::{Engine, Snapshot, Stats};
use latency::Latencies;
use page::Page;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};
use target::{check_file, replace_file};
use tokio::sync::watch;

/// Time between two looks for monitoring.
const EVERY: Duration = Duration::from_secs(1);

/// What does not change during a run.
pub struct Subject {
    /// The model's name.
    pub model: String,
    /// The device and how it is used.
    pub device: String,
    /// Requests side by side, at most.
    pub batch: usize,
    /// Requests in all, those of earlier runs among them, where it is known.
    pub requests: Option<usize>,
}

/// A batch at a moment.
struct Sample<'a> {
    /// Since the first request was submitted.
    elapsed: Duration,
    snapshot: Snapshot,
    written: Written,
    controller: &'a dyn Controller,
}

/// Where it is told, before there is anything to tell.
#[derive(Default)]
pub struct Listeners {
    stats: bool,
    files: Vec<PathBuf>,
    pages: Vec<Page>,
    /// A page that somebody else serves.
    elsewhere: Option<watch::Sender<Option<String>>>,
    summary: Option<PathBuf>,
}

impl Listeners {
    /// Tells nobody but a page that somebody else serves.
    pub fn page_elsewhere() -> (Self, Seen) {
        let (text, seen) = watch::channel(None);
        (Self { elsewhere: Some(text), ..Self::default() }, seen)
    }

    /// Takes the ports and tries the files, so that what cannot be had is told before a large model is opened.
    ///
    /// # Errors
    /// If a port cannot be had, or a file not written.
    pub fn open(args: &MonitorArgs, reporter: Reporter) -> Outcome<Self> {
        let mut listeners = Self { stats: args.stats, summary: args.stats_json.clone(), ..Self::default() };
        for target in &args.metrics {
            match target {
                MetricsTarget::File(path) => listeners.files.push(path.clone()),
                MetricsTarget::Address(address) => {
                    let page = Page::at(address)?;
                    reporter.note(&format!("metrics at http://{}/metrics", page.address()));
                    listeners.pages.push(page);
                }
            }
        }
        listeners.files.iter().chain(&listeners.summary).try_for_each(|path| check_file(path))?;
        Ok(listeners)
    }
}

/// Follows a batch.
pub struct Monitor {
    subject: Subject,
    begun: Instant,
    /// The same moment, for other machines.
    begun_at: SystemTime,
    latencies: Latencies,
    /// All requests that have ended, added up.
    pub sum: Stats,
    display: Option<Display>,
    files: Vec<PathBuf>,
    pages: Vec<Page>,
    elsewhere: Option<watch::Sender<Option<String>>>,
    summary: Option<PathBuf>,
    next: Instant,
    /// What was published before the last request was read.
    last_before_reading: Option<(Snapshot, Written)>,
    /// A file could not be written once: that has been said.
    complained: bool,
    reporter: Reporter,
}

impl Monitor {
    /// Begins to tell.
    ///
    /// # Errors
    /// If a histogram cannot be made, which would be a mistake here.
    pub fn new(subject: Subject, listeners: Listeners, reporter: Reporter) -> Outcome<Self> {
        let now = Instant::now();
        Ok(Self {
            display: match listeners.stats {
                true => Some(Display::new(subject.requests)),
                false => reporter.logs().then(|| Display::seldom(subject.requests)),
            },
            subject,
            begun: now,
            begun_at: SystemTime::now(),
            latencies: Latencies::new(listeners.summary.is_some())?,
            sum: Stats::default(),
            files: listeners.files,
            pages: listeners.pages,
            elsewhere: listeners.elsewhere,
            summary: listeners.summary,
            next: now,
            last_before_reading: None,
            complained: false,
            reporter,
        })
    }

    /// Since the batch began.
    pub fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }

    /// Requests side by side, at most.
    pub fn batch(&self) -> usize {
        self.subject.batch
    }

    /// Takes in a request that has ended.
    pub fn ended(&mut self, stats: &Stats) {
        self.sum.add(stats);
        self.latencies.add(stats);
    }

    /// Looks at the engine between two steps, if it is time to.
    pub fn look(&mut self, engine: &Engine, written: Written) {
        let now = Instant::now();
        let display_due = self.display.as_ref().is_some_and(|display| display.is_due(now));
        if now < self.next && !display_due {
            return;
        }
        let sample = self.sample(engine, written);
        if display_due && let Some(display) = &mut self.display {
            display.show(&sample, now);
        }
        if now >= self.next {
            self.next = now + EVERY;
            self.try_to_publish(&sample);
        }
    }

    /// Looks at the engine before the next request is read. Where requests come through a pipe that may take any time,
    /// in which nothing happens: so what has happened is told first.
    pub fn look_before_reading(&mut self, engine: &Engine, written: Written) {
        let state = (engine.snapshot(), written);
        if self.subject.requests.is_none() && self.last_before_reading != Some(state) {
            self.last_before_reading = Some(state);
            self.try_to_publish(&self.sample(engine, written));
        }
    }

    /// Publishes; a failure is said once.
    fn try_to_publish(&mut self, sample: &Sample<'_>) {
        if let Err(failure) = self.publish(sample)
            && !std::mem::replace(&mut self.complained, true)
        {
            let told = format!("{} (it will be tried again)", failure.message());
            self.aside(|| self.reporter.note(&told));
        }
    }

    /// Does something that writes to the terminal, without mixing it up with the display.
    pub fn aside<T>(&self, work: impl FnOnce() -> T) -> T {
        match &self.display {
            Some(display) => display.suspend(work),
            None => work(),
        }
    }

    /// The batch has ended: tells everything for the last time.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn close(&mut self, engine: &Engine, written: Written) -> Outcome {
        let sample = self.sample(engine, written);
        if let Some(display) = self.display.take() {
            display.clear();
        }
        let published = self.publish(&sample);
        if let Some(path) = &self.summary {
            let mut text = serde_json::to_string_pretty(&self.summarise(&sample))?;
            text.push('\n');
            replace_file(path, &text)?;
        }
        published
    }

    fn sample<'a>(&self, engine: &'a Engine, written: Written) -> Sample<'a> {
        Sample { elapsed: self.elapsed(), snapshot: engine.snapshot(), written, controller: engine.controller() }
    }

    /// Puts the metrics where they are read.
    fn publish(&self, sample: &Sample<'_>) -> Outcome {
        if self.files.is_empty() && self.pages.is_empty() && self.elsewhere.is_none() {
            return Ok(());
        }
        let text = self.metrics(sample)?;
        self.pages.iter().for_each(|page| page.put(&text));
        self.elsewhere.iter().for_each(|page| drop(page.send_replace(Some(text.clone()))));
        let written: Vec<Outcome> = self.files.iter().map(|path| replace_file(path, &text)).collect();
        written.into_iter().collect::<Result<(), Failure>>()
    }
}
