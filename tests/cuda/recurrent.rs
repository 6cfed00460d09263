//! Recurrent exit blocks on the device: drafts near the processor's, nothing of a round's recurrent steps outlives it, loops
//! draft what steps do, and answers are the model's own.

use crate::recurrent_blocks::recurrent;
use crate::requests::{run, tokens};
use crate::support::{Subject, emulated, engine, on_device, options};
use crate::texts::{Text, forcing};
use eesd::TokenId;
use eesd::backend::cpu::{CpuBackend, CpuOptions};
use eesd::backend::cuda::{CudaBackend, CudaOptions};
use eesd::backend::{Backend, Draft, Sequence};
use eesd::control::Way::{self, Continued, FirstLayers, Recurrent};
use eesd::engine::Request;
use eesd::model::{Dtype, ExitWeights};
use eesd::sample::{SamplingParams, Verdict, VerifyMode};

const WAYS: [Way; 4] = [FirstLayers, Recurrent, Recurrent, Recurrent];

fn block(subject: &Subject, after: usize) -> ExitWeights<'_> {
    recurrent(subject.exit(after), Some(Dtype::BF16))
}

fn cuda(subject: &Subject, options: &CudaOptions) -> Box<dyn Backend> {
    on_device(subject.geometry(), &subject.checkpoint.weights(), Some(&block(subject, 2)), options)
}

impl Text {
    fn drafts(&mut self, backend: &mut dyn Backend, ways: &[Way]) -> Vec<Draft> {
        let mut drafts = Vec::new();
        for &way in ways {
            let draft = backend.draft_by(way, &[self.sequence()]).unwrap();
            self.keep(way, &draft);
            drafts.extend(draft);
        }
        drafts
    }

    fn verify(&mut self, backend: &mut dyn Backend) -> Verdict {
        let verdict = backend.verify(&[self.sequence()]).unwrap().remove(0);
        self.accept(&verdict);
        verdict
    }
}

/// The same tokens, of which the text is left with one, have about the same confidences on both.
#[test]
fn drafts_are_near_the_processors() {
    for name in ["llama", "qwen2", "qwen3"] {
        let subject = Subject::fixture(name);
        let options_of_cpu = CpuOptions { slots: 2, context: 512, ..CpuOptions::default() };
        let (weights, exit) = (subject.checkpoint.weights(), block(&subject, 2));
        let mut cpu = CpuBackend::new(subject.geometry(), &weights, Some(&exit), &options_of_cpu).unwrap();
        let mut device = cuda(&subject, &options(2));
        for token in [3, 77, 200] {
            let text = subject.text(u64::from(token), 40);
            let confidences = |backend: &mut dyn Backend| {
                let mut text = Text::new(backend, 1, &text, Some(token));
                let mut drafts = text.drafts(backend, &WAYS);
                text.verify(backend);
                drafts.extend(text.drafts(backend, &[Continued, Recurrent]));
                assert!(drafts.iter().all(|draft| draft.token == token));
                drafts.into_iter().map(|draft| draft.confidence).collect::<Vec<f32>>()
            };
            let (expected, found) = (confidences(&mut *cpu), confidences(&mut *device));
            let near = expected.iter().zip(&found).all(|(a, b)| (a / b - 1.0).abs() < 0.1);
            assert!(near, "{name}, {token}: {found:?}, on the processor {expected:?}");
            assert!(expected.windows(2).all(|pair| pair[0] != pair[1]), "drafts that tell nothing: {expected:?}");
        }
    }
}

/// A round that goes on from the one before drafts what that would have drafted next, and whatever came before, alone or not.
#[test]
fn a_round_goes_on_where_the_one_before_was_right() {
    for name in ["llama", "qwen3"] {
        let subject = Subject::fixture(name);
        let backend = &mut *cuda(&subject, &options(3));
        let ways = [Continued, Recurrent];
        for token in [3, 77, 200] {
            let start = subject.text(u64::from(token), 40);
            let within = Text::new(backend, 1, &start, Some(token)).drafts(backend, &WAYS[..3]);
            let mut text = Text::new(backend, 0, &start, Some(token));
            text.verify(backend);
            assert_eq!(text.drafts(backend, &ways), within[1..], "{name}, {token}, after a plain round");
            assert_eq!(text.verify(backend).accepted, 2);
            let found = text.drafts(backend, &ways);
            // From the same text, taken in at once but for a plain round.
            let mut plain = Text::new(backend, 1, &text.tokens[..text.committed - 1], Some(token));
            plain.verify(backend);
            assert_eq!(plain.drafts(backend, &ways), found, "{name}, {token}, after a round of drafts");
            // Refused drafts, and proposed ones, beside another sequence.
            text.verify(backend);
            text.tokens.extend([token, token, 5]);
            text.proposed = 3;
            assert_eq!(text.verify(backend).accepted, 2);
            let mut other = Text::new(backend, 2, &start, None);
            other.verify(backend);
            let drafts = backend.draft_by(Continued, &[other.sequence(), text.sequence()]).unwrap();
            let mut plain = Text::new(backend, 1, &text.tokens[..text.committed - 1], Some(token));
            plain.verify(backend);
            assert_eq!(drafts[1..], plain.drafts(backend, &ways[..1]), "{name}, {token}, after proposed tokens");
            let message = backend.draft_continued(&[text.sequence()]).unwrap_err().to_string();
            assert!(message.contains("continues 50 tokens after 0 drafts"), "{message}");
        }
    }
}

