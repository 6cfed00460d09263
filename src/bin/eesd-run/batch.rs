//! Many requests at once: JSON lines in, JSON lines out, each written as soon as it is finished.

mod line;
mod resume;

pub use line::{Item, Job, Lines, count, open_input};
pub use resume::TakenOver;

use crate::failure::{Failure, Outcome, with_causes};
use crate::interrupt;
use crate::monitor::Monitor;
use crate::output::Output;
use crate::report::{self, Reporter};
use eesd::engine::{Completion, Engine, Event, Finish, Request, Stats};
use eesd::load::Tokenizer;
use serde_json::{Map, Value, json};
use std::collections::HashMap;
use std::ops::ControlFlow;

/// The error of a request that an interrupt kept from being begun.
const INTERRUPTED: &str = "interrupted";

/// Lines of the output, by how their requests ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Written {
    /// Earlier, in a run that this one goes on with.
    pub taken_over: usize,
    /// With an answer that is complete.
    pub answered: usize,
    /// With an error of their own.
    pub failed: usize,
    /// By an interrupt.
    pub cut_short: usize,
}

/// Answers `items`, as many side by side as the monitor says, and writes one line for each.
///
/// # Errors
/// If the output cannot be written, the input not read, or the device fails; and, in the end, if any item failed, now or
/// earlier.
pub fn serve(engine: &mut Engine, items: &mut dyn Iterator<Item = Item>, mut desk: Desk<'_>) -> Outcome {
    let batch = desk.monitor.batch();
    let mut submitted = 0;
    let ran = loop {
        while engine.unfinished() < batch
            && let Some((job, request)) = desk.next(items, engine)
        {
            desk.running.insert(submitted, job);
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

/// Who waits for what, and what has been handed out.
pub struct Desk<'a> {
    output: &'a mut Output,
    tokenizer: &'a Tokenizer,
    monitor: Monitor,
    reporter: Reporter,
    /// By the number under which the engine knows them.
    running: HashMap<usize, Job>,
    written: Written,
    /// Errors in lines that an earlier run has written.
    failed_earlier: usize,
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
        earlier: &TakenOver,
        tokenizer: &'a Tokenizer,
        monitor: Monitor,
        reporter: Reporter,
    ) -> Self {
        Self {
            output,
            tokenizer,
            monitor,
            reporter,
            running: HashMap::new(),
            written: Written { taken_over: earlier.lines(), ..Written::default() },
            failed_earlier: earlier.failed,
            all_read: false,
            unreadable: None,
            broken: None,
        }
    }

    /// The next request that can be run; the others are answered with their errors.
    fn next(&mut self, items: &mut dyn Iterator<Item = Item>, engine: &Engine) -> Option<(Job, Request)> {
        while !self.stopping() && !self.all_read {
            self.monitor.look_before_reading(engine, self.written);
            match items.next() {
                Some(Item::Request { job, request }) => return Some((job, *request)),
                Some(Item::Wrong { job, error }) => self.refuse(&job, &error),
                Some(Item::Unreadable { error }) => self.unreadable = Some(error),
                None => self.all_read = true,
            }
        }
        None
    }

    fn stopping(&self) -> bool {
        self.broken.is_some() || interrupt::pressed()
    }

    fn take(&mut self, number: usize, event: Event) -> ControlFlow<()> {
        match event {
            Event::Token(_) => {}
            Event::Done(completion) => {
                if let Some(job) = self.running.remove(&number) {
                    self.monitor.ended(&completion.stats);
                    match completion.finish {
                        Finish::Cancelled => self.written.cut_short += 1,
                        _ => self.written.answered += 1,
                    }
                    self.write(&answer(&job, &completion, self.tokenizer));
                }
            }
            Event::Failed(error) => {
                if let Some(job) = self.running.remove(&number) {
                    self.refuse(&job, &with_causes(&error));
                }
            }
        }
        if self.stopping() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    fn refuse(&mut self, job: &Job, error: &str) {
        self.written.failed += 1;
        self.write_error(job, error);
    }

    /// Nobody answers what still waits.
    fn give_up(&mut self) {
        for job in std::mem::take(&mut self.running).into_values() {
            self.written.cut_short += 1;
            self.write_error(&job, INTERRUPTED);
        }
    }

    fn write_error(&mut self, job: &Job, error: &str) {
        let mut line = job.head();
        line.insert("error".into(), error.into());
        self.write(&line);
    }

    fn write(&mut self, line: &Map<String, Value>) {
        if self.broken.is_some() {
            return;
        }
        let written = match self.output.is_terminal() {
            true => self.monitor.aside(|| self.output.json_line(line)),
            false => self.output.json_line(line),
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
        match self.written.failed + self.failed_earlier {
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

/// The line of a finished request.
fn answer(job: &Job, completion: &Completion, tokenizer: &Tokenizer) -> Map<String, Value> {
    let mut line = job.head();
    if let Finish::StopString(stop) = &completion.finish {
        line.insert("stop".into(), stop.as_str().into());
    }
    line.insert("text".into(), completion.text.as_str().into());
    line.insert("tokens".into(), completion.tokens.as_slice().into());
    line.insert("finish".into(), completion.finish.name().into());
    line.insert("seed".into(), completion.seed.into());
    line.insert("stats".into(), statistics(&completion.stats));
    if !completion.logprobs.is_empty() {
        let entry =
            |token: u32, logprob: f32| json!({"token": token, "spelling": tokenizer.token(token), "logprob": logprob});
        let logprobs: Vec<Value> = completion
            .tokens
            .iter()
            .zip(&completion.logprobs)
            .map(|(&token, logprobs)| {
                let mut own = entry(token, logprobs.logprob);
                own["top"] = logprobs.top.iter().map(|&(token, logprob)| entry(token, logprob)).collect();
                own
            })
            .collect();
        line.insert("logprobs".into(), logprobs.into());
    }
    line
}

/// Counts and times for machines; times in seconds.
fn statistics(stats: &Stats) -> Value {
    json!({
        "prompt_tokens": stats.prompt_tokens,
        "reused_tokens": stats.reused_tokens,
        "generated": stats.generated,
        "rounds": stats.rounds,
        "drafted": stats.drafted(),
        "accepted": stats.accepted(),
        "mean_accepted_length": stats.mean_accepted_length(),
        "acceptance_by_position": stats.acceptance_by_position(),
        "draft_lengths": stats.lengths,
        "tokens_per_second": stats.tokens_per_second(),
        "preemptions": stats.preemptions,
        "queued_s": stats.queued.as_secs_f64(),
        "first_token_s": stats.first_token.as_secs_f64(),
        "prefill_s": stats.prefill.as_secs_f64(),
        "decode_s": stats.decode.as_secs_f64(),
        "draft_s": stats.draft.as_secs_f64(),
        "verify_s": stats.verify.as_secs_f64(),
    })
}
