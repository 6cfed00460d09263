//! How far long work has come: a bar on a terminal, elsewhere a line at the start, now and then, and at the end.

use crate::stderr::say;
use indicatif::{ProgressBar, ProgressStyle};
use std::io::{IsTerminal, stderr};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Time between two lines.
const EVERY: Duration = Duration::from_secs(30);
/// Work without steps that is done sooner is not spoken of.
const PATIENCE: Duration = Duration::from_secs(3);

/// Work of a known number of steps.
pub struct Progress {
    bar: ProgressBar,
    lines: Option<Lines>,
}

impl Progress {
    /// `steps` steps of `doing` begin. `quiet`: nobody is told.
    pub fn begin(steps: usize, doing: &str, quiet: bool) -> Self {
        if quiet {
            return Self { bar: ProgressBar::hidden(), lines: None };
        }
        if !stderr().is_terminal() {
            return Self { bar: ProgressBar::hidden(), lines: Some(Lines::begin(doing, Some(steps), EVERY, say)) };
        }
        let style = ProgressStyle::with_template("{msg:>10} [{bar:30}] {pos}/{len} {eta} left");
        let bar = ProgressBar::new(steps as u64).with_message(doing.to_owned());
        let style = style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> ");
        Self { bar: bar.with_style(style), lines: None }
    }

    /// One more step is done.
    pub fn advance(&self) {
        self.bar.inc(1);
        self.update(|state| state.done += 1);
    }

    /// So many steps are done, of so many.
    pub fn set(&self, done: usize, steps: usize) {
        self.bar.set_length(steps as u64);
        self.bar.set_position(done as u64);
        self.update(|state| (state.done, state.steps) = (done, Some(steps)));
    }

    /// How it goes, in a few words.
    pub fn tell(&self, doing: String) {
        self.bar.set_message(doing.clone());
        self.update(|state| state.doing = doing);
    }

    /// Steps that an earlier run has done say nothing of the time that the others take.
    pub fn forget_pace(&self) {
        self.bar.reset_eta();
    }

    /// The work has ended, at its end or before.
    pub fn end(self) {
        self.bar.finish_and_clear();
        if let Some(lines) = self.lines {
            lines.end();
        }
    }

    fn update(&self, change: impl FnOnce(&mut State)) {
        if let Some(lines) = &self.lines {
            change(&mut lock(&lines.state));
        }
    }
}

/// Runs `work`. On a terminal a spinner turns beside it and leaves nothing behind; elsewhere lines tell of work that takes
/// long.
pub fn wait<T>(doing: &str, quiet: bool, work: impl FnOnce() -> T) -> T {
    if quiet {
        return work();
    }
    if !stderr().is_terminal() {
        let lines = Lines::begin(doing, None, EVERY, say);
        let done = work();
        lines.end();
        return done;
    }
    let spinner = ProgressBar::new_spinner();
    spinner.set_message(doing.to_owned());
    spinner.enable_steady_tick(Duration::from_millis(120));
    let done = work();
    spinner.finish_and_clear();
    done
}

/// How far the work is.
struct State {
    doing: String,
    done: usize,
    steps: Option<usize>,
    begun: Instant,
    /// Whether a line has been written.
    spoken: bool,
}

impl State {
    fn line(&self) -> String {
        let seconds = self.begun.elapsed().as_secs_f64();
        match self.steps {
            Some(steps) => format!("{}: {} of {steps}, {seconds:.0} s", self.doing, self.done),
            None => format!("{}: {seconds:.0} s", self.doing),
        }
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Writes lines while work goes on, from a thread of its own.
struct Lines {
    state: Arc<Mutex<State>>,
    say: fn(&str),
    stop: Sender<()>,
    /// Without one, there are fewer lines.
    thread: Option<JoinHandle<()>>,
}

impl Lines {
    /// With a number of steps there is a line at once, without one after some time only.
    fn begin(doing: &str, steps: Option<usize>, every: Duration, say: fn(&str)) -> Self {
        let spoken = steps.is_some();
        let state = State { doing: doing.to_owned(), done: 0, steps, begun: Instant::now(), spoken };
        if let Some(steps) = steps {
            say(&format!("{doing}: {steps} to do"));
        }
        let state = Arc::new(Mutex::new(state));
        let (stop, stopped) = mpsc::channel();
        let told = state.clone();
        let thread = thread::Builder::new().name("progress".into()).spawn(move || {
            let mut wait = if spoken { every } else { every.min(PATIENCE) };
            while stopped.recv_timeout(wait) == Err(RecvTimeoutError::Timeout) {
                let mut state = lock(&told);
                state.spoken = true;
                say(&state.line());
                wait = every;
            }
        });
        Self { state, say, stop, thread: thread.ok() }
    }

    fn end(mut self) {
        let _ = self.stop.send(());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        let state = lock(&self.state);
        if state.spoken {
            (self.say)(&format!("{}, ended", state.line()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    static SAID: Mutex<Vec<String>> = Mutex::new(Vec::new());

    fn note(line: &str) {
        SAID.lock().unwrap().push(line.to_owned());
    }

    fn said() -> Vec<String> {
        SAID.lock().unwrap().clone()
    }

    #[test]
    fn long_work_speaks_at_its_start_now_and_then_and_at_its_end() {
        let lines = Lines::begin("training", Some(7), Duration::from_millis(1), note);
        lock(&lines.state).done = 3;
        // However slow the machine is, the work goes on until it has been spoken of.
        while !said().iter().any(|line| line.starts_with("training: 3 of 7, ")) {
            thread::yield_now();
        }
        lines.end();
        assert_eq!(said()[0], "training: 7 to do");
        assert!(said().last().unwrap().ends_with(" s, ended"));
        let before = said().len();

        // Work without steps that ends at once is not spoken of.
        Lines::begin("opening", None, Duration::from_secs(3600), note).end();
        assert_eq!(said().len(), before);
    }
}
