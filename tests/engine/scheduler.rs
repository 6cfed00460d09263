//! Continuous batching against a backend that checks its cache: requests join, leave, are preempted, cancelled and fed
//! from pages of others, and each still gets what plain decoding gives it; no page is lost.

use crate::common::adversary::Adversary;
use crate::common::any_turns::any_turns;
use crate::common::arrivals::{Arrivals, Load, percentile};
use crate::common::forbidding::{self, Forbidding};
use crate::common::hash_backend::HashBackend;
use crate::common::oracle::proposing;
use crate::common::timed_backend::TimedBackend;
use eesd::TokenId;
use eesd::backend::Limits;
use eesd::draft::{Source, Sources};
use eesd::engine::{Completion, Engine, EngineOptions, Event, Finish, Request, Totals};
use eesd::kv::PAGE_TOKENS;
use eesd::sample::SamplingParams;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::ops::ControlFlow;

const VOCAB: usize = 17;
const END: TokenId = 3;
const CONTEXT: usize = 330;

fn engine(pages: usize, slots: usize, options: EngineOptions) -> Engine {
    let limits = Limits { pages, slots, max_draft: 6, context: CONTEXT };
    let backend = Box::new(HashBackend::new(VOCAB, limits, 200));
    Engine::new(backend, Box::new(Adversary), None, vec![END]).with_options(options)
}

/// Plain decoding, with no engine at all.
fn plainly(request: &Request) -> Vec<TokenId> {
    forbidding::plainly(request, VOCAB, END, CONTEXT).0
}

/// Steps until nothing is left to do; the answers by name.
fn finish(engine: &mut Engine) -> BTreeMap<usize, Completion> {
    let mut done = BTreeMap::new();
    while !engine.is_idle() {
        step(engine, &mut done);
    }
    done
}

fn step(engine: &mut Engine, done: &mut BTreeMap<usize, Completion>) {
    let flow = engine.step(&mut |id, event| {
        match event {
            Event::Done(completion) => assert!(done.insert(id, completion).is_none(), "request {id} is done twice"),
            Event::Failed(error) => panic!("request {id}: {error}"),
            Event::Prefilled { .. } | Event::Token(_) => {}
        }
        ControlFlow::Continue(())
    });
    assert!(flow.unwrap().is_continue());
}

/// Prompts that often begin alike: a common beginning of `shared` tokens, then some of their own.
fn prompt() -> impl Strategy<Value = Vec<TokenId>> {
    let own = prop::collection::vec(0..VOCAB as TokenId, 1..90);
    (prop::sample::select(vec![0usize, 63, 64, 65, 128, 200]), own)
        .prop_map(|(shared, own)| (0..shared as TokenId).map(|i| i % 5).chain(own).collect())
}

fn request() -> impl Strategy<Value = Request> {
    let sampling = (prop::bool::ANY, 0u64..100).prop_map(|(greedy, seed)| SamplingParams {
        temperature: if greedy { 0.0 } else { 1.2 },
        seed: Some(seed),
        frequency_penalty: 0.3,
        ..SamplingParams::default()
    });
    let free = (prompt(), 1usize..150, sampling, prop::bool::ANY, prop::bool::weighted(0.8)).prop_map(
        |(prompt, max_tokens, sampling, ignore_end, drafts)| Request {
            sampling,
            ignore_end,
            sources: if drafts { Sources::ALL.with(Source::Shared, max_tokens % 4 > 0) } else { Sources::OFF },
            draft_max: (max_tokens % 3 == 0).then_some(max_tokens % 5),
            ..Request::new(prompt, max_tokens)
        },
    );
    (free, prop::option::of(Forbidding::any(VOCAB)), prop::option::weighted(0.4, any_turns(VOCAB))).prop_map(
        |(request, forbidding, turns)| match (forbidding, turns) {
            // What is forbidden might leave no token that a constraint allows.
            (Some(forbidding), _) => forbidding.applied_to(request),
            (None, Some(turns)) => turns.applied_to(request),
            (None, None) => request,
        },
    )
}

