//! Rounds by where their drafts come from: rows of a verification with and without `h_N`, drafts that a recurrent block makes,
//! and a round that a lookup drafts.

use crate::costs::median;
use crate::device::Measurable;
use crate::expected;
use crate::sizes::{ROUND, Size};
use crate::steps::{ELEMENT, LOOP, Reads, Rounds, cache_bytes, head_bytes, layer_bytes};
use eesd::TokenId;
use eesd::backend::cuda::{CudaBackend, CudaOptions};
use eesd::backend::{KvFormat, Sequence};
use eesd::control::{DraftPlan, Way};
use eesd::draft::{Lookup, Proposer, Text};
use std::error::Error;
use std::sync::Arc;
use std::time::Instant;

/// A text repeats itself after so many tokens, for lookups to find.
const PERIOD: usize = 16;
/// Drafts of a lookup.
const FOUND: usize = 7;

/// What is measured.
#[derive(Clone, Copy)]
pub enum Case {
    /// A verification of so many rows, all drafts made through the first layers: one row comes without `h_N`.
    Drafted(usize),
    /// One of so many rows, all drafts proposed: no row comes with `h_N`.
    Proposed(usize),
    /// A draft through the first layers.
    FirstLayers,
    /// A round's first draft of the recurrent block, from what the round before left.
    Continued,
    /// A further one.
    Recurrent,
    /// One of several of them in a loop on the device.
    RecurrentLoop,
    /// What a lookup finds, and its verification.
    Lookup,
}

impl Case {
    /// All of them.
    pub fn all(size: &Size) -> Vec<Self> {
        let rows = |case: fn(usize) -> Self| size.rows.iter().filter(|&&rows| rows > 1).map(move |&rows| case(rows));
        let verifications = [Self::Drafted(1)].into_iter().chain(rows(Self::Drafted)).chain(rows(Self::Proposed));
        let drafts = [Self::FirstLayers, Self::Continued, Self::Recurrent, Self::RecurrentLoop];
        verifications.chain(drafts).chain([Self::Lookup]).collect()
    }

    /// In words.
    pub fn name(self) -> String {
        match self {
            Self::Drafted(rows) => format!("verify, rows: {rows}, of them without h_N: 1"),
            Self::Proposed(rows) => format!("verify, rows: {rows}, of them without h_N: {rows}"),
            Self::FirstLayers => "draft through the first layers".into(),
            Self::Continued => "first recurrent draft of a round".into(),
            Self::Recurrent => "recurrent draft".into(),
            Self::RecurrentLoop => format!("recurrent draft, of {LOOP} in a loop"),
            Self::Lookup => format!("lookup of {FOUND} and their verification"),
        }
    }

    /// Seconds that an H200 should take.
    pub fn expected(self, size: &Size, context: usize) -> f64 {
        let geometry = &size.geometry;
        // The first layers run for the rows without `h_N` alone.
        let verification = |rows: usize, fresh: usize| {
            let all = Reads::of_verification(geometry, context);
            let first = size.exit_after * layer_bytes(geometry);
            let cache = expected::reading(all.cache);
            expected::projection(first, fresh) + expected::projection(all.weights - first, rows) + cache
        };
        match self {
            Self::Drafted(rows) => verification(rows, 1),
            Self::Proposed(rows) => verification(rows, rows),
            Self::FirstLayers => Reads::of_draft(geometry, size.exit_after, context).expected(1),
            Self::Continued | Self::Recurrent | Self::RecurrentLoop => {
                // The first one begins with the block's state at the row before.
                let layers = if matches!(self, Self::Continued) { 2 } else { 1 };
                let matrix = 2 * geometry.hidden_size * geometry.hidden_size * ELEMENT;
                let weights = layers * layer_bytes(geometry) + head_bytes(geometry) + matrix;
                Reads { weights, cache: layers * cache_bytes(geometry, KvFormat::Full, context) }.expected(1)
            }
            Self::Lookup => expected::LOOKUP + verification(1 + FOUND, 1 + FOUND),
        }
    }

    /// Measures it at the end of a context; `None`: the device has no loops. The first two repetitions record graphs.
    fn measure(
        self,
        rounds: &mut Rounds,
        context: usize,
        repetitions: usize,
    ) -> Result<Option<Vec<f64>>, Box<dyn Error>> {
        let mut lookup = Lookup::default();
        let mut all = Vec::new();
        for _ in 0..repetitions + 2 {
            match self.once(rounds, context - ROUND, &mut lookup)? {
                Some(seconds) => all.push(seconds),
                None => return Ok(None),
            }
        }
        Ok(Some(all.split_off(2)))
    }

