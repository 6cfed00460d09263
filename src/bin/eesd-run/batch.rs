//! Many requests at once: JSON lines in, JSON lines out, each written as soon as it is finished.

mod line;
mod resume;

pub use line::{Item, Job, Lines, open_input};
pub use resume::TakenOver;

use crate::failure::{Failure, Outcome, with_causes};
use crate::interrupt;
use crate::output::Output;
use crate::report::{self, Reporter};
use eesd::engine::{Completion, Engine, Event, Finish, Stats};
use eesd::load::Tokenizer;
use serde_json::{Map, Value, json};
use std::cell::RefCell;
use std::collections::HashMap;
use std::ops::ControlFlow;
use std::time::Instant;

/// The error of a request that an interrupt kept from being begun.
const INTERRUPTED: &str = "interrupted";

/// Answers `items`, up to `batch` side by side, and writes one line for each. `earlier` is what the output holds already.
///
/// # Errors
/// If the output cannot be written, the input not read, or the device fails; and, in the end, if any item failed, now or
/// earlier.
pub fn serve(
    engine: &mut Engine,
    batch: usize,
    items: &mut dyn Iterator<Item = Item>,
    tokenizer: &Tokenizer,
    output: &mut Output,
    earlier: &TakenOver,
    reporter: Reporter,
) -> Outcome {
    let begun = Instant::now();
    let desk = RefCell::new(Desk {
        output,
        tokenizer,
        running: HashMap::new(),
        sum: Stats::default(),
        answered: 0,
        failed: 0,
        earlier,
        unreadable: None,
        broken: None,
    });
    let mut admitted = 0;
    let mut requests = std::iter::from_fn(|| {
        loop {
            if desk.borrow().stopping() {
                return None;
            }
            match items.next()? {
                Item::Request { job, request } => {
                    desk.borrow_mut().running.insert(admitted, job);
                    admitted += 1;
                    return Some(*request);
                }
                Item::Wrong { job, error } => desk.borrow_mut().refuse(&job, &error),
                Item::Unreadable { error } => desk.borrow_mut().unreadable = Some(error),
            }
        }
    });
    engine.run(&mut requests, batch, &mut |index, event| {
        let mut desk = desk.borrow_mut();
        desk.take(index, event);
        if desk.stopping() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    let mut desk = desk.into_inner();
    for job in std::mem::take(&mut desk.running).into_values() {
        desk.refuse(&job, INTERRUPTED);
    }
    desk.close(begun, reporter)
}

/// Who waits for what, and what has been handed out.
struct Desk<'a> {
    output: &'a mut Output,
    tokenizer: &'a Tokenizer,
    /// By the engine's index.
    running: HashMap<usize, Job>,
    sum: Stats,
    answered: usize,
    failed: usize,
    earlier: &'a TakenOver,
    /// The input ended before its end, and why.
    unreadable: Option<String>,
    /// The output can no longer be written.
    broken: Option<Failure>,
}

impl Desk<'_> {
    fn stopping(&self) -> bool {
        self.broken.is_some() || interrupt::pressed()
    }

    fn take(&mut self, index: usize, event: Event) {
        match event {
            Event::Token(_) => {}
            Event::Done(completion) => {
                if let Some(job) = self.running.remove(&index) {
                    self.sum.add(&completion.stats);
                    self.answered += 1;
                    self.write(&answer(&job, &completion, self.tokenizer));
                }
            }
            Event::Failed(error) => {
                if let Some(job) = self.running.remove(&index) {
                    self.refuse(&job, &with_causes(&error));
                }
            }
        }
    }

    fn refuse(&mut self, job: &Job, error: &str) {
        self.failed += 1;
        let mut line = job.head();
        line.insert("error".into(), error.into());
        self.write(&line);
    }

    fn write(&mut self, line: &Map<String, Value>) {
        if self.broken.is_none() {
            self.broken = self.output.json_line(line).err();
        }
    }

    fn close(self, begun: Instant, reporter: Reporter) -> Outcome {
        if let Some(failure) = self.broken {
            return Err(failure);
        }
        let seconds = begun.elapsed().as_secs_f64();
        let mut line = match self.earlier.lines() {
            0 => String::new(),
            lines => format!("{lines} taken over, "),
        };
        line += &format!("{} answered, {} failed in {seconds:.2} s", self.answered, self.failed);
        if self.answered > 0 {
            line += &format!(
                ": {} tokens, {:.0} tok/s together, {} rounds, first token after {:.1} ms on average{}",
                self.sum.generated,
                self.sum.generated as f64 / seconds,
                self.sum.rounds,
                self.sum.first_token.as_secs_f64() * 1e3 / self.answered as f64,
                report::drafting(&self.sum),
            );
        }
        reporter.note(&line);
        if let Some(error) = self.unreadable {
            return Err(Failure::failed(error));
        }
        match self.failed + self.earlier.failed {
            _ if interrupt::pressed() => Err(Failure::failed("interrupted: not every request was answered to its end")),
            0 => Ok(()),
            1 => Err(Failure::failed("1 request failed: its line in the output says why")),
            n => Err(Failure::failed(format!("{n} requests failed: their lines in the output say why"))),
        }
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
pub fn statistics(stats: &Stats) -> Value {
    json!({
        "prompt_tokens": stats.prompt_tokens,
        "generated": stats.generated,
        "rounds": stats.rounds,
        "drafted": stats.drafted(),
        "accepted": stats.accepted(),
        "mean_accepted_length": stats.mean_accepted_length(),
        "acceptance_by_position": stats.acceptance_by_position(),
        "draft_lengths": stats.lengths,
        "tokens_per_second": stats.tokens_per_second(),
        "first_token_s": stats.first_token.as_secs_f64(),
        "prefill_s": stats.prefill.as_secs_f64(),
        "decode_s": stats.decode.as_secs_f64(),
        "draft_s": stats.draft.as_secs_f64(),
        "verify_s": stats.verify.as_secs_f64(),
    })
}
