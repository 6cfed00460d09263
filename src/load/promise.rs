//! What an exit block promises on a model: where there are several, the one that promises most drafts unless another is
//! asked for.

use super::ExitBlock;
use crate::model::ModelWeights;
use crate::model::cost::{self, DraftCosts};
use std::fmt;

/// What distillation writes into a block's metadata: on text that it was not trained on, how much of the model's
/// distribution the block's covers, which is the chance that a sampled draft is accepted.
const HELD_OUT: &str = "held_out_overlap";
/// Acceptance of a block whose file says nothing of it.
const ASSUMED: f64 = 0.6;
/// Most drafts in a round that are considered.
const MOST_DRAFTS: usize = 16;

/// What an exit block should gain.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Promise {
    /// Part of the drafts that are accepted.
    pub acceptance: f64,
    /// Whether the block's file says so, of text held out of its training; else it is assumed.
    pub held_out: bool,
    /// Drafts a round, one or more, with which it gains most.
    pub drafts: usize,
    /// Speed with them against plain decoding, where reading weights is what costs; below 1 where it does not pay.
    pub speed_up: f64,
}

impl ExitBlock {
    /// What it promises on its model, whose weights these are, perhaps quantised.
    pub fn promise(&self, model: &ModelWeights<'_>) -> Promise {
        let said = self.metadata().get(HELD_OUT).and_then(|text| text.parse::<f64>().ok());
        let said = said.filter(|acceptance| (0.0..=1.0).contains(acceptance));
        let acceptance = said.unwrap_or(ASSUMED);
        let costs = DraftCosts::of(model, &self.weights());
        let lengths = (1..=MOST_DRAFTS).map(|drafts| (drafts, cost::speed_up(costs, acceptance, drafts)));
        let best = lengths.reduce(|best, next| if next.1 > best.1 { next } else { best });
        let (drafts, speed_up) = best.unwrap_or((1, 1.0));
        Promise { acceptance, held_out: said.is_some(), drafts, speed_up }
    }
}

impl fmt::Display for Promise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { acceptance, held_out, drafts, speed_up } = self;
        let how = if *held_out { "accepted on held-out text" } else { "accepted, which is assumed" };
        let s = if *drafts == 1 { "" } else { "s" };
        write!(f, "{speed_up:.2}x with {drafts} draft{s} a round at {acceptance:.2} {how}")
    }
}

/// Index of the block that promises most on the model, of equal ones the first; `None` where there are no blocks.
pub fn most_promising(blocks: &[ExitBlock], model: &ModelWeights<'_>) -> Option<usize> {
    let promises = blocks.iter().map(|block| block.promise(model).speed_up).enumerate();
    promises.reduce(|best, next| if next.1 > best.1 { next } else { best }).map(|(index, _)| index)
}
