//! `goodput-ts`, the default: draft on while the next draft earns more than its time costs.
//!
//! A round is a renewal: it takes time and gives tokens, and the best policy maximises their ratio R.
//! One more draft gives a token with the chance `S·θ` that it and all drafts before it are accepted,
//! and takes `c_draft` seconds, in which the best policy would have made `R·c_draft` tokens elsewhere.
//! So draft on iff `S·θ > R·c_draft`. All three are measured: costs by [`Costs`], what a confidence
//! says by [`Calibration`], how this passage of this sequence stands to it by [`Level`]. θ is drawn
//! from its posterior (Thompson sampling); R is solved for from the same beliefs, so that it follows a
//! change of the text at once.
//!
//! In a batch every sequence reckons with the costs of the whole pass and as if the others did as it
//! does: R and the gain then both grow by the batch size, and the same comparison holds.
//!
//! Drafting can lose. A ledger, in plain rounds, adds up what drafting gained over plain decoding plus
//! a small allowance; while it is in debt no draft is made. Where drafting does not pay a probe now and
//! then finds out whether it does again, and where it does a plain round now and then keeps its cost known.

use super::calibration::{BINS, Before, Calibration, bin};
use super::costs::{Costs, RoundCosts};
use super::posterior::{Beta, Level};
use super::{Controller, ControllerSpec, Outcome, Step};
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
/// Least plain rounds between two probes.
const PROBE_EVERY: u32 = 16;
/// Tests that a draw of θ rests on at least.
const LEAST_STRENGTH: f64 = 8.0;

/// Thompson sampling for throughput.
#[derive(Debug, Clone)]
pub struct GoodputTs {
    decay: Option<f64>,
    costs: Costs,
    calibration: Calibration,
    /// The level as the last observed sequence left it: which decays to trust in the next one.
    trusted: Level,
    /// In plain rounds.
    ledger: f64,
    slots: BTreeMap<usize, Slot>,
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
    /// Draft while it pays: `price` is `R·c_draft`, tokens that a draft step's time is worth.
    WhileItPays { price: f64 },
}

impl GoodputTs {
    /// A controller that forgets by `decay` per tested draft, or finds out how fast to forget.
    pub fn new(decay: Option<f64>) -> Self {
        let trusted = decay.map_or_else(|| Level::new(&DECAYS), |decay| Level::new(&[decay]));
        Self {
            decay,
            costs: Costs::default(),
            calibration: Calibration::default(),
            trusted,
            ledger: LEDGER_CAP,
            slots: BTreeMap::new(),
        }
    }

    fn plan(&self, slot: &Slot, step: &Step<'_>) -> Plan {
        let Some(costs) = self.costs.round(step.batch) else { return Plan::Exactly(FIRST_DRAFTS) };
        if let Some(drafts) = self.costs.wanted_drafts(step.batch) {
            return Plan::Exactly(drafts);
        }
        if self.ledger < 0.0 {
            return Plan::Exactly(0);
        }
        let probe_every = (costs.draft / costs.plain / PROBE_SHARE).clamp(f64::from(PROBE_EVERY), 1e4);
        if f64::from(slot.undrafted) >= probe_every {
            return Plan::Exactly(1);
        }
        Plan::WhileItPays { price: self.best_rate(slot, step.limit, costs) * costs.draft }
    }

    /// R: the most tokens per second that a round of any length is expected to give.
    fn best_rate(&self, slot: &Slot, limit: usize, costs: RoundCosts) -> f64 {
        let mut outlook = Outlook::new(&self.calibration, slot.before);
        let mut tokens = 1.0;
        let mut best = tokens / costs.plain;
        for drafts in 1..=limit {
            let survival = outlook.advance(&slot.level);
            tokens += survival;
            best = best.max(tokens / costs.round(drafts));
            // No later draft is likelier, so once one does not pay none does.
            if survival < best * costs.draft {
                break;
            }
        }
        best
    }

