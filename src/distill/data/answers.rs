//! The file of answers: a first line that says who wrote them and how, then one line an answer. It only ever grows, by
//! whole lines, so whatever ends a run, all but the last line is whole.

use super::{DataError, Document};
use crate::TokenId;
use crate::load::json_error;
use crate::sample::{Philox, Purpose};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{BufRead, BufReader, ErrorKind, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// Names the format, in the first line's `format`.
pub(super) const FORMAT: &str = "eesd-answers-1";

/// The first line: what every answer depends on.
pub(super) type Header = Map<String, Value>;

/// One line: what the teacher wrote after a prompt.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Answer {
    /// The prompt's number, from 0.
    pub index: usize,
    /// Which of its answers, from 0.
    pub sample: usize,
    pub seed: u64,
    pub prompt: Vec<TokenId>,
    /// The answer, its end token included.
    pub tokens: Vec<TokenId>,
    /// [`Finish::name`](crate::engine::Finish::name).
    pub finish: String,
}

impl From<Answer> for Document {
    fn from(Answer { prompt, tokens, .. }: Answer) -> Self {
        Self { prompt: prompt.len(), tokens: [prompt, tokens].concat() }
    }
}

/// What a run asks for, and so what its file may hold.
pub(super) struct Asked<'a> {
    pub prompts: &'a [Vec<TokenId>],
    pub samples: usize,
    pub max_tokens: usize,
    pub seed: u64,
    pub vocab: usize,
}

impl Asked<'_> {
    /// The seed of one answer: the run's, the prompt's number and the sample's decide, so that nothing else moves it.
    pub fn seed_of(&self, index: usize, sample: usize) -> u64 {
        let [high, low, ..] = Philox::new(self.seed, index, Purpose::Answer, sample as u32).block(0);
        u64::from(high) << 32 | u64::from(low)
    }

    /// Whether this run would have written the answer.
    fn check(&self, answer: &Answer) -> Result<(), Mismatch> {
        let Answer { index, sample, .. } = *answer;
        let Some(prompt) = self.prompts.get(index) else {
            return mismatch(
                format!("an answer to prompt {index}"),
                format!("{} prompts from 0 on", self.prompts.len()),
            );
        };
        if sample >= self.samples {
            return mismatch(
                format!("sample {sample} of prompt {index}"),
                format!("{} samples from 0 on", self.samples),
            );
        }
        if answer.prompt != *prompt {
            return mismatch(format!("a prompt {index} that this run does not have"), "the same prompts");
        }
        let seed = self.seed_of(index, sample);
        if answer.seed != seed {
            return mismatch(format!("seed {}", answer.seed), seed.to_string());
        }
        if answer.tokens.len() > self.max_tokens {
            return mismatch(
                format!("an answer of {} tokens", answer.tokens.len()),
                format!("at most {}", self.max_tokens),
            );
        }
        check_tokens(answer, self.vocab)
    }
}

/// What is wrong with an answer.
struct Mismatch {
    found: String,
    expected: String,
}

fn mismatch(found: impl Into<String>, expected: impl Into<String>) -> Result<(), Mismatch> {
    Err(Mismatch { found: found.into(), expected: expected.into() })
}

fn check_tokens(answer: &Answer, vocab: usize) -> Result<(), Mismatch> {
    if answer.prompt.is_empty() || answer.tokens.is_empty() {
        return mismatch("no token in the prompt or in the answer", "at least one in each");
    }
    match answer.prompt.iter().chain(&answer.tokens).find(|&&token| token as usize >= vocab) {
        Some(token) => mismatch(format!("token {token}"), format!("tokens below {vocab}, the size of the vocabulary")),
        None => Ok(()),
    }
}

/// Answers by prompt and sample.
pub(super) type Answers = BTreeMap<(usize, usize), Document>;

/// What a file holds.
struct Scanned {
    answers: Answers,
    /// Bytes of its whole lines.
    kept: u64,
    /// What comes after them: a line that was being written when the run was killed.
    half: Vec<u8>,
}

/// Reads a file's whole lines.
fn scan(
    path: &Path,
    file: &File,
    check_header: &dyn Fn(&Header) -> Result<(), DataError>,
    check: &dyn Fn(&Answer) -> Result<(), Mismatch>,
) -> Result<Scanned, DataError> {
    let mut reader = BufReader::new(file);
    let mut scanned = Scanned { answers: Answers::new(), kept: 0, half: Vec::new() };
    for number in 1.. {
        let mut line = Vec::new();
        reader.read_until(b'\n', &mut line).map_err(|error| DataError::io(path, error))?;
        if line.pop_if(|byte| *byte == b'\n').is_none() {
            scanned.half = line;
            break;
        }
        scanned.kept += line.len() as u64 + 1;
        if number == 1 {
            let header: Header = serde_json::from_slice(&line).map_err(|_| not_answers(path, &line))?;
            if header.get("format").and_then(Value::as_str) != Some(FORMAT) {
                return Err(not_answers(path, &line));
            }
            check_header(&header)?;
            continue;
        }
        let wrong = |found, expected: &str| DataError::line(path, number, found, expected);
        let expected = "an answer as `eesd-run` writes it; what comes before is whole";
        let answer: Answer = serde_json::from_slice(&line).map_err(|error| wrong(json_error(&error), expected))?;
        check(&answer).map_err(|Mismatch { found, expected }| wrong(found, &expected))?;
        let (index, sample) = (answer.index, answer.sample);
        if scanned.answers.insert((index, sample), answer.into()).is_some() {
            return Err(wrong(format!("a second answer to prompt {index}, sample {sample}"), "one"));
        }
    }
    Ok(scanned)
}

