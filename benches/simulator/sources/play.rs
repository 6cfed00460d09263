//! Rounds of texts that several sources draft for, side by side.

use super::super::rounds::{Machine, go_on};
use super::{Drafter, MAX_DRAFT, Replay, Sourced};
use eesd::control::{
    Asked, Controller, ControllerSpec, DraftStep, Judged, Offer, Outcome, RoundTimes, SourceTs, Step, Told,
};
use eesd::draft::{Evidence, Source};
use eesd::sample::{Philox, Purpose};

/// A text on its way.
struct Running<'a> {
    slot: usize,
    text: &'a [Sourced],
    at: usize,
    /// Of what was found for this round: what it rests on, tokens that are right, and tokens taken.
    evidence: &'a [Evidence],
    agreed: usize,
    taken: usize,
    confidences: Vec<f32>,
    seconds: Vec<f64>,
    /// What it took so far, in plain rounds.
    plain_rounds: f64,
}

impl<'a> Running<'a> {
    fn new(slot: usize, text: &'a [Sourced]) -> Self {
        let (confidences, seconds) = Default::default();
        Self { slot, text, at: 0, evidence: &[], agreed: 0, taken: 0, confidences, seconds, plain_rounds: 0.0 }
    }

    /// The last token of a text need not be drafted: the model's own one follows anyway.
    fn limit(&self) -> usize {
        MAX_DRAFT.min(self.text.len() - self.at - 1)
    }

    fn look_up(&mut self) {
        let found = self.text[self.at].found.as_ref();
        self.evidence = found.map_or(&[], |found| &found.evidence[..found.evidence.len().min(self.limit())]);
        self.agreed = found.map_or(0, |found| found.agreed.min(self.evidence.len()));
    }

    fn rows(&self) -> usize {
        self.taken + self.confidences.len() + 1
    }

    fn accepted(&self) -> usize {
        let sampled = &self.text[self.at..][..self.confidences.len()];
        self.agreed.min(self.taken) + sampled.iter().take_while(|position| position.exit.accepted).count()
    }

    /// What was found, beside what the text goes on with.
    fn judged(&self) -> Option<Judged<'a>> {
        let emitted = self.accepted() + 1;
        let agreed = self.agreed.min(emitted);
        let offer = Offer { source: Source::Lookup, evidence: self.evidence };
        let refused = agreed < self.evidence.len().min(emitted);
        (!self.evidence.is_empty()).then_some(Judged { offer, agreed, refused })
    }

    fn commit(&mut self) -> usize {
        let tokens = self.accepted() + 1;
        self.at += tokens;
        (self.taken, self.evidence, self.agreed) = (0, &[], 0);
        self.confidences.clear();
        self.seconds.clear();
        tokens
    }
}

/// What playing texts came to.
pub struct Played {
    pub total: Replay,
    /// Of all texts the least tokens in a plain round's time, of as many texts side by side.
    pub slowest: f64,
}

/// Those who decide.
struct Choosing<'a> {
    drafter: &'a Drafter,
    controller: Box<dyn Controller>,
    sources: SourceTs,
    seed: u64,
}

/// Plays texts to their end, up to `batch` at a time.
pub fn play_together(
    drafter: &Drafter,
    texts: &[&[Sourced]],
    batch: usize,
    machine: &mut dyn Machine,
    seed: u64,
) -> Played {
    let spec = match drafter {
        Drafter::Exit(spec) | Drafter::Both(spec) => spec.clone(),
        Drafter::Lookup(_) | Drafter::Lookups => ControllerSpec::Off,
    };
    let mut choosing = Choosing { drafter, controller: spec.build(), sources: SourceTs::default(), seed };
    if batch > 1 {
        choosing.time_rounds(machine, batch);
    }
    let mut waiting = texts.iter();
    let mut running: Vec<Running<'_>> = Vec::new();
    let mut played = Played { total: Replay::default(), slowest: f64::INFINITY };
    loop {
        while running.len() < batch {
            let Some(text) = waiting.next() else { break };
            let slot = (0..).find(|slot| running.iter().all(|r| r.slot != *slot)).unwrap_or_default();
            choosing.controller.start(slot);
            choosing.sources.start(slot);
            running.push(Running::new(slot, text));
        }
        if running.is_empty() {
            return played;
        }
        let (before, plain) = (played.total.time, machine.verify(running.len(), running.len()));
        choosing.round(&mut running, machine, &mut played.total);
        machine.next_round();
        running.iter_mut().for_each(|r| r.plain_rounds += (played.total.time - before) / plain);
        for r in running.extract_if(.., |r| r.at >= r.text.len()) {
            played.slowest = played.slowest.min(r.text.len() as f64 / r.plain_rounds);
        }
    }
}

