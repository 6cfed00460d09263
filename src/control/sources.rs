//! Which source a sequence's round is drafted by, and how many proposed tokens are taken.
//!
//! Proposals cost no pass, but a row of verification for each token. So a round's candidates, of every sequence, are
//! ranked by the chance that they are right with all before them ([`Trust`]), and those are taken with which the round
//! is expected to give most tokens beyond what its further seconds are worth elsewhere: a second is worth the tokens that
//! it made lately. What rows cost is measured ([`StepTimes`]). Chances are drawn from their posteriors (Thompson
//! sampling). A sequence that may be drafted for by the exit block takes a proposal only where it is worth more than such
//! a round is ([`Exits`]); how far it drafts else is the [`Controller`](super::Controller)'s choice.
//!
//! Whether a proposal was right is seen from the text that was emitted, whether it was taken or not, so that every
//! source is judged in every round (full information, HedgeSpec, arXiv 2510.20064), and none need be tried. A ledger keeps
//! proposals from losing where what is believed of them is wrong: in debt, few rounds take any.

mod exits;
mod trust;

use super::RoundTimes;
use super::ledger::{Ledger, size};
use super::step_times::{StepCosts, StepTimes};
use crate::draft::{Evidence, Source};
use crate::sample::Philox;
use exits::Exits;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use trust::Trust;

/// Proposals have to be worth so many times their time: the best of many seem better than they are.
const MARGIN: f64 = 1.05;
/// Plain rounds that taking proposals may lose at a stretch.
const MAY_LOSE: f64 = 6.0;
/// In debt, of so many rounds one takes proposals.
const TRIED_IN_DEBT: usize = 16;
/// What tokens and time of a pace are multiplied by per round, and plain rounds that it begins with.
const PACE_DECAY: f64 = 0.98;
const PACE_PRIOR: f64 = 16.0;

/// What a source says about one sequence's next tokens.
#[derive(Debug, Clone, Copy)]
pub struct Offer<'a> {
    /// Who says it.
    pub source: Source,
    /// What each token rests on; at least one.
    pub evidence: &'a [Evidence],
}

/// A sequence before a round.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// Its slot.
    pub slot: usize,
    /// What is proposed for it, no more tokens each than it may draft.
    pub offers: &'a [Offer<'a>],
    /// The exit block may draft for it instead.
    pub may_draft: bool,
}

/// What is taken of an offer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Choice {
    /// Index of the offer.
    pub offer: usize,
    /// Its first tokens; at least one.
    pub tokens: usize,
}

/// An offer after the round, taken or not.
#[derive(Debug, Clone, Copy)]
pub struct Judged<'a> {
    /// The offer.
    pub offer: Offer<'a>,
    /// Its first tokens that the text went on with.
    pub agreed: usize,
    /// Whether the text then went on otherwise; else no more of it is known.
    pub refused: bool,
}

/// A sequence after a round.
#[derive(Debug, Clone, Copy)]
pub struct Told<'a> {
    /// Its slot.
    pub slot: usize,
    /// What was proposed for it.
    pub offers: &'a [Judged<'a>],
    /// Drafts of the exit block.
    pub sampled: usize,
    /// Tokens proposed.
    pub proposed: usize,
    /// Drafts accepted, of whatever source.
    pub accepted: usize,
}

/// Thompson sampling among sources of drafts. One serves all sequences of an engine.
#[derive(Debug, Clone, Default)]
pub struct SourceTs {
    times: StepTimes,
    trust: Trust,
    exits: Exits,
    /// By the logarithm of the batch size.
    sizes: BTreeMap<u32, Size>,
}

/// Rounds of about the same number of sequences.
#[derive(Debug, Clone, Copy)]
struct Size {
    ledger: Ledger,
    /// Decisions while in debt.
    in_debt: usize,
    /// Tokens of a sequence, and rounds' time in plain rounds, old ones counting for less.
    tokens: f64,
    time: f64,
}

impl Default for Size {
    fn default() -> Self {
        Self { ledger: Ledger::with_cap(MAY_LOSE), in_debt: 0, tokens: PACE_PRIOR, time: PACE_PRIOR }
    }
}

/// What rows cost, and what time is worth.
struct Prices<'a> {
    costs: &'a StepCosts,
    /// Fresh rows without any proposal.
    batch: usize,
    /// Tokens that a second of the round is worth.
    rate: f64,
}

impl Prices<'_> {
    /// What so many proposed tokens have to be worth, in tokens.
    fn of(&self, proposed: usize) -> f64 {
        let verify = |rows| self.costs.hoped_verify(rows, rows);
        MARGIN * self.rate * (verify(self.batch + proposed) - verify(self.batch))
    }
}

/// A proposed token that may be taken.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    /// Index of its sequence among those asked.
    sequence: usize,
    /// Chance that it is right, with all before it.
    survival: f64,
}

impl SourceTs {
    /// A new sequence takes `slot`: what was learned about the old one is forgotten.
    pub fn start(&mut self, slot: usize) {
        self.trust.start(slot);
        self.exits.start(slot);
    }

    /// Tokens that a sequence made lately in a plain round's time, among so many.
    pub fn pace(&self, batch: usize) -> f64 {
        self.sizes.get(&size(batch)).map_or(1.0, |size| size.tokens / size.time)
    }

