//! The engine against a backend that checks its cache: whatever the draft lengths, batch, budget,
//! context and page pressure, every request gets what plain decoding gives, and no page is lost.

use crate::common::adversary::Adversary;
use crate::common::any_turns::any_turns;
use crate::common::forbidding::{Forbidding, plainly};
use crate::common::hash_backend::HashBackend;
use crate::common::oracle::proposing;
use crate::common::turns::Turns;
use eesd::TokenId;
use eesd::backend::Limits;
use eesd::control::{Controller, Outcome, Step};
use eesd::draft::{Source, Sources};
use eesd::engine::{Completion, Engine, EngineError, EngineOptions, Event, Finish, Request, SourceStats};
use eesd::load::{Checkpoint, Tokenizer};
use eesd::sample::{ParamError, Philox, SamplingParams};
use proptest::prelude::*;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

const VOCAB: usize = 17;
const END: TokenId = 3;

fn limits(pages: usize, slots: usize, context: usize) -> Limits {
    Limits { pages, slots, max_draft: 6, context }
}

fn engine(limits: Limits, agreement: u64) -> Engine {
    engine_over(HashBackend::new(VOCAB, limits, agreement))
}

fn engine_over(backend: HashBackend) -> Engine {
    Engine::new(Box::new(backend), Box::new(Adversary), None, vec![END])
}

fn sources() -> impl Strategy<Value = Sources> {
    let some = prop::array::uniform4(prop::bool::ANY).prop_map(|has| {
        Source::ALL.into_iter().zip(has).fold(Sources::OFF, |some, (source, has)| some.with(source, has))
    });
    prop_oneof![1 => Just(Sources::ALL), 1 => some]
}

fn request() -> impl Strategy<Value = Request> {
    let sampling = (prop::bool::ANY, 0u64..1000, prop::sample::select(vec![0, 5])).prop_map(|(greedy, seed, top_k)| {
        let temperature = if greedy { 0.0 } else { 1.2 };
        SamplingParams { temperature, seed: Some(seed), top_k, frequency_penalty: 0.3, ..SamplingParams::default() }
    });
    let prompt = prop::collection::vec(0..VOCAB as TokenId, 1..100);
    let free = (prompt, 1usize..150, sampling, prop::bool::ANY, sources()).prop_map(
        |(prompt, max_tokens, sampling, ignore_end, sources)| Request {
            sampling,
            ignore_end,
            sources,
            ..Request::new(prompt, max_tokens)
        },
    );
    // What is forbidden might leave no token that a constraint allows.
    let bound = prop_oneof![
        6 => Forbidding::any(VOCAB).prop_map(Bound::Forbidding),
        3 => any_turns(VOCAB).prop_map(Bound::Turns),
        2 => Just(Bound::Free),
    ];
    (free, bound).prop_map(|(request, bound)| match bound {
        Bound::Forbidding(forbidding) => forbidding.applied_to(request),
        Bound::Turns(turns) => turns.applied_to(request),
        Bound::Free => request,
    })
}

