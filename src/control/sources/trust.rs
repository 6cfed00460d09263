//! How far what a source proposes is to be trusted.
//!
//! A proposed token is as good as its [`Evidence`]. Evidence falls into bins: by the tokens that match before it, and by the
//! places that go on with it. Per source and bin a decaying Beta posterior of agreement with the text is kept, which
//! begins where lookups in a chat model's answers to six public sets of prompts were, and per sequence and source a
//! [`Level`], because some texts repeat themselves and others only seem to.

use crate::control::posterior::{Beta, Counts, Level};
use crate::draft::{Evidence, Source};
use crate::sample::Philox;
use serde_json::{Value, json};
use std::borrow::Cow;
use std::collections::BTreeMap;

/// Most matching tokens of all bins but the last.
const MATCHED: [usize; 5] = [1, 2, 3, 5, 9];
const KINDS: usize = 4;
/// Agreement before anything is learned, rounded from answers of SmolLM2-135M-Instruct (benches/RESULTS.md has it on others, and
/// how to measure it): by matching tokens; of places fewer than six in ten go on so, not all do, only one was found, all of
/// several do.
const USUAL: [[f64; KINDS]; MATCHED.len() + 1] = [
    [0.10, 0.40, 0.30, 0.55],
    [0.24, 0.46, 0.54, 0.77],
    [0.25, 0.46, 0.65, 0.80],
    [0.35, 0.50, 0.72, 0.81],
    [0.35, 0.60, 0.80, 0.88],
    [0.35, 0.60, 0.92, 0.97],
];
/// Tests that this counts for in each bin.
const PRIOR: f64 = 8.0;
/// What a bin's counts are multiplied by per test in it.
const DECAY: f64 = 0.998;
/// Forgetting per test of a sequence's level.
const DECAYS: [f64; 3] = [0.9, 0.97, 1.0];
/// Tests that a draw rests on at least.
const LEAST_STRENGTH: f64 = 8.0;

/// What is believed of all sources.
#[derive(Debug, Clone)]
pub struct Trust {
    /// By source and bin.
    bins: BTreeMap<Source, [[Counts; KINDS]; MATCHED.len() + 1]>,
    /// By slot and source.
    levels: BTreeMap<(usize, Source), Level>,
    /// A level as the last sequence left it: which decays to trust.
    trusted: Level,
}

impl Default for Trust {
    fn default() -> Self {
        let (bins, levels) = Default::default();
        Self { bins, levels, trusted: Level::new(&DECAYS).and_alike() }
    }
}

impl Trust {
    /// A new sequence takes `slot`.
    pub fn start(&mut self, slot: usize) {
        self.levels.retain(|&(of, _), _| of != slot);
    }

    /// The chances that a proposal's tokens are right up to each, with a draw in place of the mean of the first one's, by
    /// which all others stand or fall too.
    pub fn survivals(&self, slot: usize, source: Source, evidence: &[Evidence], rng: &mut Philox) -> Vec<f64> {
        let fresh = || Cow::Owned(self.trusted.fresh(1.0));
        let level = self.levels.get(&(slot, source)).map_or_else(fresh, Cow::Borrowed);
        let mut factor = None;
        let mut survival = 1.0;
        let survive = |evidence: &Evidence| {
            survival *= level.predict(self.rate(source, evidence));
            let strength = level.tests() + LEAST_STRENGTH;
            let first = || Beta::with_mean(survival, strength).sample(rng) / survival.max(f64::MIN_POSITIVE);
            survival * *factor.get_or_insert_with(first)
        };
        evidence.iter().map(survive).collect()
    }

    /// Learns that the first `agreed` tokens of a proposal were right, and if `refused`, that the next one was not.
    pub fn observe(&mut self, slot: usize, source: Source, evidence: &[Evidence], agreed: usize, refused: bool) {
        for (i, evidence) in evidence.iter().take(agreed + usize::from(refused)).enumerate() {
            let expected = self.rate(source, evidence);
            let level = self.levels.entry((slot, source)).or_insert_with(|| self.trusted.fresh(1.0));
            level.observe(expected, i < agreed);
            self.trusted.clone_from(level);
            let (row, kind) = bin(evidence);
            let counts = &mut self.bins.entry(source).or_default()[row][kind];
            let success = f64::from(u8::from(i < agreed));
            counts.decay(DECAY);
            counts.add(success, 1.0 - success);
        }
    }

