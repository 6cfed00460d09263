//! Which documents are trained on, and which are kept to measure on.

use super::{DataError, Dataset, Document};
use crate::TokenId;
use crate::load::fnv1a;
use crate::sample::{Philox, Purpose};
use std::collections::HashSet;
use std::fmt;

/// Documents that come from one place.
#[derive(Debug, Clone, PartialEq)]
pub struct Source {
    /// What reports call it.
    pub name: String,
    /// Who wrote it.
    pub origin: Origin,
    /// The documents.
    pub documents: Vec<Document>,
    /// Its part in the mix of training documents, in scored positions, relative to the other sources with a weight:
    /// documents of those that have more than their part are left out. `None`: all of it is used, and nothing is left
    /// out for it.
    pub weight: Option<f64>,
}

/// What decides together on which side a document lands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// Answers of the teacher: those to one prompt share their side.
    Answers,
    /// Other text: each document for itself.
    Corpus,
}

/// What to drop and what to hold out.
#[derive(Debug, Clone, PartialEq)]
pub struct SelectOptions {
    /// Documents with fewer tokens are dropped.
    pub shortest: usize,
    /// Documents with more tokens are dropped.
    pub longest: usize,
    /// The fraction of documents (of prompts, for answers) that is held out, 0 to below 1, on average.
    pub held_out: f64,
    /// Another seed holds out others.
    pub seed: u64,
}

/// An amount of documents.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Amount {
    /// How many.
    pub documents: usize,
    /// Positions of them that are trained or measured at.
    pub scored: usize,
}

impl Amount {
    fn of<'a>(documents: impl IntoIterator<Item = &'a Document>) -> Self {
        let add = |Self { documents, scored }: Self, document: &Document| Self {
            documents: documents + 1,
            scored: scored + document.scored().len(),
        };
        documents.into_iter().fold(Self::default(), add)
    }
}

/// What became of one source's documents; the counts add up to `documents`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SourceReport {
    /// The source's name.
    pub name: String,
    /// What it had.
    pub documents: usize,
    /// Dropped: nothing to train at in them.
    pub unscored: usize,
    /// Dropped: fewer tokens than asked for.
    pub too_short: usize,
    /// Dropped: more tokens than asked for.
    pub too_long: usize,
    /// Dropped: the same tokens were there before, in this source or another.
    pub duplicates: usize,
    /// Dropped: more than the source's part in the mix.
    pub over_weight: usize,
    /// Kept to train on.
    pub train: Amount,
    /// Kept to measure on.
    pub held_out: Amount,
}

/// What became of every document; printed, a line a source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// In the order of the sources.
    pub sources: Vec<SourceReport>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, source) in self.sources.iter().enumerate() {
            if number > 0 {
                writeln!(f)?;
            }
            let SourceReport { name, documents, train, held_out, .. } = source;
            write!(
                f,
                "{name}: to train on {} of {documents} documents ({} positions), held out {} ({} positions)",
                train.documents, train.scored, held_out.documents, held_out.scored,
            )?;
            let dropped = [
                (source.unscored, "without a position to train at"),
                (source.too_short, "too short"),
                (source.too_long, "too long"),
                (source.duplicates, "seen before"),
                (source.over_weight, "over the source's part"),
            ];
            let dropped = dropped.iter().filter(|(count, _)| *count > 0);
            let dropped: Vec<String> = dropped.map(|(count, why)| format!("{count} {why}")).collect();
            if !dropped.is_empty() {
                write!(f, "; dropped {}", dropped.join(", "))?;
            }
        }
        Ok(())
    }
}

