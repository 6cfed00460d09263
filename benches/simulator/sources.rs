//! Texts that several sources draft for: the exit block, as in a [`Stream`](super::Stream), and lookups, which find
//! something at some positions of the text and nothing at others.

use super::{Costs, MAX_DRAFT, Position, Replay};
use eesd::control::{Asked, ControllerSpec, DraftStep, Judged, Offer, Outcome, RoundTimes, SourceTs, Step, Told};
use eesd::draft::{Evidence, Source};
use eesd::sample::{Philox, Purpose};

/// What a lookup finds at a position.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Found {
    /// What its first token rests on; of each further one, one more token matches.
    pub evidence: Evidence,
    /// Tokens proposed.
    pub tokens: usize,
    /// Those that the text goes on with.
    pub agreed: usize,
}

/// A position of a text: what drafting its token gives, by the exit block and by a lookup.
#[derive(Debug, Clone, Copy, PartialEq)]
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
        let evidence = Evidence { matched: 3, share: 1.0, seen: 1 };
        Sourced { exit, found: finds.then_some(Found { evidence, tokens: 8, agreed }) }
    };
    (0..tokens).map(&mut position).collect()
}

/// The best that one source does with one length, plain decoding among them.
pub fn best_single(text: &[Sourced], costs: Costs) -> f64 {
    let exits = (0..=MAX_DRAFT).map(|length| Drafter::Exit(ControllerSpec::Fixed(length)));
    let lookups = (1..=8).map(Drafter::Lookup);
    exits.chain(lookups).map(|drafter| play(&drafter, text, costs, 0).speedup()).fold(0.0, f64::max)
}

/// Plays a text to its end.
pub fn play(drafter: &Drafter, text: &[Sourced], costs: Costs, seed: u64) -> Replay {
    let (spec, lookups) = match drafter {
        Drafter::Exit(spec) => (spec.clone(), false),
        Drafter::Both(spec) => (spec.clone(), true),
        Drafter::Lookup(_) | Drafter::Lookups => (ControllerSpec::Off, true),
    };
    let (mut controller, mut sources) = (spec.build(), SourceTs::default());
    let mut total = Replay::default();
    controller.start(0);
    sources.start(0);
    let mut at = 0;
    while at < text.len() {
        // The last token of a text need not be drafted: the model's own one follows anyway.
        let limit = MAX_DRAFT.min(text.len() - at - 1);
        let mut noise = Philox::new(seed, total.tokens, Purpose::Bonus, 0);
        let found = text[at].found.filter(|_| lookups && limit > 0).map(|found| {
            let tokens = found.tokens.min(limit);
            let evidence = |i| Evidence { matched: found.evidence.matched + i, ..found.evidence };
            (found.agreed.min(tokens), (0..tokens).map(evidence).collect::<Vec<Evidence>>())
        });
        let offers: Vec<Offer<'_>> =
            found.iter().map(|(_, evidence)| Offer { source: Source::Lookup, evidence }).collect();
        let taken = match drafter {
            Drafter::Lookup(length) => found.as_ref().map_or(0, |(_, evidence)| evidence.len().min(*length)),
            _ if offers.is_empty() => 0,
            _ => {
                let may_draft = matches!(drafter, Drafter::Both(_));
                let asked = Asked { slot: 0, offers: &offers, may_draft };
                let mut rng = Philox::new(seed, total.tokens, Purpose::Sources, 0);
                sources.choose(&[asked], 1, std::slice::from_mut(&mut rng))[0].map_or(0, |choice| choice.tokens)
            }
        };
        if lookups {
            controller.observe_pace(sources.pace(1));
        }
        let (mut confidences, mut draft_seconds) = (Vec::new(), Vec::new());
        let mut drafting = taken == 0;
        while drafting {
            let step = Step { slot: 0, batch: 1, confidences: &confidences, limit };
            let mut rng = Philox::new(seed, total.tokens, Purpose::Controller, confidences.len() as u32);
            drafting = controller.proceed(&step, &mut rng);
            if drafting {
                confidences.push(text[at + confidences.len()].exit.confidence);
                draft_seconds.push(costs.measured(total.rounds, costs.draft, &mut noise));
            }
        }
        let sampled = confidences.len();
        let right = text[at..at + sampled].iter().take_while(|p| p.exit.accepted).count();
        let accepted = if taken > 0 { found.as_ref().map_or(0, |(agreed, _)| taken.min(*agreed)) } else { right };
        let rows = taken + sampled + 1;
        let verify = costs.verify(rows, None);
        let verify_seconds = costs.measured(total.rounds, verify, &mut noise);
        let step = |&seconds| DraftStep::through_layers(1, seconds);
        let draft_steps = &draft_seconds.iter().map(step).collect::<Vec<_>>()[..];
        let times = RoundTimes { batch: 1, proposed: taken, recurrent: 0, draft_steps, rows, verify_seconds };
        controller.observe_times(&times);
        if taken == 0 {
            controller.observe(&Outcome {
                slot: 0,
                batch: 1,
                rows,
                confidences: &confidences,
                accepted,
                draft_seconds: &draft_seconds,
                verify_seconds,
            });
        }
        let judged: Vec<Judged<'_>> = (found.iter().zip(&offers))
            .map(|((agreed, evidence), &offer)| {
                let seen = (*agreed).min(accepted + 1);
                Judged { offer, agreed: seen, refused: seen < evidence.len().min(accepted + 1) }
            })
            .collect();
        sources.observe(&times, &[Told { slot: 0, offers: &judged, sampled, proposed: taken, accepted }]);
        at += accepted + 1;
        total.tokens += accepted + 1;
        total.rounds += 1;
        total.drafts += taken + sampled;
        total.time += verify + costs.draft * sampled as f64;
    }
    total
}
