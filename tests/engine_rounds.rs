//! The engine against a backend that checks its cache: whatever the draft lengths, batch, budget,
//! context and page pressure, every request gets what plain decoding gives, and no page is lost.

mod common {
    pub mod adversary;
    pub mod hash_backend;
}

use common::adversary::Adversary;
use common::hash_backend::HashBackend;
use eesd::TokenId;
use eesd::backend::Limits;
use eesd::engine::{Completion, Engine, EngineError, Event, Finish, Request};
use eesd::sample::{History, Sampler, SamplingParams};
use proptest::prelude::*;
use std::ops::ControlFlow;

const VOCAB: usize = 17;
const END: TokenId = 3;

fn limits(pages: usize, slots: usize, context: usize) -> Limits {
    Limits { pages, slots, max_draft: 6, context }
}

fn engine(limits: Limits, agreement: u64) -> Engine {
    Engine::new(Box::new(HashBackend::new(VOCAB, limits, agreement)), Box::new(Adversary), None, vec![END])
}

/// Plain decoding, with no engine at all.
fn plainly(request: &Request, context: usize) -> (Vec<TokenId>, Finish) {
    let sampler = Sampler::new(request.sampling.clone(), VOCAB).unwrap();
    let mut tokens = request.prompt.clone();
    let out = |tokens: &[TokenId], finish| (tokens[request.prompt.len()..].to_vec(), finish);
    loop {
        let logits = HashBackend::target(VOCAB, &tokens);
        let history = History { tokens: &tokens, prompt: request.prompt.len() };
        let next = sampler.accept(history, &logits, &[]).next;
        tokens.push(next);
        if next == END && !request.ignore_end {
            return out(&tokens, Finish::EndToken(END));
        } else if tokens.len() - request.prompt.len() == request.max_tokens {
            return out(&tokens, Finish::Length);
        } else if tokens.len() == context {
            return out(&tokens, Finish::Context);
        }
    }
}

fn request() -> impl Strategy<Value = Request> {
    let sampling = (prop::bool::ANY, 0u64..1000, prop::sample::select(vec![0, 5])).prop_map(|(greedy, seed, top_k)| {
        let temperature = if greedy { 0.0 } else { 1.2 };
        SamplingParams { temperature, seed: Some(seed), top_k, frequency_penalty: 0.3, ..SamplingParams::default() }
    });
    let prompt = prop::collection::vec(0..VOCAB as TokenId, 1..100);
    (prompt, 1usize..150, sampling, prop::bool::ANY, prop::bool::weighted(0.9)).prop_map(
        |(prompt, max_tokens, sampling, ignore_end, speculate)| Request {
            sampling,
            ignore_end,
            speculate,
            ..Request::new(prompt, max_tokens)
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn every_request_gets_what_plain_decoding_gives(
        requests in prop::collection::vec(request(), 1..9),
        batch in 1usize..6,
        context in 101usize..200,
        spare_pages in 0usize..12,
        agreement in 0u64..=256,
    ) {
        let pages = context.div_ceil(64) + spare_pages;
        let mut engine = engine(limits(pages, 5, context), agreement);
        let mut done: Vec<Option<Completion>> = vec![None; requests.len()];
        let mut streamed: Vec<Vec<TokenId>> = vec![Vec::new(); requests.len()];
        engine.run(&mut requests.iter().cloned(), batch, &mut |id, event| {
            match event {
                Event::Token(emission) => streamed[id].push(emission.token),
                Event::Done(completion) => done[id] = Some(completion),
                Event::Failed(error) => panic!("{error}"),
            }
            ControlFlow::Continue(())
        }).unwrap();
        prop_assert_eq!(engine.free_pages(), pages);
        for (i, request) in requests.iter().enumerate() {
            let completion = done[i].as_ref().expect("every request is done");
            let (tokens, finish) = plainly(request, context);
            prop_assert_eq!(&completion.tokens, &tokens);
            prop_assert_eq!(&streamed[i], &tokens);
            prop_assert_eq!(&completion.finish, &finish);
            let stats = &completion.stats;
            prop_assert_eq!(stats.generated, tokens.len());
            prop_assert_eq!(stats.lengths.iter().sum::<usize>(), stats.rounds);
            // Every round emits its accepted drafts and one token more, but where the end cut it.
            prop_assert!(stats.accepted() + stats.rounds - stats.generated <= 1);
            prop_assert!(request.speculate || stats.drafted() == 0);
        }
    }
}

#[test]
fn malformed_requests_fail_alone() {
    let mut engine = engine(limits(4, 2, 128), 200);
    let good = Request::new(vec![1, 2], 5);
    let cases = [
        (Request::new(vec![], 5), EngineError::EmptyPrompt),
        (Request::new(vec![99], 5), EngineError::UnknownToken { token: 99, vocab: VOCAB }),
        (Request::new(vec![1; 128], 5), EngineError::PromptTooLong { prompt: 128, context: 128 }),
        (Request::new(vec![1], 0), EngineError::NothingToGenerate),
        (Request { stop: vec!["x".into()], ..good.clone() }, EngineError::StopNeedsTokenizer),
        (Request { stop: vec![String::new()], ..good.clone() }, EngineError::EmptyStop),
    ];
    let requests: Vec<Request> = cases.iter().flat_map(|(bad, _)| [bad.clone(), good.clone()]).collect();
    let mut failed = Vec::new();
    let mut done = 0;
    let sink = &mut |id: usize, event| {
        match event {
            Event::Failed(error) => failed.push((id, error)),
            Event::Done(completion) => done += usize::from(completion.tokens.len() <= 5),
            Event::Token(_) => {}
        }
        ControlFlow::Continue(())
    };
    engine.run(&mut requests.into_iter(), 2, sink).unwrap();
    let expected: Vec<_> = cases.into_iter().enumerate().map(|(i, (_, error))| (2 * i, error)).collect();
    assert_eq!(failed, expected);
    assert_eq!(done, 6);
}

#[test]
fn a_request_larger_than_the_whole_cache_is_refused() {
    let mut engine = engine(limits(1, 2, 128), 200);
    let error = engine.generate(&Request::new(vec![1; 60], 60), &mut |_| ControlFlow::Continue(())).unwrap_err();
    assert_eq!(error, EngineError::CacheTooSmall { needed: 2, total: 1 });
}

#[test]
fn cancelling_keeps_what_was_streamed_and_gives_everything_back() {
    for stop_after in 1..40 {
        let mut engine = engine(limits(8, 3, 128), 256);
        let request = Request { ignore_end: true, ..Request::new(vec![1, 2], 50) };
        let mut streamed = vec![Vec::new(); 3];
        let mut done = vec![None; 3];
        let mut seen = 0;
        engine
            .run(&mut vec![request; 3].into_iter(), 3, &mut |id, event| {
                match event {
                    Event::Token(emission) => {
                        streamed[id].push(emission.token);
                        seen += 1;
                    }
                    Event::Done(completion) => done[id] = Some(completion),
                    Event::Failed(error) => panic!("{error}"),
                }
                if seen >= stop_after { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            })
            .unwrap();
        assert_eq!(seen, stop_after);
        assert_eq!(engine.free_pages(), 8);
        for (streamed, done) in streamed.iter().zip(&done) {
            let done = done.as_ref().expect("cancelled requests are reported");
            assert_eq!((&done.tokens, &done.finish), (streamed, &Finish::Cancelled));
        }
    }
}