    /// Whether the next draft's sampled chance to be kept, `S·θ`, is worth its price.
    fn pays(&self, round: &Round, price: f64, rng: &mut Philox) -> bool {
        let mean = Outlook::new(&self.calibration, round.before).advance(&round.level);
        let theta = Beta::with_mean(mean, round.level.tests() + LEAST_STRENGTH).sample(rng);
        round.survival * theta > price
    }
}

/// The drafts ahead, of which no confidence is known yet.
struct Outlook<'a> {
    calibration: &'a Calibration,
    /// Chance that all drafts before the next one are accepted and that its confidence is in this bin.
    bins: [f64; BINS],
}

impl<'a> Outlook<'a> {
    fn new(calibration: &'a Calibration, before: Before) -> Self {
        Self { calibration, bins: *calibration.next(before) }
    }

    /// The chance that the next draft and all before it are accepted; moves on past it.
    fn advance(&mut self, level: &Level) -> f64 {
        let mut next = [0.0; BINS];
        let mut survival = 0.0;
        for (bin, &chance) in self.bins.iter().enumerate() {
            let accepted = chance * level.predict(self.calibration.rates()[bin]);
            survival += accepted;
            for (to, share) in next.iter_mut().zip(self.calibration.next(Before::Bin(bin))) {
                *to += accepted * share;
            }
        }
        self.bins = next;
        survival
    }
}

impl Slot {
    fn new(trusted: &Level) -> Self {
        Self { level: trusted.fresh(), before: Before::Correction, undrafted: 0, round: None }
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
        let mut slot = self.slots.remove(&step.slot).unwrap_or_else(|| Slot::new(&self.trusted));
        if step.confidences.is_empty() {
            slot.round = None;
        }
        let mut round = slot.round.take().unwrap_or_else(|| Round {
            plan: self.plan(&slot, step),
            level: slot.level.clone(),
            before: slot.before,
            survival: 1.0,
            drafts: 0,
        });
        for &confidence in step.confidences.iter().skip(round.drafts) {
            round.drafted(confidence, &self.calibration);
        }
        let proceed = match round.plan {
            Plan::Exactly(drafts) => round.drafts < drafts,
            Plan::WhileItPays { price } => self.pays(&round, price, rng),
        };
        slot.round = Some(round);
        self.slots.insert(step.slot, slot);
        proceed
    }

    fn observe(&mut self, outcome: &Outcome<'_>) {
        let mut slot = self.slots.remove(&outcome.slot).unwrap_or_else(|| Slot::new(&self.trusted));
        slot.round = None;
        let (accepted, refused) = outcome.tested();
        for (i, &confidence) in outcome.confidences.iter().take(accepted + refused).enumerate() {
            slot.level.observe(self.calibration.rates()[bin(confidence)], i < accepted);
        }
        self.calibration.observe(slot.before, outcome);
        self.costs.observe(outcome);
        let drafts = outcome.confidences.len();
        if drafts == 0 {
            slot.level.idle();
            slot.undrafted = slot.undrafted.saturating_add(1);
        } else {
            slot.before = if refused > 0 { Before::Correction } else { Before::Bonus };
            slot.undrafted = 0;
            self.trusted.clone_from(&slot.level);
        }
        if let Some(costs) = self.costs.round(outcome.batch) {
            let gain = (accepted + 1) as f64 - costs.round(drafts) / costs.plain;
            self.ledger = (self.ledger + gain + ALLOWANCE).clamp(LEDGER_FLOOR, LEDGER_CAP);
        }
        self.slots.insert(outcome.slot, slot);
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
        let costs = |(batch, c): (usize, RoundCosts)| {
            (batch.to_string(), json!({ "plain_seconds": c.plain, "draft_seconds": c.draft }))
        };
        json!({
            "ledger": self.ledger,
            "costs": self.costs.all().map(costs).collect::<serde_json::Map<_, _>>(),
            "calibration": self.calibration.state(),
            "slots": self.slots.iter().map(slot).collect::<serde_json::Map<_, _>>(),
        })
    }
}
