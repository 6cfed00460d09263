//! Stop strings in a text that arrives piece by piece.

/// Holds back the end of a text for as long as it may still turn out to be part of a stop string.
#[derive(Debug, Default)]
pub(super) struct StopMatcher {
    stops: Vec<String>,
    held: String,
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
        Self { stops, held: String::new() }
    }

    /// Takes the next piece. The stop string that is complete first wins, and of several complete at
    /// once the longest: so the cut does not depend on how the text was divided into pieces.
    pub fn push(&mut self, piece: &str) -> Release {
        self.held.push_str(piece);
        let first = |(i, stop): (usize, &String)| self.held.find(stop.as_str()).map(|at| (at + stop.len(), at, i));
        if let Some((_, start, stop)) = self.stops.iter().enumerate().filter_map(first).min() {
            self.held.truncate(start);
            return Release { text: std::mem::take(&mut self.held), stop: Some(self.stops[stop].clone()) };
        }
        let keep = self.stops.iter().map(|stop| overlap(&self.held, stop)).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - keep);
        Release { text: std::mem::replace(&mut self.held, rest), stop: None }
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

    /// Where a text of single characters would be cut: at the first moment a stop string is complete.
    fn cut_by_characters(text: &str, stops: &[String]) -> Option<String> {
        for end in (1..=text.len()).filter(|&i| text.is_char_boundary(i)) {
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
        ) {
            let text = pieces.concat();
            let mut matcher = StopMatcher::new(stops.clone());
            let mut out = String::new();
            let mut stopped = false;
            for piece in &pieces {
                let release = matcher.push(piece);
                out += &release.text;
                if release.stop.is_some() {
                    stopped = true;
                    break;
                }
            }
            match cut_by_characters(&text, &stops) {
                Some(cut) => prop_assert!(stopped && out == cut, "{out:?} instead of {cut:?}"),
                None => prop_assert!(!stopped && out + &matcher.finish() == text),
            }
        }
    }

    #[test]
    fn holds_back_only_what_may_become_a_stop_string() {
        let mut matcher = StopMatcher::new(vec!["\n\n".into()]);
        assert_eq!(matcher.push("a\n"), Release { text: "a".into(), stop: None });
        assert_eq!(matcher.push("b"), Release { text: "\nb".into(), stop: None });
        assert_eq!(matcher.push("c\n\nd"), Release { text: "c".into(), stop: Some("\n\n".into()) });
    }
}
