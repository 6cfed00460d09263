//! The cascade: what a lookup found goes through the first layers and the exit block in one pass of several rows; it is
//! cut where the exit block is sure of another token, which takes its place, and only what is left is verified.
//!
//! Every policy here is fixed, and the best one is chosen in hindsight, with the cascade and without.

use crate::simulator::MAX_DRAFT;
use crate::simulator::recorded::RowCosts;
use crate::simulator::sources::Sourced;
use std::fmt;

/// Tokens of each lookup, and drafts of the exit block where nothing is found.
const LOOKUPS: [usize; 8] = [0, 1, 2, 3, 4, 6, 8, 12];
const DRAFTS: [usize; 6] = [0, 1, 2, 3, 4, 6];
/// How sure the exit block has to be of another token.
const SURE: [f32; 6] = [0.0, 0.3, 0.5, 0.7, 0.9, 1.0];

/// A fixed policy.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Policy {
    lookup: usize,
    drafts: usize,
    /// Of the cascade, if there is one.
    sure: Option<f32>,
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {}", self.lookup, self.drafts)?;
        self.sure.map_or(Ok(()), |sure| write!(f, ", cut above {sure}"))
    }
}

/// The best policies without and with the cascade, and their speeds over plain decoding.
pub fn best(costs: &RowCosts, texts: &[Vec<Sourced>]) -> [(Policy, f64); 2] {
    let lengths = || LOOKUPS.iter().flat_map(|&lookup| DRAFTS.map(|drafts| (lookup, drafts)));
    let without = lengths().map(|(lookup, drafts)| Policy { lookup, drafts, sure: None });
    let with = lengths().flat_map(|(lookup, drafts)| SURE.map(|sure| Policy { lookup, drafts, sure: Some(sure) }));
    let best = |policies: &mut dyn Iterator<Item = Policy>| {
        let played = policies.map(|policy| (policy, play(policy, costs, texts)));
        played.max_by(|a, b| a.1.total_cmp(&b.1)).expect("there are policies")
    };
    [best(&mut without.into_iter()), best(&mut with.into_iter())]
}

/// Tokens per plain round's time.
fn play(policy: Policy, costs: &RowCosts, texts: &[Vec<Sourced>]) -> f64 {
    let (mut tokens, mut time) = (0, 0.0);
    for text in texts {
        let mut at = 0;
        while at < text.len() {
            let (emitted, took) = round(policy, costs, &text[at..]);
            at += emitted;
            tokens += emitted;
            time += took;
        }
    }
    tokens as f64 / time
}

/// Tokens of a round at the start of `text`, and its time.
fn round(policy: Policy, costs: &RowCosts, text: &[Sourced]) -> (usize, f64) {
    let right = |at: usize| text.get(at).is_some_and(|position| position.exit.accepted);
    // The last token of a text need not be drafted.
    let room = MAX_DRAFT.min(text.len() - 1);
    let found = text[0].found.as_ref().map(|found| (found.evidence.len().min(policy.lookup).min(room), found));
    let Some((taken, found)) = found.filter(|(taken, _)| *taken > 0) else {
        let drafts = policy.drafts.min(room);
        let accepted = (0..drafts).take_while(|&at| right(at)).count();
        return (accepted + 1, drafts as f64 * costs.draft(1) + costs.verify(drafts + 1, drafts));
    };
    let agreed = found.agreed.min(taken);
    let Some(sure) = policy.sure else { return (agreed + 1, costs.verify(taken + 1, 0)) };
    // On the text's own path; what the exit block says after a wrong token that it let pass is not known, so all of that stays.
    let refuses = |at: &usize| {
        let agrees = if *at < found.agreed { right(*at) } else { found.fooled };
        !agrees && text[*at].exit.confidence >= sure
    };
    let kept = (0..=agreed).take(taken).find(refuses).unwrap_or(taken);
    // The exit block's own token follows what is kept, if there is room.
    let own = usize::from(kept < room);
    let accepted = if kept <= agreed { kept + own * usize::from(right(kept)) } else { agreed };
    (accepted + 1, costs.draft(taken + 1) + costs.verify(kept + own + 1, taken.min(kept) + 1))
}
