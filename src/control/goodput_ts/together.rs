//! How far sequences draft that share their passes.
//!
//! Their drafts compete for one pass: a draft step costs about the same however many take part, and a further row to
//! verify costs what it costs, whoever drafted it. So all drafts that may be made, of every sequence and position, are
//! ranked by what they are worth, and the best set of a number of draft steps is one from the top of the ranking. At a
//! round's start the set worth most per second tells R, what a second is worth; none drafted is one of the sets. Before
//! each draft step the set worth most, less R times what it takes, says who goes on: a draft that opens a tile of rows
//! may pay only with those that fill it.
//!
//! A draft is worth its chance to be kept, over the tokens that its sequence makes in a round. Plain tokens per second
//! would favour sequences that draft well; but those leave soon, and the slots fill with the others. Where all texts
//! have to be written, what counts is a sequence's share of its own way, and the time of a text that is slow is the
//! dearest: so most texts are written per hour.

use super::best_set::{BestSet, Prices};
use super::sequence::{Draft, Outlook, Sequence};
use crate::control::calibration::Calibration;
use crate::control::ledger::{Ledger, probe_every, size};
use crate::control::step_times::StepTimes;
use crate::control::{Outcome, RoundTimes, Step};
use crate::sample::Philox;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Rounds from the start of drafting to the first of another length, and what every further one takes longer to come.
const VARY_SPACING: usize = 8;
const VARY_LATER: usize = 8;
/// Most rounds from one to the next.
const VARY_EVERY: usize = 500;
/// Plain rounds at a stretch after which drafting starts anew.
const STRETCH: usize = 8;
/// After so many plain rounds at a stretch every other one is plain without a decision, after twice as many two of three,
/// and so on up to so many and the next one decided about.
const RESTING_AFTER: usize = 16;
const MOST_RESTING: usize = 15;
/// How much a round counts for the usual pace.
const PACE_RATE: f64 = 1.0 / 256.0;

/// What rounds of several sequences have taught.
#[derive(Debug, Clone)]
pub struct Together {
    times: StepTimes,
    /// By the logarithm of the batch size.
    sizes: BTreeMap<u32, Size>,
    /// Tokens that a sequence makes in a round, over all of them.
    pace: f64,
    /// The same in a plain round's time, where others draft too; else 0.
    in_plain_time: f64,
    /// Of the round in progress.
    plan: Plan,
    /// Whether that round is plain without a decision.
    rests: bool,
    /// What the round that is being told about gained so far.
    entry: Option<Entry>,
}

/// Rounds of about the same number of sequences.
#[derive(Debug, Clone, Copy, Default)]
struct Size {
    /// In plain rounds.
    ledger: Ledger,
    rounds: usize,
    /// Draft steps of a round, lately.
    steps: f64,
    /// Rounds of another length since drafting started, and rounds since the last one.
    varied: usize,
    since_varied: usize,
    /// Rounds since one that drafted.
    undrafted: usize,
    /// Rounds since one that was decided about.
    rested: usize,
}

/// The ledger's entry for a round: its gain, once a sequence has told how its drafts fared.
#[derive(Debug, Clone, Copy)]
struct Entry {
    size: u32,
    gain: f64,
    told: bool,
}

#[derive(Debug, Clone)]
enum Plan {
    /// This many drafts of every sequence.
    Exactly(usize),
    /// One draft of those with these slots.
    Probe(Vec<usize>),
    /// Draft while it pays, at what a second is worth, R.
    WhileItPays { rate: f64 },
}

impl Default for Plan {
    fn default() -> Self {
        Self::Exactly(0)
    }
}

/// A sequence that may draft, as it stands.
#[derive(Debug, Clone, Copy)]
struct Asked<'a> {
    slot: usize,
    undrafted: u32,
    /// What a token is worth: one over those that the sequence makes in a round.
    worth: f64,
    draft: &'a Draft,
    /// Most drafts that it may still make.
    most: usize,
}

impl Default for Together {
    fn default() -> Self {
        let (times, sizes, plan) = (StepTimes::default(), BTreeMap::new(), Plan::default());
        Self { times, sizes, pace: 1.0, in_plain_time: 0.0, plan, rests: false, entry: None }
    }
}

