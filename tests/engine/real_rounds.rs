//! Rounds on the bundled model with its tokenizer: what every request must get, worked out without the
//! engine; answers that end inside an accepted draft; drafts that stay as good as on the first day.

use eesd::TokenId;
use eesd::backend::cpu::{CpuBackend, CpuOptions};
use eesd::backend::{Backend, Chunk, Sequence};
use eesd::control::{Controller, ControllerSpec, Fixed, Outcome, Step};
use eesd::engine::{Completion, Emission, Engine, Event, Finish, Request};
use eesd::kv::{PAGE_TOKENS, PageId};
use eesd::load::{Checkpoint, bundled_prompts};
use eesd::sample::{History, Philox, Sampler, SamplingParams, TokenLogprobs, VerifyMode};
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex};

const CONTEXT: usize = 1024;
const MAX_DRAFT: usize = 8;
const EXIT: usize = 2;

/// A backend with one slot, and with the exit block after layer [`EXIT`].
fn backend(checkpoint: &Checkpoint) -> Box<dyn Backend> {
    let blocks = checkpoint.exit_blocks().unwrap();
    let exit = blocks.iter().find(|block| block.after() == EXIT).unwrap().weights();
    let options = CpuOptions { slots: 1, context: CONTEXT, max_draft: MAX_DRAFT, ..CpuOptions::default() };
    CpuBackend::new(checkpoint.geometry(), &checkpoint.weights(), Some(&exit), &options).unwrap()
}

fn engine(controller: Box<dyn Controller>, end_tokens: Vec<TokenId>) -> Engine {
    let checkpoint = Checkpoint::bundled().unwrap();
    Engine::new(backend(&checkpoint), controller, Some(checkpoint.tokenizer().unwrap().clone()), end_tokens)
}

fn spec(text: &str) -> Box<dyn Controller> {
    text.parse::<ControllerSpec>().unwrap().build()
}

fn prompt(index: usize) -> Vec<TokenId> {
    Checkpoint::bundled().unwrap().tokenizer().unwrap().encode(&bundled_prompts()[index], true).unwrap()
}

/// The completion and everything that was streamed on the way.
fn generate(engine: &mut Engine, request: &Request) -> (Completion, Vec<Emission>) {
    let mut streamed = Vec::new();
    let completion = engine
        .generate(request, &mut |emission| {
            streamed.push(emission.clone());
            ControlFlow::Continue(())
        })
        .unwrap();
    let tokens: Vec<TokenId> = streamed.iter().map(|emission| emission.token).collect();
    assert_eq!(tokens, completion.tokens);
    assert_eq!(streamed.iter().map(|emission| &*emission.text).collect::<String>(), completion.text);
    (completion, streamed)
}

/// Decoding with no engine, no draft and no verification pass: the whole model on one token at a time.
fn by_hand(request: &Request) -> (Vec<TokenId>, Vec<TokenLogprobs>) {
    let mut backend = backend(&Checkpoint::bundled().unwrap());
    let vocab = backend.geometry().vocab_size;
    let pages: Vec<PageId> = (0..(CONTEXT / PAGE_TOKENS) as u32).map(PageId).collect();
    let sampler = Sampler::new(request.sampling.clone(), vocab).unwrap();
    let prompt = request.prompt.len();
    let (mut tokens, mut logprobs) = (request.prompt.clone(), Vec::new());
    let mut start = 0;
    while tokens.len() < prompt + request.max_tokens {
        let read = backend.evaluate(&Chunk { pages: &pages, start, tokens: &tokens[start..] }, 0).unwrap();
        start = tokens.len();
        let last = &read.logits[read.logits.len() - vocab..];
        let verdict = sampler.accept(History { tokens: &tokens, prompt }, last, &[]);
        tokens.push(verdict.next);
        logprobs.extend(verdict.logprobs);
    }
    (tokens.split_off(prompt), logprobs)
}

