//! `goodput-ts`, the default: draft on while the next draft earns more than its time costs.
//!
//! A round is a renewal: it takes time and gives tokens, and the best policy maximises their ratio R.
//! One more draft gives a token with the chance `S·θ` that it and all drafts before it are accepted,
//! and takes `c_draft` seconds, in which the best policy would have made `R·c_draft` tokens elsewhere.
//! So draft on iff `S·θ > R·c_draft`. All three are measured: costs by [`Costs`], what a confidence
//! says by [`Calibration`], how this passage of this sequence stands to it by [`Level`]. θ of the next
//! draft, whose confidence nobody knows yet, is drawn from its posterior (Thompson sampling); S is the
//! product of the posterior means of the drafts already made, and R is solved for from the same
//! beliefs, so that it follows a change of the text at once.
//!
//! In a batch every sequence reckons with the costs of the whole pass and as if the others did as it
//! does: R and the gain then both grow by the batch size, and the same comparison holds.
//!
//! Drafting can lose. A ledger, in plain rounds, adds up what drafting gained over plain decoding plus
//! a small allowance; while it is in debt no draft is made. Where drafting does not pay a probe now and
//! then finds out whether it does again, and where it does a plain round now and then keeps its cost known.

use super::calibration::{BINS, Before, Calibration, EDGES, bin};
use super::costs::{Costs, RoundCosts};
use super::posterior::{Beta, Level};
use super::{Controller, ControllerSpec, DraftPlan, Outcome, Rule, Step};
use crate::sample::Philox;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Forgetting per tested draft that the level tracks side by side: memories from 4 drafts to the whole text.
const DECAYS: [f64; 5] = [0.75, 0.9, 0.96, 0.99, 1.0];
/// Drafts of a round before any cost is known.
const FIRST_DRAFTS: usize = 3;
/// The share of plain decoding that drafting may lose for good.
const ALLOWANCE: f64 = 0.005;
/// Most plain rounds in the ledger: what drafting may lose at a stretch after it has gained.
const LEDGER_CAP: f64 = 30.0;
/// Most debt in it, so that one mismeasured round cannot end drafting for long.
const LEDGER_FLOOR: f64 = -2.0;
/// A probe's cost over the plain decoding between two probes.
const PROBE_SHARE: f64 = 0.005;
/// Fewest and most plain rounds between two probes.
const PROBE_EVERY: (f64, f64) = (16.0, 10_000.0);
/// Tests that a draw of θ rests on at least.
const LEAST_STRENGTH: f64 = 8.0;

/// Thompson sampling for throughput.
#[derive(Debug, Clone)]
pub struct GoodputTs {
    decay: Option<f64>,
    shared: Shared,
    /// The level as the last observed sequence left it: which decays to trust in the next one.
    trusted: Level,
    slots: BTreeMap<usize, Slot>,
}

/// What all sequences have taught.
#[derive(Debug, Clone)]
struct Shared {
    costs: Costs,
    calibration: Calibration,
    /// In plain rounds.
    ledger: f64,
}

/// What is known about one sequence.
#[derive(Debug, Clone)]
struct Slot {
    level: Level,
    before: Before,
    /// Rounds since the last one that drafted.
    undrafted: u32,
    round: Option<Round>,
}

/// A sequence's round in progress, supposing that all its drafts will be accepted.
#[derive(Debug, Clone)]
struct Round {
    plan: Plan,
    level: Level,
    before: Before,
    /// Chance that all drafts so far are accepted.
    survival: f64,
    drafts: usize,
}

#[derive(Debug, Clone, Copy)]
enum Plan {
    /// This many drafts, to learn or because the ledger is in debt.
    Exactly(usize),
    /// Draft while it pays, at R tokens per draft step's time.
    WhileItPays { rate: f64 },
}

impl GoodputTs {
    /// A controller that forgets by `decay` per tested draft, or finds out how fast to forget.
    pub fn new(decay: Option<f64>) -> Self {
        Self {
            decay,
            shared: Shared { costs: Costs::default(), calibration: Calibration::default(), ledger: LEDGER_CAP },
            trusted: decay.map_or_else(|| Level::new(&DECAYS), |decay| Level::new(&[decay])),
            slots: BTreeMap::new(),
        }
    }
}

