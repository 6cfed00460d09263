//! Stop strings in a text that arrives piece by piece.

/// Holds back the end of a text for as long as it may still turn out to be part of a stop string.
#[derive(Debug, Default)]
pub(super) struct StopMatcher {
    stops: Vec<String>,
    held: String,
    /// Bytes of what is held in which no stop string may end.
    passed: usize,
}

/// What [`StopMatcher::push`] found out.
#[derive(Debug, PartialEq)]
pub(super) struct Release {
    /// Text that is certain now.
    pub text: String,
    /// The stop string that the text ran into; nothing after `text` is to be emitted.
    pub stop: Option<String>,
}

impl StopMatcher {
    /// A matcher of `stops`, none of them empty.
    pub fn new(stops: Vec<String>) -> Self {
        Self { stops, held: String::new(), passed: 0 }
    }

    /// Takes the next piece. The stop string that is complete first wins, and of several complete at
    /// once the longest: so the cut does not depend on how the text was divided into pieces.
    pub fn push(&mut self, piece: &str) -> Release {
        self.held.push_str(piece);
        let first = |(i, stop): (usize, &String)| {
            let from = (self.passed + 1).saturating_sub(stop.len());
            let from = (from..=self.held.len()).find(|&at| self.held.is_char_boundary(at))?;
            let at = from + self.held[from..].find(stop.as_str())?;
            Some((at + stop.len(), at, i))
        };
        if let Some((_, start, stop)) = self.stops.iter().enumerate().filter_map(first).min() {
            self.held.truncate(start);
            return Release { text: std::mem::take(&mut self.held), stop: Some(self.stops[stop].clone()) };
        }
        let text = self.certain();
        self.passed = self.passed.saturating_sub(text.len());
        Release { text, stop: None }
    }

    /// Takes the next piece, with which no stop string counts as complete; returns what is certain. A later piece may
    /// complete one that begins here.
    pub fn pass(&mut self, piece: &str) -> String {
        self.held.push_str(piece);
        let text = self.certain();
        self.passed = self.held.len();
        text
    }

    /// Lets go of what is not the beginning of a stop string.
    fn certain(&mut self) -> String {
        let keep = self.stops.iter().map(|stop| overlap(&self.held, stop)).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - keep);
        std::mem::replace(&mut self.held, rest)
    }

    /// The text ends here: what was held back is certain.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// Bytes of the longest end of `text` that is a beginning of `stop`, but not all of it.
fn overlap(text: &str, stop: &str) -> usize {
    let longest = text.len().min(stop.len() - 1);
    (1..=longest).rev().find(|&n| stop.is_char_boundary(n) && text.ends_with(&stop[..n])).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Where a text of single characters would be cut: at the first moment, after its first `passed` bytes, that a stop
    /// string is complete.
    fn cut_by_characters(text: &str, passed: usize, stops: &[String]) -> Option<String> {
        for end in (passed + 1..=text.len()).filter(|&i| text.is_char_boundary(i)) {
            let seen = &text[..end];
            if let Some(stop) = stops.iter().filter(|s| seen.ends_with(s.as_str())).max_by_key(|s| s.len()) {
                return Some(seen[..end - stop.len()].to_owned());
            }
        }
        None
    }

    proptest! {
        #[test]
        fn the_cut_does_not_depend_on_the_pieces(
            pieces in prop::collection::vec("[abé]{0,4}", 0..12),
            stops in prop::collection::vec("[abé]{1,4}", 1..4),
            passed in prop_oneof![Just(0), 0usize..5],
        ) {
            let text = pieces.concat();
            let (early, late) = pieces.split_at(passed.min(pieces.len()));
            let mut matcher = StopMatcher::new(stops.clone());
            let mut out: String = early.iter().map(|piece| matcher.pass(piece)).collect();
            let mut stopped = false;
            for piece in late {
                let release = matcher.push(piece);
                out += &release.text;
                if release.stop.is_some() {
                    stopped = true;
                    break;
                }
            }
            match cut_by_characters(&text, early.concat().len(), &stops) {
                Some(cut) => prop_assert!(stopped && out == cut, "{out:?} instead of {cut:?}"),
                None => prop_assert!(!stopped && out + &matcher.finish() == text),
            }
        }
    }

    #[test]
    fn stop_strings_count_from_where_they_are_looked_for() {
        let matcher = || StopMatcher::new(vec!["ab".into()]);
        let mut all_passed = matcher();
        assert_eq!((all_passed.pass("xaby"), all_passed.push("z").text), ("xaby".into(), "z".into()));
        let mut complete_later = matcher();
        assert_eq!(complete_later.pass("aba"), "ab", "the end may be the beginning of one");
        assert_eq!(complete_later.push("b"), Release { text: String::new(), stop: Some("ab".into()) });
        let mut nothing_follows = matcher();
        assert_eq!((nothing_follows.pass("aba"), nothing_follows.finish()), ("ab".into(), "a".into()));
    }

    #[test]
    fn holds_back_only_what_may_become_a_stop_string() {
        let mut matcher = StopMatcher::new(vec!["\n\n".into()]);
        assert_eq!(matcher.push("a\n"), Release { text: "a".into(), stop: None });
        assert_eq!(matcher.push("b"), Release { text: "\nb".into(), stop: None });
        assert_eq!(matcher.push("c\n\nd"), Release { text: "c".into(), stop: Some("\n\n".into()) });
    }
}
