//! How fast a prompt is taken in.

use super::set::Set;
use crate::failure::Outcome;
use crate::interrupt;
use eesd::TokenId;
use eesd::engine::{Engine, Request};
use std::ops::ControlFlow;

/// The prefill of one prompt of a given length, made of the benchmark's own prompts.
pub struct Prefill {
    request: Request,
    /// Tokens of the prompt.
    pub length: usize,
}

impl Prefill {
    /// Of `length` tokens, two at least.
    pub fn of(sets: &[Set], length: usize) -> Self {
        let tokens = sets.iter().flat_map(Set::requests).flat_map(|request| &request.prompt).copied();
        let prompt: Vec<TokenId> = tokens.cycle().take(length.max(2)).collect();
        Self { length: prompt.len(), request: Request::new(prompt, 1) }
    }

    /// Tokens per second; `None` after an interrupt.
    ///
    /// # Errors
    /// If a pass fails.
    pub fn measure(&self, engine: &mut Engine) -> Outcome<Option<f64>> {
        if interrupt::pressed() {
            return Ok(None);
        }
        let done = engine.generate(&self.request, &mut |_| ControlFlow::Continue(()))?;
        // The last prompt token goes through the model with the first round.
        Ok(Some((self.length - 1) as f64 / done.stats.prefill.as_secs_f64()))
    }
}
