//! What sources that run no pass have to say about a round: asked before anything is drafted, told after it was verified.

use super::Engine;
use super::running::Running;
use crate::TokenId;
use crate::control::{Asked, Choice, Judged, Offer, RoundTimes, SourceTs, Told};
use crate::draft::{Proposal, Proposer, Source, Text};
use crate::profile;
use crate::sample::{Philox, Verdict};

/// The sources of an engine beside the exit block, and who chooses among all, with what they have learned.
#[derive(Default)]
pub struct Proposing {
    pub(super) proposers: Vec<Box<dyn Proposer>>,
    pub(super) choice: SourceTs,
}

impl From<Vec<Box<dyn Proposer>>> for Proposing {
    /// Of these, a choice that knows nothing yet.
    fn from(proposers: Vec<Box<dyn Proposer>>) -> Self {
        Self { proposers, choice: SourceTs::default() }
    }
}

/// What was proposed for one sequence's round.
#[derive(Debug, Clone, Default)]
pub(super) struct Offered {
    offers: Vec<(Source, Proposal)>,
    /// Whose was taken.
    pub taken: Option<Source>,
}

impl Engine {
    /// Asks for proposals for every sequence that may be drafted for, and takes those that are worth it.
    pub(super) fn propose(&mut self) {
        let Self { proposing, running, backend, controller, .. } = self;
        if proposing.proposers.is_empty() {
            return;
        }
        controller.observe_pace(proposing.choice.pace(running.len()));
        let limits = backend.limits();
        for sequence in running.iter_mut() {
            let most = sequence.drafts_with_room(&limits);
            sequence.offered = proposing.offers(sequence, most);
        }
        let offering: Vec<usize> = (0..running.len()).filter(|&i| !running[i].offered.offers.is_empty()).collect();
        if offering.is_empty() {
            return;
        }
        let _range = profile::range("choose sources");
        let offers: Vec<Vec<Offer<'_>>> = offering.iter().map(|&i| running[i].offered.offers()).collect();
        let exits = backend.exit_layer().is_some() && !controller.is_off();
        let mut asked = Vec::with_capacity(offering.len());
        for (&i, offers) in offering.iter().zip(&offers) {
            let Running { slot, sources, .. } = running[i];
            let may_draft = exits && sources.has(Source::Exit) && running[i].can_begin(&**backend);
            asked.push(Asked { slot, offers, may_draft });
        }
        let mut draws: Vec<Philox> = offering.iter().map(|&i| running[i].draws_among_sources()).collect();
        let choices = proposing.choice.choose(&asked, running.len(), &mut draws);
        for (i, choice) in offering.into_iter().zip(choices) {
            if let Some(Choice { offer, tokens }) = choice {
                running[i].take_offer(offer, tokens);
            }
        }
    }

    /// Tells how the round went, by what each text goes on with.
    pub(super) fn judge_proposals(&mut self, times: &RoundTimes<'_>, verdicts: &[Verdict]) {
        let Self { proposing, running, .. } = self;
        if proposing.proposers.is_empty() {
            return;
        }
        let emitted = running.iter().zip(verdicts).map(|(sequence, verdict)| sequence.last(verdict.accepted + 1));
        let judged: Vec<Vec<Judged<'_>>> =
            running.iter().zip(emitted).map(|(sequence, emitted)| sequence.offered.judged(emitted)).collect();
        let mut told = Vec::with_capacity(running.len());
        for ((sequence, verdict), offers) in running.iter().zip(verdicts).zip(&judged) {
            let (sampled, proposed) = (sequence.confidences.len(), sequence.proposed());
            told.push(Told { slot: sequence.slot, offers, sampled, proposed, accepted: verdict.accepted });
        }
        proposing.choice.observe(times, &told);
    }
}

impl Proposing {
    /// Whether it should be told, before the first round, of rounds that were played for nothing but to time them.
    pub(super) fn wants_step_times(&self) -> bool {
        !self.proposers.is_empty() && self.choice.wants_step_times()
    }

    /// Tells that a sequence has come to an end, with all it came to if it is `finished`.
    pub(super) fn end(&mut self, sequence: &Running, finished: bool) {
        for proposer in self.proposers.iter_mut() {
            let may_tell = finished && sequence.sources.has(proposer.source());
            proposer.end(&sequence.as_text(), may_tell);
        }
    }

    fn offers(&mut self, sequence: &Running, most: usize) -> Offered {
        let forced = if sequence.sources.has(Source::Grammar) { sequence.forced() } else { Vec::new() };
        let mut offers = Vec::new();
        for proposer in self.proposers.iter_mut().filter(|_| most > 0) {
            if sequence.sources.has(proposer.source()) {
                let mut proposal = proposer.propose(&Text { forced: &forced, ..sequence.as_text() }, most);
                sequence.cut_proposal(&mut proposal);
                if !proposal.tokens.is_empty() {
                    offers.push((proposer.source(), proposal));
                }
            }
        }
        Offered { offers, taken: None }
    }
}

impl Offered {
    /// The first tokens of an offer, which is taken.
    pub fn take(&mut self, offer: usize, tokens: usize) -> &[TokenId] {
        let Some((source, proposal)) = self.offers.get(offer) else { return &[] };
        self.taken = Some(*source);
        &proposal.tokens[..tokens.min(proposal.tokens.len())]
    }

    fn offers(&self) -> Vec<Offer<'_>> {
        self.offers.iter().map(|(source, proposal)| Offer { source: *source, evidence: &proposal.evidence }).collect()
    }

    /// Each offer beside what the text goes on with.
    fn judged(&self, emitted: &[TokenId]) -> Vec<Judged<'_>> {
        let mut judged = Vec::with_capacity(self.offers.len());
        for (offer, (_, Proposal { tokens, .. })) in self.offers().into_iter().zip(&self.offers) {
            let agreed = tokens.iter().zip(emitted).take_while(|(a, b)| a == b).count();
            judged.push(Judged { offer, agreed, refused: agreed < emitted.len().min(tokens.len()) });
        }
        judged
    }
}

impl Running {
    /// Its tokens, for whoever proposes.
    fn as_text(&self) -> Text<'_> {
        Text { sequence: self.arrival, tokens: &self.tokens, committed: self.committed(), forced: &[] }
    }
}
