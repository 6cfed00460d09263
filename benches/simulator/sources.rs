//! Texts that several sources draft for: the exit block, as in a [`Stream`](super::Stream), and lookups, which find
//! something at some positions of the text and nothing at others.

mod play;

use super::found::{self, Lookups};
use super::rounds::Machine;
use super::{Costs, MAX_DRAFT, Position, Replay};
use eesd::control::ControllerSpec;
use eesd::draft::Evidence;
use eesd::sample::{Philox, Purpose};
use std::io;
use std::path::Path;

pub use play::{Played, play_together};

/// What a lookup finds at a position.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    /// What each token rests on.
    pub evidence: Vec<Evidence>,
    /// Tokens that the text goes on with.
    pub agreed: usize,
    /// Whether the exit block drafts the first wrong one too.
    pub fooled: bool,
}

/// A position of a text: what drafting its token gives, by the exit block and by a lookup.
#[derive(Debug, Clone, PartialEq)]
pub struct Sourced {
    pub exit: Position,
    pub found: Option<Found>,
}

/// Who drafts.
#[derive(Debug, Clone, PartialEq)]
pub enum Drafter {
    /// The exit block alone.
    Exit(ControllerSpec),
    /// Lookups alone, so many tokens of each that finds something.
    Lookup(usize),
    /// Both, by Thompson sampling.
    Both(ControllerSpec),
    /// Lookups by Thompson sampling, and no exit block.
    Lookups,
}

/// A made-up text of so many positions: in passages of `passage`, the exit block and lookups are right with the chances
/// of each passage in turn, and lookups find something at one of three positions.
pub fn passages(tokens: usize, passage: usize, chances: &[(f64, f64)], seed: u64) -> Vec<Sourced> {
    let mut random = Philox::new(seed, 0, Purpose::Draft, 0);
    let mut position = |at: usize| {
        let (exit, lookup) = chances[at / passage % chances.len()];
        let exit = Position { confidence: random.uniform() as f32, accepted: random.uniform() < exit };
        let finds = random.uniform() < 1.0 / 3.0;
        let agreed = (0..8).take_while(|_| random.uniform() < lookup).count();
        let evidence = || (3..11).map(|matched| Evidence { matched, share: 1.0, seen: 1 }).collect();
        Sourced { exit, found: finds.then(|| Found { evidence: evidence(), agreed, fooled: false }) }
    };
    (0..tokens).map(&mut position).collect()
}

/// The best that one source does with one length, plain decoding among them.
pub fn best_single(text: &[Sourced], costs: Costs) -> f64 {
    let exits = (0..=MAX_DRAFT).map(|length| Drafter::Exit(ControllerSpec::Fixed(length)));
    let lookups = (1..=8).map(Drafter::Lookup);
    exits.chain(lookups).map(|drafter| play(&drafter, text, costs, 0).speedup()).fold(0.0, f64::max)
}

/// The texts of a file of recorded lookups. Where no exit block was recorded, which `drafts` does not allow, its drafts
/// are all wrong.
///
/// # Errors
/// If it cannot be read, or is no such file.
pub fn recorded(path: &Path, drafts: bool) -> io::Result<Vec<Vec<Sourced>>> {
    let refused = |number: usize, what: String| io::Error::other(format!("{}: line {number}: {what}", path.display()));
    let text = |(index, line): (usize, &str)| -> io::Result<Vec<Sourced>> {
        let read = serde_json::from_str(line).map_err(|error| refused(index + 1, error.to_string()))?;
        let Lookups { found, confidence, accepted } = read;
        let drafted = [confidence.len(), accepted.len()];
        if drafted != [found.len(); 2] && (drafts || drafted != [0; 2]) {
            let what = format!("{drafted:?} confidences and fates of drafts (expected {} of each)", found.len());
            return Err(refused(index + 1, what));
        }
        let confidence = confidence.into_iter().chain(std::iter::repeat(0.0));
        let accepted = accepted.bytes().chain(std::iter::repeat(b'0')).map(|byte| byte == b'1');
        let exit = confidence.zip(accepted).map(|(confidence, accepted)| Position { confidence, accepted });
        Ok(found.into_iter().zip(exit).map(|(found, exit)| Sourced { exit, found: found.map(Found::from) }).collect())
    };
    let file = std::fs::read_to_string(path);
    file.map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))?
        .lines()
        .enumerate()
        .map(text)
        .collect()
}

/// The same texts with the drafts of a made-up exit block, which is right in this share of places and knows how likely it is
/// at each.
pub fn with_made_up_drafts(texts: &[Vec<Sourced>], right: f64, seed: u64) -> Vec<Vec<Sourced>> {
    let mut random = Philox::new(seed, 0, Purpose::Draft, 0);
    // Chances as the Beta(right / (1 - right), 1) distribution has them, whose mean is `right`.
    let mut draft = || {
        let chance = random.uniform().powf((1.0 - right) / right);
        Position { confidence: chance as f32, accepted: random.uniform() < chance }
    };
    let mut drafted = |position: &Sourced| Sourced { exit: draft(), found: position.found.clone() };
    texts.iter().map(|text| text.iter().map(&mut drafted).collect()).collect()
}

impl From<found::Found> for Found {
    fn from(found::Found { right: agreed, matched, places, fooled }: found::Found) -> Self {
        let alike = |run: found::Run| std::iter::repeat_n((f32::from(run.1) / 100.0, run.2), run.0);
        let places = places.into_iter().flat_map(alike).zip(matched..);
        let evidence = places.map(|((share, seen), matched)| Evidence { matched, share, seen }).collect();
        Self { evidence, agreed, fooled }
    }
}

/// One text on a machine of these costs.
struct Alone {
    costs: Costs,
    noise: Philox,
    round: usize,
}

impl Machine for Alone {
    fn draft(&self, _sequences: usize) -> f64 {
        self.costs.draft
    }

    fn verify(&self, _batch: usize, rows: usize) -> f64 {
        self.costs.verify(rows, None)
    }

    fn measured(&mut self, time: f64) -> f64 {
        self.costs.measured(self.round, time, &mut self.noise)
    }

    fn next_round(&mut self) {
        self.round += 1;
    }
}

/// Plays a text to its end.
pub fn play(drafter: &Drafter, text: &[Sourced], costs: Costs, seed: u64) -> Replay {
    let noise = Philox::new(seed, 0, Purpose::Bonus, 0);
    play_together(drafter, &[text], 1, &mut Alone { costs, noise, round: 0 }, seed).total
}
