//! Many requests at once: JSON lines in, JSON lines out, each written as soon as it is finished.

mod answer;
mod job;
mod line;
mod openai;
mod resume;

pub use eesd::engine::settings::{bad_word, take as take_settings};
pub use job::Job;
pub use line::{Input, Item, Lines, count};
pub use resume::TakenOver;

use crate::failure::{Failure, Outcome};
use crate::interrupt;
use crate::monitor::Monitor;
use crate::openai::ApiError;
use crate::output::Output;
use crate::report::{self, Reporter};
use eesd::engine::{Completion, Engine, Event, Finish, Request};
use eesd::load::Tokenizer;
use job::{Form, Row};
use std::collections::{HashMap, VecDeque};
use std::ops::ControlFlow;
use std::sync::Arc;

/// The error of a request that an interrupt kept from being begun.
const INTERRUPTED: &str = "interrupted";

/// Answers, by how their requests ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Written {
    /// Earlier, in a run that this one goes on with.
    pub taken_over: usize,
    /// Completely.
    pub answered: usize,
    /// With an error of their own.
    pub failed: usize,
    /// By an interrupt.
    pub cut_short: usize,
}

/// Answers `items`, as many side by side as the monitor says, and writes them down.
///
/// # Errors
/// If the output cannot be written, the input not read, or the device fails; and, in the end, if any item failed, now or
/// earlier.
pub fn serve(engine: &mut Engine, items: &mut dyn Iterator<Item = Item>, mut desk: Desk<'_>) -> Outcome {
    let batch = desk.monitor.batch();
    let mut submitted = 0;
    let ran = loop {
        while engine.unfinished() < batch
            && let Some((place, request)) = desk.next(items, engine)
        {
            desk.running.insert(submitted, place);
            engine.submit(submitted, request);
            submitted += 1;
        }
        desk.monitor.look(engine, desk.written);
        if engine.is_idle() {
            break Ok(());
        }
        match engine.step(&mut |number, event| desk.take(number, event)) {
            Ok(ControlFlow::Continue(())) => {}
            Ok(ControlFlow::Break(())) => break Ok(()),
            Err(error) => break Err(error),
        }
    };
    if ran.is_ok() {
        desk.give_up();
    }
    let told = desk.monitor.close(engine, desk.written);
    ran?;
    let reporter = desk.reporter;
    match (desk.close(), told) {
        (Err(failure), Err(untold)) => {
            reporter.note(untold.message());
            Err(failure)
        }
        (closed, told) => closed.and(told),
    }
}

/// One answer among those that a request asks for: the request's index, and the sample's number.
type Place = (usize, usize);

/// A request of which an answer is still to come.
struct Open {
    job: Job,
    /// Answers that are still to come.
    left: usize,
    /// Those that wait for the others, by their number.
    finished: Vec<Option<Completion>>,
    /// Why the whole request has no answer.
    error: Option<Unanswered>,
}

/// Why there is no answer.
enum Unanswered {
    /// An interrupt kept it from its end.
    Interrupted,
    /// It cannot be had.
    Failed(ApiError),
}

/// Who waits for what, and what has been handed out.
pub struct Desk<'a> {
    output: &'a mut Output,
    /// The model's name.
    model: String,
    tokenizer: Option<&'a Arc<Tokenizer>>,
    monitor: Monitor,
    reporter: Reporter,
    earlier: &'a TakenOver,
    /// By their index.
    open: HashMap<usize, Open>,
    /// Answers that have not been begun.
    waiting: VecDeque<(Place, Request)>,
    /// By the number under which the engine knows them.
    running: HashMap<usize, Place>,
    written: Written,
    /// There are no more requests to read.
    all_read: bool,
    /// The input ended before its end, and why.
    unreadable: Option<String>,
    /// The output can no longer be written.
    broken: Option<Failure>,
}

impl<'a> Desk<'a> {
    /// Writes to `output`, which holds already what an `earlier` run wrote.
    pub fn new(
        output: &'a mut Output,
        earlier: &'a TakenOver,
        model: &str,
        tokenizer: Option<&'a Arc<Tokenizer>>,
        monitor: Monitor,
        reporter: Reporter,
    ) -> Self {
        Self {
            output,
            model: model.to_owned(),
            tokenizer,
            monitor,
            reporter,
            earlier,
            open: HashMap::new(),
            waiting: VecDeque::new(),
            running: HashMap::new(),
            written: Written { taken_over: earlier.lines(), ..Written::default() },
            all_read: false,
            unreadable: None,
            broken: None,
        }
    }

    /// The next answer that can be begun; requests that cannot be run are answered with their errors.
    fn next(&mut self, items: &mut dyn Iterator<Item = Item>, engine: &Engine) -> Option<(Place, Request)> {
        while !self.stopping() {
            if let Some(next) = self.waiting.pop_front() {
                return Some(next);
            }
            if self.all_read {
                break;
            }
            self.monitor.look_before_reading(engine, self.written);
            match items.next() {
                Some(Item::Request { job, requests, .. }) => self.begin(job, requests),
                Some(Item::Wrong { job, error }) => {
                    self.written.failed += 1;
                    self.write_error(&job, 0, &Unanswered::Failed(error));
                }
                Some(Item::Unreadable { error }) => self.unreadable = Some(error),
                None => self.all_read = true,
            }
        }
        None
    }

    /// Queues the answers that a request asks for and that are not written yet.
    fn begin(&mut self, job: Job, requests: Vec<Request>) {
        let mut left = 0;
        for (sample, request) in requests.into_iter().enumerate() {
            if !self.earlier.has_sample(job.index, sample) {
                self.waiting.push_back(((job.index, sample), request));
                left += 1;
            }
        }
        if left > 0 {
            let finished = (0..job.samples).map(|_| None).collect();
            self.open.insert(job.index, Open { left, finished, error: None, job });
        }
    }