#[derive(Debug, Clone)]
enum Bound {
    Free,
    Forbidding(Forbidding),
    Turns(Turns),
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
        right in prop::option::of(0u64..=256),
        (recurrent, continues) in prop::sample::select(vec![(false, false), (true, false), (true, true)]),
    ) {
        let pages = context.div_ceil(64) + spare_pages;
        let mut backend = HashBackend::new(VOCAB, limits(pages, 5, context), agreement);
        (backend.recurrent, backend.continues) = (recurrent, continues);
        let mut engine = engine_over(backend);
        if let Some(right) = right {
            engine = proposing(engine, VOCAB, right).0;
        }
        let mut done: Vec<Option<Completion>> = vec![None; requests.len()];
        let mut streamed: Vec<Vec<TokenId>> = vec![Vec::new(); requests.len()];
        let mut kept = vec![0; requests.len()];
        engine.run(&mut requests.iter().cloned(), batch, &mut |id, event| {
            match event {
                Event::Prefilled { .. } => {}
                Event::Token(emission) => {
                    streamed[id].push(emission.token);
                    kept[id] += usize::from(emission.drafted.is_some());
                }
                Event::Done(completion) => done[id] = Some(completion),
                Event::Failed(error) => panic!("{error}"),
            }
            ControlFlow::Continue(())
        }).unwrap();
        prop_assert_eq!(engine.free_pages(), pages);
        for (i, request) in requests.iter().enumerate() {
            let completion = done[i].as_ref().expect("every request is done");
            let (tokens, finish) = plainly(request, VOCAB, END, context);
            prop_assert_eq!(&completion.tokens, &tokens);
            prop_assert_eq!(&streamed[i], &tokens);
            prop_assert_eq!(&completion.finish, &finish);
            let stats = &completion.stats;
            prop_assert_eq!(stats.generated, tokens.len());
            prop_assert_eq!(stats.lengths.iter().sum::<usize>(), stats.rounds);
            // Every round emits its accepted drafts and one token more, but where the end cut it.
            prop_assert!(stats.accepted() + stats.rounds - stats.generated <= 1);
            prop_assert_eq!(stats.accepted(), kept[i]);
            // The first draft of a round is tested, and then those after an accepted one.
            let drafting = stats.rounds - stats.lengths[0];
            prop_assert_eq!(stats.drafted_at.first().copied().unwrap_or(0), drafting);
            let tested = stats.drafted_at.iter().skip(1).zip(&stats.accepted_at);
            prop_assert!(tested.clone().all(|(tested, accepted)| tested <= accepted), "{:?}", stats);
            for (source, of_source) in Source::ALL.into_iter().zip(stats.by_source) {
                prop_assert!(request.sources.has(source) || of_source == SourceStats::default(), "{source}: {stats:?}");
            }
            let sum = |of: fn(&SourceStats) -> usize| stats.by_source.iter().map(of).sum::<usize>();
            prop_assert_eq!((sum(|s| s.rounds), sum(|s| s.drafted)), (drafting, stats.drafted()));
            prop_assert_eq!(sum(|s| s.accepted), stats.accepted());
        }
    }

    /// What is forbidden to the model is forbidden to the draft: one that is as good as the model is always right.
    #[test]
    fn nothing_forbidden_is_drafted(request in request()) {
        let mut engine = engine(limits(4, 1, 249), 256);
        let found = engine.generate(&request, &mut |_| ControlFlow::Continue(())).unwrap();
        prop_assert_eq!(found.stats.drafted(), found.stats.accepted());
    }
}

/// Asks for every draft, and notes what it is told.
#[derive(Clone, Default)]
struct Witness {
    started: Arc<Mutex<Vec<usize>>>,
    asked: Arc<AtomicUsize>,
    told: Arc<AtomicUsize>,
}

impl Witness {
    /// The slots that sequences took, how often it was asked, and how often told of a round.
    fn seen(&self) -> (Vec<usize>, usize, usize) {
        (self.started.lock().unwrap().clone(), self.asked.load(Relaxed), self.told.load(Relaxed))
    }
}

impl Controller for Witness {
    fn spec(&self) -> String {
        "witness".into()
    }

    fn start(&mut self, slot: usize) {
        self.started.lock().unwrap().push(slot);
    }

    fn proceed(&mut self, _step: &Step<'_>, _rng: &mut Philox) -> bool {
        self.asked.fetch_add(1, Relaxed);
        true
    }

    fn observe(&mut self, _outcome: &Outcome<'_>) {
        self.told.fetch_add(1, Relaxed);
    }

    fn state(&self) -> serde_json::Value {
        serde_json::Value::Null
    }
}

