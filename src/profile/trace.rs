//! Ranges kept in memory, and written as Chrome's trace events, which Perfetto and browsers show.
//!
//! Format: "Trace Event Format", complete events (`"ph": "X"`), times in microseconds.

use serde_json::{Map, Value, json};
use std::borrow::Cow;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Most ranges kept: some hundred megabytes with their notes.
const MOST: usize = 500_000;

/// Looked at by every range: whether a trace is being recorded.
static RECORDING: AtomicBool = AtomicBool::new(false);
static RECORDED: Mutex<Option<Trace>> = Mutex::new(None);
static THREADS: AtomicU64 = AtomicU64::new(1);

thread_local! {
    /// The calling thread's number in traces.
    static THREAD: u64 = THREADS.fetch_add(1, Ordering::Relaxed);
}

/// Ranges of all threads, in the order in which they ended.
#[derive(Debug, Clone)]
pub struct Trace {
    begun: Instant,
    ranges: Vec<Ended>,
    dropped: usize,
}

#[derive(Debug, Clone)]
struct Ended {
    name: Cow<'static, str>,
    thread: u64,
    start: Instant,
    end: Instant,
    notes: Map<String, Value>,
}

/// A range that has begun and not ended.
#[derive(Debug)]
pub(super) struct Open {
    name: Cow<'static, str>,
    start: Instant,
    notes: Map<String, Value>,
}

/// Begins to record every range that begins from here on, in all threads; forgets what was recorded before.
pub fn start_trace() {
    *recorded() = Some(Trace { begun: Instant::now(), ranges: Vec::new(), dropped: 0 });
    RECORDING.store(true, Ordering::Release);
}

/// Ends recording and returns what was recorded; nothing where none was begun.
pub fn end_trace() -> Trace {
    RECORDING.store(false, Ordering::Release);
    recorded().take().unwrap_or(Trace { begun: Instant::now(), ranges: Vec::new(), dropped: 0 })
}

fn recorded() -> MutexGuard<'static, Option<Trace>> {
    RECORDED.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Open {
    #[inline]
    pub fn begin(name: Cow<'static, str>) -> Option<Self> {
        RECORDING.load(Ordering::Relaxed).then(|| Self { name, start: Instant::now(), notes: Map::new() })
    }

    pub fn note(&mut self, key: &'static str, value: Value) {
        self.notes.insert(key.to_owned(), value);
    }

    pub fn end(self) {
        let end = Instant::now();
        let Some(trace) = &mut *recorded() else { return };
        if trace.ranges.len() < MOST {
            let thread = THREAD.with(|thread| *thread);
            trace.ranges.push(Ended { name: self.name, thread, start: self.start, end, notes: self.notes });
        } else {
            trace.dropped += 1;
        }
    }
}

impl Trace {
    /// Ranges kept.
    pub fn len(&self) -> usize {
        self.ranges.len()
    }

    /// No range was recorded.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Ranges that were too many to be kept.
    pub fn dropped(&self) -> usize {
        self.dropped
    }

    /// The file that `chrome://tracing` and <https://ui.perfetto.dev> open.
    pub fn to_chrome_json(&self) -> String {
        let microseconds = |at: Instant| at.saturating_duration_since(self.begun).as_nanos() as f64 / 1e3;
        let event = |range: &Ended| {
            json!({
                "name": range.name, "cat": "eesd", "ph": "X", "pid": 1, "tid": range.thread,
                "ts": microseconds(range.start), "dur": microseconds(range.end) - microseconds(range.start),
                "args": range.notes,
            })
        };
        let events: Vec<Value> = self.ranges.iter().map(event).collect();
        json!({ "displayTimeUnit": "ms", "traceEvents": events, "otherData": { "dropped_ranges": self.dropped } })
            .to_string()
    }
}

#[cfg(test)]
mod tests {
    use crate::profile;
    use serde_json::Value;
    use std::sync::Mutex;

    /// A trace has the ranges of all threads: tests take turns.
    static TURN: Mutex<()> = Mutex::new(());

    #[test]
    fn a_trace_has_ranges_within_ranges_with_their_notes() {
        let _turn = TURN.lock();
        drop(profile::range("before"));
        profile::start_trace();
        {
            let mut round = profile::range("test round");
            drop(profile::numbered("test layer", 3));
            round.note("accepted", || vec![1, 2].into());
            std::thread::spawn(|| drop(profile::range("test thread"))).join().unwrap();
        }
        let trace = profile::end_trace();
        let mut late = profile::range("after");
        late.note("nothing", || panic!("nobody records"));

        let json: Value = serde_json::from_str(&trace.to_chrome_json()).unwrap();
        let events = json["traceEvents"].as_array().unwrap();
        let event = |name: &str| events.iter().find(|event| event["name"] == name).unwrap();
        let (round, layer, thread) = (event("test round"), event("test layer"), event("test thread"));
        assert_eq!((&round["args"]["accepted"][1], &layer["args"]["number"]), (&2.into(), &3.into()));
        let span = |event: &Value| (event["ts"].as_f64().unwrap(), event["dur"].as_f64().unwrap());
        let ((begin, long), (inner, short)) = (span(round), span(layer));
        assert!(begin <= inner && inner + short <= begin + long && short >= 0.0);
        assert!(round["tid"] == layer["tid"] && round["tid"] != thread["tid"]);
        assert!(events.iter().all(|event| event["name"] != "before" && event["name"] != "after"));
        assert_eq!(trace.dropped(), 0);
    }
}
