//! Requests through an engine.

use eesd::TokenId;
use eesd::engine::{Completion, Engine, Event, Request};
use std::ops::ControlFlow;

/// Runs requests, `batch` at a time; each has to be answered.
pub fn run(engine: &mut Engine, requests: &[Request], batch: usize) -> Vec<Completion> {
    let mut done: Vec<Option<Completion>> = vec![None; requests.len()];
    engine
        .run(&mut requests.iter().cloned(), batch, &mut |id, event| {
            match event {
                Event::Done(completion) => done[id] = Some(completion),
                Event::Failed(error) => panic!("request {id}: {error}"),
                Event::Prefilled { .. } | Event::Token(_) => {}
            }
            ControlFlow::Continue(())
        })
        .unwrap();
    done.into_iter().map(Option::unwrap).collect()
}

/// The ids of each answer.
pub fn tokens(completions: &[Completion]) -> Vec<&[TokenId]> {
    completions.iter().map(|completion| &completion.tokens[..]).collect()
}
