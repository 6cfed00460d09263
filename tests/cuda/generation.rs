//! Requests through the engine: the ids of the processor's engine, whatever drafts, and whatever the batch.

use crate::support::{Subject, engine, options, run, tokens};
use eesd::TokenId;
use eesd::backend::cuda::CudaOptions;
use eesd::draft::{Evidence, Proposal, Proposer, Source, Text};
use eesd::engine::{Clock, Request, SourceStats};
use eesd::sample::{SamplingParams, VerifyMode};
use std::time::Duration;

/// The issue's own: a few dozen tokens of the bundled model, speculatively, as the processor writes them.
#[test]
fn bundled_model_writes_what_the_processor_writes() {
    let subject = Subject::bundled();
    let requests: Vec<Request> = subject.prompts(3).into_iter().map(|prompt| Request::new(prompt, 24)).collect();
    let expected = run(&mut engine(subject.cpu(Some(2), 1), "off"), &requests, 1);
    let mut cuda = engine(subject.cuda(Some(2), &options(3)), "fixed:3");
    let found = run(&mut cuda, &requests, 3);
    assert_eq!(tokens(&found), tokens(&expected));
    assert!(found.iter().all(|done| done.stats.accepted() > 3), "hardly a draft was kept");
}

/// Ids of each request by itself, in the given number of tokens.
fn alone(subject: &Subject, controller: &str, requests: &[Request]) -> Vec<Vec<TokenId>> {
    let mut engine = engine(subject.cuda(Some(2), &options(1)), controller);
    tokens(&run(&mut engine, requests, 1)).into_iter().map(<[TokenId]>::to_vec).collect()
}

fn requests(subject: &Subject, sampling: &SamplingParams, count: u64) -> Vec<Request> {
    let request = |i: u64| {
        let sampling = SamplingParams { seed: Some(i), ..sampling.clone() };
        Request { sampling, ..Request::new(subject.text(i, 3 + 9 * i as usize), 10) }
    };
    (0..count).map(request).collect()
}

#[test]
fn speculation_changes_no_token() {
    let sampled = SamplingParams { temperature: 0.9, verify: Some(VerifyMode::Coupled), ..SamplingParams::default() };
    let penalised = SamplingParams {
        repetition_penalty: 1.3,
        frequency_penalty: 0.2,
        top_k: 40,
        logit_bias: vec![(3, -4.0), (5, 1.0)],
        ..sampled.clone()
    };
    let greedy_penalised = SamplingParams { temperature: 0.0, presence_penalty: 0.5, ..penalised.clone() };
    let cases = [
        ("qwen2", SamplingParams::default(), "beta-ts"),
        ("llama", sampled, "fixed:2"),
        ("qwen2", penalised, "beta-ts"),
        ("mistral", greedy_penalised, "fixed:2"),
    ];
    for (name, sampling, controller) in cases {
        let subject = Subject::fixture(name);
        let requests = requests(&subject, &sampling, 2);
        let plain = alone(&subject, "off", &requests);
        assert_eq!(alone(&subject, controller, &requests), plain, "{name}, {controller}");
    }
}

/// Five sequences in three slots come and go; with 5 rows each their verification takes 15, with 9 it takes 27.
#[test]
fn batches_change_no_token() {
    let subject = Subject::fixture("qwen3");
    let rejecting = SamplingParams {
        temperature: 1.1,
        top_p: 0.95,
        frequency_penalty: 0.3,
        verify: Some(VerifyMode::Rejection),
        ..SamplingParams::default()
    };
    for (sampling, controller) in [(SamplingParams::default(), "fixed:8"), (rejecting, "fixed:4")] {
        let requests = requests(&subject, &sampling, 5);
        let expected = alone(&subject, controller, &requests);
        let mut together = engine(subject.cuda(Some(2), &options(3)), controller);
        assert_eq!(tokens(&run(&mut together, &requests, 3)), expected, "{controller}");
    }
}

