//! The engine's rejection sampling is exact: χ² of whole answers against their exact probabilities,
//! by the real round with its random numbers, batch, end tokens and controllers that learn.

use crate::common::adversary::Adversary;
use crate::common::chi_squared::{p_value, uniformity};
use crate::common::forbidding::lawful;
use crate::common::hash_backend::HashBackend;
use crate::common::oracle::proposing;
use crate::common::simulated_times::controller;
use crate::common::turns::Turns;
use eesd::TokenId;
use eesd::backend::Limits;
use eesd::constrain::TokenSet;
use eesd::control::{Controller, Outcome, Step};
use eesd::engine::{Engine, Event, Request};
use eesd::sample::{Philox, SamplingParams, VerifyMode};
use std::collections::BTreeMap;
use std::ops::ControlFlow;

const VOCAB: usize = 5;
const END: TokenId = 2;
const PROMPT: [TokenId; 2] = [1, 4];
/// Most tokens of an answer.
const LENGTH: usize = 4;
const TEMPERATURE: f64 = 4.0;
/// Answers behind one p-value.
const ANSWERS: u64 = 4000;
/// p-values per controller.
const BLOCKS: u64 = 12;
const LIMITS: Limits = Limits { pages: 3, slots: 3, max_draft: 4, context: 32 };

/// Drafts on whenever its own random number is large.
struct Gambler;

impl Controller for Gambler {
    fn spec(&self) -> String {
        "gambler".into()
    }

    fn start(&mut self, _slot: usize) {}

    fn proceed(&mut self, _step: &Step<'_>, rng: &mut Philox) -> bool {
        rng.fine_uniform() > 0.4
    }

    fn observe(&mut self, _outcome: &Outcome<'_>) {}

    fn state(&self) -> serde_json::Value {
        serde_json::Value::Null
    }
}

/// Learns from an answer how each position's draft fared, and lets the answer after it draft only where that was refused.
struct Copycat {
    /// Drafts kept in each round of this answer, and of the one before.
    kept: Vec<usize>,
    before: Vec<usize>,
    copying: bool,
}

impl Controller for Copycat {
    fn spec(&self) -> String {
        "copycat".into()
    }

    fn start(&mut self, _slot: usize) {
        self.before = std::mem::take(&mut self.kept);
        self.copying ^= true;
    }

    fn proceed(&mut self, step: &Step<'_>, _rng: &mut Philox) -> bool {
        let refused = self.before.get(self.kept.len()).is_some_and(|&kept| kept == 0);
        step.confidences.is_empty() && (!self.copying || refused)
    }

    fn observe(&mut self, outcome: &Outcome<'_>) {
        self.kept.push(outcome.accepted);
    }