impl Choosing<'_> {
    /// Plays rounds to time them, as an engine of several slots does before its first one.
    fn time_rounds(&mut self, machine: &mut dyn Machine, slots: usize) {
        let sizes = std::iter::successors(Some(1), |size| Some(2 * size)).take_while(|&size| size <= slots);
        let lengths = [0, 1, 2, 4, 8].repeat(3);
        for (batch, length) in sizes.flat_map(|batch| lengths.iter().map(move |&length| (batch, length))) {
            let (proposed, rows) = (batch * length, batch * (length + 1));
            let verify_seconds = machine.measured(machine.verify(batch, rows));
            self.sources.observe_times(&RoundTimes {
                batch,
                proposed,
                recurrent: 0,
                draft_steps: &[],
                rows,
                verify_seconds,
            });
        }
    }

    /// Plays a round and adds it to `total`.
    fn round(&mut self, running: &mut [Running<'_>], machine: &mut dyn Machine, total: &mut Replay) {
        let batch = running.len();
        self.propose(running, total.rounds);
        let steps = self.draft(running, machine, total);
        let rows = running.iter().map(Running::rows).sum();
        let time = machine.verify(batch, rows);
        let verify_seconds = machine.measured(time);
        let proposed = running.iter().map(|r| r.taken).sum();
        self.observe(&RoundTimes { batch, proposed, recurrent: 0, draft_steps: &steps, rows, verify_seconds }, running);
        total.time += time;
        total.rounds += 1;
        total.drafts += rows - batch;
        total.tokens += running.iter_mut().map(Running::commit).sum::<usize>();
    }

    /// Looks up and takes what is worth it.
    fn propose(&mut self, running: &mut [Running<'_>], round: usize) {
        match self.drafter {
            Drafter::Exit(_) => return,
            Drafter::Lookup(length) => {
                for r in running {
                    r.look_up();
                    r.taken = r.evidence.len().min(*length);
                }
                return;
            }
            Drafter::Both(_) | Drafter::Lookups => running.iter_mut().for_each(Running::look_up),
        }
        let batch = running.len();
        let mut finding: Vec<&mut Running<'_>> = running.iter_mut().filter(|r| !r.evidence.is_empty()).collect();
        let offers: Vec<[Offer<'_>; 1]> =
            finding.iter().map(|r| [Offer { source: Source::Lookup, evidence: r.evidence }]).collect();
        let may_draft = matches!(self.drafter, Drafter::Both(_));
        let asked: Vec<Asked<'_>> =
            finding.iter().zip(&offers).map(|(r, offers)| Asked { slot: r.slot, offers, may_draft }).collect();
        let draws = |r: &&mut Running<'_>| Philox::new(self.seed, round, Purpose::Sources, r.slot as u32);
        let mut draws: Vec<Philox> = finding.iter().map(draws).collect();
        let choices = self.sources.choose(&asked, batch, &mut draws);
        for (r, choice) in finding.iter_mut().zip(choices) {
            r.taken = choice.map_or(0, |choice| choice.tokens);
        }
        self.controller.observe_pace(self.sources.pace(batch));
    }

    /// Drafts for those that took nothing; returns the steps.
    fn draft(&mut self, running: &mut [Running<'_>], machine: &mut dyn Machine, total: &mut Replay) -> Vec<DraftStep> {
        let batch = running.len();
        let mut drafting: Vec<usize> = (0..batch).filter(|&i| running[i].taken == 0).collect();
        let mut steps = Vec::new();
        loop {
            drafting.retain(|&i| running[i].confidences.len() < running[i].limit());
            let asked: Vec<Step<'_>> = drafting
                .iter()
                .map(|&i| &running[i])
                .map(|r| Step { slot: r.slot, batch, confidences: &r.confidences, limit: r.limit() })
                .collect();
            let rows = running.iter().map(Running::rows).sum();
            let goes_on = match asked.len() {
                0 => Vec::new(),
                _ => go_on(&mut *self.controller, &asked, rows, (self.seed, total.rounds)),
            };
            let mut goes_on = goes_on.into_iter();
            drafting.retain(|_| goes_on.next() == Some(true));
            if drafting.is_empty() {
                return steps;
            }
            let time = machine.draft(drafting.len());
            total.time += time;
            let seconds = machine.measured(time);
            steps.push(DraftStep::through_layers(drafting.len(), seconds));
            for &i in &drafting {
                let r = &mut running[i];
                r.confidences.push(r.text[r.at + r.confidences.len()].exit.confidence);
                r.seconds.push(seconds);
            }
        }
    }

    /// Learns how the round went.
    fn observe(&mut self, times: &RoundTimes<'_>, running: &[Running<'_>]) {
        let RoundTimes { batch, rows, verify_seconds, .. } = *times;
        self.controller.observe_times(times);
        for r in running.iter().filter(|r| r.taken == 0) {
            let Running { slot, confidences, seconds: draft_seconds, .. } = r;
            let (slot, accepted) = (*slot, r.accepted());
            self.controller.observe(&Outcome {
                slot,
                batch,
                rows,
                confidences,
                accepted,
                draft_seconds,
                verify_seconds,
            });
        }
        let judged: Vec<Vec<Judged<'_>>> = running.iter().map(|r| r.judged().into_iter().collect()).collect();
        let mut told = Vec::with_capacity(batch);
        for (r, offers) in running.iter().zip(&judged) {
            let (sampled, proposed, accepted) = (r.confidences.len(), r.taken, r.accepted());
            told.push(Told { slot: r.slot, offers, sampled, proposed, accepted });
        }
        self.sources.observe(times, &told);
    }
}
