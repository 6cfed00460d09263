//! The exit block's decoder layer over the rows of a step of chains: forward, and the gradients of its parameters.

use super::attention::{Heads, KeysValues, KeysValuesMut, attend, attend_backward};
use super::chains::Chains;
use super::gemm::{Mat, gemm};
use super::model_side::ModelSide;
use super::norm::{rms_norm, rms_norm_backward};
use super::parameters::{Layout, Linear, Slot};
use super::real::Real;
use super::rotary::Rotary;
use rayon::prelude::*;

/// What does not change while a block is trained.
pub struct Frame<R> {
    /// Where the parameters lie.
    pub layout: Layout,
    /// Shape of its attention.
    pub heads: Heads,
    /// Of every norm.
    pub epsilon: f64,
    /// For the positions of a segment.
    pub rotary: Rotary<R>,
    /// Steps that a chain has.
    pub steps: usize,
    /// What is needed of the model, where that is not in the batches.
    pub model: Option<ModelSide<R>>,
}

/// Rows that the layer reads, and their norm.
pub struct Inputs<R> {
    pub x: Vec<R>,
    pub normed: Vec<R>,
    pub factors: Vec<R>,
}

/// Keys and values of some rows, `[rows, ..]` each, as the backward pass needs them.
pub struct Keys<R> {
    /// Before a norm of keys; empty without.
    raw_k: Vec<R>,
    factors: Vec<R>,
    k: Vec<R>,
    v: Vec<R>,
}

impl<R> Keys<R> {
    pub fn view(&self) -> KeysValues<'_, R> {
        KeysValues { k: &self.k, v: &self.v }
    }
}

/// Gradients of keys and values, so far.
pub struct KeyGradients<R> {
    k: Vec<R>,
    v: Vec<R>,
}

impl<R: Real> KeyGradients<R> {
    /// None yet.
    pub fn of(keys: &Keys<R>) -> Self {
        Self { k: vec![R::default(); keys.k.len()], v: vec![R::default(); keys.v.len()] }
    }

    fn view(&mut self) -> KeysValuesMut<'_, R> {
        KeysValuesMut { k: &mut self.k, v: &mut self.v }
    }
}

/// What the backward pass reads of a step's forward pass; `[rows, ..]` each.
pub struct Activations<R> {
    /// What the step read.
    pub inputs: Inputs<R>,
    /// Before QK norms; empty without.
    raw_q: Vec<R>,
    q_factors: Vec<R>,
    q: Vec<R>,
    attended: Vec<R>,
    /// The residual stream after attention, and its norm.
    middle: Inputs<R>,
    gate: Vec<R>,
    up: Vec<R>,
    gated: Vec<R>,
    /// The residual stream after the layer.
    pub out: Vec<R>,
}

impl<R: Real> Frame<R> {
    /// Rows as the layer reads them.
    pub fn inputs(&self, values: &[R], x: Vec<R>) -> Inputs<R> {
        let (normed, factors) = self.norm(values, &self.layout.input_norm, &x);
        Inputs { x, normed, factors }
    }

    /// Keys and values of rows at these positions.
    pub fn keys(&self, values: &[R], positions: &[usize], inputs: &Inputs<R>) -> Keys<R> {
        let Layout { k, v, k_norm, .. } = &self.layout;
        let (raw_k, k, factors) = self.heads_of(values, k, k_norm.as_ref(), positions, &inputs.normed);
        Keys { raw_k, factors, k, v: project(values, v, &inputs.normed) }
    }

    /// Adds to `gradient` that of the projections to keys and values, and to `dnormed` that of what they read.
    pub fn keys_backward(
        &self,
        values: &[R],
        positions: &[usize],
        (inputs, keys): (&Inputs<R>, &Keys<R>),
        mut dkeys: KeyGradients<R>,
        dnormed: &mut [R],
        gradient: &mut [R],
    ) {
        let Layout { k, v, k_norm, .. } = &self.layout;
        let raw = (&keys.raw_k[..], &keys.factors[..]);
        self.heads_of_backward(values, k_norm.as_ref(), positions, raw, &mut dkeys.k, gradient);
        for (linear, dy) in [(k, &dkeys.k), (v, &dkeys.v)] {
            project_backward(values, linear, &inputs.normed, dy, Some(dnormed), gradient);
        }
    }

