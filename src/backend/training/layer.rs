//! The exit block's decoder layer over the segments of a batch: forward, and the gradients of its parameters.

use super::attention::{Heads, attend, attend_backward};
use super::gemm::{Mat, gemm};
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
}

/// A batch's rows: segments one after another, each from position 0 on.
pub struct Rows {
    /// Rows of each segment.
    pub lengths: Vec<usize>,
    /// Position of each row.
    pub positions: Vec<usize>,
}

impl Rows {
    /// Segments of these lengths.
    pub fn new(lengths: Vec<usize>) -> Self {
        let positions = lengths.iter().flat_map(|&len| 0..len).collect();
        Self { lengths, positions }
    }

    /// All of them.
    pub fn count(&self) -> usize {
        self.positions.len()
    }
}

/// What the backward pass reads of the forward pass; `[rows, ..]` each.
pub struct Activations<R> {
    normed: Vec<R>,
    factors: Vec<R>,
    /// Before QK norms; empty without.
    raw_q: Vec<R>,
    raw_k: Vec<R>,
    q_factors: Vec<R>,
    k_factors: Vec<R>,
    q: Vec<R>,
    k: Vec<R>,
    v: Vec<R>,
    attended: Vec<R>,
    /// The residual stream after attention.
    middle: Vec<R>,
    middle_normed: Vec<R>,
    middle_factors: Vec<R>,
    gate: Vec<R>,
    up: Vec<R>,
    gated: Vec<R>,
    /// The residual stream after the layer.
    pub out: Vec<R>,
}

impl<R: Real> Frame<R> {
    /// The layer on `hidden` `[rows, hidden]` with the parameters `values`.
    pub fn forward(&self, values: &[R], rows: &Rows, hidden: &[R]) -> Activations<R> {
        let Layout { input_norm, q, k, v, o, post_norm, gate, up, down, .. } = &self.layout;
        let (normed, factors) = self.norm(values, input_norm, hidden);
        let (raw_q, q, q_factors) = self.heads_of(values, q, self.layout.q_norm.as_ref(), rows, &normed);
        let (raw_k, k, k_factors) = self.heads_of(values, k, self.layout.k_norm.as_ref(), rows, &normed);
        let v = project(values, v, &normed);
        let mut attended = vec![R::default(); q.len()];
        attend(&rows.lengths, &self.heads, &q, &k, &v, &mut attended);
        let mut middle = project(values, o, &attended);
        add(&mut middle, hidden);
        let (middle_normed, middle_factors) = self.norm(values, post_norm, &middle);
        let (gate, up) = (project(values, gate, &middle_normed), project(values, up, &middle_normed));
        let gated: Vec<R> = gate.par_iter().zip(&up).map(|(&gate, &up)| gate * sigmoid(gate) * up).collect();
        let mut out = project(values, down, &gated);
        add(&mut out, &middle);
        Activations {
            normed,
            factors,
            raw_q,
            raw_k,
            q_factors,
            k_factors,
            q,
            k,
            v,
            attended,
            middle,
            middle_normed,
            middle_factors,
            gate,
            up,
            gated,
            out,
        }
    }

    /// Adds to `gradient` that of the layer's parameters, given `dout` of [`Activations::out`].
    pub fn backward(
        &self,
        values: &[R],
        rows: &Rows,
        hidden: &[R],
        made: &Activations<R>,
        mut dout: Vec<R>,
        gradient: &mut [R],
    ) {
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
        let mut dnormed = vec![R::default(); hidden.len()];
        project_backward(values, &layout.gate, &made.middle_normed, &dgate, Some(&mut dnormed), gradient);
        project_backward(values, &layout.up, &made.middle_normed, &dgated, Some(&mut dnormed), gradient);
        let (weight, dweight) =
            (&values[layout.post_norm.range.clone()], &mut gradient[layout.post_norm.range.clone()]);
        // The stream goes round the MLP as well.
        rms_norm_backward(&made.middle, weight, &made.middle_factors, &dnormed, Some(&mut dout), dweight);

        let mut dattended = vec![R::default(); made.attended.len()];
        project_backward(values, &layout.o, &made.attended, &dout, Some(&mut dattended), gradient);
        let (mut dq, mut dk, mut dv) =
            (dattended.clone(), vec![R::default(); made.k.len()], vec![R::default(); made.v.len()]);
        attend_backward(&rows.lengths, &self.heads, &made.q, &made.k, &made.v, &dattended, &mut dq, &mut dk, &mut dv);
        let norms = [layout.q_norm.as_ref(), layout.k_norm.as_ref()];
        let (q, k) = ((&made.raw_q, &made.q_factors), (&made.raw_k, &made.k_factors));
        self.heads_of_backward(values, norms[0], rows, q, &mut dq, gradient);
        self.heads_of_backward(values, norms[1], rows, k, &mut dk, gradient);
        dnormed.fill(R::default());
        for (linear, dy) in [(&layout.q, &dq), (&layout.k, &dk), (&layout.v, &dv)] {
            project_backward(values, linear, &made.normed, dy, Some(&mut dnormed), gradient);
        }
        let (weight, dweight) =
            (&values[layout.input_norm.range.clone()], &mut gradient[layout.input_norm.range.clone()]);
        // What is before the layer is not trained.
        rms_norm_backward(hidden, weight, &made.factors, &dnormed, None, dweight);
    }