/// What happens between two steps.
#[derive(Debug, Clone)]
enum Op {
    Submit(Box<Request>),
    Steps(usize),
    /// One of the requests submitted so far.
    Cancel(prop::sample::Index),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => request().prop_map(|request| Op::Submit(Box::new(request))),
        4 => (1usize..20).prop_map(Op::Steps),
        1 => any::<prop::sample::Index>().prop_map(Op::Cancel),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 250, ..ProptestConfig::default() })]

    #[test]
    fn whatever_comes_and_goes_every_answer_is_plain_decodings(
        ops in prop::collection::vec(op(), 1..40),
        slots in 1usize..7,
        spare_pages in 0usize..14,
        token_budget in 1usize..200,
        reuse_prefixes in prop::bool::weighted(0.7),
        right in prop::option::of(0u64..=256),
    ) {
        let pages = CONTEXT.div_ceil(PAGE_TOKENS) + spare_pages;
        let mut engine = engine(pages, slots, EngineOptions { token_budget, reuse_prefixes });
        let mut listener = None;
        if let Some(right) = right {
            let (with_proposals, listening) = proposing(engine, VOCAB, right);
            (engine, listener) = (with_proposals, Some(listening));
        }
        let (mut requests, mut done, mut cancelled) = (Vec::new(), BTreeMap::new(), BTreeMap::new());
        for op in ops {
            match op {
                Op::Submit(request) => {
                    engine.submit(requests.len(), (*request).clone());
                    requests.push(*request);
                }
                Op::Steps(steps) => (0..steps).for_each(|_| step(&mut engine, &mut done)),
                Op::Cancel(_) if requests.is_empty() => {}
                Op::Cancel(index) => {
                    let id = index.index(requests.len());
                    let known = done.contains_key(&id) || cancelled.contains_key(&id);
                    let completion = engine.cancel(id);
                    prop_assert_eq!(completion.is_none(), known);
                    cancelled.extend(completion.map(|completion| (id, completion)));
                }
            }
            let now = engine.snapshot();
            prop_assert!(now.prefilling + now.decoding <= slots && now.free_pages <= now.pages);
        }
        done.extend(finish(&mut engine));
        prop_assert_eq!(done.len() + cancelled.len(), requests.len());
        for (id, request) in requests.iter().enumerate() {
            let plain = plainly(request);
            if let Some(completion) = done.get(&id) {
                prop_assert_eq!(&completion.tokens, &plain, "request {}", id);
                let most = if !request.sources.is_off() { request.draft_max.unwrap_or(6) } else { 0 };
                prop_assert!(completion.stats.lengths.len() <= most + 1, "{:?}", completion.stats);
            } else {
                let completion = &cancelled[&id];
                prop_assert!(completion.finish == Finish::Cancelled && plain.starts_with(&completion.tokens));
            }
        }
        if let Some(listener) = listener {
            // Others learn of what has finished, and of nothing that was cancelled or keeps to itself.
            let may_tell = |(id, _): &(&usize, &Completion)| requests[**id].sources.has(Source::Shared);
            let text = |(&id, completion): (&usize, &Completion)| [&requests[id].prompt, &completion.tokens[..]].concat();
            let mut expected: Vec<Vec<TokenId>> = done.iter().filter(may_tell).map(text).collect();
            let mut told = listener.finished.lock().unwrap().clone();
            expected.sort();
            told.sort();
            prop_assert_eq!(told, expected);
        }
        let now = engine.snapshot();
        prop_assert_eq!((now.free_pages, now.waiting + now.prefilling + now.decoding + now.swapped_out), (pages, 0));
        prop_assert!(reuse_prefixes || now.kept_pages == 0);
        let Totals { finished, cancelled: ended, failed, prompt_tokens, reused_tokens, .. } = now.totals;
        prop_assert_eq!((finished, ended, failed), (done.len(), cancelled.len(), 0));
        prop_assert!(reused_tokens <= prompt_tokens);
    }
}

#[test]
fn where_pages_run_out_the_last_one_waits_and_goes_on_where_it_was() {
    // Each of four answers grows to five pages, and there are seven.
    let mut engine = engine(7, 4, EngineOptions::default());
    let request = |first| Request { ignore_end: true, ..Request::new(vec![first; 60], 250) };
    (0..4).for_each(|id| engine.submit(id, request(id as TokenId)));
    let mut order = Vec::new();
    let mut done = BTreeMap::new();
    while !engine.is_idle() {
        step(&mut engine, &mut done);
        order.extend(done.keys().copied().filter(|id| !order.contains(id)).collect::<Vec<_>>());
    }
    assert_eq!(order, [0, 1, 2, 3], "first come, first served");
    let preempted: Vec<usize> = done.values().map(|completion| completion.stats.preemptions).collect();
    assert!(preempted[0] == 0 && preempted[3] > 0, "{preempted:?}");
    assert_eq!(preempted.iter().sum::<usize>(), engine.snapshot().totals.preemptions);
    for (id, completion) in &done {
        assert_eq!(completion.tokens, plainly(&request(*id as TokenId)), "request {id}");
    }
    assert_eq!(engine.free_pages(), 7);
}

