//! `grammar`: what has to follow by the answer's grammar, as the names of a JSON schema's properties.

use super::{Evidence, Proposal, Proposer, Source, Text};

/// What a forced token rests on: nothing else may stand there, but for another way to cut the same text into tokens.
const CERTAIN: Evidence = Evidence { matched: usize::MAX, share: 1.0, seen: 2 };

/// Proposes what a constraint leaves no choice about.
#[derive(Debug, Default)]
pub struct Forced;

impl Proposer for Forced {
    fn source(&self) -> Source {
        Source::Grammar
    }

    fn propose(&mut self, text: &Text<'_>, most: usize) -> Proposal {
        let tokens = text.forced[..most.min(text.forced.len())].to_vec();
        Proposal { evidence: vec![CERTAIN; tokens.len()], tokens }
    }

    fn end(&mut self, _text: &Text<'_>, _finished: bool) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_forced_is_proposed_as_far_as_there_is_room() {
        let text = Text { sequence: 0, tokens: &[1, 2], committed: 2, forced: &[7, 8, 9] };
        assert_eq!(Forced.propose(&text, 2).tokens, [7, 8]);
        assert_eq!(Forced.propose(&text, 5).evidence, [CERTAIN; 3]);
        assert_eq!(Forced.propose(&Text { forced: &[], ..text }, 5), Proposal::default());
    }
}
