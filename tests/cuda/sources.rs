//! Drafts of every source in one verification: through the first layers, made recurrently, proposed, and none; made step by
//! step and in loops, their passes graphs or launched one by one. Whatever a round is made of, its rows and what it leaves in
//! the cache are those of a text that was read.

use crate::generation::Known;
use crate::recurrent_blocks::recurrent;
use crate::requests::{run, tokens};
use crate::support::{Subject, bits, emulated, engine, on_device, options};
use crate::texts::{Text, forcing};
use eesd::TokenId;
use eesd::backend::cuda::{CudaBackend, CudaOptions};
use eesd::backend::{Backend, Chunk, Draft, KvFormat, Sequence};
use eesd::control::{DraftPlan, Way};
use eesd::draft::Source;
use eesd::engine::{Clock, Request};
use eesd::model::{Dtype, ExitWeights};
use eesd::sample::{SamplingParams, VerifyMode};
use std::time::Duration;

const SLOTS: usize = 5;

fn block(subject: &Subject) -> ExitWeights<'_> {
    recurrent(subject.exit(2), Some(Dtype::BF16))
}

/// A round's drafts: through the first layers, recurrent ones behind them, and proposed ones behind those.
type Drafts = [usize; 3];

/// Rounds that follow each other in the same slots.
const ROUNDS: [[Drafts; SLOTS]; 4] = [
    // Each by another source, one by two, and one by none.
    [[2, 0, 0], [1, 3, 0], [0, 0, 4], [1, 2, 3], [0, 0, 0]],
    // Passes of the same shapes, for graphs that others have left.
    [[2, 0, 0], [1, 3, 0], [0, 0, 4], [1, 2, 3], [0, 0, 0]],
    // One after the other in a slot, all three in one, and rows that are padded.
    [[0, 0, 3], [0, 0, 0], [2, 2, 2], [1, 0, 0], [1, 4, 11]],
    // Nobody drafts but one, by a lookup.
    [[0, 0, 0], [0, 0, 0], [0, 0, 0], [0, 0, 1], [0, 0, 0]],
];

impl Text {
    /// Drafts as many of each kind, in loops where the backend has them.
    fn draft(&mut self, backend: &mut dyn Backend, [first, later, _]: Drafts) -> Vec<Draft> {
        if first == 0 {
            return Vec::new();
        }
        // The first of recurrent drafts goes through the first layers; a loop makes all others.
        let planned = if first == 1 { 1 + later } else { first };
        let way = if first == 1 { Way::Recurrent } else { Way::FirstLayers };
        let plan = DraftPlan { later: way, ..DraftPlan::of_length(planned) };
        let mut all = backend.draft_planned(&self.sequence(), &plan, &[]).unwrap();
        self.keep(Way::FirstLayers, &all[..1]);
        self.keep(way, &all[1..]);
        for _ in all.len()..first + later {
            let draft = backend.draft_by(Way::Recurrent, &[self.sequence()]).unwrap();
            self.keep(Way::Recurrent, &draft);
            all.extend(draft);
        }
        all
    }
}

/// What a backend made of the rounds: drafts, and the logits of their rows.
type Seen = Vec<(Vec<Draft>, Vec<u32>)>;

fn play(subject: &Subject, backend: &mut dyn Backend, reader: &mut dyn Backend) -> Seen {
    let vocab = subject.geometry().vocab_size;
    let mut seen = Seen::new();
    let begin = |slot| Text::new(backend, slot, &subject.text(slot as u64, 9 + 13 * slot), None);
    let mut texts: Vec<Text> = (0..SLOTS).map(begin).collect();
    for (number, round) in ROUNDS.iter().enumerate() {
        for (text, &drafts) in texts.iter_mut().zip(round) {
            let token = (20 + 31 * (number * SLOTS + text.slot) % 200) as TokenId;
            text.sampler = forcing(vocab, Some(token));
            let made = text.draft(backend, drafts);
            assert!(made.iter().all(|draft| draft.token == token));
            let mut proposal = vec![token; drafts[2]];
            // A wrong one among them, now and then: what is behind it is in vain.
            if let Some(wrong) = proposal.get_mut(1).filter(|_| number % 2 == 1) {
                *wrong += 1;
            }
            text.tokens.extend(&proposal);
            text.proposed = drafts[2];
            seen.push((made, Vec::new()));
        }
        let batch: Vec<Sequence<'_>> = texts.iter().map(Text::sequence).collect();
        let verdicts = backend.verify(&batch).unwrap();
        let logits: Vec<_> = texts.iter().map(|text| bits(&backend.target_logits(text.slot).unwrap())).collect();
        for ((text, verdict), found) in texts.iter_mut().zip(verdicts).zip(logits) {
            let case = format!("{}, round {number}, slot {}: {:?}", subject.name(), text.slot, round[text.slot]);
            let read = Chunk { pages: text.pages.pages(), start: 0, tokens: &text.tokens };
            let logits = reader.evaluate(&read, 0).unwrap().logits;
            assert!(found == bits(&logits[(text.committed - 1) * vocab..]), "{case}");
            seen[number * SLOTS + text.slot].1 = found;
            // The text's own token, as often as it was drafted.
            let drafted = &text.tokens[text.committed..];
            let right = drafted.iter().take_while(|&&token| token == verdict.next).count();
            assert_eq!(verdict.accepted, right, "{case}");
            text.accept(&verdict);
            let known = &text.tokens[..text.committed - 1];
            let known = Chunk { pages: text.pages.pages(), start: 0, tokens: known };
            reader.prefill(&[known]).unwrap();
            let next = [text.sequence()];
            let drafts = [backend.draft(&next), reader.draft(&next)].map(|drafts| drafts.unwrap()[0]);
            assert_eq!(drafts[0], drafts[1], "{case}: the exit layer's cache");
        }
    }
    seen
}