impl Shared {
    fn plan(&self, slot: &Slot, step: &Step<'_>) -> Plan {
        let Some(costs) = self.costs.round(step.batch) else { return Plan::Exactly(FIRST_DRAFTS) };
        if let Some(drafts) = self.costs.wanted_drafts(step.batch) {
            return Plan::Exactly(drafts);
        }
        if self.ledger < 0.0 {
            return Plan::Exactly(0);
        }
        let probe_every = (costs.next(0) / costs.plain() / PROBE_SHARE).clamp(PROBE_EVERY.0, PROBE_EVERY.1);
        if f64::from(slot.undrafted) >= probe_every {
            return Plan::Exactly(1);
        }
        Plan::WhileItPays { rate: self.best_rate(slot, step.limit, costs) }
    }

    /// R: the most tokens per draft step's time that a round of any length is expected to give.
    fn best_rate(&self, slot: &Slot, limit: usize, costs: RoundCosts<'_>) -> f64 {
        let chances = self.chances(&slot.level);
        let mut bins = *self.calibration.next(slot.before);
        let mut tokens = 1.0;
        let mut best = tokens / costs.plain();
        for drafts in 1..=limit {
            // From here on `bins` holds the chances to fall in each bin and to be accepted.
            bins.iter_mut().zip(chances).for_each(|(bin, chance)| *bin *= chance);
            let survival: f64 = bins.iter().sum();
            tokens += survival;
            best = best.max(tokens / costs.round(drafts));
            // No later draft is likelier or cheaper, so once one does not pay none does.
            if survival < best * costs.next(drafts - 1) {
                break;
            }
            bins = self.calibration.follow(&bins);
        }
        best
    }

    /// What one more draft after `drafts` costs in tokens, at a rate R.
    fn price(&self, batch: usize, rate: f64, drafts: usize) -> f64 {
        self.costs.round(batch).map_or(0.0, |costs| rate * costs.next(drafts))
    }

    /// Whether the next draft's sampled chance to be kept, `S·θ`, is worth its price.
    fn pays(&self, round: &Round, price: f64, rng: &mut Philox) -> bool {
        round.survival * self.theta(round.before, &round.level, rng) > price
    }

    /// A draw of the next draft's chance to be accepted; its mean is taken over the bins that may come.
    fn theta(&self, before: Before, level: &Level, rng: &mut Philox) -> f64 {
        let bins = self.calibration.next(before);
        let mean: f64 = bins.iter().zip(self.chances(level)).map(|(bin, chance)| bin * chance).sum();
        Beta::with_mean(mean, level.tests() + LEAST_STRENGTH).sample(rng)
    }

    /// The decisions of [`pays`](Self::pays) of a round in which a first draft does, for all bins that its drafts
    /// may fall into: with the same draws, and the same but for one thing. The level after some drafts depends on
    /// the bins of each. Here it is exact in the last of them, and the drafts before that are supposed to have had
    /// the confidence that is expected of an accepted one.
    fn table(&self, round: &Round, rate: f64, step: &Step<'_>, draws: &dyn Fn(usize) -> Philox) -> DraftPlan {
        let rates = self.calibration.rates();
        let mut rules = Vec::new();
        // Of draft `drafts`: the level before it, the chances of its bins, and the best that drafting may come to.
        let (mut level, mut bins, mut most) = (round.level.clone(), *self.calibration.next(round.before), 1.0);
        let mut drafts = 1;
        while drafts < step.limit {
            let price = self.price(step.batch, rate, drafts);
            let kept = self.chances(&level);
            let rule = |bin: usize| {
                let mut after = level.clone();
                after.suppose_accepted(rates[bin]);
                Rule { kept: kept[bin], worth: self.theta(Before::Bin(bin), &after, &mut draws(drafts)) / price }
            };
            let of_draft: [Rule; BINS] = std::array::from_fn(rule);
            if of_draft.iter().all(|rule| most * rule.kept * rule.worth <= 1.0) {
                break;
            }
            rules.extend(of_draft);
            most *= kept.into_iter().fold(0.0, f64::max);
            bins.iter_mut().zip(kept).for_each(|(bin, chance)| *bin *= chance);
            let accepted = bins.iter().sum::<f64>().max(f64::MIN_POSITIVE);
            bins.iter_mut().for_each(|bin| *bin /= accepted);
            level.suppose_accepted(bins.iter().zip(rates).map(|(bin, rate)| bin * rate).sum());
            bins = self.calibration.follow(&bins);
            drafts += 1;
        }
        DraftPlan { limit: drafts, edges: EDGES.to_vec(), rules }
    }

    /// The chance of a draft in each bin to be accepted, at this level.
    fn chances(&self, level: &Level) -> [f64; BINS] {
        self.calibration.rates().map(|rate| level.predict(rate))
    }
}

impl Slot {
    fn new(trusted: &Level) -> Self {
        Self { level: trusted.fresh(), before: Before::Correction, undrafted: 0, round: None }
    }

