//! How far a sequence drafts that runs alone.
//!
//! One more draft gives a token with the chance `S·θ` that it and all drafts before it are accepted, and takes
//! `c_draft` seconds, in which the best policy would have made `R·c_draft` tokens elsewhere. So it drafts on iff
//! `S·θ > R·c_draft`. The first draft may cost more than those after it, because a single row is verified by kernels of
//! its own. Then it pays with those that follow it, or does not.

use super::sequence::{Draft, Sequence, chances, theta};
use crate::control::calibration::{BINS, Before, Calibration, EDGES};
use crate::control::costs::{Costs, RoundCosts};
use crate::control::ledger::{Ledger, probe_every};
use crate::control::{DraftPlan, DraftStep, Outcome, Rule, Step};
use crate::sample::Philox;
use serde_json::{Value, json};

/// Drafts of a round before any cost is known.
const FIRST_DRAFTS: usize = 3;
/// Of so many probes one drafts as far, all others once: or nobody would learn any more that further drafts are cheap.
const LONG_PROBES: usize = 4;

/// What rounds of a single sequence have taught.
#[derive(Debug, Clone, Default)]
pub struct Alone {
    costs: Costs,
    ledger: Ledger,
    /// Rounds since one that drafted, over all sequences: each may be too short for a probe to be due.
    undrafted: usize,
    probes: usize,
    /// What the last probe and those that followed it at once took more than plain rounds, in plain rounds.
    probing: f64,
    /// Whether the round in progress is a probe, and whether the last one was and all its drafts were accepted.
    probes_now: bool,
    promising: bool,
    /// Of the round in progress.
    plan: Plan,
    /// Tokens made lately in a plain round's time, where others draft too; else 0.
    pace: f64,
}

#[derive(Debug, Clone, Copy)]
enum Plan {
    /// This many drafts, to learn or because the ledger is in debt.
    Exactly(usize),
    /// Draft while it pays: at R tokens per draft step's time, the first one at this price in tokens.
    WhileItPays { rate: f64, first: f64 },
}

impl Default for Plan {
    fn default() -> Self {
        Self::Exactly(0)
    }
}

impl Alone {
    /// Whether the sequence drafts one more token.
    pub fn proceed(
        &mut self,
        sequence: &mut Sequence,
        step: &Step<'_>,
        calibration: &Calibration,
        rng: &mut Philox,
    ) -> bool {
        if step.confidences.is_empty() {
            self.plan = self.decide(sequence, step.limit, calibration);
        }
        let draft = sequence.draft(step.confidences, calibration);
        match self.plan {
            Plan::Exactly(drafts) => draft.drafts < drafts,
            Plan::WhileItPays { rate, first } => {
                if draft.drafts == 0 {
                    return draft.hoped_theta(calibration, rng) > first;
                }
                draft.survival * draft.theta(calibration, rng) > self.price(rate, draft.drafts)
            }
        }
    }

    /// The whole round ahead.
    pub fn plan(
        &mut self,
        sequence: &Sequence,
        step: &Step<'_>,
        calibration: &Calibration,
        draws: &dyn Fn(usize) -> Philox,
    ) -> DraftPlan {
        let draft = sequence.begin();
        match self.decide(sequence, step.limit, calibration) {
            Plan::Exactly(drafts) => DraftPlan::of_length(drafts.min(step.limit)),
            Plan::WhileItPays { rate, first } => {
                let pays = step.limit > 0 && draft.hoped_theta(calibration, &mut draws(0)) > first;
                if pays { self.table(draft, rate, step.limit, calibration, draws) } else { DraftPlan::of_length(0) }
            }
        }
    }

    /// Learns what time is worth where others draft too.
    pub fn observe_pace(&mut self, tokens: f64) {
        self.pace = tokens;
    }

    /// Learns how drafts after a round's first one are made.
    pub fn observe_steps(&mut self, steps: &[DraftStep]) {
        self.costs.later = steps.get(1).map_or(self.costs.later, |step| step.way);
    }

    /// Learns from a finished round.
    pub fn observe(&mut self, outcome: &Outcome<'_>) {
        self.costs.observe(outcome);
        let (accepted, refused) = outcome.tested();
        self.promising = std::mem::take(&mut self.probes_now) && accepted > 0 && refused == 0;
        self.undrafted = if outcome.confidences.is_empty() { self.undrafted + 1 } else { 0 };
        if let Some(took) = self.costs.last_round(outcome.confidences.len()) {
            self.ledger.enter((accepted + 1) as f64 - took);
        }
    }

