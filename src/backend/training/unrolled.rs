//! The block unrolled along the chains of a batch: what each step reads, and the way back through all of them.
//!
//! Step 0 reads `A h_N` (or `h_N`), and so do the keys of the text. Step `j` reads `R [s ; e]`: the residual stream after
//! the layer in step `j - 1`, and the normalised embedding of the token that the text has there, which is what a round that
//! is accepted so far has drafted.

use super::TeacherBatch;
use super::attention::KeysValues;
use super::chains::Chains;
use super::layer::{Activations, Frame, Inputs, KeyGradients, Keys, add, multiply, multiply_backward};
use super::real::Real;

/// A forward pass, as the backward pass needs it.
pub struct Unrolled<R> {
    /// `h_N` of the rows that are seen, if the block has a matrix for it.
    hidden: Vec<R>,
    /// What the layer reads of them, and the keys of the text.
    seen: Inputs<R>,
    text: Keys<R>,
    /// `[s ; e]` of each step from 1 on, and the keys that it makes for its chains.
    joined: Vec<Vec<R>>,
    own: Vec<Keys<R>>,
    steps: Vec<Activations<R>>,
}

impl<R: Real> Unrolled<R> {
    /// The residual stream after the layer in each step, `[rows, hidden]`.
    pub fn outs(&self) -> Vec<&[R]> {
        self.steps.iter().map(|made| &made.out[..]).collect()
    }
}

fn views<R>(own: &[Keys<R>]) -> Vec<KeysValues<'_, R>> {
    own.iter().map(Keys::view).collect()
}

impl<R: Real> Frame<R> {
    /// All steps of the chains of a batch.
    pub fn forward(&self, values: &[R], chains: &Chains, batch: &TeacherBatch) -> Unrolled<R> {
        let width = self.layout.head.shape[1];
        let row = |row: usize| &batch.hidden[row * width..][..width];
        let hidden: Vec<R> = chains.seen_rows().flat_map(row).map(|&x| R::of(x.into())).collect();
        let (hidden, x) = match &self.layout.input {
            Some(input) => {
                let x = multiply(values, input, &hidden);
                (hidden, x)
            }
            None => (Vec::new(), hidden),
        };
        let seen = self.inputs(values, x);
        let text = self.keys(values, &chains.seen_positions(), &seen);
        let starts = chains.starts();
        let first = Inputs {
            x: select(&seen.x, &starts, width),
            normed: select(&seen.normed, &starts, width),
            factors: select(&seen.factors, &starts, 1),
        };
        let steps = vec![self.step(values, chains, first, &text, &[])];
        let mut unrolled = Unrolled { hidden, seen, text, joined: Vec::new(), own: Vec::new(), steps };
        if let Some(recurrent) = &self.layout.recurrent {
            for step in 1..self.steps {
                let joined = self.join(chains, batch, step, &unrolled.steps[step - 1].out);
                let inputs = self.inputs(values, multiply(values, recurrent, &joined));
                unrolled.joined.push(joined);
                unrolled.own.push(self.keys(values, &chains.positions(step), &inputs));
                let made = self.step(values, chains, inputs, &unrolled.text, &views(&unrolled.own));
                unrolled.steps.push(made);
            }
        }
        unrolled
    }

    /// `[s ; e]` `[rows, 2 · hidden]` of step `step`, where `before` is the residual stream that the step before left.
    fn join(&self, chains: &Chains, batch: &TeacherBatch, step: usize, before: &[R]) -> Vec<R> {
        let width = self.layout.head.shape[1];
        let mut joined = Vec::new();
        for (before_row, row) in chains.before(step).into_iter().zip(chains.rows(step)) {
            joined.extend_from_slice(&before[before_row * width..][..width]);
            let embedded = self.model.as_ref().map_or(&[][..], |model| model.embedding(batch.tokens[row]));
            joined.extend_from_slice(embedded);
        }
        joined
    }

    /// Adds to `gradient` that of the block but for its norm and head, given `douts` of [`Unrolled::outs`].
    pub fn backward(
        &self,
        values: &[R],
        chains: &Chains,
        made: &Unrolled<R>,
        mut douts: Vec<Vec<R>>,
        gradient: &mut [R],
    ) {
        let width = self.layout.head.shape[1];
        let mut dkeys: Vec<KeyGradients<R>> =
            std::iter::once(&made.text).chain(&made.own).map(KeyGradients::of).collect();
        let own = views(&made.own);
        for step in (1..made.steps.len()).rev() {
            let (activations, dout) = (&made.steps[step], std::mem::take(&mut douts[step]));
            let (text, own) = (&made.text, &own[..step]);
            let (mut dx, mut dnormed) =
                self.step_backward(values, chains, activations, text, own, dout, &mut dkeys, gradient);
            // Later steps have all added to the gradients of this one's keys.
            let down = dkeys.swap_remove(step);
            let (inputs, positions) = (&activations.inputs, chains.positions(step));
            self.keys_backward(values, &positions, (inputs, &made.own[step - 1]), down, &mut dnormed, gradient);
            self.norm_backward(values, &self.layout.input_norm, inputs, &dnormed, Some(&mut dx), gradient);
            let Some(recurrent) = &self.layout.recurrent else { continue };
            let joined = &made.joined[step - 1];
            let mut djoined = vec![R::default(); joined.len()];
            multiply_backward(values, recurrent, joined, &dx, Some(&mut djoined), gradient);
            // Embeddings are not trained.
            for (row, djoined) in chains.before(step).into_iter().zip(djoined.chunks_exact(2 * width)) {
                add(&mut douts[step - 1][row * width..][..width], &djoined[..width]);
            }
        }
        let dout = douts.swap_remove(0);
        let first = &made.steps[0];
        let (dstream, dstarts) = self.step_backward(values, chains, first, &made.text, &[], dout, &mut dkeys, gradient);
        let dtext = dkeys.swap_remove(0);
        let (mut dx, mut dnormed) = (vec![R::default(); made.seen.x.len()], vec![R::default(); made.seen.x.len()]);
        for (index, row) in chains.starts().into_iter().enumerate() {
            let (from, to) = (index * width..(index + 1) * width, row * width..(row + 1) * width);
            dx[to.clone()].copy_from_slice(&dstream[from.clone()]);
            dnormed[to].copy_from_slice(&dstarts[from]);
        }
        let keys = (&made.seen, &made.text);
        self.keys_backward(values, &chains.seen_positions(), keys, dtext, &mut dnormed, gradient);
        // What is before the block is not trained.
        let input = self.layout.input.as_ref();
        let wanted = input.is_some().then_some(&mut dx[..]);
        self.norm_backward(values, &self.layout.input_norm, &made.seen, &dnormed, wanted, gradient);
        if let Some(input) = input {
            multiply_backward(values, input, &made.hidden, &dx, None, gradient);
        }
    }
}

/// These rows of `width` elements.
fn select<R: Real>(data: &[R], rows: &[usize], width: usize) -> Vec<R> {
    rows.iter().flat_map(|row| &data[row * width..(row + 1) * width]).copied().collect()
}