    /// Expected agreement on such evidence.
    fn rate(&self, source: Source, evidence: &Evidence) -> f64 {
        let (row, kind) = bin(evidence);
        let usual = USUAL[row][kind];
        let counts = self.bins.get(&source).map_or(Counts::default(), |bins| bins[row][kind]);
        counts.posterior(PRIOR * usual, PRIOR * (1.0 - usual)).mean()
    }

    /// For people: by source, agreement and tests in each bin.
    pub fn state(&self) -> Value {
        let bin = |counts: &Counts| json!([counts.successes, counts.failures]);
        let rows = |bins: &[[Counts; KINDS]; MATCHED.len() + 1]| -> Value {
            bins.iter().map(|row| row.iter().map(bin).collect::<Value>()).collect()
        };
        let of_source = |(source, bins): (&Source, _)| (source.name().to_owned(), rows(bins));
        Value::Object(self.bins.iter().map(of_source).collect())
    }
}

fn bin(evidence: &Evidence) -> (usize, usize) {
    let kind = match *evidence {
        Evidence { share, .. } if share < 0.6 => 0,
        Evidence { share, .. } if share < 1.0 => 1,
        Evidence { seen: 1, .. } => 2,
        _ => 3,
    };
    (MATCHED.iter().take_while(|&&most| evidence.matched > most).count(), kind)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::Purpose;

    fn evidence(matched: usize, share: f32, seen: usize) -> Evidence {
        Evidence { matched, share, seen }
    }

    fn mean(trust: &Trust, slot: usize, source: Source, evidence: &[Evidence]) -> Vec<f64> {
        let draws =
            (0..400).map(|i| trust.survivals(slot, source, evidence, &mut Philox::new(1, i, Purpose::Controller, 0)));
        let sums = draws.reduce(|a, b| a.iter().zip(b).map(|(a, b)| a + b).collect()).unwrap();
        sums.into_iter().map(|sum| sum / 400.0).collect()
    }

    #[test]
    fn all_evidence_falls_into_a_bin() {
        assert_eq!(bin(&evidence(0, 1.0, 1)), (0, 2));
        assert_eq!([1, 2, 3, 4, 5, 6, 9, 10, 999].map(|n| bin(&evidence(n, 1.0, 2)).0), [0, 1, 2, 3, 3, 4, 4, 5, 5]);
        assert_eq!(bin(&evidence(2, 0.5, 2)).1, 0);
        assert_eq!(bin(&evidence(2, 0.8, 4)).1, 1);
        assert_eq!(bin(&evidence(2, f32::NAN, 4)).1, 3);
    }

    #[test]
    fn longer_matches_and_more_places_are_trusted_more_from_the_first_one_on() {
        let first = |e| mean(&Trust::default(), 0, Source::Lookup, &[e])[0];
        assert!(first(evidence(1, 1.0, 1)) < first(evidence(3, 1.0, 1)));
        assert!(first(evidence(3, 1.0, 1)) < first(evidence(12, 1.0, 1)));
        assert!(first(evidence(3, 1.0, 1)) < first(evidence(3, 1.0, 3)));
    }

    #[test]
    fn what_agreed_is_learned_by_source_and_what_was_not_tested_is_not() {
        let mut trust = Trust::default();
        let two = [evidence(2, 1.0, 1), evidence(3, 1.0, 1)];
        (0..300).for_each(|_| trust.observe(0, Source::Lookup, &two, 1, false));
        (0..300).for_each(|_| trust.observe(0, Source::Shared, &two, 0, true));
        trust.start(0);
        let lookup = mean(&trust, 0, Source::Lookup, &two);
        assert!(lookup[0] > 0.9 && (lookup[1] / lookup[0] - 0.65).abs() < 0.06, "{lookup:?}");
        assert!(mean(&trust, 0, Source::Shared, &two)[0] < 0.1);
    }

    #[test]
    fn a_text_that_only_seems_to_repeat_is_found_out_and_the_next_one_begins_anew() {
        let mut trust = Trust::default();
        let one = [evidence(2, 1.0, 1)];
        for i in 0..400 {
            trust.observe(0, Source::Lookup, &one, usize::from(i % 2 == 0), i % 2 != 0);
        }
        trust.start(1);
        (0..12).for_each(|_| trust.observe(1, Source::Lookup, &one, 0, true));
        let (other, this) = (mean(&trust, 0, Source::Lookup, &one)[0], mean(&trust, 1, Source::Lookup, &one)[0]);
        assert!(this < 0.6 * other, "{this} {other}");
        trust.start(1);
        assert!(mean(&trust, 1, Source::Lookup, &one)[0] > 0.8 * other);
    }
}