    fn stopping(&self) -> bool {
        self.broken.is_some() || interrupt::pressed()
    }

    fn take(&mut self, number: usize, event: Event) -> ControlFlow<()> {
        match event {
            Event::Prefilled { .. } | Event::Token(_) => {}
            Event::Done(completion) => {
                if let Some(place) = self.running.remove(&number) {
                    self.monitor.ended(&completion.stats);
                    match completion.finish {
                        Finish::Cancelled => self.written.cut_short += 1,
                        _ => self.written.answered += 1,
                    }
                    self.hand_out(place, Ok(completion));
                }
            }
            Event::Failed(error) => {
                if let Some(place) = self.running.remove(&number) {
                    self.written.failed += 1;
                    self.hand_out(place, Err(Unanswered::Failed(error.into())));
                }
            }
        }
        if self.stopping() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    /// Nobody answers what still waits.
    fn give_up(&mut self) {
        let waiting = std::mem::take(&mut self.waiting).into_iter().map(|(place, _)| place);
        let running = std::mem::take(&mut self.running).into_values();
        for place in waiting.chain(running) {
            self.written.cut_short += 1;
            self.hand_out(place, Err(Unanswered::Interrupted));
        }
    }

    /// Writes an answer, or keeps it until those are there that stand on its line.
    fn hand_out(&mut self, (index, sample): Place, ended: Result<Completion, Unanswered>) {
        let Some(mut open) = self.open.remove(&index) else { return };
        open.left -= 1;
        if let Form::Lines = open.job.form {
            match ended {
                Ok(completion) => {
                    let (tokenizer, quantised) = (self.tokenizer.map(Arc::as_ref), self.reporter.quantised());
                    let row = answer::answer(&open.job, sample, &completion, tokenizer, quantised);
                    self.write(&row);
                }
                Err(error) => self.write_error(&open.job, sample, &error),
            }
        } else {
            match ended {
                Ok(completion) if completion.finish == Finish::Cancelled => open.error = Some(Unanswered::Interrupted),
                Ok(completion) => open.finished[sample] = Some(completion),
                // The engine knows fields by their names in completions.
                Err(Unanswered::Failed(error)) if matches!(&open.job.form, Form::OpenAi(shape) if shape.chat) => {
                    open.error = Some(Unanswered::Failed(error.of_chat()));
                }
                Err(error) => open.error = Some(error),
            }
            if open.left == 0 {
                self.write_together(&open);
            }
        }
        if open.left > 0 {
            self.open.insert(index, open);
        }
    }

    /// Writes the one line of a request all of whose answers have ended.
    fn write_together(&mut self, open: &Open) {
        match (&open.error, &open.job.form) {
            (None, Form::OpenAi(shape)) => {
                let completions: Vec<&Completion> = open.finished.iter().flatten().collect();
                let quantised = self.reporter.quantised();
                let row = openai::answer(&open.job, shape, &completions, &self.model, self.tokenizer, quantised);
                self.write(&row);
            }
            (error, _) => self.write_error(&open.job, 0, error.as_ref().unwrap_or(&Unanswered::Interrupted)),
        }
    }

    fn write_error(&mut self, job: &Job, sample: usize, error: &Unanswered) {
        let row = match (&job.form, error) {
            (Form::Lines, Unanswered::Interrupted) => answer::error(job, sample, INTERRUPTED),
            (Form::Lines, Unanswered::Failed(error)) => answer::error(job, sample, error.message()),
            (Form::OpenAi(_), Unanswered::Interrupted) => openai::interrupted(job),
            (Form::OpenAi(_), Unanswered::Failed(error)) => openai::error(job, error),
        };
        self.write(&row);
    }

    fn write(&mut self, row: &Row<'_>) {
        if self.broken.is_some() {
            return;
        }
        let written = match self.output.is_terminal() {
            true => self.monitor.aside(|| self.output.json_line(row)),
            false => self.output.json_line(row),
        };
        self.broken = written.err();
    }

    fn close(self) -> Outcome {
        if let Some(failure) = self.broken {
            return Err(failure);
        }
        self.reporter.note(&self.report());
        if let Some(error) = self.unreadable {
            return Err(Failure::failed(error));
        }
        match self.written.failed + self.earlier.failed {
            _ if interrupt::pressed() => Err(Failure::failed("interrupted: not every request was answered to its end")),
            0 => Ok(()),
            1 => Err(Failure::failed("1 request failed: its line in the output says why")),
            n => Err(Failure::failed(format!("{n} requests failed: their lines in the output say why"))),
        }
    }

    /// The closing line.
    fn report(&self) -> String {
        let Written { taken_over, answered, failed, cut_short } = self.written;
        let seconds = self.monitor.elapsed().as_secs_f64();
        let of = |count: usize, what: &str| if count > 0 { format!("{count} {what}, ") } else { String::new() };
        let mut line = of(taken_over, "taken over") + &of(cut_short, "cut short");
        line += &format!("{answered} answered, {failed} failed in {seconds:.2} s");
        let sum = &self.monitor.sum;
        if sum.generated > 0 {
            line += &format!(
                ": {} tokens, {:.0} tok/s together, {} side by side, {} rounds, first token after {:.1} ms on average{}",
                sum.generated,
                sum.generated as f64 / seconds,
                self.monitor.batch(),
                sum.rounds,
                sum.first_token.as_secs_f64() * 1e3 / (answered + cut_short).max(1) as f64,
                report::drafting(sum),
            );
        }
        line
    }
}