#[test]
fn nothing_is_drafted_beyond_the_end() {
    let mut ended = 0;
    for (first, ignore_end) in (0..VOCAB as TokenId).flat_map(|first| [(first, false), (first, true)]) {
        let witness = Witness::default();
        let backend = HashBackend::new(VOCAB, limits(8, 1, 200), 256);
        let mut engine = Engine::new(Box::new(backend), Box::new(witness.clone()), None, vec![END]);
        let request = Request { ignore_end, ..Request::new(vec![first], 60) };
        let found = engine.generate(&request, &mut |_| ControlFlow::Continue(())).unwrap();
        ended += usize::from(found.finish == Finish::EndToken(END));
        // This draft is always right, so all that was drafted is in the answer.
        let drafted: usize = found.stats.lengths.iter().enumerate().map(|(length, rounds)| length * rounds).sum();
        assert_eq!((drafted, witness.seen().1), (found.stats.accepted(), drafted));
        // Each round adds a token of its own, but for the one in which a draft was the end token.
        assert!(found.stats.generated == drafted + found.stats.rounds || found.finish == Finish::EndToken(END));
    }
    assert!(ended > 2, "only {ended} answers ended");
}

#[test]
fn a_controller_is_told_of_every_sequence_and_asked_about_those_that_speculate() {
    let witness = Witness::default();
    let backend = HashBackend::new(VOCAB, limits(8, 2, 128), 256);
    let mut engine = Engine::new(Box::new(backend), Box::new(witness.clone()), None, vec![END]);
    let plain = Request { sources: eesd::draft::Sources::OFF, ..Request::new(vec![1, 2], 5) };
    engine.run(&mut vec![plain; 3].into_iter(), 1, &mut |_, _| ControlFlow::Continue(())).unwrap();
    assert_eq!(witness.seen(), (vec![0, 0, 0], 0, 0));

    engine.submit(0, Request { ignore_end: true, ..Request::new(vec![1, 2], 50) });
    assert!(engine.step(&mut |_, _| ControlFlow::Continue(())).unwrap().is_continue());
    let next = Witness::default();
    engine.set_controller(Box::new(next.clone()));
    assert_eq!(next.seen().0, [0], "a running sequence is new to a new controller");
}

/// A tokenizer whose tokens are `▁w0`, `▁w1`, ...: words with the space before them, as SentencePiece has it.
fn words() -> Arc<Tokenizer> {
    let folder = tempfile::tempdir().unwrap();
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(Path::new("tests/fixtures/hf/llama").join(name), folder.path().join(name)).unwrap();
    }
    let vocab: serde_json::Map<_, _> = (0..VOCAB).map(|id| (format!("▁w{id}"), id.into())).collect();
    let tokenizer = serde_json::json!({
        "version": "1.0",
        "added_tokens": [],
        "decoder": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": true},
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "▁w0"},
    });
    std::fs::write(folder.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    Checkpoint::open(folder.path()).unwrap().tokenizer().unwrap().clone()
}

#[test]
fn an_answer_goes_on_where_its_prompt_ends() {
    let backend = HashBackend::new(VOCAB, limits(8, 1, 128), 200);
    let mut engine = Engine::new(Box::new(backend), Box::new(Adversary), Some(words()), vec![]);
    let request = Request::new(vec![1, 2], 20);
    let found = engine.generate(&request, &mut |_| ControlFlow::Continue(())).unwrap();
    let spelled: String = found.tokens.iter().map(|token| format!(" w{token}")).collect();
    assert_eq!(found.text, spelled, "the first word's space belongs to the answer");
}

/// By how many tokens the answer to a request is, and by its text, with stop strings of these words.
#[test]
fn stop_strings_are_looked_for_once_the_minimum_is_there() {
    let answer = |request: &Request| {
        let backend = HashBackend::new(VOCAB, limits(8, 1, 128), 200);
        let mut engine = Engine::new(Box::new(backend), Box::new(Adversary), Some(words()), vec![]);
        engine.generate(request, &mut |_| ControlFlow::Continue(())).unwrap()
    };
    let free = Request::new(vec![1, 2], 40);
    let whole = answer(&free);
    let spelled = |count: usize| whole.tokens[..count].iter().map(|token| format!(" w{token}")).collect::<String>();
    let mut ends = Vec::new();
    for (word, min_tokens) in (0..VOCAB).flat_map(|word| (0..=40).map(move |min| (word, min))) {
        // A word, or the end of one and the beginning of the next: complete with its last character.
        let stop = if word % 2 == 0 { format!(" w{word}") } else { format!("{} w", word % 10) };
        let found = answer(&Request { stop: vec![stop.clone()], min_tokens, ..free.clone() });
        let complete = (min_tokens + 1..=40).find_map(|count| {
            let (early, text) = (spelled(min_tokens).len(), spelled(count));
            let end = |at: usize| (early + 1..=text.len()).contains(&(at + stop.len()));
            Some((count, (0..text.len()).find(|&at| text[at..].starts_with(&stop) && end(at))?))
        });
        let (count, text, finish) = match complete {
            Some((count, at)) => (count, spelled(count)[..at].to_owned(), Finish::StopString(stop)),
            None => (40, spelled(40), Finish::Length),
        };
        assert_eq!((found.tokens.len(), &found.text, &found.finish), (count, &text, &finish), "at least {min_tokens}");
        ends.push(count);
    }
    ends.sort_unstable();
    ends.dedup();
    assert!(ends.len() > 20, "{ends:?}");
}