impl Together {
    /// Which of several sequences, all of them known, draft one more token.
    pub fn proceed(
        &mut self,
        steps: &[Step<'_>],
        rows: usize,
        sequences: &mut BTreeMap<usize, Sequence>,
        calibration: &Calibration,
        draws: &mut [Philox],
    ) -> Vec<bool> {
        let batch = steps.iter().map(|step| step.batch).max().unwrap_or(1);
        let begins = steps.iter().all(|step| step.confidences.is_empty());
        let undecided = begins && !self.foregone(batch);
        if let (&Plan::Exactly(drafts), false) = (&self.plan, undecided) {
            return steps.iter().map(|step| step.confidences.len() < drafts.min(step.limit)).collect();
        }
        for step in steps {
            sequences.entry(step.slot).and_modify(|sequence| {
                sequence.draft(step.confidences, calibration);
            });
        }
        let asked = |step: &Step<'_>| {
            let sequence = sequences.get(&step.slot)?;
            let most = step.limit.saturating_sub(step.confidences.len());
            let worth = 1.0 / sequence.pace(self.pace);
            Some(Asked { slot: step.slot, undrafted: sequence.undrafted, worth, draft: sequence.drafting()?, most })
        };
        let asked: Vec<Asked<'_>> = steps.iter().filter_map(asked).collect();
        let outlooks: Vec<Outlook> = asked.iter().map(|a| a.draft.outlook(calibration)).collect();
        if undecided {
            self.plan = self.decide(&asked, &outlooks, batch, rows, calibration);
        }
        match (&self.plan, self.times.costs()) {
            (&Plan::WhileItPays { rate }, Some(costs)) => {
                let sampled = |((a, outlook), rng): ((&Asked<'_>, Outlook), &mut Philox)| {
                    (outlook.sampled(a.draft, rng).times(a.worth), a.most)
                };
                let sequences = asked.iter().zip(outlooks).zip(draws).map(sampled).collect();
                let drafted = asked.iter().map(|a| a.draft.drafts).max().unwrap_or(0);
                let mut prices = Prices::new(costs, batch, rows, asked.len(), drafted);
                BestSet::of(sequences, &mut prices, calibration, |worth, seconds| worth - rate * seconds).next
            }
            (Plan::Probe(slots), _) => {
                asked.iter().map(|a| a.most > 0 && a.draft.drafts == 0 && slots.contains(&a.slot)).collect()
            }
            (&Plan::Exactly(drafts), _) => asked.iter().map(|a| a.most > 0 && a.draft.drafts < drafts).collect(),
            (Plan::WhileItPays { .. }, None) => vec![false; asked.len()],
        }
    }

    /// Whether no round's times were observed yet.
    pub fn knows_nothing(&self) -> bool {
        self.times.is_empty()
    }

    /// Learns what a round took.
    pub fn observe_times(&mut self, times: &RoundTimes<'_>) {
        self.settle();
        let rested = std::mem::take(&mut self.rests) && times.draft_steps.is_empty();
        let key = size(times.batch);
        if times.batch > 1 {
            self.sizes.entry(key).or_default().took(times.draft_steps.len());
        }
        if rested {
            // One like it is measured at the next decision.
            self.entry = Some(Entry { size: key, gain: 0.0, told: false });
            return;
        }
        self.times.observe(times);
        if times.batch < 2 {
            return;
        }
        self.entry = self.times.costs().map(|costs| {
            // What was proposed is another's account.
            let gain = (costs.undrafted(times) - costs.round(times)) / costs.plain(times.batch);
            Entry { size: key, gain, told: false }
        });
    }

    /// Learns what time is worth where others draft too.
    pub fn observe_pace(&mut self, tokens: f64) {
        self.in_plain_time = tokens;
    }

    /// Learns how the drafts of one of the round's sequences fared.
    pub fn observe(&mut self, outcome: &Outcome<'_>) {
        let (accepted, _) = outcome.tested();
        self.pace += PACE_RATE * ((accepted + 1) as f64 - self.pace);
        if let Some(entry) = &mut self.entry {
            entry.gain += accepted as f64 / outcome.batch as f64;
            entry.told = true;
        }
    }

    /// Enters the last round. Rounds that were played to be timed have no sequence that tells of drafts, and no entry.
    fn settle(&mut self) {
        if let Some(entry) = self.entry.take().filter(|entry| entry.told) {
            self.sizes.entry(entry.size).or_default().ledger.enter(entry.gain);
        }
    }

    /// Plans the round if that needs no look at its sequences, and tells whether it did.
    fn foregone(&mut self, batch: usize) -> bool {
        self.settle();
        let wanted = self.times.wanted_drafts().unwrap_or(0);
        let knows_costs = self.times.costs().is_some();
        let size = self.sizes.entry(size(batch)).or_default();
        self.rests = knows_costs && size.rests();
        let drafts = if !knows_costs {
            Some(wanted)
        } else if self.rests || size.ledger.in_debt() {
            Some(0)
        } else {
            size.vary()
        };
        self.plan = Plan::Exactly(drafts.unwrap_or(0));
        drafts.is_some()
    }

    fn decide(
        &mut self,
        asked: &[Asked<'_>],
        outlooks: &[Outlook],
        batch: usize,
        rows: usize,
        calibration: &Calibration,
    ) -> Plan {
        let Some(costs) = self.times.costs() else { return Plan::Exactly(0) };
        let size = self.sizes.entry(size(batch)).or_default();
        let plain = costs.hoped_verify(batch, rows);
        let probe = |tests: usize| {
            (tests, costs.draft(0, tests) + costs.hoped_verify(batch, rows.saturating_add(tests)) - plain)
        };
        let cheaper = |a: (usize, f64), b: (usize, f64)| if b.1 * (a.0 as f64) < a.1 * b.0 as f64 { b } else { a };
        let Some((tests, cost)) = (1..=asked.len()).map(probe).reduce(cheaper) else { return Plan::Exactly(0) };
        if size.undrafted as f64 >= probe_every(cost / plain) {
            return Plan::Probe(longest_undrafted(asked, tests));
        }
        let sequences =
            outlooks.iter().zip(asked).map(|(outlook, a)| (outlook.clone().times(a.worth), a.most)).collect();
        let mut prices = Prices::new(costs, batch, rows, asked.len(), 0);
        // Sequences that do not speculate make a token a round.
        let all = asked.iter().map(|a| a.worth).sum::<f64>() + batch.saturating_sub(asked.len()) as f64;
        let rate = |worth: f64, seconds: f64| (all + worth) / (plain + seconds);
        let rate = BestSet::of(sequences, &mut prices, calibration, rate).value.max(self.in_plain_time * all / plain);
        Plan::WhileItPays { rate }
    }

    /// Ledgers and step times, for people.
    pub fn state(&self) -> Value {
        let size = |(&key, size): (&u32, &Size)| {
            let state = json!({ "ledger": size.ledger.balance(), "rounds": size.rounds, "undrafted": size.undrafted });
            ((1usize << key).to_string(), state)
        };
        json!({
            "ledgers": self.sizes.iter().map(size).collect::<serde_json::Map<_, _>>(),
            "step_times": self.times.state(),
        })
    }
}

impl Size {
    /// A round had this many draft steps.
    fn took(&mut self, steps: usize) {
        self.rounds += 1;
        if steps > 0 {
            self.steps += (steps as f64 - self.steps) / self.rounds.min(STRETCH) as f64;
            self.since_varied += 1;
            self.undrafted = 0;
        } else {
            self.undrafted += 1;
        }
        if self.undrafted >= STRETCH {
            (self.varied, self.since_varied) = (0, 0);
        }
    }

    /// Whether the round is plain because many were before it: a decision takes time, and where drafting has not paid for
    /// long, most likely for nothing. Counts the rounds that rest, not all: of short requests many are never asked about.
    fn rests(&mut self) -> bool {
        let rests = self.rested < (self.undrafted / RESTING_AFTER).min(MOST_RESTING);
        self.rested = if rests { self.rested + 1 } else { 0 };
        rests
    }

    /// The drafts of every sequence in a round that is played to compare its time with those around it, if one is due:
    /// none, as many as most rounds have steps, one more, one less. Where all rounds are alike nothing else tells the
    /// machine's speed from what that length costs.
    fn vary(&mut self) -> Option<usize> {
        if self.since_varied < (VARY_SPACING + VARY_LATER * self.varied).min(VARY_EVERY) {
            return None;
        }
        let steps = self.steps.round() as usize;
        let drafts = [0, steps, steps + 1, steps.saturating_sub(1)][self.varied % 4];
        (self.varied, self.since_varied) = (self.varied + 1, 0);
        Some(drafts)
    }
}

/// The slots of some sequences, those first that have not drafted for longest.
fn longest_undrafted(asked: &[Asked<'_>], count: usize) -> Vec<usize> {
    let mut order: Vec<&Asked<'_>> = asked.iter().collect();
    order.sort_by_key(|a| std::cmp::Reverse(a.undrafted));
    order.iter().take(count).map(|a| a.slot).collect()
}
