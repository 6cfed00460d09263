//! Requests that arrive over simulated time: what an engine's steps cost is computed from what they did, so that hours
//! pass in seconds, and the same ones every time.

use eesd::TokenId;
use eesd::engine::{Completion, Engine, Event, Request, Totals};
use eesd::sample::{Philox, Purpose, SamplingParams};
use std::collections::BTreeMap;
use std::ops::ControlFlow;

/// A load to be played.
pub struct Load {
    pub requests: usize,
    /// Mean arrivals in a second.
    pub per_second: f64,
    /// Every now and then so many arrive at once.
    pub burst: usize,
    /// The part of the requests that are cancelled at some moment after their arrival.
    pub cancelled: f64,
    pub seed: u64,
}

/// Requests with their moments, in seconds.
pub struct Arrivals {
    requests: Vec<Request>,
    arrive: Vec<f64>,
    /// When, and who.
    cancel: Vec<(f64, usize)>,
}

/// What became of them.
pub struct Outcome {
    pub requests: Vec<Request>,
    pub done: BTreeMap<usize, Completion>,
    pub cancelled: BTreeMap<usize, Completion>,
    /// Those that got a token, in the order of their first one's step, then of arrival.
    pub first_tokens: Vec<usize>,
    /// Seconds from arrival to the first token.
    pub first_token: Vec<f64>,
    /// Seconds from arrival to the end.
    pub whole: Vec<f64>,
    /// Simulated time at the end.
    pub seconds: f64,
}

impl Arrivals {
    /// Poisson arrivals with bursts; prompts of 2 to 200 tokens, a third of them with a common beginning, and answers of
    /// up to 250, half of them not ended by end tokens. The seeds are what a controller draws by.
    pub fn new(load: &Load, vocab: usize) -> Self {
        let mut rng = Philox::new(load.seed, 0, Purpose::Controller, 0);
        let mut whole = |below: usize| (rng.uniform() * below as f64) as usize;
        let (mut arrivals, mut now, mut left_of_burst) =
            (Self { requests: Vec::new(), arrive: Vec::new(), cancel: Vec::new() }, 0.0, 0);
        for id in 0..load.requests {
            if left_of_burst > 0 {
                left_of_burst -= 1;
            } else {
                now += -((whole(1 << 30) + 1) as f64 / (1u64 << 30) as f64).ln() / load.per_second;
                left_of_burst = if whole(5 * load.burst) == 0 { load.burst } else { 0 };
            }
            let shared = if whole(3) == 0 { 64 + whole(65) } else { 0 };
            let own = 2 + whole(70);
            let beginning = (0..shared as TokenId).map(|i| i % 7);
            let prompt = beginning.chain((0..own).map(|_| whole(vocab) as TokenId)).collect();
            let ignore_end = whole(2) == 0;
            let sampling = SamplingParams { seed: Some(id as u64), ..SamplingParams::default() };
            arrivals.requests.push(Request { ignore_end, sampling, ..Request::new(prompt, 1 + whole(250)) });
            arrivals.arrive.push(now);
            if (whole(1000) as f64) < 1000.0 * load.cancelled {
                arrivals.cancel.push((now + whole(3000) as f64 / 1000.0, id));
            }
        }
        arrivals.cancel.sort_by(|a, b| a.0.total_cmp(&b.0));
        arrivals
    }

    /// Plays them to the end.
    pub fn play(self, engine: &mut Engine) -> Outcome {
        let Self { requests, arrive, cancel } = self;
        let (mut done, mut cancelled) = (BTreeMap::new(), BTreeMap::new());
        let (mut first_tokens, mut first_token, mut whole) = (Vec::new(), Vec::new(), Vec::new());
        let mut seen = vec![false; requests.len()];
        let (mut now, mut arrived, mut to_cancel) = (0.0, 0, 0);
        while arrived < requests.len() || !engine.is_idle() {
            if engine.is_idle() {
                now = arrive[arrived].max(now);
            }
            while arrived < requests.len() && arrive[arrived] <= now {
                engine.submit(arrived, requests[arrived].clone());
                arrived += 1;
            }
            while to_cancel < cancel.len() && cancel[to_cancel].0 <= now {
                let id = cancel[to_cancel].1;
                cancelled.extend(engine.cancel(id).map(|completion| (id, completion)));
                to_cancel += 1;
            }
            let before = engine.snapshot().totals;
            let (mut tokens_first, mut ended) = (Vec::new(), Vec::new());
            let flow = engine.step(&mut |id, event| {
                match event {
                    Event::Token(_) if !seen[id] => {
                        seen[id] = true;
                        tokens_first.push(id);
                    }
                    Event::Prefilled { .. } | Event::Token(_) => {}
                    Event::Done(completion) => {
                        assert!(done.insert(id, completion).is_none(), "request {id} is done twice");
                        ended.push(id);
                    }
                    Event::Failed(error) => panic!("request {id}: {error}"),
                }
                ControlFlow::Continue(())
            });
            assert!(flow.unwrap().is_continue());
            now += seconds(&before, &engine.snapshot().totals);
            tokens_first.sort_unstable();
            first_token.extend(tokens_first.iter().map(|&id| now - arrive[id]));
            whole.extend(ended.iter().map(|&id| now - arrive[id]));
            first_tokens.extend(tokens_first);
        }
        Outcome { requests, done, cancelled, first_tokens, first_token, whole, seconds: now }
    }
}

/// What a step between two counts would take on a slow machine: reading the weights 16 ms a pass, and each row 0.8 ms.
fn seconds(before: &Totals, after: &Totals) -> f64 {
    let steps = (after.rounds - before.rounds) as f64 + 0.2 * (after.draft_steps - before.draft_steps) as f64;
    let prefilled = after.prefilled_tokens - before.prefilled_tokens;
    let passes = steps + f64::from(u8::from(prefilled > 0));
    16e-3 * passes + 8e-4 * (after.rows - before.rows + prefilled) as f64
}

/// The time that a share of all stay below.
pub fn percentile(times: &[f64], share: f64) -> f64 {
    let mut sorted = times.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
        .get(((sorted.len() as f64 * share) as usize).min(sorted.len().saturating_sub(1)))
        .copied()
        .unwrap_or(f64::NAN)
}