#[test]
fn equal_beginnings_are_read_once() {
    let mut engine = engine(60, 8, EngineOptions { token_budget: 100, reuse_prefixes: true });
    let beginning: Vec<TokenId> = (0..200).map(|i| i * 7 % 16).collect();
    let request = |own: TokenId| Request::new([&beginning[..], &[own, own]].concat(), 5);
    // Side by side: the others wait for the first one's pages.
    (0..8).for_each(|id| engine.submit(id, request(id as TokenId)));
    let done = finish(&mut engine);
    let totals = engine.snapshot().totals;
    assert_eq!((totals.prompt_tokens, totals.reused_tokens), (8 * 202, 7 * 192));
    assert_eq!(totals.prefilled_tokens, 201 + 7 * 9, "three pages are read once, what follows by each");
    assert!(done.iter().all(|(&id, completion)| completion.tokens == plainly(&request(id as TokenId))));
    // Later: the pages are still there. An answer's own pages serve whoever goes on from it.
    engine.submit(8, request(3));
    let again = finish(&mut engine).remove(&8).unwrap();
    assert_eq!((again.stats.reused_tokens, &again.tokens), (192, &done[&3].tokens));
    let mut longer = Request { ignore_end: true, ..request(3) };
    longer.max_tokens = 60;
    engine.submit(9, longer.clone());
    let answer = finish(&mut engine).remove(&9).unwrap().tokens;
    engine.submit(10, Request::new([&longer.prompt[..], &answer, &[1]].concat(), 5));
    assert_eq!(finish(&mut engine)[&10].stats.reused_tokens, 256);
    // Without, and where prompts may not be cut, nothing is.
    let mut engine = engine.with_options(EngineOptions { reuse_prefixes: false, ..EngineOptions::default() });
    assert_eq!(engine.snapshot().kept_pages, 0);
    engine.submit(0, request(3));
    assert_eq!(finish(&mut engine)[&0].stats.reused_tokens, 0);
}

#[test]
fn kept_pages_give_way_the_oldest_first() {
    // Room for one running text of two pages and three kept pages.
    let mut engine = engine(6, 1, EngineOptions::default());
    let text = |kind: TokenId| Request::new((0..70).map(|i| (i * kind + kind) % 16).collect(), 2);
    let reused = |engine: &mut Engine, kind| {
        engine.submit(0, text(kind));
        finish(engine)[&0].stats.reused_tokens
    };
    for kind in [1, 2, 3, 4] {
        assert_eq!(reused(&mut engine, kind), 0);
    }
    assert_eq!(engine.snapshot().kept_pages, 4);
    assert_eq!(reused(&mut engine, 1), 64, "used: now 2 is the oldest");
    assert_eq!(reused(&mut engine, 5), 0);
    assert_eq!(reused(&mut engine, 6), 0);
    assert_eq!(reused(&mut engine, 1), 64);
    assert_eq!(reused(&mut engine, 2), 0, "it had to go");
    assert_eq!(engine.free_pages(), 6);
}

#[test]
fn a_long_prompt_does_not_stop_the_others() {
    let mut engine = engine(30, 4, EngineOptions { token_budget: 64, reuse_prefixes: true });
    engine.submit(0, Request { ignore_end: true, ..Request::new(vec![1], 200) });
    step(&mut engine, &mut BTreeMap::new());
    engine.submit(1, Request::new((0..300).map(|i| i % 11).collect(), 5));
    let mut tokens_meanwhile = 0;
    while engine.snapshot().prefilling > 0 || engine.snapshot().waiting > 0 {
        let before = engine.snapshot().totals;
        step(&mut engine, &mut BTreeMap::new());
        let now = engine.snapshot().totals;
        assert!(now.prefilled_tokens - before.prefilled_tokens <= 64);
        tokens_meanwhile += now.generated - before.generated;
    }
    assert!(tokens_meanwhile >= 4, "{tokens_meanwhile} tokens during five pieces of a prompt");
    finish(&mut engine);
}

