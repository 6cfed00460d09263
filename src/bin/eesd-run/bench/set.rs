//! The prompts of one file, and how all contenders did on them.

use super::contender::Contender;
use super::costs::{Costs, Round};
use crate::args::BenchArgs;
use crate::failure::{Failure, Outcome};
use crate::progress::Progress;
use crate::prompts;
use crate::report::Reporter;
use crate::settings::Model;
use eesd::TokenId;
use eesd::engine::{Engine, Request};
use std::path::{Path, PathBuf};

/// Prompts that are told apart from those of other files.
pub struct Set {
    /// `None`: there is only one.
    pub name: Option<String>,
    requests: Vec<Request>,
    /// Prompts side by side.
    batch: usize,
    /// Plain decoding first.
    pub contenders: Vec<Contender>,
    /// The tokens of plain decoding.
    expected: Vec<Vec<TokenId>>,
    /// What passes cost in the warm-up.
    pub costs: Costs,
}

/// The tokens of each prompt, by the name of its set where there are several.
type Named = (Option<String>, Vec<Vec<TokenId>>);

/// The prompts of each file, or those of the bundled model where none is given.
///
/// # Errors
/// If a file cannot be read, or a line of it is no prompt.
pub fn prompts(args: &BenchArgs, model: &Model, reporter: Reporter) -> Outcome<Vec<Named>> {
    let read = |path: Option<&Path>| -> Outcome<_> {
        let mut prompts = prompts::of_file_or_bundled(path, model, reporter)?;
        prompts.truncate(args.prompts.unwrap_or(usize::MAX));
        Ok(prompts)
    };
    match &args.input[..] {
        [] => Ok(vec![(None, read(None)?)]),
        [path] => Ok(vec![(None, read(Some(path))?)]),
        paths => paths.iter().map(|path| Ok((Some(name(path, paths)), read(Some(path))?))).collect(),
    }
}

/// The file's name without its ending, or all of its path where another one is called the same.
fn name(path: &Path, all: &[PathBuf]) -> String {
    let alike = all.iter().filter(|other| other.file_stem() == path.file_stem()).count();
    match path.file_stem() {
        Some(_) if path == Path::new("-") => "standard input".into(),
        Some(stem) if alike == 1 => stem.to_string_lossy().into_owned(),
        _ => path.display().to_string(),
    }
}

impl Set {
    /// Requests that are `base` but for their prompts.
    pub fn new(
        prompts: Vec<Vec<TokenId>>,
        base: &Request,
        batch: usize,
        contenders: Vec<Contender>,
        name: Option<String>,
    ) -> Self {
        let requests = prompts.into_iter().map(|prompt| Request { prompt, ..base.clone() }).collect();
        Self { name, requests, batch, contenders, expected: Vec::new(), costs: Costs::measured([]) }
    }

    /// All of them.
    pub fn requests(&self) -> &[Request] {
        &self.requests
    }

    /// Turns that a repetition has, all contenders' together.
    pub fn turns(&self) -> usize {
        self.requests.len().div_ceil(self.batch) * self.contenders.len()
    }

    /// Whether a turn of every contender was counted.
    pub fn is_measured(&self) -> bool {
        self.contenders.iter().all(|contender| contender.stats.generated > 0)
    }

    /// Every contender over every chunk: keeps the tokens that `off` gave for each prompt, and what the passes cost.
    ///
    /// # Errors
    /// If another contender gave other tokens, a pass fails, or there was an interrupt.
    pub fn warm_up(&mut self, engine: &mut Engine, progress: &Progress) -> Outcome {
        let mut rounds: Vec<Round> = Vec::new();
        for chunk in self.requests.chunks(self.batch) {
            let first = self.expected.len();
            for contender in &mut self.contenders {
                let Some(turn) = contender.play(engine, chunk, first)? else {
                    return Err(Failure::failed("interrupted before anything was measured"));
                };
                rounds.extend(turn.rounds);
                if self.expected.len() == first {
                    self.expected.extend(turn.tokens);
                } else {
                    contender.check(&self.expected[first..], &turn.tokens, first)?;
                }
                progress.advance();
            }
        }
        self.costs = Costs::measured(rounds);
        Ok(())
    }

    /// Every contender over every chunk, in turns; a chunk counts when all of them have played it.
    ///
    /// # Errors
    /// If a contender gave other tokens than in the warm-up, or a pass fails.
    pub fn repetition(&mut self, engine: &mut Engine, progress: &Progress) -> Outcome {
        self.contenders.iter_mut().for_each(Contender::begin_repetition);
        let mut first = 0;
        for chunk in self.requests.chunks(self.batch) {
            let mut turns = Vec::new();
            for contender in &mut self.contenders {
                let Some(turn) = contender.play(engine, chunk, first)? else { return Ok(()) };
                contender.check(&self.expected[first..], &turn.tokens, first)?;
                turns.push(turn);
                progress.advance();
            }
            for (contender, turn) in self.contenders.iter_mut().zip(&turns) {
                contender.count(turn);
            }
            first += chunk.len();
        }
        Ok(())
    }
}
