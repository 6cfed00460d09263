//! Going on with a killed run: which lines of its output stay, and whether they belong to this input at all.

use super::job::{Form, Job};
use super::{INTERRUPTED, Item, Lines, openai};
use crate::failure::{Failure, Outcome};
use crate::output::AnswerFile;
use eesd::engine::{Finish, Request};
use eesd::load::Keys;
use serde::Deserialize;
use serde_json::value::RawValue;
use std::collections::{BTreeMap, HashSet};
use std::io::{BufRead, BufReader};
use std::ops::Range;
use std::path::Path;

/// What an earlier run left and this one keeps.
#[derive(Debug, Default)]
pub struct TakenOver {
    /// Requests all of whose answers are on one line that stays, by index.
    whole: HashSet<usize>,
    /// Answers among several whose lines stay, by index and sample.
    samples: HashSet<(usize, usize)>,
    /// Lines among them that are errors.
    pub failed: usize,
    /// Bytes of the output that do not stay, in order: lines that were cut short, and one without an end.
    pub dropped: Vec<Range<u64>>,
}

impl TakenOver {
    /// Reads an output that is to be gone on with. `requests` are those of this run's input, from its beginning.
    ///
    /// # Errors
    /// If a line does not belong to this input, or one of the two cannot be read.
    pub fn check(file: &AnswerFile, requests: Lines<'_>) -> Outcome<Self> {
        let scanned = scan(file)?;
        scanned.check(file.path(), requests)?;
        let mut taken = Self { dropped: scanned.dropped, ..Self::default() };
        for (index, line) in
            scanned.lines.into_iter().flat_map(|(index, lines)| lines.into_iter().map(move |l| (index, l)))
        {
            match (line.cut_short, line.sample) {
                (true, _) => continue,
                (false, None) => drop(taken.whole.insert(index)),
                (false, Some(sample)) => drop(taken.samples.insert((index, sample))),
            }
            taken.failed += usize::from(line.prompt_tokens.is_none());
        }
        Ok(taken)
    }

    /// Lines that stay.
    pub fn lines(&self) -> usize {
        self.whole.len() + self.samples.len()
    }

    /// Whether the request at `index` has all its answers already.
    pub fn has(&self, index: usize) -> bool {
        self.whole.contains(&index)
    }

    /// Whether it has this one of its answers.
    pub fn has_sample(&self, index: usize, sample: usize) -> bool {
        self.has(index) || self.samples.contains(&(index, sample))
    }
}

/// A line of an earlier run.
struct Line {
    /// Its number in the file, from 1.
    number: usize,
    /// As it is written.
    id: Option<Box<RawValue>>,
    /// Which of several answers it holds.
    sample: Option<usize>,
    /// Of an answer; an error has none.
    prompt_tokens: Option<usize>,
    /// An interrupt ended the request before its time.
    cut_short: bool,
}

/// What an earlier run left.
#[derive(Default)]
struct Scanned {
    /// By the request's index.
    lines: BTreeMap<usize, Vec<Line>>,
    dropped: Vec<Range<u64>>,
}

#[derive(Deserialize)]
struct Counts {
    prompt_tokens: usize,
}

/// Reads what an earlier run left.
fn scan(file: &AnswerFile) -> Outcome<Scanned> {
    let path = file.path();
    let mut reader = BufReader::new(file.reader());
    let mut scanned = Scanned::default();
    let mut bytes = Vec::new();
    let mut end = 0;
    for number in 1.. {
        bytes.clear();
        reader.read_until(b'\n', &mut bytes).map_err(|e| Failure::file(path, "read", &e))?;
        let place = end..end + bytes.len() as u64;
        end = place.end;
        if bytes.pop_if(|byte| *byte == b'\n').is_none() {
            if !begins_a_line(&bytes) {
                let found = format!("{:?} without a line break", shown(&bytes));
                return Err(wrong(path, number, &found, "the beginning of an answer as `eesd-run generate` writes it"));
            }
            if !bytes.is_empty() {
                scanned.dropped.push(place);
            }
            break;
        }
        let (index, line) = line(path, number, &bytes)?;
        if line.cut_short {
            scanned.dropped.push(place);
        }
        let lines = scanned.lines.entry(index).or_default();
        let same = |earlier: &&Line| earlier.sample.is_none() || line.sample.is_none() || earlier.sample == line.sample;
        if let Some(first) = lines.iter().find(same) {
            let found = format!("a second line of request {index}, after line {}", first.number);
            return Err(wrong(path, number, &found, "one line an answer"));
        }
        lines.push(line);
    }
    Ok(scanned)
}