    /// The layer on the rows of the step after `own.len()` others; `own` has the keys of the steps 1 to this one.
    pub fn step(
        &self,
        values: &[R],
        chains: &Chains,
        inputs: Inputs<R>,
        text: &Keys<R>,
        own: &[KeysValues<'_, R>],
    ) -> Activations<R> {
        let Layout { q, q_norm, o, post_norm, gate, up, down, .. } = &self.layout;
        let positions = chains.positions(own.len());
        let (raw_q, q, q_factors) = self.heads_of(values, q, q_norm.as_ref(), &positions, &inputs.normed);
        let mut attended = vec![R::default(); q.len()];
        attend(chains, &self.heads, &q, &text.view(), own, &mut attended);
        let mut middle = project(values, o, &attended);
        add(&mut middle, &inputs.x);
        let (normed, factors) = self.norm(values, post_norm, &middle);
        let (gate, up) = (project(values, gate, &normed), project(values, up, &normed));
        let gated: Vec<R> = gate.par_iter().zip(&up).map(|(&gate, &up)| gate * sigmoid(gate) * up).collect();
        let mut out = project(values, down, &gated);
        add(&mut out, &middle);
        let middle = Inputs { x: middle, normed, factors };
        Activations { inputs, raw_q, q_factors, q, attended, middle, gate, up, gated, out }
    }

    /// Adds to `gradient` that of the layer's parameters but for its first norm and those of keys and values, given `dout` of
    /// [`Activations::out`]; adds to `dkeys`, of the text's keys and then of the chains' own. Returns the gradient of the residual stream that
    /// goes by attention, and that of the norm of what the step read.
    #[expect(clippy::too_many_arguments, reason = "what the step read and made, and their gradients")]
    pub fn step_backward(
        &self,
        values: &[R],
        chains: &Chains,
        made: &Activations<R>,
        text: &Keys<R>,
        own: &[KeysValues<'_, R>],
        mut dout: Vec<R>,
        dkeys: &mut [KeyGradients<R>],
        gradient: &mut [R],
    ) -> (Vec<R>, Vec<R>) {
        let layout = &self.layout;
        let mut dgated = vec![R::default(); made.gated.len()];
        project_backward(values, &layout.down, &made.gated, &dout, Some(&mut dgated), gradient);
        let mut dgate = dgated.clone();
        let inputs = made.gate.par_iter().zip(&made.up);
        dgate.par_iter_mut().zip(&mut dgated).zip(inputs).for_each(|((dgate, dup), (&gate, &up))| {
            // SiLU' = s (1 + x (1 - s)), s the sigmoid of x.
            let (one, s) = (R::of(1.0), sigmoid(gate));
            *dgate *= up * s * (one + gate * (one - s));
            *dup *= gate * s;
        });
        let mut dnormed = vec![R::default(); dout.len()];
        project_backward(values, &layout.gate, &made.middle.normed, &dgate, Some(&mut dnormed), gradient);
        project_backward(values, &layout.up, &made.middle.normed, &dgated, Some(&mut dnormed), gradient);
        // The stream goes round the MLP as well.
        self.norm_backward(values, &layout.post_norm, &made.middle, &dnormed, Some(&mut dout), gradient);

        let mut dattended = vec![R::default(); made.attended.len()];
        project_backward(values, &layout.o, &made.attended, &dout, Some(&mut dattended), gradient);
        let mut dq = vec![R::default(); made.q.len()];
        let mut dkeys: Vec<KeysValuesMut<'_, R>> = dkeys.iter_mut().map(KeyGradients::view).collect();
        attend_backward(chains, &self.heads, &made.q, &text.view(), own, &dattended, &mut dq, &mut dkeys);
        let (raw, positions) = ((&made.raw_q[..], &made.q_factors[..]), chains.positions(own.len()));
        self.heads_of_backward(values, layout.q_norm.as_ref(), &positions, raw, &mut dq, gradient);
        dnormed.fill(R::default());
        project_backward(values, &layout.q, &made.inputs.normed, &dq, Some(&mut dnormed), gradient);
        (dout, dnormed)
    }

    /// The norm of rows of the residual stream, and its factors.
    pub fn norm(&self, values: &[R], weight: &Slot, x: &[R]) -> (Vec<R>, Vec<R>) {
        let mut y = vec![R::default(); x.len()];
        let factors = rms_norm(x, &values[weight.range.clone()], self.epsilon, &mut y);
        (y, factors)
    }

    /// Adds the gradients of [`norm`](Self::norm), given that of what it gave.
    pub fn norm_backward(
        &self,
        values: &[R],
        weight: &Slot,
        of: &Inputs<R>,
        dnormed: &[R],
        dx: Option<&mut [R]>,
        gradient: &mut [R],
    ) {
        let (weight, dweight) = (&values[weight.range.clone()], &mut gradient[weight.range.clone()]);
        rms_norm_backward(&of.x, weight, &of.factors, dnormed, dx, dweight);
    }

    /// Queries or keys: projected, normalised per head where the model does that, rotated. Returns them
    /// before and after, and the norm's factors.
    fn heads_of(
        &self,
        values: &[R],
        linear: &Linear,
        norm: Option<&Slot>,
        positions: &[usize],
        normed: &[R],
    ) -> (Vec<R>, Vec<R>, Vec<R>) {
        let mut x = project(values, linear, normed);
        let (raw, factors) = match norm {
            Some(norm) => {
                let (y, factors) = self.norm(values, norm, &x);
                (std::mem::replace(&mut x, y), factors)
            }
            None => (Vec::new(), Vec::new()),
        };
        self.rotary.rotate(&mut x, linear.weight.shape[0], positions);
        (raw, x, factors)
    }

    /// Turns the gradient of queries or keys into that of their projection.
    fn heads_of_backward(
        &self,
        values: &[R],
        norm: Option<&Slot>,
        positions: &[usize],
        (raw, factors): (&[R], &[R]),
        dx: &mut Vec<R>,
        gradient: &mut [R],
    ) {
        let width = dx.len() / positions.len().max(1);
        self.rotary.rotate_back(dx, width, positions);
        let Some(norm) = norm else { return };
        let mut draw = vec![R::default(); dx.len()];
        let (weight, dweight) = (&values[norm.range.clone()], &mut gradient[norm.range.clone()]);
        rms_norm_backward(raw, weight, factors, dx, Some(&mut draw), dweight);
        *dx = draw;
    }
}

/// `x Wᵀ + b` for each row.
fn project<R: Real>(values: &[R], linear: &Linear, x: &[R]) -> Vec<R> {
    let mut y = multiply(values, &linear.weight, x);
    if let Some(bias) = &linear.bias {
        let bias = &values[bias.range.clone()];
        y.chunks_exact_mut(bias.len()).for_each(|y| add(y, bias));
    }
    y
}

/// `x Wᵀ` for each row.
pub fn multiply<R: Real>(values: &[R], weight: &Slot, x: &[R]) -> Vec<R> {
    let [outputs, inputs] = weight.shape;
    let rows = x.len() / inputs;
    let mut y = vec![R::default(); rows * outputs];
    let weight = Mat::new(&values[weight.range.clone()], outputs, inputs);
    gemm(R::of(1.0), Mat::new(x, rows, inputs), weight.t(), R::default(), &mut y, outputs);
    y
}

/// Adds to `dx` and `gradient` those of [`project`], given `dy`.
fn project_backward<R: Real>(
    values: &[R],
    linear: &Linear,
    x: &[R],
    dy: &[R],
    dx: Option<&mut [R]>,
    gradient: &mut [R],
) {
    multiply_backward(values, &linear.weight, x, dy, dx, gradient);
    if let Some(bias) = &linear.bias {
        let dbias = &mut gradient[bias.range.clone()];
        dy.chunks_exact(dbias.len()).for_each(|dy| add(dbias, dy));
    }
}

/// Adds to `dx` and `gradient` those of [`multiply`], given `dy`.
pub fn multiply_backward<R: Real>(
    values: &[R],
    weight: &Slot,
    x: &[R],
    dy: &[R],
    dx: Option<&mut [R]>,
    gradient: &mut [R],
) {
    let [outputs, inputs] = weight.shape;
    let rows = x.len() / inputs;
    let (one, dy) = (R::of(1.0), Mat::new(dy, rows, outputs));
    if let Some(dx) = dx {
        gemm(one, dy, Mat::new(&values[weight.range.clone()], outputs, inputs), one, dx, inputs);
    }
    gemm(one, dy.t(), Mat::new(x, rows, inputs), one, &mut gradient[weight.range.clone()], inputs);
}

pub fn add<R: Real>(to: &mut [R], from: &[R]) {
    to.iter_mut().zip(from).for_each(|(to, &from)| *to += from);
}

fn sigmoid<R: Real>(x: R) -> R {
    R::of(1.0) / (R::of(1.0) + (-x).exp())
}