#[test]
fn keys_and_values_of_recurrent_steps_do_not_outlive_their_round() {
    for name in ["llama", "qwen3"] {
        let subject = Subject::fixture(name);
        let backend = &mut *cuda(&subject, &options(2));
        let mut text = Text::new(backend, 0, &subject.text(5, 40), None);
        let mut accepted = 0;
        for round in 0..12 {
            let (ways, forced) = (&WAYS[..1 + round % 4], Some(20 + 31 * round as TokenId % 200));
            text.sampler = forcing(backend.geometry().vocab_size, forced);
            let found = text.drafts(backend, ways);
            let expected = Text::new(backend, 1, &text.tokens[..text.committed], forced).drafts(backend, ways);
            assert_eq!(found, expected, "{name}, round {round}, {accepted} recurrent drafts accepted");
            accepted += text.verify(backend).accepted.saturating_sub(1);
        }
        assert!(accepted >= 12, "{name}: only {accepted} recurrent drafts were accepted");
    }
}

fn samplings() -> [SamplingParams; 3] {
    // The seed is for controllers that draw.
    let greedy = SamplingParams { seed: Some(3), ..SamplingParams::default() };
    let few = SamplingParams { logit_bias: (20..24).map(|token| (token, 90.0)).collect(), ..greedy.clone() };
    let verify = Some(VerifyMode::Coupled);
    let coupled = SamplingParams { temperature: 0.9, frequency_penalty: 0.4, verify, ..few.clone() };
    [greedy, few, coupled]
}

#[test]
fn answers_are_those_of_plain_decoding() {
    for name in ["llama", "mistral"] {
        let subject = Subject::fixture(name);
        let request = |(i, sampling): (usize, SamplingParams)| {
            let text = subject.text(i as u64, 20 + 9 * i);
            Request { sampling, ..Request::new(text, 24) }
        };
        let requests: Vec<Request> = samplings().into_iter().enumerate().map(request).collect();
        let answers = |controller: &str, slots: usize| {
            let found = run(&mut engine(cuda(&subject, &options(slots)), controller), &requests, slots);
            let later: usize = found.iter().flat_map(|answer| answer.stats.accepted_at.iter().skip(1)).sum();
            (tokens(&found).into_iter().map(<[_]>::to_vec).collect::<Vec<_>>(), later)
        };
        let (plain, _) = answers("off", 1);
        let mut accepted = 0;
        for (controller, slots) in [("fixed:4", 1), ("fixed:3", 3), ("threshold:0.01", 1), ("beta-ts:prior=9", 3)] {
            let (found, later) = answers(controller, slots);
            assert_eq!(found, plain, "{name}, {controller}, {slots} side by side");
            accepted += later;
        }
        assert!(accepted > 10, "{name}: only {accepted} recurrent drafts were accepted");
    }
}

/// All recurrent drafts of a round are one loop on the device, which drafts what single steps do.
#[test]
fn loops_draft_what_steps_do() {
    let subject = Subject::fixture("llama");
    let (weights, exit) = (subject.checkpoint.weights(), block(&subject, 1));
    let request = |sampling| Request { sampling, ..Request::new(subject.text(0, 20), 24) };
    let requests: Vec<Request> = samplings().into_iter().map(request).collect();
    for controller in ["fixed:4", "threshold:0.01", "beta-ts:prior=9"] {
        let answers = |draft_loops| {
            let device = emulated(0, 1 << 30);
            let options = CudaOptions { draft_loops, ..options(1) };
            let backend = CudaBackend::new(device.clone(), subject.geometry(), &weights, Some(&exit), &options);
            let found = run(&mut engine(backend.unwrap(), controller), &requests, 1);
            let seen = |answer: &eesd::engine::Completion| (answer.tokens.clone(), answer.stats.lengths.clone());
            (found.iter().map(seen).collect::<Vec<_>>(), device.counts().turns)
        };
        let ((stepping, none), (looping, turns)) = (answers(false), answers(true));
        assert_eq!(looping, stepping, "{controller}");
        let later = |(_, lengths): &(_, Vec<usize>)| {
            lengths.iter().zip(0..).skip(2).map(|(&rounds, drafts)| rounds as u64 * (drafts - 1)).sum::<u64>()
        };
        assert_eq!((none, turns), (0, looping.iter().map(later).sum::<u64>()), "{controller}");
        assert!(turns > 0, "{controller}");
    }
}

#[test]
fn what_the_kernels_do_not_do_is_refused() {
    let subject = Subject::fixture("llama");
    let weights = subject.checkpoint.weights();
    let wide = recurrent(subject.exit(2), Some(Dtype::F32));
    let refused = CudaBackend::new(emulated(0, 1 << 30), subject.geometry(), &weights, Some(&wide), &options(1));
    let message = refused.err().unwrap().to_string();
    assert!(message.contains("the exit block: the weights are f32 (expected bf16 or f16"), "{message}");

    let backend = &mut *cuda(&subject, &options(2));
    let mut text = Text::new(backend, 0, &subject.text(1, 30), None);
    text.drafts(backend, &WAYS[..3]);
    let message = backend.draft(&[text.sequence()]).unwrap_err().to_string();
    assert!(message.contains("a draft through the first layers after 2 recurrent ones"), "{message}");
    let wrong = Sequence { recurrent: 0, ..text.sequence() };
    let message = backend.verify(&[wrong]).unwrap_err().to_string();
    assert!(message.contains("3 drafts (expected those that were drafted there)"), "{message}");
    assert!(backend.verify(&[text.sequence()]).is_ok());
}