fn not_answers(path: &Path, start: &[u8]) -> DataError {
    const SHOWN: usize = 60;
    let text = String::from_utf8_lossy(&start[..start.len().min(SHOWN)]);
    let found = format!("it begins with {:?}", text.trim_end());
    DataError::NotAnswers { path: path.to_path_buf(), found, expected: FORMAT }
}

/// The first key in which the two headers differ.
fn compare(path: &Path, found: &Header, expected: &Header) -> Result<(), DataError> {
    let keys = expected.keys().chain(found.keys());
    let show = |value: Option<&Value>| value.map_or("nothing".into(), Value::to_string);
    match keys.into_iter().find(|&key| found.get(key) != expected.get(key)) {
        Some(key) => Err(DataError::OtherRun {
            path: path.to_path_buf(),
            key: key.clone(),
            found: show(found.get(key)),
            expected: show(expected.get(key)),
        }),
        None => Ok(()),
    }
}

/// Answers that were read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadAnswers {
    /// By prompt, then by sample, whatever the order in the file.
    pub documents: Vec<Document>,
    /// Bytes of an unfinished last line, which was left out: the run that wrote it was killed, or is still writing.
    pub cut: u64,
}

/// Reads what [`write_answers`](super::write_answers) wrote, for the model with this
/// [`fingerprint`](crate::load::Checkpoint::fingerprint) and a vocabulary of `vocab` tokens.
///
/// # Errors
/// If the file cannot be read, another model wrote it, or a line is damaged.
pub fn read_answers(path: &Path, base_fingerprint: &str, vocab: usize) -> Result<ReadAnswers, DataError> {
    let file = File::open(path).map_err(|error| DataError::io(path, error))?;
    let expected = Value::from(base_fingerprint);
    let check_header = |header: &Header| {
        let key = "base_fingerprint".to_string();
        let of = |value: Option<&Value>| Map::from_iter(value.map(|value| (key.clone(), value.clone())));
        compare(path, &of(header.get(&key)), &of(Some(&expected)))
    };
    let scanned = scan(path, &file, &check_header, &|answer| check_tokens(answer, vocab))?;
    if scanned.kept == 0 {
        return Err(not_answers(path, &scanned.half));
    }
    Ok(ReadAnswers { documents: scanned.answers.into_values().collect(), cut: scanned.half.len() as u64 })
}

/// A file of answers that is being written.
pub(super) struct AnswerFile<W> {
    path: PathBuf,
    sink: W,
}

/// A file of answers, opened to be gone on with.
pub(super) struct Opened {
    pub file: AnswerFile<File>,
    /// What it holds already.
    pub answers: Answers,
    /// Bytes of an unfinished last line that were cut off.
    pub cut: u64,
}

impl AnswerFile<File> {
    /// Opens the file at `path`, or makes it. A file that is refused is left as it is.
    ///
    /// # Errors
    /// If it cannot be read or written, another run with another `header` wrote it, it holds an answer that was not
    /// asked for, or another process is writing it.
    pub fn open(path: &Path, header: &Header, asked: &Asked<'_>) -> Result<Opened, DataError> {
        let io = |error| DataError::io(path, error);
        if std::fs::metadata(path).is_ok_and(|kind| !kind.is_file()) {
            return Err(io(std::io::Error::new(ErrorKind::InvalidInput, "not a regular file")));
        }
        let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).map_err(io)?;
        // Some network file systems have no locks; that is no reason to refuse them.
        if let Err(TryLockError::WouldBlock) = file.try_lock() {
            return Err(DataError::InUse { path: path.to_path_buf() });
        }
        let scanned = scan(path, &file, &|found| compare(path, found, header), &|answer| asked.check(answer))?;
        let first = json_line_of(header);
        if scanned.kept == 0 && !first.starts_with(&scanned.half) {
            return Err(not_answers(path, &scanned.half));
        }
        let cut = scanned.half.len() as u64;
        if cut > 0 {
            file.set_len(scanned.kept).map_err(io)?;
        }
        file.seek(SeekFrom::Start(scanned.kept)).map_err(io)?;
        let mut file = Self { path: path.to_path_buf(), sink: file };
        if scanned.kept == 0 {
            file.write_line(&first)?;
        }
        Ok(Opened { file, answers: scanned.answers, cut })
    }

    /// Waits until everything is on the disk.
    ///
    /// # Errors
    /// What the disk says.
    pub fn finish(self) -> Result<(), DataError> {
        self.sink.sync_all().map_err(|error| DataError::io(&self.path, error))
    }
}

impl<W: Write> AnswerFile<W> {
    /// Writes one answer, through to the system.
    ///
    /// # Errors
    /// If it cannot be written; then nothing more should be.
    pub fn append(&mut self, answer: &Answer) -> Result<(), DataError> {
        self.write_line(&json_line_of(answer))
    }

    fn write_line(&mut self, line: &[u8]) -> Result<(), DataError> {
        let written = self.sink.write_all(line).and_then(|()| self.sink.flush());
        written.map_err(|error| DataError::io(&self.path, error))
    }
}

fn json_line_of(value: &impl Serialize) -> Vec<u8> {
    let mut line = serde_json::to_vec(value).expect("numbers and texts under text keys are always valid JSON");
    line.push(b'\n');
    line
}

#[cfg(test)]
mod tests;