/// Drops what cannot be used or is there twice, holds a part out, and mixes what is left.
///
/// On which side a document lands depends on its own tokens (its prompt's, for answers) and the seed, not on what else
/// there is: it stays there when the data grows. So does the order in which a mix leaves documents out.
///
/// # Errors
/// If an option is out of range, or nothing is left to train on.
pub fn select(sources: Vec<Source>, options: &SelectOptions) -> Result<(Dataset, Report), DataError> {
    check(&sources, options)?;
    let mut reports = Vec::new();
    let mut seen = HashSet::new();
    let mut train: Vec<(Option<f64>, Vec<Document>)> = Vec::new();
    let mut held_out = Vec::new();
    for source in sources {
        let mut report =
            SourceReport { name: source.name, documents: source.documents.len(), ..SourceReport::default() };
        let mut kept = Vec::new();
        for document in source.documents {
            let length = document.tokens.len();
            if document.scored().is_empty() {
                report.unscored += 1;
            } else if length < options.shortest {
                report.too_short += 1;
            } else if length > options.longest {
                report.too_long += 1;
            } else if !seen.insert(digest(&document.tokens)) {
                report.duplicates += 1;
            } else if is_held_out(&document, source.origin, options) {
                held_out.push(document);
            } else {
                kept.push(document);
            }
        }
        let before: usize = reports.iter().map(|report: &SourceReport| report.held_out.documents).sum();
        report.held_out = Amount::of(&held_out[before..]);
        train.push((source.weight, kept));
        reports.push(report);
    }
    mix(&mut train, options.seed, &mut reports)?;
    for ((_, documents), report) in train.iter().zip(&mut reports) {
        report.train = Amount::of(documents);
    }
    let train: Vec<Document> = train.into_iter().flat_map(|(_, documents)| documents).collect();
    let report = Report { sources: reports };
    if train.is_empty() {
        return Err(DataError::Empty {
            found: format!("nothing is left to train on ({report})"),
            expected: "at least one document",
        });
    }
    Ok((Dataset { train, held_out }, report))
}

fn check(sources: &[Source], options: &SelectOptions) -> Result<(), DataError> {
    if !(0.0..1.0).contains(&options.held_out) {
        return Err(DataError::param("held_out", options.held_out, "a number from 0 to below 1"));
    }
    if options.shortest > options.longest {
        let found = format!("{} above longest, {}", options.shortest, options.longest);
        return Err(DataError::param("shortest", found, "no more than longest"));
    }
    let positive = |weight: &f64| weight.is_finite() && *weight > 0.0;
    match sources.iter().find_map(|source| source.weight.filter(|weight| !positive(weight)).map(|w| (&source.name, w)))
    {
        Some((name, weight)) => {
            Err(DataError::param("weight", format!("{weight} of {name}"), "a finite number above 0"))
        }
        None => Ok(()),
    }
}

/// 128 bits that tell texts apart.
fn digest(tokens: &[TokenId]) -> u128 {
    fnv1a(bytemuck::cast_slice::<TokenId, u8>(tokens))
}

/// 64 bits that depend on tokens, the seed and what they are for: the generator as a keyed hash, since the upper bits
/// of the digest of a short text are much the same for every text.
fn draw(tokens: &[TokenId], seed: u64, what_for: u32) -> u64 {
    let digest = digest(tokens);
    let folded = (digest ^ digest >> 64) as u64;
    let [high, low, ..] = Philox::new(seed, (folded >> 32) as usize, Purpose::Selection, folded as u32).block(what_for);
    u64::from(high) << 32 | u64::from(low)
}

const HOLDING_OUT: u32 = 0;
const MIXING: u32 = 1;

fn is_held_out(document: &Document, origin: Origin, options: &SelectOptions) -> bool {
    let decisive = match origin {
        Origin::Answers => &document.tokens[..document.prompt.min(document.tokens.len())],
        Origin::Corpus => &document.tokens[..],
    };
    (draw(decisive, options.seed, HOLDING_OUT) as f64) < options.held_out * 2f64.powi(64)
}

/// Leaves documents out of the sources that have more than their part, compared with the scarcest.
fn mix(train: &mut [(Option<f64>, Vec<Document>)], seed: u64, reports: &mut [SourceReport]) -> Result<(), DataError> {
    let mut scale = f64::INFINITY;
    for ((weight, documents), report) in train.iter().zip(&*reports) {
        let Some(weight) = weight else { continue };
        if documents.is_empty() {
            return Err(DataError::Empty {
                found: format!("{} has a part in the mix, but nothing to train on", report.name),
                expected: "at least one document, or no weight",
            });
        }
        scale = scale.min(Amount::of(documents).scored as f64 / weight);
    }
    for ((weight, documents), report) in train.iter_mut().zip(reports) {
        let Some(weight) = *weight else { continue };
        // Half a position of slack: rounding must not cost the scarcest source its last document.
        let part = scale * weight - 0.5;
        let mut order: Vec<(u64, usize)> =
            documents.iter().enumerate().map(|(i, document)| (draw(&document.tokens, seed, MIXING), i)).collect();
        order.sort_unstable();
        let mut taken = 0;
        let mut keep = vec![false; documents.len()];
        for (_, i) in order {
            if taken as f64 >= part && taken > 0 {
                break;
            }
            taken += documents[i].scored().len();
            keep[i] = true;
        }
        report.over_weight = keep.iter().filter(|keep| !**keep).count();
        let mut keep = keep.into_iter();
        documents.retain(|_| keep.next().unwrap_or(false));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