    /// The norm of rows of the residual stream, and its factors.
    pub fn norm(&self, values: &[R], weight: &Slot, x: &[R]) -> (Vec<R>, Vec<R>) {
        let mut y = vec![R::default(); x.len()];
        let factors = rms_norm(x, &values[weight.range.clone()], self.epsilon, &mut y);
        (y, factors)
    }

    /// Queries or keys: projected, normalised per head where the model does that, rotated. Returns them
    /// before and after, and the norm's factors.
    fn heads_of(
        &self,
        values: &[R],
        linear: &Linear,
        norm: Option<&Slot>,
        rows: &Rows,
        normed: &[R],
    ) -> (Vec<R>, Vec<R>, Vec<R>) {
        let mut x = project(values, linear, normed);
        let width = x.len() / rows.count().max(1);
        let (raw, factors) = match norm {
            Some(norm) => {
                let (y, factors) = self.norm(values, norm, &x);
                (std::mem::replace(&mut x, y), factors)
            }
            None => (Vec::new(), Vec::new()),
        };
        self.rotary.rotate(&mut x, width, &rows.positions);
        (raw, x, factors)
    }

    /// Turns the gradient of queries or keys into that of their projection.
    fn heads_of_backward(
        &self,
        values: &[R],
        norm: Option<&Slot>,
        rows: &Rows,
        (raw, factors): (&Vec<R>, &Vec<R>),
        dx: &mut Vec<R>,
        gradient: &mut [R],
    ) {
        let width = dx.len() / rows.count().max(1);
        self.rotary.rotate_back(dx, width, &rows.positions);
        let Some(norm) = norm else { return };
        let mut draw = vec![R::default(); dx.len()];
        let (weight, dweight) = (&values[norm.range.clone()], &mut gradient[norm.range.clone()]);
        rms_norm_backward(raw, weight, factors, dx, Some(&mut draw), dweight);
        *dx = draw;
    }
}

/// `x Wᵀ + b` for each row.
fn project<R: Real>(values: &[R], linear: &Linear, x: &[R]) -> Vec<R> {
    let [outputs, inputs] = linear.weight.shape;
    let rows = x.len() / inputs;
    let mut y = match &linear.bias {
        Some(bias) => values[bias.range.clone()].repeat(rows),
        None => vec![R::default(); rows * outputs],
    };
    let weight = Mat::new(&values[linear.weight.range.clone()], outputs, inputs);
    gemm(R::of(1.0), Mat::new(x, rows, inputs), weight.t(), R::of(1.0), &mut y, outputs);
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
    let [outputs, inputs] = linear.weight.shape;
    let rows = x.len() / inputs;
    let (one, dy) = (R::of(1.0), (Mat::new(dy, rows, outputs), dy));
    if let Some(dx) = dx {
        let weight = Mat::new(&values[linear.weight.range.clone()], outputs, inputs);
        gemm(one, dy.0, weight, one, dx, inputs);
    }
    gemm(one, dy.0.t(), Mat::new(x, rows, inputs), one, &mut gradient[linear.weight.range.clone()], inputs);
    if let Some(bias) = &linear.bias {
        let dbias = &mut gradient[bias.range.clone()];
        dy.1.chunks_exact(outputs).for_each(|dy| add(dbias, dy));
    }
}

fn add<R: Real>(to: &mut [R], from: &[R]) {
    to.iter_mut().zip(from).for_each(|(to, &from)| *to += from);
}

fn sigmoid<R: Real>(x: R) -> R {
    R::of(1.0) / (R::of(1.0) + (-x).exp())
}