fn bits(logprobs: &[TokenLogprobs]) -> Vec<(u32, Vec<(TokenId, u32)>)> {
    let top = |entry: &TokenLogprobs| entry.top.iter().map(|&(token, logprob)| (token, logprob.to_bits())).collect();
    logprobs.iter().map(|entry| (entry.logprob.to_bits(), top(entry))).collect()
}

/// No parameter is lost on the way through a draft: penalties of prompt and output, biases, filters,
/// and log-probabilities to the last bit.
#[test]
fn tokens_and_logprobs_are_those_worked_out_by_hand() {
    let off = SamplingParams::default;
    let warm = || SamplingParams { temperature: 0.9, seed: Some(11), verify: Some(VerifyMode::Coupled), ..off() };
    let settings = [
        off(),
        SamplingParams { repetition_penalty: 1.3, ..off() },
        SamplingParams { presence_penalty: 0.7, ..off() },
        SamplingParams { frequency_penalty: 0.4, logit_bias: vec![(9, 2.0), (13, f32::NEG_INFINITY)], ..off() },
        SamplingParams { top_k: 30, presence_penalty: 0.5, ..warm() },
        SamplingParams { top_p: 0.9, repetition_penalty: 1.2, ..warm() },
        SamplingParams { min_p: 0.05, frequency_penalty: -0.2, ..warm() },
    ];
    let mut accepted = 0;
    for (index, sampling) in settings.into_iter().enumerate() {
        let sampling = SamplingParams { logprobs: Some(3), ..sampling };
        let request = Request { sampling, ..Request::new(prompt(index), 60) };
        let (tokens, logprobs) = by_hand(&request);
        for controller in ["off", "fixed:5"] {
            let (completion, streamed) = generate(&mut engine(spec(controller), vec![]), &request);
            assert_eq!(completion.tokens, tokens, "{controller}: {request:?}");
            assert_eq!(bits(&completion.logprobs), bits(&logprobs), "{controller}: {request:?}");
            let streamed: Vec<_> = streamed.into_iter().filter_map(|emission| emission.logprobs).collect();
            assert_eq!(bits(&streamed), bits(&logprobs), "{controller}: {request:?}");
            accepted += completion.stats.accepted();
        }
    }
    assert!(accepted > 100, "only {accepted} drafts were accepted");
}

/// An end token, a stop string, the budget and the context, each inside accepted drafts: the answer is
/// the beginning of the free one, and nothing after its end is emitted or counted.
#[test]
fn answers_end_anywhere_in_an_accepted_draft() {
    let whole = Request::new(prompt(3), 48);
    let mut drafting = engine(spec("fixed:8"), vec![]);
    let (free, emissions) = generate(&mut drafting, &whole);
    assert!(free.stats.accepted_at[3] > 0, "no draft is long enough for this test: {:?}", free.stats);

    let check = |engine: &mut Engine, request: &Request, tokens: &[TokenId], finish: Finish| {
        let (found, streamed) = generate(engine, request);
        assert_eq!((&found.tokens[..], &found.finish), (tokens, &finish));
        let stats = &found.stats;
        assert_eq!(stats.generated, tokens.len());
        assert_eq!(stats.accepted(), streamed.iter().filter(|emission| emission.drafted.is_some()).count());
        assert!(stats.drafted() <= tokens.len(), "a draft after the end was counted: {stats:?}");
        found.text
    };
    let text = |emissions: &[Emission]| emissions.iter().map(|emission| &*emission.text).collect::<String>();
    let drafted = || emissions.iter().enumerate().filter(|(_, emission)| emission.drafted.is_some());
    for (at, _) in drafted() {
        let request = Request { max_tokens: at + 1, ..whole.clone() };
        check(&mut drafting, &request, &free.tokens[..=at], Finish::Length);

        // A stop string that this token completes, begun two tokens before.
        let stop = text(&emissions[at.saturating_sub(2)..=at]);
        let Some(cut) = free.text.find(&stop).filter(|_| !stop.is_empty()) else { continue };
        let last = (0..=at).find(|&last| text(&emissions[..=last]).contains(&stop)).unwrap();
        let request = Request { stop: vec!["never".into(), stop.clone()], ..whole.clone() };
        let found = check(&mut drafting, &request, &free.tokens[..=last], Finish::StopString(stop));
        assert_eq!(found, free.text[..cut]);
    }
    for (at, emission) in drafted().step_by(9) {
        let end = emission.token;
        let first = free.tokens.iter().position(|&token| token == end).unwrap_or(at);
        let mut ending = engine(spec("fixed:8"), vec![end]);
        let found = check(&mut ending, &whole, &free.tokens[..=first], Finish::EndToken(end));
        assert_eq!(found, text(&emissions[..first]));
    }
}

