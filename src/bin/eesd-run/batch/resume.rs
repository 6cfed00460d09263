//! Going on with a killed run: which lines of its output stay, and whether they belong to this input at all.

use super::{INTERRUPTED, Item, Lines};
use crate::failure::{Failure, Outcome};
use crate::output::AnswerFile;
use eesd::engine::Finish;
use eesd::load::json_error;
use serde::Deserialize;
use serde_json::Value;
use std::collections::{BTreeMap, HashSet};
use std::io::{BufRead, BufReader};
use std::ops::Range;
use std::path::Path;

/// What an earlier run left and this one keeps.
#[derive(Debug, Default)]
pub struct TakenOver {
    /// Requests whose lines stay, by index.
    indices: HashSet<usize>,
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
        let finished = || scanned.lines.iter().filter(|(_, line)| !line.cut_short);
        let indices = finished().map(|(&index, _)| index).collect();
        let failed = finished().filter(|(_, line)| line.prompt_tokens.is_none()).count();
        Ok(Self { indices, failed, dropped: scanned.dropped })
    }

    /// Lines that stay.
    pub fn lines(&self) -> usize {
        self.indices.len()
    }

    /// Whether the request at `index` has its line already.
    pub fn has(&self, index: usize) -> bool {
        self.indices.contains(&index)
    }
}

/// A line of an earlier run.
struct Line {
    /// Its number in the file, from 1.
    number: usize,
    id: Option<Value>,
    /// Of an answer; an error has none.
    prompt_tokens: Option<usize>,
    /// An interrupt ended the request before its time.
    cut_short: bool,
}

/// What an earlier run left.
#[derive(Default)]
struct Scanned {
    /// By the request's index.
    lines: BTreeMap<usize, Line>,
    dropped: Vec<Range<u64>>,
}

/// The keys of a line that tell what it is.
#[derive(Deserialize)]
#[serde(expecting = "an object with the keys of an answer")]
struct Keys {
    id: Option<Value>,
    index: usize,
    error: Option<String>,
    finish: Option<String>,
    stats: Option<Counts>,
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
        if let Some(first) = scanned.lines.insert(index, line) {
            let found = format!("a second line of request {index}, after line {}", first.number);
            return Err(wrong(path, number, &found, "one line a request"));
        }
    }
    Ok(scanned)
}

/// What one whole line says: the request's index, and the rest.
fn line(path: &Path, number: usize, bytes: &[u8]) -> Outcome<(usize, Line)> {
    let expected = "an answer or an error as `eesd-run generate` writes it";
    let refused = |why: &str| wrong(path, number, &format!("{why} in {:?}", shown(bytes)), expected);
    if !bytes.starts_with(b"{") {
        return Err(refused("no object")); // serde would take the elements of a list for the keys
    }
    let keys: Keys = serde_json::from_slice(bytes).map_err(|error| refused(&json_error(&error)))?;
    let (prompt_tokens, cut_short) = match (keys.error, keys.finish, keys.stats) {
        (Some(error), None, None) => (None, error == INTERRUPTED),
        (None, Some(finish), Some(stats)) => (Some(stats.prompt_tokens), finish == Finish::Cancelled.name()),
        _ => return Err(refused("neither \"error\" alone, nor \"finish\" and \"stats\" without it")),
    };
    Ok((keys.index, Line { number, id: keys.id, prompt_tokens, cut_short }))
}

impl Scanned {
    /// Whether each line is one that this input asks for.
    fn check(&self, path: &Path, requests: Lines<'_>) -> Outcome {
        let Some((&last, line_of_last)) = self.lines.last_key_value() else { return Ok(()) };
        let input = requests.name().to_owned();
        let mut read = 0;
        // Reading on past the last index would take in prompts for nothing.
        for item in requests.only(|index| self.lines.contains_key(&index)).take(self.lines.len()) {
            let (job, prompt) = match &item {
                Item::Request { job, request } => (job, Ok(request.prompt.len())),
                Item::Wrong { job, error } => (job, Err(error)),
                Item::Unreadable { error } => return Err(Failure::failed(error)),
            };
            read += 1;
            let Some(line) = self.lines.get(&job.index) else { continue };
            let of = format!("that of request {} of {input}", job.index);
            if line.id != job.id {
                return Err(wrong(path, line.number, &id(line.id.as_ref()), &format!("{}, {of}", id(job.id.as_ref()))));
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
        if read < self.lines.len() {
            let found = format!("a line of request {last}");
            let expected = format!("a request of {input}, which has fewer (they count from 0)");
            return Err(wrong(path, line_of_last.number, &found, &expected));
        }
        Ok(())
    }
}

/// Whether a run that was killed while writing can have left this at the end of the file.
fn begins_a_line(bytes: &[u8]) -> bool {
    [&b"{\"id\":"[..], b"{\"index\":"].iter().any(|head| bytes.starts_with(head) || head.starts_with(bytes))
}

fn id(id: Option<&Value>) -> String {
    id.map_or("no id".into(), |id| format!("id {id}"))
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
