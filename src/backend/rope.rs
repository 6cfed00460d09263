//! Rotary position embedding: tables of cosines and sines, and the rotation.

use super::BackendError;
use crate::model::{Rope, RopeScaling};
use std::f64::consts::TAU;

/// `cos` and `sin` of every (position, pair), computed in `f64`.
pub struct RopeTable {
    half: usize,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl RopeTable {
    /// Tables for positions `0..context` and heads of `head_dim`.
    ///
    /// # Errors
    /// If their memory cannot be had.
    pub fn new(rope: &Rope, head_dim: usize, context: usize) -> Result<Self, BackendError> {
        let half = head_dim / 2;
        let magnitude = match rope.scaling {
            RopeScaling::Yarn { attention_factor, .. } => attention_factor,
            _ => 1.0,
        };
        let numbers = context.saturating_mul(half);
        let mut table = Self { half, cos: reserved(numbers)?, sin: reserved(numbers)? };
        let mut turns = frequencies(rope, head_dim, 1);
        for position in 0..context {
            if let RopeScaling::Dynamic { original_max_positions, .. } = rope.scaling
                && position >= original_max_positions
            {
                turns = frequencies(rope, head_dim, position + 1);
            }
            for &turn in &turns {
                let (sin, cos) = (position as f64 * turn).sin_cos();
                table.cos.push((cos * magnitude) as f32);
                table.sin.push((sin * magnitude) as f32);
            }
        }
        Ok(table)
    }

    /// Cosine and sine of each pair at each position, `[positions, head_dim / 2, 2]`.
    ///
    /// # Errors
    /// If their memory cannot be had.
    pub fn pairs(&self) -> Result<Vec<f32>, BackendError> {
        let mut pairs = reserved(self.cos.len().saturating_mul(2))?;
        pairs.extend(self.cos.iter().zip(&self.sin).flat_map(|(&cos, &sin)| [cos, sin]));
        Ok(pairs)
    }

    /// Rotates one head: pair `i` is elements `i` and `i + head_dim / 2`, as in Hugging Face's models.
    pub fn rotate(&self, head: &mut [f32], position: usize) {
        let at = position * self.half..(position + 1) * self.half;
        let (low, high) = head[..2 * self.half].split_at_mut(self.half);
        let angles = self.cos[at.clone()].iter().zip(&self.sin[at]);
        for ((low, high), (cos, sin)) in low.iter_mut().zip(high).zip(angles) {
            (*low, *high) = (*low * cos - *high * sin, *high * cos + *low * sin);
        }
    }
}

/// Room for so many numbers.
fn reserved(numbers: usize) -> Result<Vec<f32>, BackendError> {
    let mut room = Vec::new();
    let bytes = numbers.saturating_mul(size_of::<f32>());
    room.try_reserve_exact(numbers).map_err(|_| BackendError::OutOfMemory { what: "rotary tables", bytes })?;
    Ok(room)
}

/// Radians per position of each pair, for a sequence of `length` tokens (which only the dynamic
/// scaling looks at). The formulas are those of Hugging Face's `modeling_rope_utils`.
fn frequencies(rope: &Rope, head_dim: usize, length: usize) -> Vec<f64> {
    let dim = head_dim as f64;
    let of_base = |base: f64| (0..head_dim / 2).map(move |pair| base.powf(-2.0 * pair as f64 / dim));
    match rope.scaling {
        RopeScaling::Default => of_base(rope.theta).collect(),
        RopeScaling::Linear { factor } => of_base(rope.theta).map(|turn| turn / factor).collect(),
        RopeScaling::Dynamic { factor, original_max_positions } => {
            let original = original_max_positions as f64;
            let stretch = factor * original.max(length as f64) / original - (factor - 1.0);
            of_base(rope.theta * stretch.powf(dim / (dim - 2.0))).collect()
        }
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions } => {
            let original = original_max_positions as f64;
            let stretched = |turn: f64| {
                // Rotations over the original context.
                let rotations = original * turn / TAU;
                if rotations > high_freq_factor {
                    turn
                } else if rotations < low_freq_factor {
                    turn / factor
                } else {
                    let smooth = (rotations - low_freq_factor) / (high_freq_factor - low_freq_factor);
                    (1.0 - smooth) * turn / factor + smooth * turn
                }
            };
            of_base(rope.theta).map(stretched).collect()
        }
        RopeScaling::Yarn { factor, beta_fast, beta_slow, truncate, original_max_positions, .. } => {
            // The pair that turns `rotations` times over the original context.
            let pair_of = |rotations: f64| {
                dim * (original_max_positions as f64 / (rotations * TAU)).ln() / (2.0 * rope.theta.ln())
            };
            let (mut low, mut high) = (pair_of(beta_fast), pair_of(beta_slow));
            if truncate {
                (low, high) = (low.floor(), high.ceil());
            }
            (low, high) = (low.max(0.0), high.min(dim - 1.0));
            if low == high {
                high += 0.001;
            }
            let ramp = |pair: usize| ((pair as f64 - low) / (high - low)).clamp(0.0, 1.0);
            let mix = |(pair, turn): (usize, f64)| turn / factor * ramp(pair) + turn * (1.0 - ramp(pair));
            of_base(rope.theta).enumerate().map(mix).collect()
        }
        RopeScaling::Divisors(ref divisors) => {
            of_base(rope.theta).zip(divisors).map(|(turn, divisor)| turn / divisor).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turns(scaling: RopeScaling, length: usize) -> Vec<f64> {
        frequencies(&Rope { theta: 10_000.0, scaling }, 64, length)
    }

    #[test]
    fn scalings_keep_what_they_must_and_stretch_the_rest() {
        let plain = turns(RopeScaling::Default, 1);
        assert_eq!(plain[0], 1.0);
        assert!((plain[16] - 0.01).abs() < 1e-15);
        let linear = turns(RopeScaling::Linear { factor: 4.0 }, 1);
        assert!(plain.iter().zip(&linear).all(|(a, b)| a / 4.0 == *b));
        let divisors = (0..32).map(|pair| f64::from(pair + 1)).collect();
        let divided = turns(RopeScaling::Divisors(divisors), 1);
        assert!(plain.iter().zip(&divided).enumerate().all(|(pair, (a, b))| a / (pair + 1) as f64 == *b));

        let llama3 = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_positions: 8192,
        };
        let yarn = RopeScaling::Yarn {
            factor: 8.0,
            beta_fast: 32.0,
            beta_slow: 1.0,
            attention_factor: 1.2,
            truncate: true,
            original_max_positions: 2048,
        };
        for scaled in [turns(llama3, 1), turns(yarn, 1)] {
            assert_eq!(scaled[0], plain[0]);
            assert!((scaled[31] - plain[31] / 8.0).abs() < 1e-15);
            assert!(plain.iter().zip(&scaled).all(|(a, b)| b <= a && *b >= a / 8.0 - 1e-15));
        }
    }

    #[test]
    fn dynamic_scaling_starts_past_the_original_context() {
        let dynamic = RopeScaling::Dynamic { factor: 2.0, original_max_positions: 100 };
        assert_eq!(turns(dynamic.clone(), 100), turns(RopeScaling::Default, 1));
        let longer = turns(dynamic.clone(), 200);
        let base = 10_000.0f64 * 3.0f64.powf(64.0 / 62.0);
        assert!((longer[1] - base.powf(-1.0 / 32.0)).abs() < 1e-15);
        let table = RopeTable::new(&Rope { theta: 10_000.0, scaling: dynamic }, 64, 201).unwrap();
        let angle = 199.0 * longer[1];
        assert!((f64::from(table.cos[199 * 32 + 1]) - angle.cos()).abs() < 1e-7);
    }

    #[test]
    fn a_table_that_no_memory_holds_is_an_error() {
        let rope = Rope { theta: 10_000.0, scaling: RopeScaling::Default };
        for (head_dim, context) in [(1 << 21, 1 << 40), (1 << 12, usize::MAX)] {
            let error = RopeTable::new(&rope, head_dim, context).err().expect("nobody has that much");
            assert!(matches!(error, BackendError::OutOfMemory { what: "rotary tables", .. }), "{error}");
        }
    }

    #[test]
    fn rotation_turns_pairs_half_a_head_apart() {
        let table = RopeTable::new(&Rope { theta: 10_000.0, scaling: RopeScaling::Default }, 4, 8).unwrap();
        let mut head = [1.0, 0.0, 0.0, 2.0];
        table.rotate(&mut head, 3);
        let expected = [3f64.cos(), -2.0 * 0.03f64.sin(), 3f64.sin(), 2.0 * 0.03f64.cos()];
        assert!(head.iter().zip(expected).all(|(a, b)| (f64::from(*a) - b).abs() < 1e-6), "{head:?}");
    }
}
