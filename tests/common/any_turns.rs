//! Constraints for property tests.

use super::turns::Turns;
use proptest::prelude::*;

/// Some of a vocabulary.
pub fn any_turns(vocab: usize) -> impl Strategy<Value = Turns> {
    (prop::sample::select(vec![5, 23, 101]), prop::bool::weighted(0.2)).prop_map(move |(sums, one_way)| Turns {
        vocab,
        sums,
        one_way,
    })
}