    /// The drafts of a probe, if one is due. Where all of one were accepted drafting may pay again, so that the next one
    /// follows at once: rare as they are it would take long to be sure.
    fn probe(&mut self) -> Option<usize> {
        let costs = self.costs.round()?;
        let drafts = if self.promising || self.probes % LONG_PROBES == 1 { FIRST_DRAFTS } else { 1 };
        let cost = costs.probe(drafts) / costs.plain();
        let follows = self.promising;
        if !follows && (self.undrafted as f64) < probe_every(cost.max(self.probing)) {
            return None;
        }
        self.probing = if follows { self.probing + cost } else { cost };
        self.probes += usize::from(!follows);
        self.probes_now = true;
        Some(drafts)
    }

    fn decide(&mut self, sequence: &Sequence, limit: usize, calibration: &Calibration) -> Plan {
        if let Some(drafts) = self.costs.wanted_drafts().filter(|_| self.costs.round().is_some()) {
            return Plan::Exactly(drafts);
        }
        if self.ledger.in_debt() {
            return Plan::Exactly(0);
        }
        if let Some(probe) = self.probe() {
            return Plan::Exactly(probe);
        }
        let Some(costs) = self.costs.round() else { return Plan::Exactly(FIRST_DRAFTS) };
        let (rate, first) = best_rate(&sequence.begin(), limit, costs, calibration);
        let gain = rate * costs.plain() - 1.0;
        let dearer = (self.pace / (rate * costs.plain())).max(1.0);
        if self.costs.wants_plain(gain) {
            return Plan::Exactly(0);
        }
        Plan::WhileItPays { rate: rate * dearer, first: first * dearer }
    }

    /// What one more draft after `drafts`, at least one, costs in tokens, at a rate R.
    fn price(&self, rate: f64, drafts: usize) -> f64 {
        self.costs.round().map_or(0.0, |costs| rate * costs.next(drafts))
    }

    /// The decisions of [`proceed`](Self::proceed) in a round whose first draft pays, for all bins that its drafts may
    /// fall into: with the same draws, and the same but for one thing. The level after some drafts depends on
    /// the bins of each. Here it is exact in the last of them, and the drafts before that are supposed to have had
    /// the confidence that is expected of an accepted one.
    fn table(
        &self,
        draft: Draft,
        rate: f64,
        limit: usize,
        calibration: &Calibration,
        draws: &dyn Fn(usize) -> Philox,
    ) -> DraftPlan {
        let rates = calibration.rates();
        let mut rules = Vec::new();
        // Of draft `drafts`: the level before it, the chances of its bins, and the best that drafting may come to.
        let (mut bins, mut most) = (*calibration.next(draft.before), 1.0);
        let mut level = draft.level;
        let mut drafts = 1;
        while drafts < limit {
            let price = self.price(rate, drafts);
            let kept = chances(&level, calibration);
            let rule = |bin: usize| {
                let mut after = level.clone();
                after.suppose_accepted(rates[bin]);
                let theta = theta(Before::Bin(bin), &after, calibration, &mut draws(drafts));
                Rule { kept: kept[bin], worth: theta / price }
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
            bins = calibration.follow(&bins);
            drafts += 1;
        }
        DraftPlan { edges: EDGES.to_vec(), rules, ..DraftPlan::of_length(drafts) }
    }

    /// Ledger and costs, for people.
    pub fn state(&self) -> Value {
        let costs = self.costs.round().map(|costs| {
            let step = costs.step_seconds;
            json!({ "plain_seconds": costs.plain() * step, "draft_seconds": (costs.round(1) - costs.plain()) * step })
        });
        json!({ "ledger": self.ledger.balance(), "costs": costs.unwrap_or_else(|| json!({})) })
    }
}

/// R, the most tokens per draft step's time that a round of any length is expected to give, and the price of the first
/// draft in tokens at that rate: its share, by its chance, of what drafts up to where a token is cheapest cost.
fn best_rate(draft: &Draft, limit: usize, costs: RoundCosts<'_>, calibration: &Calibration) -> (f64, f64) {
    let mut outlook = draft.outlook(calibration);
    let (mut tokens, mut chance, mut cheapest) = (0.0, 1.0, f64::INFINITY);
    let mut best = 1.0 / costs.plain();
    for drafts in 1..=limit {
        let survival = outlook.next(calibration);
        tokens += survival;
        chance = if drafts == 1 { survival } else { chance };
        best = best.max((1.0 + tokens) / costs.round(drafts));
        cheapest = f64::min(cheapest, (costs.round(drafts) - costs.plain()) / tokens);
        // No later draft is likelier or, but for the first, cheaper, so once one does not pay none does.
        if drafts > 1 && survival < best * costs.next(drafts - 1) {
            break;
        }
    }
    (best, best * cheapest * chance)
}