/// An hour of ten thousand requests that arrive by chance and in bursts, a tenth of them cancelled at some moment, under
/// page pressure: nothing is lost, nothing is done twice, and every page is there in the end.
#[test]
fn an_hour_of_arrivals() {
    let load = Load { requests: 10_000, per_second: 2.25, burst: 40, cancelled: 0.1, seed: 7 };
    let mut engine = engine(12, 8, EngineOptions { token_budget: 128, reuse_prefixes: true });
    let outcome = Arrivals::new(&load, VOCAB).play(&mut engine);
    assert_eq!(outcome.done.len() + outcome.cancelled.len(), load.requests);
    let now = engine.snapshot();
    assert_eq!(now.free_pages, 12);
    assert!(now.totals.preemptions > 50, "{} preemptions", now.totals.preemptions);
    assert!(now.totals.reused_tokens > now.totals.prompt_tokens / 20, "{:?}", now.totals);
    assert_eq!(now.totals.finished + now.totals.cancelled, load.requests);
    for (id, completion) in outcome.done.iter().step_by(97) {
        assert_eq!(completion.tokens, plainly(&outcome.requests[*id]), "request {id}");
    }
    let first = |share| percentile(&outcome.first_token, share);
    let whole = |share| percentile(&outcome.whole, share);
    println!("{} requests in {:.0} simulated seconds: {:?}", load.requests, outcome.seconds, now.totals);
    println!("seconds to the first token: median {:.3}, 99 % {:.3}", first(0.5), first(0.99));
    println!("seconds to the end: median {:.3}, 99 % {:.3}", whole(0.5), whole(0.99));
    assert!(first(0.5) < first(0.99) && whole(0.5) > first(0.5) && whole(0.99).is_finite());
}

/// Where none waits for another's pages, who came first gets its first token first. (A prompt of one token has nothing to
/// read and may overtake one that is being read; there is none here.)
#[test]
fn nobody_is_served_out_of_turn() {
    let load = Load { requests: 1_000, per_second: 7.0, burst: 20, cancelled: 0.0, seed: 3 };
    let mut engine = engine(12, 8, EngineOptions { token_budget: 100, reuse_prefixes: false });
    let outcome = Arrivals::new(&load, VOCAB).play(&mut engine);
    assert!(engine.snapshot().totals.preemptions > 5);
    assert_eq!(outcome.first_tokens, (0..load.requests).collect::<Vec<_>>());
}

/// Room for drafts is given up before anybody is preempted for want of it.
#[test]
fn nobody_is_preempted_for_anothers_drafts() {
    // Three answers might grow to five pages each, of eight, and their drafts with them, but end within two.
    let limits = Limits { pages: 8, slots: 3, max_draft: 250, context: CONTEXT };
    let backend = Box::new(HashBackend::new(VOCAB, limits, 200));
    let mut engine = Engine::new(backend, Box::new(Adversary), None, vec![END]);
    let request =
        |first| Request { min_tokens: 10, stop_token_ids: (0..12).collect(), ..Request::new(vec![first; 60], 250) };
    (0..3).for_each(|id| engine.submit(id, request(id as TokenId)));
    let done = finish(&mut engine);
    assert_eq!(engine.snapshot().totals.preemptions, 0);
    for (id, completion) in &done {
        assert_eq!(completion.tokens, plainly(&request(*id as TokenId)), "request {id}");
    }
}

/// Where a preempted sequence's pages are lost on their way, it is one of those that failed, and its slot is not lost.
#[test]
fn every_request_of_a_failed_step_is_counted() {
    let limits = Limits { pages: 7, slots: 4, max_draft: 6, context: CONTEXT };
    let (mut backend, _) = TimedBackend::new(limits, |_| 0.0);
    backend.loses_pages = true;
    let mut engine = Engine::new(Box::new(backend), Box::new(Adversary), None, vec![]);
    let request = |first| Request::new(vec![first; 60], 250);
    for turn in 1..=3 {
        (0..5).for_each(|id| engine.submit(id, request(id as TokenId)));
        let error = loop {
            if let Err(error) = engine.step(&mut |_, _| ControlFlow::Continue(())) {
                break error.to_string();
            }
        };
        assert!(error.contains("memory is full"), "{error}");
        let now = engine.snapshot();
        assert_eq!((now.totals.failed, now.totals.finished, now.free_pages), (5 * turn, 0, 7));
        assert!(engine.is_idle());
    }
    // All four slots are there still.
    (0..4).for_each(|id| engine.submit(id, Request::new(vec![1], 50)));
    let _ = engine.step(&mut |_, _| ControlFlow::Continue(())).unwrap();
    assert_eq!(engine.snapshot().decoding, 4);
}