    fn state(&self) -> serde_json::Value {
        serde_json::Value::Null
    }
}

/// A request of a seed; `forbidding`: with a token that ends the answer beside the model's, neither of them among the
/// first two, and with runs of tokens that must not come.
fn request(seed: u64, forbidding: bool) -> Request {
    let (seed, verify) = (Some(seed), Some(VerifyMode::Rejection));
    let sampling = SamplingParams { temperature: TEMPERATURE, seed, verify, ..SamplingParams::default() };
    let free = Request { sampling, ..Request::new(PROMPT.to_vec(), LENGTH) };
    if !forbidding {
        return free;
    }
    let bad_words = vec![vec![4, 3], vec![1, 1], vec![1, 4, 0], vec![3, 1, 3]];
    let sampling = SamplingParams { bad_words, ..free.sampling };
    Request { sampling, min_tokens: 2, stop_token_ids: vec![0], ..free }
}

/// The exact chance of every answer.
fn exact(request: &Request) -> BTreeMap<Vec<TokenId>, f64> {
    let is_end = |token| token == END || request.stop_token_ids.contains(&token);
    let mut chances = BTreeMap::new();
    let mut open = vec![(Vec::new(), 1.0)];
    while let Some((answer, chance)) = open.pop() {
        if answer.len() == LENGTH || answer.last().is_some_and(|&token| is_end(token)) {
            chances.insert(answer, chance);
            continue;
        }
        let logits = HashBackend::target(VOCAB, &[&PROMPT, &answer[..]].concat());
        let text = [&PROMPT, &answer[..]].concat();
        let lawful = lawful(request, &answer);
        let complete = |(content, may_end): &(TokenSet, bool)| *may_end && content.is_empty();
        if lawful.as_ref().is_some_and(complete) {
            chances.insert(answer, chance);
            continue;
        }
        let may_follow = |token| {
            let unlawful = lawful.as_ref().is_some_and(|(content, may_end)| match is_end(token) {
                true => !may_end,
                false => !content.has(token),
            });
            let bad = request.sampling.bad_words.iter().any(|run| [&text[..], &[token]].concat().ends_with(run));
            !bad && !unlawful && (!is_end(token) || answer.len() >= request.min_tokens)
        };
        let weight = |(&logit, token)| ((f64::from(logit) / TEMPERATURE).exp(), token);
        let weights: Vec<(f64, TokenId)> = logits.iter().zip(0..).map(weight).filter(|w| may_follow(w.1)).collect();
        let total: f64 = weights.iter().map(|w| w.0).sum();
        let longer = |&(weight, token): &(f64, TokenId)| ([&answer[..], &[token]].concat(), chance * weight / total);
        open.extend(weights.iter().map(longer));
    }
    chances
}

/// The p-values of one controller. Seeds start at `trial`, so that no two trials share any.
fn p_values(controller: Box<dyn Controller>, forbidding: bool, trial: u64) -> Vec<f64> {
    let request = |i: u64| request(trial << 32 | i, forbidding);
    p_values_of(engine(controller, 100), &request, 3, |_| true)
}

fn engine(controller: Box<dyn Controller>, agreement: u64) -> Engine {
    engine_over(HashBackend::new(VOCAB, LIMITS, agreement), controller)
}

fn engine_over(backend: HashBackend, controller: Box<dyn Controller>) -> Engine {
    Engine::new(Box::new(backend), controller, None, vec![END])
}

/// The same of requests by their numbers, so many side by side; only the answers with a number that `counts` are counted.
fn p_values_of(
    mut engine: Engine,
    request: &dyn Fn(u64) -> Request,
    side_by_side: usize,
    counts: fn(usize) -> bool,
) -> Vec<f64> {
    let chances = exact(&request(0));
    let expected: Vec<f64> = chances.values().copied().collect();
    let block = |block: u64| {
        let mut seen: BTreeMap<&[TokenId], usize> = chances.keys().map(|answer| (&answer[..], 0)).collect();
        let count = &mut |number, event| {
            if let Event::Done(completion) = event
                && counts(number)
            {
                *seen.get_mut(&completion.tokens[..]).expect("every possible answer has a chance") += 1;
            }
            ControlFlow::Continue(())
        };
        engine.run(&mut (0..ANSWERS).map(|i| request(block * ANSWERS + i)), side_by_side, count).unwrap();
        p_value(&seen.into_values().collect::<Vec<_>>(), &expected)
    };
    (0..BLOCKS).map(block).collect()
}

#[test]
fn answers_follow_the_models_own_distribution() {
    check(false, 0);
}

#[test]
fn answers_that_may_not_say_something_follow_what_is_left_of_it() {
    check(true, 100);
}

/// What a controller has learned from one answer's luck says nothing about the next one's, though both were given the
/// same seed.
#[test]
fn answers_of_one_seed_are_drawn_each_for_itself() {
    let twins = |i: u64| request((200 << 32) | (i / 2), false);
    let found = p_values_of(
        engine(Box::new(Copycat { kept: vec![], before: vec![], copying: true }), 0),
        &twins,
        1,
        |number| number % 2 == 1,
    );
    assert!(found.iter().all(|&p| p > 1e-5), "{found:?}");
    assert!(uniformity(found.clone()) > 1e-3, "{found:?}");
}

/// Under a constraint, by an exit block, proposals, and both.
#[test]
fn answers_under_a_constraint_follow_what_it_leaves_of_the_models_own_distribution() {
    let mut all = Vec::new();
    let controllers = || [controller("off"), controller("fixed:4"), controller("goodput-ts"), Box::new(Gambler) as _];
    for (controller, trial) in controllers().into_iter().zip(600..) {
        let name = controller.spec();
        let turns = Turns { vocab: VOCAB, sums: 11, one_way: trial % 2 == 0 };
        let request = |i: u64| turns.clone().applied_to(request(trial << 32 | i, false));
        assert!(exact(&request(0)).len() > 8);
        let mut engine = engine(controller, 100);
        if trial != 601 {
            (engine, _) = proposing(engine, VOCAB, 128);
        }
        let found = p_values_of(engine, &request, 3, |_| true);
        assert!(found.iter().all(|&p| p > 1e-5), "{name}: {found:?}");
        all.extend(found);
    }
    assert!(uniformity(all.clone()) > 1e-3, "{all:?}");
}

/// Every source beside every kind of controller, whatever is proposed and however good it is.
#[test]
fn answers_to_which_tokens_are_proposed_follow_the_models_own_distribution() {
    let mut all = Vec::new();
    let controllers = || [controller("off"), controller("fixed:2"), controller("goodput-ts"), Box::new(Gambler) as _];
    for (i, (controller, right)) in controllers().into_iter().zip([0, 256, 200, 128]).enumerate() {
        let name = controller.spec();
        let trial = 300 + i as u64;
        let (engine, _) = proposing(engine(controller, 100), VOCAB, right);
        let found = p_values_of(engine, &|i| request(trial << 32 | i, false), 3, |_| true);
        assert!(found.iter().all(|&p| p > 1e-5), "{name}: {found:?}");
        all.extend(found);
    }
    assert!(uniformity(all.clone()) > 1e-3, "{all:?}");
}

/// Later drafts of a round are samples of other distributions than the first, and each is judged by its own.
#[test]
fn answers_drafted_recurrently_follow_the_models_own_distribution() {
    let mut all = Vec::new();
    let controllers = || [controller("fixed:4"), controller("goodput-ts"), Box::new(Adversary), Box::new(Gambler) as _];
    for (controller, trial) in controllers().into_iter().zip(500..) {
        let name = controller.spec();
        let mut backend = HashBackend::new(VOCAB, LIMITS, 100);
        backend.recurrent = true;
        let mut engine = engine_over(backend, controller);
        if trial % 2 == 1 {
            (engine, _) = proposing(engine, VOCAB, 128);
        }
        let found = p_values_of(engine, &|i| request(trial << 32 | i, false), 3, |_| true);
        assert!(found.iter().all(|&p| p > 1e-5), "{name}: {found:?}");
        all.extend(found);
    }
    assert!(uniformity(all.clone()) > 1e-3, "{all:?}");
}

/// The test of proposals sees what it is to see: a proposed token that is kept with the chance that a sample of the exit block's
/// distribution would be.
#[test]
fn proposals_taken_for_samples_of_the_draft_would_be_noticed() {
    let mut backend = HashBackend::new(VOCAB, LIMITS, 100);
    backend.proposals_are_samples = true;
    let (engine, _) = proposing(engine_over(backend, controller("off")), VOCAB, 128);
    let found = p_values_of(engine, &|i| request(400 << 32 | i, false), 3, |_| true);
    assert!(found.iter().any(|&p| p < 1e-9), "{found:?}");
}

/// All controllers; the seeds are those of trials from `first` on.
fn check(forbidding: bool, first: u64) {
    let controllers: Vec<Box<dyn Controller>> = vec![
        controller("off"),
        controller("fixed:4"),
        controller("threshold:0.4"),
        controller("beta-ts"),
        controller("goodput-ts"),
        Box::new(Adversary),
        Box::new(Gambler),
    ];
    let mut all = Vec::new();
    for (controller, trial) in controllers.into_iter().zip(first..) {
        let name = controller.spec();
        let found = p_values(controller, forbidding, trial);
        assert!(found.iter().all(|&p| p > 1e-5), "{name}: {found:?}");
        all.extend(found);
    }
    let uniformity = uniformity(all.clone());
    println!("{} p-values, uniform with p = {uniformity:.3}", all.len());
    assert!(uniformity > 1e-3, "{all:?}");
}