/// What one whole line says: the request's index, and the rest.
fn line(path: &Path, number: usize, bytes: &[u8]) -> Outcome<(usize, Line)> {
    let expected = "an answer or an error as `eesd-run generate` writes it";
    let refused = |why: String| wrong(path, number, &format!("{why} in {:?}", shown(bytes)), expected);
    let mut keys = Keys::parse(bytes);
    keys.whole().map_err(refused)?;
    let openai = keys.raw("response").is_some() || keys.raw("custom_id").is_some();
    let id = keys.raw(if openai { "custom_id" } else { "id" }).map(RawValue::to_owned);
    if openai {
        let openai::Earlier { index, prompt_tokens, cut_short } = openai::earlier(&mut keys).map_err(refused)?;
        return Ok((index, Line { number, id, sample: None, prompt_tokens, cut_short }));
    }
    let index = keys.take("index").and_then(|index| index.ok_or("no \"index\"".into())).map_err(refused)?;
    let sample = keys.take("sample").map_err(refused)?;
    let error = keys.take::<String>("error").map_err(refused)?;
    let finish = keys.take::<String>("finish").map_err(refused)?;
    let stats = keys.take::<Counts>("stats").map_err(refused)?;
    let (prompt_tokens, cut_short) = match (error, finish, stats) {
        (Some(error), None, None) => (None, error == INTERRUPTED),
        (None, Some(finish), Some(stats)) => (Some(stats.prompt_tokens), finish == Finish::Cancelled.name()),
        _ => return Err(refused("neither \"error\" alone, nor \"finish\" and \"stats\" without it".into())),
    };
    Ok((index, Line { number, id, sample, prompt_tokens, cut_short }))
}

impl Scanned {
    /// Whether each line is one that this input asks for.
    fn check(&self, path: &Path, requests: Lines<'_>) -> Outcome {
        let Some((&last, lines_of_last)) = self.lines.last_key_value() else { return Ok(()) };
        let input = requests.name().to_owned();
        let mut read = 0;
        // Reading on past the last index would take in prompts for nothing.
        for item in requests.only(|index| self.lines.contains_key(&index)).take(self.lines.len()) {
            let (job, prompt) = match &item {
                Item::Request { job, requests, .. } => (job, Ok(prompt_tokens(job, requests))),
                Item::Wrong { job, error } => (job, Err(error.message())),
                Item::Unreadable { error } => return Err(Failure::failed(error)),
            };
            read += 1;
            let of = format!("that of request {} of {input}", job.index);
            for line in self.lines.get(&job.index).into_iter().flatten() {
                let (found, expected) = (id(line.id.as_deref()), id(job.id.as_deref()));
                if found != expected {
                    return Err(wrong(path, line.number, &found, &format!("{expected}, {of}")));
                }
                if let Some(sample) = line.sample.filter(|&sample| sample >= job.samples) {
                    let expected = format!("one of {} samples, counted from 0, {of}", job.samples);
                    return Err(wrong(path, line.number, &format!("sample {sample}"), &expected));
                }
                match (line.prompt_tokens, prompt) {
                    (Some(found), Ok(expected)) if found != expected => {
                        let found = format!("an answer to a prompt of {found} tokens");
                        return Err(wrong(path, line.number, &found, &format!("{expected} tokens, {of}")));
                    }
                    (Some(_), Err(error)) => {
                        return Err(wrong(path, line.number, "an answer", &format!("an error, {of}: {error}")));
                    }
                    _ => {}
                }
            }
        }
        if let Some(line) = lines_of_last.first().filter(|_| read < self.lines.len()) {
            let found = format!("a line of request {last}");
            let expected = format!("a request of {input}, which has fewer (they count from 0)");
            return Err(wrong(path, line.number, &found, &expected));
        }
        Ok(())
    }
}

/// Tokens of the prompts that the answers on one line tell of.
fn prompt_tokens(job: &Job, requests: &[Request]) -> usize {
    let samples = match &job.form {
        Form::Lines => requests.len(),
        Form::OpenAi(shape) => shape.samples,
    };
    requests.iter().step_by(samples.max(1)).map(|request| request.prompt.len()).sum()
}

/// Whether a run that was killed while writing can have left this at the end of the file.
fn begins_a_line(bytes: &[u8]) -> bool {
    [&b"{\"id\":"[..], b"{\"index\":", b"{\"custom_id\":"]
        .iter()
        .any(|head| bytes.starts_with(head) || head.starts_with(bytes))
}

fn id(id: Option<&RawValue>) -> String {
    id.map_or("no id".into(), |id| format!("id {}", id.get()))
}

fn shown(bytes: &[u8]) -> String {
    const SHOWN: usize = 60;
    String::from_utf8_lossy(&bytes[..bytes.len().min(SHOWN)]).into_owned()
}

fn wrong(path: &Path, number: usize, found: &str, expected: &str) -> Failure {
    Failure::failed(format!("{}:{number}: {found} (expected {expected})", path.display()))
}

#[cfg(test)]
mod tests;