#[test]
fn drafts_end_with_the_context() {
    const LAST: usize = MAX_DRAFT + 2;
    let mut tokens: Vec<TokenId> = prompt(3).into_iter().cycle().take(CONTEXT - LAST).collect();
    let (plain, _) = generate(&mut engine(spec("off"), vec![]), &Request::new(tokens.clone(), 100));
    assert_eq!((plain.tokens.len(), plain.finish), (LAST, Finish::Context));
    tokens.extend(plain.tokens);
    let mut drafting = engine(spec("fixed:8"), vec![]);
    for start in CONTEXT - LAST..CONTEXT {
        let (found, _) = generate(&mut drafting, &Request::new(tokens[..start].to_vec(), 100));
        assert_eq!((&found.tokens[..], found.finish), (&tokens[start..], Finish::Context));
    }
}

/// A controller that also writes down each round's confidences.
struct Witness {
    inner: Box<dyn Controller>,
    confidences: Arc<Mutex<Vec<u32>>>,
}

impl Controller for Witness {
    fn spec(&self) -> String {
        self.inner.spec()
    }

    fn start(&mut self, slot: usize) {
        self.inner.start(slot);
    }

    fn proceed(&mut self, step: &Step<'_>, rng: &mut Philox) -> bool {
        self.inner.proceed(step, rng)
    }

    fn observe(&mut self, outcome: &Outcome<'_>) {
        *self.confidences.lock().unwrap() = outcome.confidences.iter().map(|confidence| confidence.to_bits()).collect();
        self.inner.observe(outcome);
    }

    fn state(&self) -> serde_json::Value {
        self.inner.state()
    }
}

/// The confidences of each round's drafts, by the number of tokens committed before it, and the tokens
/// in the end. Round `i` is played by controller `controllers(i)`.
fn drafts(request: &Request, controllers: impl Fn(usize) -> usize) -> (BTreeMap<usize, Vec<u32>>, Vec<TokenId>) {
    let mut engine = engine(spec("off"), vec![]);
    let (mut drafts, mut tokens) = (BTreeMap::new(), request.prompt.clone());
    engine.submit(0, request.clone());
    for round in 0.. {
        if engine.is_idle() {
            break;
        }
        let confidences = Arc::default();
        let inner = Box::new(Fixed { length: controllers(round) });
        engine.set_controller(Box::new(Witness { inner, confidences: Arc::clone(&confidences) }));
        let committed = tokens.len();
        let flow = engine.step(&mut |_, event| {
            if let Event::Token(emission) = event {
                tokens.push(emission.token);
            }
            ControlFlow::Continue(())
        });
        assert!(flow.unwrap().is_continue());
        drafts.insert(committed, confidences.lock().unwrap().clone());
    }
    (drafts, tokens)
}