    /// Seconds of it.
    fn once(self, rounds: &mut Rounds, committed: usize, lookup: &mut Lookup) -> Result<Option<f64>, Box<dyn Error>> {
        let mut tokens = rounds.text[..committed].to_vec();
        let start = Instant::now();
        let proposed = match self {
            Self::Proposed(rows) => rows - 1,
            Self::Lookup => {
                let proposal = lookup.propose(&Text { sequence: 0, tokens: &tokens, committed, forced: &[] }, FOUND);
                tokens.extend(proposal.tokens);
                tokens.len() - committed
            }
            _ => 0,
        };
        if matches!(self, Self::Lookup) && proposed != FOUND {
            return Err(format!("a lookup found {proposed} tokens of {FOUND} in a text that repeats itself").into());
        }
        tokens.extend(rounds.text[committed..].iter().take(proposed + committed - tokens.len()));
        let drafts = match self {
            Self::Drafted(rows) => rows - 1,
            Self::Recurrent | Self::RecurrentLoop => 1,
            _ => 0,
        };
        for _ in 0..drafts {
            let (backend, round) = rounds.round(&tokens, committed);
            let draft = backend.draft(&[round])?[0];
            tokens.push(draft.token);
        }
        if let Self::Continued = self {
            let (backend, before) = rounds.round(&tokens[..committed - 1], committed - 1);
            backend.verify(&[before])?;
        }
        let start = if drafts > 0 || matches!(self, Self::Continued) { Instant::now() } else { start };
        let (backend, round) = rounds.round(&tokens, committed);
        let passes = match self {
            Self::Drafted(_) | Self::Proposed(_) | Self::Lookup => {
                backend.verify(&[Sequence { proposed, ..round }])?;
                1
            }
            Self::FirstLayers => {
                backend.draft(&[round])?;
                1
            }
            Self::Continued => {
                backend.draft_continued(&[round])?;
                1
            }
            Self::Recurrent => {
                backend.draft_recurrently(&[round])?;
                1
            }
            Self::RecurrentLoop if !backend.follows_plans() => return Ok(None),
            Self::RecurrentLoop => {
                let plan = DraftPlan { later: Way::Recurrent, ..DraftPlan::of_length(LOOP) };
                backend.draft_planned(&round, &plan, &[])?;
                LOOP
            }
        };
        Ok(Some(start.elapsed().as_secs_f64() / passes as f64))
    }
}

/// Measures the cases with one model and prints them.
///
/// # Errors
/// If the model does not fit the device, or the device fails.
pub fn sources<D: Measurable>(
    open: &dyn Fn(bool) -> Result<Arc<D>, Box<dyn Error>>,
    size: &Size,
) -> Result<(), Box<dyn Error>> {
    let context = size.contexts[1];
    let options = CudaOptions { context, max_draft: ROUND - 1, prefill_rows: 1024, ..CudaOptions::default() };
    let (driver, geometry) = (open(true)?, &size.geometry);
    let backend = CudaBackend::synthetic_drafting(Way::Recurrent, driver, geometry, size.exit_after, 1.0, &options)?;
    let mut rounds = Rounds::new(backend, context)?;
    rounds.text = (0..context).map(|i| (i % PERIOD * 7919 % geometry.vocab_size) as TokenId).collect();
    // Nothing is filled behind the last round.
    let text = rounds.text.clone();
    rounds.text.truncate(context - ROUND);
    rounds.prefill()?;
    rounds.text = text;
    println!("{}", heading(size));
    println!("| what | ms | expected | range | of plain |\n|---|--:|--:|--:|--:|");
    let mut plain = None;
    for case in Case::all(size) {
        let expected = case.expected(size, context) * 1e3;
        let Some(seconds) = case.measure(&mut rounds, context, size.repetitions)? else {
            println!("| {} | no loops | {expected:.3} | – | – |", case.name());
            continue;
        };
        let middle = median(&seconds);
        let plain = *plain.get_or_insert(middle);
        let (low, high) = seconds.iter().fold((f64::MAX, 0f64), |(low, high), &s| (low.min(s), high.max(s)));
        println!(
            "| {} | {:.3} | {expected:.3} | {:.3}–{:.3} | {:.3} |",
            case.name(),
            middle * 1e3,
            low * 1e3,
            high * 1e3,
            middle / plain
        );
    }
    println!();
    Ok(())
}

/// What the table is of.
pub fn heading(size: &Size) -> String {
    format!(
        "### Sources of drafts, {}\n\nContext {}, exit layer {}. Without loops on the device, one of several drafts costs what one \
         by itself does.\n",
        size.name, size.contexts[1], size.exit_after
    )
}
