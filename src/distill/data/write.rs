//! The teacher writes: prompts go through the engine, and its answers into a file.

use super::answers::{Answer, AnswerFile, Answers, Asked, FORMAT, Header, Opened};
use super::{DataError, Document};
use crate::TokenId;
use crate::engine::{Completion, Engine, Event, Finish, Request};
use crate::sample::{SamplingParams, VerifyMode};
use serde_json::json;
use std::collections::BTreeMap;
use std::fs::File;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::{Duration, Instant};

/// How the teacher answers.
#[derive(Debug, Clone, PartialEq)]
pub struct WriteOptions {
    /// How tokens are chosen. `seed` is the run's, from which each answer gets its own; `None` is 0, since a run that
    /// nobody can repeat could not be gone on with either. `verify` may not ask for rejection, whose draws depend on
    /// the length of drafts: answers are verified by coupling. `logprobs` is refused, since nothing would keep them.
    pub sampling: SamplingParams,
    /// Most tokens of an answer.
    pub max_tokens: usize,
    /// Answers to each prompt.
    pub samples: usize,
    /// Answers written side by side; changes the speed and nothing else.
    pub batch: usize,
}

impl WriteOptions {
    fn check(&self, vocab: usize) -> Result<(), DataError> {
        self.sampling.check(vocab)?;
        if self.max_tokens == 0 {
            return Err(DataError::param("max_tokens", 0, "1 or more"));
        }
        if self.samples == 0 {
            return Err(DataError::param("samples", 0, "1 or more"));
        }
        if self.samples > 1 && self.sampling.temperature == 0.0 {
            return Err(DataError::param("samples", self.samples, "1 at temperature 0, where all would be equal"));
        }
        if self.sampling.verify == Some(VerifyMode::Rejection) {
            return Err(DataError::param("verify", "rejection", "coupled, so that the run can be repeated"));
        }
        match self.sampling.logprobs {
            Some(n) => Err(DataError::param("logprobs", n, "none: the file does not keep them")),
            None => Ok(()),
        }
    }

    fn seed(&self) -> u64 {
        self.sampling.seed.unwrap_or(0)
    }

    /// The file's first line: everything that an answer depends on, prompt and sample aside.
    fn header(&self, base_fingerprint: &str, context: usize) -> Header {
        // Taken apart in full, so that a new parameter cannot be forgotten here.
        let SamplingParams {
            temperature,
            top_k,
            top_p,
            min_p,
            repetition_penalty,
            presence_penalty,
            frequency_penalty,
            logit_bias,
            suppress_tokens,
            bad_words,
            seed: _,
            verify: _,
            logprobs: _,
        } = &self.sampling;
        let mut header = json!({
            "format": FORMAT,
            "base_fingerprint": base_fingerprint,
            "seed": self.seed(),
            "max_tokens": self.max_tokens,
            "context": context,
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
            "min_p": min_p,
            "repetition_penalty": repetition_penalty,
            "presence_penalty": presence_penalty,
            "frequency_penalty": frequency_penalty,
            // As text: JSON has no -inf.
            "logit_bias": logit_bias.iter().map(|(token, bias)| format!("{token}:{bias}")).collect::<Vec<_>>(),
        });
        // Where they say something: files of before they were there can be gone on with.
        if !suppress_tokens.is_empty() {
            header["suppress_tokens"] = json!(suppress_tokens);
        }
        if !bad_words.is_empty() {
            header["bad_words"] = json!(bad_words);
        }
        header.as_object().cloned().unwrap_or_default()
    }
}

/// How far the writing is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Answers in the file.
    pub answers: usize,
    /// Answers that will be in it at the end.
    pub of: usize,
    /// Tokens written since this run began, those of unfinished answers included.
    pub tokens: usize,
    /// Since this run began.
    pub elapsed: Duration,
}

impl Progress {
    /// Tokens written per second, of all answers together.
    pub fn tokens_per_second(&self) -> f64 {
        self.tokens as f64 / self.elapsed.as_secs_f64().max(f64::MIN_POSITIVE)
    }
}

/// What there is after the writing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// Every answer in the file with its prompt; by prompt, then by sample.
    pub documents: Vec<Document>,
    /// Answers that were in the file before.
    pub found: usize,
    /// Answers added.
    pub added: usize,
    /// Prompts that leave no room for an answer in the engine's context, and so got none.
    pub too_long: usize,
    /// Bytes of an unfinished line that were cut off the file before it was gone on with.
    pub cut: u64,
    /// Nothing is missing: nobody interrupted the run.
    pub complete: bool,
}