    /// A round that begins.
    fn begin(&self, plan: Plan) -> Round {
        Round { plan, level: self.level.clone(), before: self.before, survival: 1.0, drafts: 0 }
    }
}

impl Round {
    /// Takes in the confidence of the draft just made.
    fn drafted(&mut self, confidence: f32, calibration: &Calibration) {
        let bin = bin(confidence);
        let expected = calibration.rates()[bin];
        self.survival *= self.level.predict(expected);
        self.level.suppose_accepted(expected);
        self.before = Before::Bin(bin);
        self.drafts += 1;
    }
}

impl Controller for GoodputTs {
    fn spec(&self) -> String {
        ControllerSpec::GoodputTs { decay: self.decay }.to_string()
    }

    fn start(&mut self, slot: usize) {
        self.slots.insert(slot, Slot::new(&self.trusted));
    }

    fn proceed(&mut self, step: &Step<'_>, rng: &mut Philox) -> bool {
        if step.confidences.len() >= step.limit {
            return false;
        }
        let slot = self.slots.entry(step.slot).or_insert_with(|| Slot::new(&self.trusted));
        let begun = slot.round.take().filter(|_| !step.confidences.is_empty());
        let mut round = begun.unwrap_or_else(|| slot.begin(self.shared.plan(slot, step)));
        for &confidence in step.confidences.iter().skip(round.drafts) {
            round.drafted(confidence, &self.shared.calibration);
        }
        let proceed = match round.plan {
            Plan::Exactly(drafts) => round.drafts < drafts,
            Plan::WhileItPays { rate } => {
                self.shared.pays(&round, self.shared.price(step.batch, rate, round.drafts), rng)
            }
        };
        slot.round = Some(round);
        proceed
    }

    fn plan(&mut self, step: &Step<'_>, draws: &dyn Fn(usize) -> Philox) -> Option<DraftPlan> {
        let slot = self.slots.entry(step.slot).or_insert_with(|| Slot::new(&self.trusted));
        let round = slot.begin(self.shared.plan(slot, step));
        Some(match round.plan {
            Plan::Exactly(drafts) => DraftPlan::of_length(drafts.min(step.limit)),
            Plan::WhileItPays { rate } => {
                let price = self.shared.price(step.batch, rate, 0);
                let pays = step.limit > 0 && self.shared.pays(&round, price, &mut draws(0));
                if pays { self.shared.table(&round, rate, step, draws) } else { DraftPlan::of_length(0) }
            }
        })
    }

    fn observe(&mut self, outcome: &Outcome<'_>) {
        let slot = self.slots.entry(outcome.slot).or_insert_with(|| Slot::new(&self.trusted));
        slot.round = None;
        let shared = &mut self.shared;
        let (accepted, refused) = outcome.tested();
        for (i, &confidence) in outcome.confidences.iter().take(accepted + refused).enumerate() {
            slot.level.observe(shared.calibration.rates()[bin(confidence)], i < accepted);
        }
        shared.calibration.observe(slot.before, outcome);
        shared.costs.observe(outcome);
        let drafts = outcome.confidences.len();
        if drafts == 0 {
            slot.level.idle();
            slot.undrafted = slot.undrafted.saturating_add(1);
        } else {
            slot.before = if refused > 0 { Before::Correction } else { Before::Bonus };
            slot.undrafted = 0;
            self.trusted.clone_from(&slot.level);
        }
        if let Some(costs) = shared.costs.round(outcome.batch) {
            let gain = (accepted + 1) as f64 - costs.round(drafts) / costs.plain();
            shared.ledger = (shared.ledger + gain + ALLOWANCE).clamp(LEDGER_FLOOR, LEDGER_CAP);
        }
    }

    fn state(&self) -> Value {
        let level = |level: &Level| -> Vec<Value> {
            level
                .experts()
                .map(|(decay, weight, odds)| json!({ "decay": decay, "weight": weight, "odds": odds }))
                .collect()
        };
        let slot = |(slot, s): (&usize, &Slot)| {
            (slot.to_string(), json!({ "level": level(&s.level), "undrafted": s.undrafted }))
        };
        let costs = |(batch, c): (usize, RoundCosts<'_>)| {
            let step = c.step_seconds;
            (batch.to_string(), json!({ "plain_seconds": c.plain() * step, "draft_seconds": c.next(0) * step }))
        };
        json!({
            "ledger": self.shared.ledger,
            "costs": self.shared.costs.all().map(costs).collect::<serde_json::Map<_, _>>(),
            "calibration": self.shared.calibration.state(),
            "slots": self.slots.iter().map(slot).collect::<serde_json::Map<_, _>>(),
        })
    }
}
