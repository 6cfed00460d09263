//! What a block reaches, in words.

use eesd::backend::training::loss::{LossSum, Losses};
use eesd::model::cost::DraftCosts;
use std::fmt;

/// Most drafts of a round that the cost model looks at.
const MAX_DRAFT: usize = 16;

/// A line of what a block reaches on held-out text.
pub fn reached(losses: Option<&Losses>) -> String {
    let Some(losses) = losses else {
        return "nothing was held out, so nothing is known of what it reaches".into();
    };
    let means = losses.first().mean();
    let first = format!(
        "on held-out text: top-1 agreement {:.3}, mean 1 - TV {:.3}, KL {:.3} nats",
        means.agreement, means.overlap, means.divergence
    );
    if losses.steps.len() < 2 {
        return first;
    }
    let [agreements, overlaps] = [by_draft(losses, |means| means.agreement), by_draft(losses, |means| means.overlap)];
    format!("{first}; draft by draft: top-1 {agreements}, 1 - TV {overlaps}")
}

/// A figure of each draft of a round.
pub fn by_draft(losses: &Losses, figure: impl Fn(&LossSum) -> f64) -> String {
    losses.drafts().iter().map(|sums| format!("{:.3}", figure(&sums.mean()))).collect::<Vec<_>>().join(" ")
}

/// What the cost model says of drafts that are accepted as often as on held-out text, by bytes read.
pub fn worth(costs: DraftCosts, reached: Option<&Losses>) -> String {
    let Some(losses) = reached.filter(|losses| !losses.drafts().is_empty()) else { return String::new() };
    let (mut best, mut speed) = ((0, 1.0), 1.0);
    let (mut tokens, mut kept) = (1.0, 1.0);
    for drafts in 1..=MAX_DRAFT {
        // Steps that were not trained are taken to be as good as the last one that was.
        kept *= losses.drafts()[drafts.min(losses.drafts().len()) - 1].mean().overlap;
        tokens += kept;
        let reached = tokens / (1.0 + costs.sum(drafts));
        if reached > speed {
            (best, speed) = ((drafts, tokens), reached);
        }
    }
    match best {
        (0, _) => "; no draft pays at temperature 1, even where decoding waits for memory".into(),
        (drafts, tokens) => format!(
            "; where decoding waits for memory, {drafts} drafts a round would give {tokens:.2} tokens and {speed:.2}x at \
             temperature 1"
        ),
    }
}

/// A draft vocabulary, and what it is of the training data.
pub struct Coverage {
    pub drafted: usize,
    pub vocab: usize,
    /// The part of the tokens learned from that can be drafted.
    pub share: f64,
}

impl fmt::Display for Coverage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { drafted, vocab, share } = self;
        write!(f, "drafts {drafted} of {vocab} tokens, which are {:.1} % of those to learn", 100.0 * share)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn losses(overlaps: &[f64]) -> Losses {
        let sums = |&overlap: &f64| LossSum { weight: 2.0, overlap: 2.0 * overlap, ..LossSum::default() };
        Losses { steps: overlaps.iter().map(sums).collect() }
    }

    #[test]
    fn worth_is_that_of_the_best_number_of_drafts() {
        let said = worth(0.1.into(), Some(&losses(&[0.5])));
        assert!(said.contains("2 drafts a round would give 1.75 tokens and 1.46x"), "{said}");
        // A second draft that costs next to nothing pays even where it is seldom kept.
        let said = worth(DraftCosts { first: 0.4, later: 0.01 }, Some(&losses(&[0.9, 0.5, 0.1])));
        assert!(said.contains("2 drafts a round would give 1.55 tokens and 1.10x"), "{said}");
        assert!(worth(0.9.into(), Some(&losses(&[0.5]))).contains("no draft pays"));
        assert_eq!(worth(0.1.into(), None), "");
    }
}