#[test]
fn malformed_requests_fail_alone() {
    let mut engine = engine(limits(4, 2, 128), 200);
    let good = Request::new(vec![1, 2], 5);
    let off = SamplingParams::default;
    let sampled = |sampling| Request { sampling, ..good.clone() };
    let (unknown, known) = ("token 17, vocabulary of 17".to_owned(), "tokens of the vocabulary");
    let outside = |name| EngineError::Param(ParamError { name, found: unknown.clone(), expected: known });
    let (found, expected) = ("a run of no tokens".to_owned(), "at least one token in each");
    let empty = ParamError { name: "bad_words", found, expected };
    let cases = [
        (Request::new(vec![], 5), EngineError::EmptyPrompt),
        (Request::new(vec![99], 5), EngineError::UnknownToken { token: 99, vocab: VOCAB }),
        (Request::new(vec![1; 128], 5), EngineError::PromptTooLong { prompt: 128, context: 128 }),
        (Request::new(vec![1], 0), EngineError::NothingToGenerate),
        (Request { min_tokens: 6, ..good.clone() }, EngineError::LeastBeyondMost { min_tokens: 6, max_tokens: 5 }),
        (Request { stop_token_ids: vec![3, 17], ..good.clone() }, outside("stop_token_ids")),
        (sampled(SamplingParams { suppress_tokens: vec![17], ..off() }), outside("suppress_tokens")),
        (sampled(SamplingParams { bad_words: vec![vec![3, 17]], ..off() }), outside("bad_words")),
        (sampled(SamplingParams { bad_words: vec![vec![]], ..off() }), EngineError::Param(empty)),
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
            Event::Prefilled { .. } | Event::Token(_) => {}
        }
        ControlFlow::Continue(())
    };
    engine.run(&mut requests.into_iter(), 2, sink).unwrap();
    let expected: Vec<_> = cases.into_iter().enumerate().map(|(i, (_, error))| (2 * i, error)).collect();
    assert_eq!(failed, expected);
    assert_eq!(done, failed.len());
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
                    Event::Prefilled { .. } => {}
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

/// A long prompt can be given up between two pieces of it.
#[test]
fn a_prompt_can_be_cancelled_while_it_is_taken_in() {
    let options = EngineOptions { token_budget: 64, ..EngineOptions::default() };
    let mut engine = engine(limits(20, 2, 1200), 128).with_options(options);
    let prompt: Vec<TokenId> = (0..1000).map(|i| i % 5).collect();
    let mut told = Vec::new();
    let mut ended = Vec::new();
    let mut requests = [Request::new(prompt.clone(), 5), Request::new(prompt, 5)].into_iter();
    engine
        .run(&mut requests, 2, &mut |id, event| {
            match event {
                Event::Prefilled { done, of } => told.push((done, of)),
                Event::Token(_) => panic!("nothing is certain yet"),
                Event::Done(completion) => ended.push((id, completion.finish, completion.tokens.len())),
                Event::Failed(error) => panic!("{error}"),
            }
            if told.len() == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })
        .unwrap();
    assert_eq!(told, [(64, 999), (128, 999), (192, 999)]);
    assert_eq!(ended, [(0, Finish::Cancelled, 0)]);
    assert!(engine.is_idle() && engine.snapshot().totals.prefilled_tokens == 192);
}