/// The rounds on backends with and without graphs and loops, whose cache is kept this way.
pub fn check_rows(name: &str, ways: &[(bool, bool)], kv: KvFormat) {
    let subject = Subject::fixture(name);
    let backend = |graphs: bool, draft_loops: bool| {
        let options = CudaOptions { graphs, draft_loops, kv, ..options(SLOTS) };
        on_device(subject.geometry(), &subject.checkpoint.weights(), Some(&block(&subject)), &options)
    };
    let mut reader = backend(false, false);
    let all: Vec<Seen> =
        ways.iter().map(|&(graphs, loops)| play(&subject, &mut *backend(graphs, loops), &mut *reader)).collect();
    assert!(all.iter().all(|seen| seen == &all[0]), "{name}: not the same drafts and logits each way");
}

#[test]
fn rows_of_every_source_are_those_of_a_text_that_was_read() {
    check_rows("llama", &[(true, true), (true, false), (false, false)], KvFormat::Full);
    check_rows("qwen3", &[(true, true)], KvFormat::Full);
}

/// Through the engine: a recurrent block and lookups, alone in loops and beside others, sampled and not.
#[test]
fn all_sources_together_change_no_token() {
    check_answers(KvFormat::Full);
}

/// The answers are those of plain decoding, over a cache that is kept this way.
pub fn check_answers(kv: KvFormat) {
    let subject = Subject::fixture("llama");
    let (weights, exit) = (subject.checkpoint.weights(), block(&subject));
    let few: Vec<(TokenId, f32)> = (20..24).map(|token| (token, 90.0)).collect();
    let coupled = SamplingParams {
        temperature: 0.9,
        verify: Some(VerifyMode::Coupled),
        logit_bias: few.clone(),
        ..SamplingParams::default()
    };
    let greedy = SamplingParams { logit_bias: few, ..SamplingParams::default() };
    let (mut drafted, mut turns) = ([0; 2], 0);
    for (sampling, controller, slots) in [(&greedy, "fixed:3", 1), (&coupled, "fixed:2", 3)] {
        let request = |i: u64| {
            let sampling = SamplingParams { seed: Some(i), ..sampling.clone() };
            Request { sampling, ..Request::new(subject.text(i, 12 + 9 * i as usize), 48) }
        };
        let requests: Vec<Request> = (0..4).map(request).collect();
        let device = emulated(0, 1 << 30);
        let options = CudaOptions { kv, ..options(slots) };
        let backend = || CudaBackend::new(device.clone(), subject.geometry(), &weights, Some(&exit), &options).unwrap();
        let plain = run(&mut engine(backend(), "off"), &requests, slots);
        let said = requests.iter().zip(tokens(&plain)).map(|(request, said)| [&request.prompt, said].concat());
        let before = device.counts();
        let mut speculating = engine(backend(), controller)
            .with_proposers(vec![Box::new(Known::new(said.collect()))])
            // All that is proposed is worth its time where none passes.
            .with_clock(Clock::new(|| Duration::ZERO));
        let found = run(&mut speculating, &requests, slots);
        let case = format!("{controller}, {slots} side by side");
        assert_eq!(tokens(&found), tokens(&plain), "{case}");
        for (drafted, source) in drafted.iter_mut().zip([Source::Exit, Source::Lookup]) {
            *drafted += found.iter().map(|done| done.stats.by_source[source as usize].drafted).sum::<usize>();
        }
        turns += device.counts().turns - before.turns;
    }
    assert!(drafted.iter().all(|&drafted| drafted > 5), "{drafted:?} drafts by the block and by lookups");
    assert!(turns > 0, "no recurrent drafts in a loop");
}
