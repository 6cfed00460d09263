//! Another cost of verification, told from another speed.

use super::Pass;

/// How far verification and draft steps of a round may be apart, each over what was expected, and in how many rounds in a row
/// they have to be further apart to tell of another cost.
const APART: f64 = 1.3;
const TELL_OF_A_CHANGE: usize = 4;

/// Verifications of drafts, one after the other, that all took much longer than draft steps of the same rounds would tell, or
/// all much less: no other speed, but another cost, as where a program takes a core that only wide passes need.
#[derive(Debug, Clone, Default)]
pub struct Moved {
    /// With the speed that the draft steps tell.
    passes: Vec<(Pass, f64)>,
    longer: bool,
}

impl Moved {
    /// Takes in a verification and what it and its draft steps took over what was expected; returns those that tell of
    /// another cost, once there are enough.
    pub fn observe(&mut self, pass: Pass, drafting: f64, verifying: f64) -> Option<Vec<(Pass, f64)>> {
        let longer = verifying > drafting;
        let far = verifying.max(drafting) > APART * verifying.min(drafting);
        if !far || longer != self.longer {
            self.passes.clear();
        }
        if far {
            self.longer = longer;
            self.passes.push((pass, drafting));
        }
        (self.passes.len() >= TELL_OF_A_CHANGE).then(|| std::mem::take(&mut self.passes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_told_by_rounds_in_a_row_that_agree() {
        let pass = Pass { rows: 8, fresh: 4, seconds: 1.0 };
        for (drafting, verifying) in [(1.0, 2.0), (1.0, 0.5), (2.0, 1.0)] {
            let mut moved = Moved::default();
            for _ in 0..9 {
                // All of the machine may be slower; and nothing is told by single rounds, or by some one way and some the other.
                for (drafting, verifying) in [(2.0, 2.0), (drafting, verifying), (verifying, drafting), (2.0, 2.1)] {
                    assert!(moved.observe(pass, drafting, verifying).is_none());
                }
            }
            for _ in 1..TELL_OF_A_CHANGE {
                assert!(moved.observe(pass, drafting, verifying).is_none());
            }
            let passes = moved.observe(pass, drafting, verifying).unwrap();
            assert!(
                passes.len() == TELL_OF_A_CHANGE && passes.iter().all(|(_, speed)| *speed == drafting),
                "{passes:?}"
            );
            assert!(moved.observe(pass, drafting, verifying).is_none(), "told once");
        }
    }
}