/// Up to the last token of the context, what is drafted depends on the text alone: not on which rounds
/// drafted how much, were plain or rolled back, and not on a change of controllers on the way.
#[test]
fn drafts_do_not_decay_over_a_long_run() {
    let prompt = prompt(0);
    let request = Request::new(prompt.clone(), CONTEXT);
    let (short, tokens) = drafts(&request, |_| 1);
    assert_eq!(tokens.len(), CONTEXT);
    for controllers in
        [|_: usize| MAX_DRAFT, |round: usize| [0, 0, 3, 8, 0, 1, 5][round % 7], |round: usize| round / 40 % 2 * 4]
    {
        let (found, same) = drafts(&request, controllers);
        assert_eq!(same, tokens);
        let mut compared = 0;
        for (committed, confidences) in &found {
            let expected = short.get(committed).into_iter().flatten();
            for (a, b) in confidences.iter().zip(expected) {
                assert_eq!(a, b, "with {committed} tokens committed");
                compared += 1;
            }
        }
        assert!(compared > 20, "only {compared} drafts were compared");
    }
    // The truth: nothing but a prefill before the draft.
    for (&committed, confidences) in short.iter().filter(|(committed, _)| *committed % 31 == 0) {
        let (found, _) = drafts(&Request::new(tokens[..committed].to_vec(), 2), |_| 1);
        assert_eq!(&found[&committed], confidences, "with {committed} tokens committed");
    }
}

/// The random numbers of a drafted token are its round's own: a controller may have seen what came of
/// those that an earlier round drew in vain for the same position.
#[test]
fn a_position_drafted_again_is_drawn_anew() {
    let mut backend = backend(&Checkpoint::bundled().unwrap());
    let pages: Vec<PageId> = (0..(CONTEXT / PAGE_TOKENS) as u32).map(PageId).collect();
    let (temperature, verify) = (5.0, Some(VerifyMode::Rejection));
    let params = SamplingParams { temperature, verify, seed: Some(3), ..SamplingParams::default() };
    let sampler = Sampler::new(params, backend.geometry().vocab_size).unwrap();
    let mut again = 0;
    for prompt in (0..10).map(prompt) {
        let chunk = Chunk { pages: &pages, start: 0, tokens: &prompt[..prompt.len() - 2] };
        backend.prefill(&[chunk]).unwrap();
        let mut draw = |tokens: &[TokenId], committed| {
            let sequence = Sequence {
                slot: 0,
                pages: &pages,
                tokens,
                committed,
                prompt: 1,
                proposed: 0,
                recurrent: 0,
                sampler: &sampler,
            };
            backend.draft(&[sequence]).unwrap()[0].token
        };
        // As the second draft of one round, and as the first of the next.
        let committed = prompt.len() - 1;
        draw(&prompt[..committed], committed);
        let second = draw(&prompt, committed);
        again += usize::from(draw(&prompt, committed + 1) == second);
    }
    assert!(again < 3, "{again} of 10 draws were the same");
}

/// A later draft of a round is penalised for the earlier ones, as the target will be.
#[test]
fn penalties_of_a_draft_count_the_drafts_before_it() {
    let mut backend = backend(&Checkpoint::bundled().unwrap());
    let pages: Vec<PageId> = (0..(CONTEXT / PAGE_TOKENS) as u32).map(PageId).collect();
    // Whatever occurred most often comes next.
    let params = SamplingParams { frequency_penalty: -1000.0, ..SamplingParams::default() };
    let sampler = Sampler::new(params, backend.geometry().vocab_size).unwrap();
    let tokens = [0, 7, 7, 8, 8, 8];
    backend.prefill(&[Chunk { pages: &pages, start: 0, tokens: &tokens[..5] }]).unwrap();
    for committed in [4, 5, 6] {
        let sequence = Sequence {
            slot: 0,
            pages: &pages,
            tokens: &tokens,
            committed,
            prompt: 1,
            proposed: 0,
            recurrent: 0,
            sampler: &sampler,
        };
        assert_eq!(backend.draft(&[sequence]).unwrap()[0].token, 8, "{committed} tokens committed");
    }
}