/// Lets the model of an idle `engine`, the one with this [`fingerprint`](crate::load::Checkpoint::fingerprint),
/// continue each prompt, and keeps the answers in the file at `path`.
///
/// A file that is there already is gone on with: what it holds is not written again, so an interrupted run loses at
/// most the answers behind its oldest unfinished one, and a run with more prompts (after the others) or more samples
/// extends it. Answers go into the file in the order of prompts, then samples, and depend on the engine's model and
/// context, the prompt, its number, the sample's and the options, `batch` and the engine's controller excepted: so a
/// run with interruptions leaves the same bytes as one without.
///
/// `on_progress` is called after every piece of a prompt, token and answer; when it breaks, the run ends in good order.
///
/// # Errors
/// If the options make no sense, the file cannot be written or was made by a run with others, or a pass fails. What is
/// in the file then is whole, up to its last line, and the next run goes on with it.
pub fn write_answers(
    engine: &mut Engine,
    base_fingerprint: &str,
    prompts: &[Vec<TokenId>],
    options: &WriteOptions,
    path: &Path,
    on_progress: &mut dyn FnMut(&Progress) -> ControlFlow<()>,
) -> Result<Written, DataError> {
    let vocab = engine.backend().geometry().vocab_size;
    let context = engine.backend().limits().context;
    options.check(vocab)?;
    let WriteOptions { max_tokens, samples, .. } = *options;
    let asked = Asked { prompts, samples, max_tokens, seed: options.seed(), vocab };
    let Opened { file, answers, cut } = AnswerFile::open(path, &options.header(base_fingerprint, context), &asked)?;

    let fits = |&(index, _): &(usize, usize)| prompts[index].len() < context;
    let all = (0..prompts.len()).flat_map(|index| (0..samples).map(move |sample| (index, sample))).filter(fits);
    let tasks: Vec<(usize, usize)> = all.filter(|task| !answers.contains_key(task)).collect();
    let mut requests = tasks.iter().map(|&(index, sample)| Request {
        sampling: SamplingParams {
            seed: Some(asked.seed_of(index, sample)),
            verify: Some(VerifyMode::Coupled),
            ..options.sampling.clone()
        },
        ..Request::new(prompts[index].clone(), max_tokens)
    });

    let found = answers.len();
    let progress = Progress { answers: found, of: found + tasks.len(), tokens: 0, elapsed: Duration::ZERO };
    let begun = Instant::now();
    let mut desk =
        Desk { file, asked: &asked, tasks: &tasks, finished: BTreeMap::new(), answers, progress, failure: None };
    let ran = engine.run(&mut requests, options.batch, &mut |number, event| {
        let counts = desk.take(number, event);
        desk.progress.elapsed = begun.elapsed();
        match &desk.failure {
            Some(_) => ControlFlow::Break(()),
            None if counts => on_progress(&desk.progress),
            None => ControlFlow::Continue(()),
        }
    });
    if let Some(failure) = desk.failure {
        return Err(failure);
    }
    ran?;
    desk.file.finish()?;
    Ok(Written {
        found,
        added: desk.answers.len() - found,
        too_long: prompts.iter().filter(|prompt| prompt.len() >= context).count(),
        cut,
        complete: desk.progress.answers == desk.progress.of,
        documents: desk.answers.into_values().collect(),
    })
}

/// Where answers arrive in any order and leave in that of the tasks.
struct Desk<'a> {
    file: AnswerFile<File>,
    asked: &'a Asked<'a>,
    /// Prompt and sample of each request.
    tasks: &'a [(usize, usize)],
    /// Finished, but one before them is not; by number of the task.
    finished: BTreeMap<usize, Completion>,
    answers: Answers,
    progress: Progress,
    /// Nothing more can be written.
    failure: Option<DataError>,
}

impl Desk<'_> {
    /// Takes in what happened to a request; whether that is progress.
    fn take(&mut self, number: usize, event: Event) -> bool {
        match event {
            Event::Prefilled { .. } => {}
            Event::Token(_) => self.progress.tokens += 1,
            Event::Done(completion) if completion.finish == Finish::Cancelled || self.failure.is_some() => {
                return false;
            }
            Event::Done(completion) => {
                self.finished.insert(number, completion);
                self.failure = self.hand_out().err();
            }
            Event::Failed(source) => {
                self.failure = Some(DataError::Prompt { index: self.tasks[number].0, source });
            }
        }
        true
    }

    /// Writes the finished answers that no unfinished one comes before.
    fn hand_out(&mut self) -> Result<(), DataError> {
        let written_before = self.progress.of - self.tasks.len();
        while let Some(completion) = self.finished.remove(&(self.progress.answers - written_before)) {
            let (index, sample) = self.tasks[self.progress.answers - written_before];
            let answer = Answer {
                index,
                sample,
                seed: self.asked.seed_of(index, sample),
                prompt: self.asked.prompts[index].clone(),
                tokens: completion.tokens,
                finish: completion.finish.name().into(),
            };
            self.file.append(&answer)?;
            self.answers.insert((index, sample), answer.into());
            self.progress.answers += 1;
        }
        Ok(())
    }
}
