//! Rotary position embedding of a batch's queries or keys, and its gradient.

use super::real::Real;
use rayon::prelude::*;

/// Cosine and sine of each pair at each position, `[positions, head_dim / 2]` of `(cos, sin)`.
pub struct Rotary<R> {
    half: usize,
    turns: Vec<(R, R)>,
}

impl<R: Real> Rotary<R> {
    /// From `[positions, head_dim / 2, 2]`.
    pub fn new(pairs: &[f32], head_dim: usize) -> Self {
        let turn = |pair: &[f32]| (R::of(pair[0].into()), R::of(pair[1].into()));
        Self { half: head_dim / 2, turns: pairs.chunks_exact(2).map(turn).collect() }
    }

    /// Positions there are.
    pub fn positions(&self) -> usize {
        self.turns.len() / self.half
    }

    /// Rotates every head of `x` `[positions.len(), width]`; a row's position is in `positions`.
    pub fn rotate(&self, x: &mut [R], width: usize, positions: &[usize]) {
        self.turn(x, width, positions, |sin| sin);
    }

    /// Turns gradients of rotated heads into those of the heads before: the transposed rotation.
    pub fn rotate_back(&self, x: &mut [R], width: usize, positions: &[usize]) {
        self.turn(x, width, positions, |sin| -sin);
    }

    /// Pair `i` is elements `i` and `i + head_dim / 2`, as in Hugging Face's models.
    fn turn(&self, x: &mut [R], width: usize, positions: &[usize], direction: impl Fn(R) -> R + Sync) {
        x.par_chunks_exact_mut(width).zip(positions).for_each(|(row, &position)| {
            let turns = &self.turns[position * self.half..][..self.half];
            for head in row.chunks_exact_mut(2 * self.half) {
                let (low, high) = head.split_at_mut(self.half);
                for ((low, high), &(cos, sin)) in low.iter_mut().zip(high).zip(turns) {
                    let sin = direction(sin);
                    (*low, *high) = (*low * cos - *high * sin, *high * cos + *low * sin);
                }
            }
        });
    }
}