    /// What is taken of each sequence's offers; those that are not asked about have none. `batch` counts them all;
    /// `draws` has a random stream for each that is asked about.
    pub fn choose(&mut self, asked: &[Asked<'_>], batch: usize, draws: &mut [Philox]) -> Vec<Option<Choice>> {
        let mut choices = vec![None; asked.len()];
        let Some(costs) = self.times.verify_costs() else { return choices };
        let size = self.sizes.entry(size(batch)).or_default();
        if size.ledger.in_debt() {
            size.in_debt += 1;
            if !size.in_debt.is_multiple_of(TRIED_IN_DEBT) {
                return choices;
            }
        }
        // No less than plain decoding makes.
        let pace = batch as f64 * (size.tokens / size.time).max(1.0);
        let prices = Prices { costs, batch, rate: pace / costs.plain(batch) };
        let longest = |asked: &Asked<'_>| asked.offers.iter().map(|offer| offer.evidence.len()).max().unwrap_or(0);
        let most: usize = asked.iter().map(longest).sum();
        let per_row = prices.of(most) / most.max(1) as f64;
        let mut candidates = Vec::with_capacity(most);
        for (sequence, (asked, rng)) in asked.iter().zip(&mut *draws).enumerate() {
            let survivals = |offer: &Offer<'_>| self.trust.survivals(asked.slot, offer.source, offer.evidence, rng);
            let worth = |survivals: &[f64]| survivals.iter().map(|s| (s - per_row).max(0.0)).sum::<f64>();
            let offers = asked.offers.iter().map(survivals).enumerate().map(|(i, s)| (worth(&s), i, s));
            let Some((_, offer, survivals)) = offers.max_by(|a, b| a.0.total_cmp(&b.0)) else { continue };
            choices[sequence] = Some(Choice { offer, tokens: 0 });
            candidates.extend(survivals.into_iter().map(|survival| Candidate { sequence, survival }));
        }
        // Stable, so that no token comes before those that it needs.
        candidates.sort_by(|a, b| b.survival.total_cmp(&a.survival));
        let taken = best(&candidates, &prices);
        let mut worth = vec![0.0; asked.len()];
        let per_row = prices.of(taken) / taken.max(1) as f64;
        for candidate in &candidates[..taken] {
            worth[candidate.sequence] += candidate.survival - per_row;
            choices[candidate.sequence].iter_mut().for_each(|choice| choice.tokens += 1);
        }
        for (((choice, worth), asked), rng) in choices.iter_mut().zip(worth).zip(asked).zip(draws) {
            let least = if asked.may_draft { self.exits.worth(asked.slot, rng) } else { 0.0 };
            *choice = choice.filter(|choice| choice.tokens > 0 && worth > least);
        }
        choices
    }

    /// Whether nothing is known of what rows cost.
    pub fn wants_step_times(&self) -> bool {
        self.times.is_empty()
    }

    /// Learns what a round took that was played for nothing but to time it.
    pub fn observe_times(&mut self, times: &RoundTimes<'_>) {
        self.times.observe(times);
    }

    /// Learns from a finished round.
    pub fn observe(&mut self, times: &RoundTimes<'_>, told: &[Told<'_>]) {
        self.times.observe(times);
        for sequence in told {
            for Judged { offer, agreed, refused } in sequence.offers {
                self.trust.observe(sequence.slot, offer.source, offer.evidence, *agreed, *refused);
            }
        }
        let Some(costs) = self.times.verify_costs() else { return };
        let (batch, plain) = (times.batch as f64, costs.plain(times.batch));
        let proposing = (costs.undrafted(times) - plain) / plain;
        let drafting = (costs.round(times) - costs.undrafted(times)) / plain;
        let size = self.sizes.entry(size(times.batch)).or_default();
        let accepted = |of: fn(&Told<'_>) -> bool| -> f64 {
            told.iter().filter(|told| of(told)).map(|told| told.accepted as f64).sum()
        };
        if times.proposed > 0 {
            size.ledger.enter(accepted(|told| told.proposed > 0) / batch - proposing);
        }
        let time = 1.0 + proposing + if drafting.is_finite() { drafting } else { 0.0 };
        size.tokens = size.tokens * PACE_DECAY + 1.0 + accepted(|_| true) / batch;
        size.time = size.time * PACE_DECAY + time;
        let drafters = told.iter().filter(|told| told.sampled > 0).count() as f64;
        let price = batch * size.tokens / size.time * drafting / drafters;
        for sequence in told.iter().filter(|told| told.proposed == 0) {
            match sequence.sampled {
                // What is left to a controller that would not draft was worth no more than any plain round.
                0 => self.exits.observe(sequence.slot, 0.0),
                _ if price.is_finite() => self.exits.observe(sequence.slot, sequence.accepted as f64 - price),
                _ => {}
            }
        }
    }

    /// What it believes now, for people.
    pub fn state(&self) -> Value {
        let size = |(&key, size): (&u32, &Size)| {
            let state = json!({ "ledger": size.ledger.balance(), "tokens_a_plain_round": size.tokens / size.time });
            ((1usize << key).to_string(), state)
        };
        json!({
            "agreement": self.trust.state(),
            "exit_gain": self.exits.state(),
            "sizes": self.sizes.iter().map(size).collect::<serde_json::Map<_, _>>(),
            "step_times": self.times.state(),
        })
    }
}

/// How many of the first candidates are worth most, less what they cost.
fn best(candidates: &[Candidate], prices: &Prices<'_>) -> usize {
    let (mut worth, mut most, mut taken) = (0.0, 0.0, 0);
    for (i, candidate) in candidates.iter().enumerate() {
        worth += candidate.survival;
        let value = worth - prices.of(i + 1);
        if value > most {
            (most, taken) = (value, i + 1);
        }
    }
    taken
}