#[test]
fn graphs_change_no_token() {
    let subject = Subject::fixture("llama");
    let requests = requests(&subject, &SamplingParams::default(), 2);
    let eager = CudaOptions { graphs: false, ..options(1) };
    let found = run(&mut engine(subject.cuda(Some(1), &eager), "fixed:3"), &requests, 1);
    assert_eq!(tokens(&found), alone(&subject, "fixed:3", &requests));
}

#[test]
fn without_an_exit_block_decoding_is_plain() {
    let subject = Subject::fixture("llama");
    let requests = requests(&subject, &SamplingParams::default(), 2);
    let found = run(&mut engine(subject.cuda(None, &options(2)), "off"), &requests, 2);
    assert_eq!(tokens(&found), alone(&subject, "off", &requests));
}

/// Proposes what others have said, from where a text is so far, now and then with a wrong token.
pub struct Known {
    texts: Vec<Vec<TokenId>>,
    asked: usize,
}

impl Known {
    pub fn new(texts: Vec<Vec<TokenId>>) -> Self {
        Self { texts, asked: 0 }
    }
}

impl Proposer for Known {
    fn source(&self) -> Source {
        Source::Lookup
    }

    fn propose(&mut self, text: &Text<'_>, most: usize) -> Proposal {
        self.asked += 1;
        let known = self.texts.iter().find_map(|known| known.strip_prefix(text.tokens));
        let mut tokens: Vec<TokenId> = known.into_iter().flatten().copied().take(most.min(self.asked % 8)).collect();
        if let Some(token) = tokens.get_mut(self.asked % 5) {
            *token ^= 1;
        }
        let evidence = vec![Evidence { matched: 16, share: 1.0, seen: 5 }; tokens.len()];
        Proposal { tokens, evidence }
    }

    fn end(&mut self, _text: &Text<'_>, _finished: bool) {}
}

/// With drafts of the exit block beside those proposed, and without an exit block; in a batch whose prompts have a page in
/// common.
#[test]
fn proposals_change_no_token() {
    let subject = Subject::fixture("qwen3");
    let coupled = SamplingParams {
        temperature: 0.9,
        frequency_penalty: 0.3,
        logit_bias: vec![(3, -4.0), (5, 1.0)],
        verify: Some(VerifyMode::Coupled),
        ..SamplingParams::default()
    };
    for (exit, controller, sampling) in
        [(Some(2), "fixed:2", SamplingParams::default()), (Some(2), "fixed:2", coupled.clone()), (None, "off", coupled)]
    {
        let request = |i: u64| {
            let sampling = SamplingParams { seed: Some(i), ..sampling.clone() };
            let prompt = [subject.text(9, 66), subject.text(i, 3 + 7 * i as usize)].concat();
            Request { sampling, ..Request::new(prompt, 16) }
        };
        let requests: Vec<Request> = (0..5).map(request).collect();
        let plain = run(&mut engine(subject.cuda(None, &options(1)), "off"), &requests, 1);
        let said = requests.iter().zip(tokens(&plain)).map(|(request, said)| [&request.prompt, said].concat());
        let known = Known::new(said.collect());
        let mut proposing = engine(subject.cuda(exit, &options(3)), controller)
            .with_proposers(vec![Box::new(known)])
            // All that is proposed is worth its time where none passes.
            .with_clock(Clock::new(|| Duration::ZERO));
        let found = run(&mut proposing, &requests, 3);
        assert_eq!(tokens(&found), tokens(&plain), "{exit:?}, {controller}");
        let of = |source: Source| {
            let sum = |of: fn(&SourceStats) -> usize| {
                found.iter().map(|done| of(&done.stats.by_source[source as usize])).sum()
            };
            let (drafted, accepted): (usize, usize) = (sum(|stats| stats.drafted), sum(|stats| stats.accepted));
            (drafted, accepted)
        };
        let (drafted, accepted) = of(Source::Lookup);
        assert!(accepted > 10 && accepted < drafted, "{exit:?}, {controller}: {accepted} of {drafted} proposals kept");
        assert_eq!(of(Source::Exit).0 > 0, exit.is_some(), "{controller}");
        assert!(found.iter().any(|done| done.stats.reused_tokens > 0));
    }
}
