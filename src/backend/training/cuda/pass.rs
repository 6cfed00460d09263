//! A batch through the block: forward, the losses, and back. Mirrors `layer` and `head` of the processor's code.

use super::Operands;
use super::launches::{NULL, Normed};
use super::memory::{Operand, Parameters, Workspace};
use crate::backend::BackendError;
use crate::backend::cuda::driver::Driver;
use crate::backend::cuda::kernels::training::{DistillLoss, PositionLoss, Swiglu, SwigluBackward};
use crate::backend::cuda::kernels::{Address, FlashPass};
use crate::backend::training::loss::LossOptions;
use crate::backend::training::parameters::{Head, Layout, Linear, Slot};
use crate::model::Geometry;
use std::ops::Range;

/// What queueing returns.
pub type Done = Result<(), BackendError>;

/// One batch on a device.
pub struct Pass<'a, D: Driver> {
    pub(super) on: &'a D,
    pub(super) layout: &'a Layout,
    pub(super) geometry: &'a Geometry,
    pub(super) operands: Operands,
    pub(super) parameters: &'a Parameters,
    pub(super) work: &'a Workspace,
    pub(super) epsilon: f32,
    pub(super) rows: usize,
    pub(super) tiles: usize,
}

/// Queries or keys, and what becomes of them.
struct HeadsOf<'a> {
    linear: &'a Linear,
    norm: Option<&'a Slot>,
    heads: usize,
    /// Before the norm.
    raw: Address,
    factors: Address,
    x: Address,
    dx: Operand,
}

/// An address some elements further on.
fn at<T>(base: Address, elements: usize) -> Address {
    Address(base.0 + (elements * size_of::<T>()) as u64)
}

impl<D: Driver> Pass<'_, D> {
    /// A pass of `rows` rows in `tiles` tiles, whose inbox is told or queued to be.
    ///
    /// # Safety
    /// Parameters and workspace lie in memory of the device as they were planned, for this layout, geometry and
    /// operands and for as many rows; what the inbox is told fits the rows.
    #[expect(clippy::too_many_arguments, reason = "all that a pass works with")]
    pub unsafe fn new<'a>(
        on: &'a D,
        layout: &'a Layout,
        geometry: &'a Geometry,
        operands: Operands,
        parameters: &'a Parameters,
        work: &'a Workspace,
        rows: usize,
        tiles: usize,
    ) -> Pass<'a, D> {
        let epsilon = geometry.rms_norm_eps;
        Pass { on, layout, geometry, operands, parameters, work, epsilon, rows, tiles }
    }

    fn queries_and_keys(&self) -> [HeadsOf<'_>; 2] {
        let (work, layout) = (self.work, self.layout);
        [
            HeadsOf {
                linear: &layout.q,
                norm: layout.q_norm.as_ref(),
                heads: self.geometry.heads,
                raw: work.raw_q,
                factors: work.q_factors,
                x: work.q,
                dx: work.dq,
            },
            HeadsOf {
                linear: &layout.k,
                norm: layout.k_norm.as_ref(),
                heads: self.geometry.kv_heads,
                raw: work.raw_k,
                factors: work.k_factors,
                x: work.k,
                dx: work.dk,
            },
        ]
    }

    /// All rows of `x`, with the factors of their norm.
    fn all(&self, x: Address, factors: Address) -> Normed {
        Normed { x, index: NULL, rows: self.rows, factors }
    }

    fn norm_all(&self, x: Address, factors: Address, weight: &Slot, y: Operand) -> Done {
        self.norm(self.all(x, factors), weight, y.wide)?;
        self.narrow(y, self.rows * weight.range.len())
    }

    /// The residual stream after the layer.
    pub fn forward(&self) -> Done {
        let (work, layout) = (self.work, self.layout);
        let mlp = self.rows * self.geometry.intermediate_size;
        self.norm_all(work.inbox.hidden, work.factors, &layout.input_norm, work.normed)?;
        for of in self.queries_and_keys() {
            let projected = if of.norm.is_some() { of.raw } else { of.x };
            self.project(of.linear, work.normed, projected, NULL)?;
            if let Some(norm) = of.norm {
                let rows = Normed { x: of.raw, index: NULL, rows: self.rows * of.heads, factors: of.factors };
                self.norm(rows, norm, of.x)?;
            }
            self.rotate(of.x, of.heads, false)?;
        }
        self.project(&layout.v, work.normed, work.v, NULL)?;
        self.attend(&[FlashPass::Forward])?;
        self.narrow(work.attended, self.rows * self.geometry.q_size())?;
        self.project(&layout.o, work.attended, work.middle, work.inbox.hidden)?;
        self.norm_all(work.middle, work.middle_factors, &layout.post_norm, work.middle_normed)?;
        self.project(&layout.gate, work.middle_normed, work.gate.wide, NULL)?;
        self.project(&layout.up, work.middle_normed, work.up.wide, NULL)?;
        // SAFETY: as promised to the pass.
        unsafe { self.swiglu().launch(self.on) }?;
        self.narrow(work.gated, mlp)?;
        self.project(&layout.down, work.gated, work.out, work.middle)
    }

    fn swiglu(&self) -> Swiglu {
        let count = (self.rows * self.geometry.intermediate_size) as u64;
        Swiglu { gate: self.work.gate.wide, up: self.work.up.wide, gated: self.work.gated.wide, count }
    }

    /// The losses of some of the positions that count, whose teacher's logits are there, and, where `learn`, the
    /// gradients of the head and in the rows of the stream.
    pub fn head(&self, positions: &Range<usize>, options: &LossOptions, learn: bool) -> Done {
        let (work, layout, count) = (self.work, self.layout, positions.len());
        let [vocab, hidden] = layout.head.shape;
        let index = at::<u32>(work.inbox.index, positions.start);
        let stream = Normed { x: work.out, index, rows: count, factors: work.head_factors };
        self.norm(stream, &layout.norm, work.head_normed.wide)?;
        self.narrow(work.head_normed, count * hidden)?;
        let (normed, head) = (work.head_normed.factor, self.factor(&layout.head));
        self.multiply([count, vocab, hidden], (normed, false), (head, true), work.logits.wide, 0.0)?;
        let loss = DistillLoss {
            student: work.logits.wide,
            teacher: work.teacher,
            draft_ids: self.parameters.draft_ids,
            columns: at::<u32>(work.inbox.columns, positions.start),
            weights: at::<f64>(work.inbox.weights, positions.start),
            losses: at::<PositionLoss>(work.losses, positions.start),
            vocab: vocab as i32,
            teacher_vocab: self.geometry.vocab_size as i32,
            soft: options.soft,
            temperature: options.temperature,
            hard: options.hard,
            variation: options.variation,
            gradient: learn.into(),
            rows: count as u32,
        };
        // SAFETY: as promised to the pass.
        unsafe { loss.launch(self.on) }?;
        if !learn {
            return Ok(());
        }
        self.narrow(work.logits, count * vocab)?;
        let dlogits = work.logits.factor;
        if layout.kind == Head::Trained {
            let dhead = self.gradient(&layout.head);
            self.multiply([vocab, hidden, count], (dlogits, true), (normed, false), dhead, 1.0)?;
        }
        self.multiply([count, hidden, vocab], (dlogits, false), (head, false), work.dnormed, 0.0)?;
        self.norm_backward(stream, &layout.norm, work.dnormed, work.dout.wide, false)
    }

    /// Adds the gradients of the layer's parameters, given that of its output in `dout`.
    pub fn backward(&self) -> Done {
        let (work, layout, geometry) = (self.work, self.layout, self.geometry);
        let elements = |width: usize| self.rows * width;
        let (hidden, mlp) = (elements(geometry.hidden_size), elements(geometry.intermediate_size));
        self.narrow(work.dout, hidden)?;
        // From here on `gated` is its own gradient, as are `gate` and `up` behind the next step.
        self.project_backward(&layout.down, work.gated, work.dout, work.gated.wide, 0.0)?;
        // SAFETY: as promised to the pass.
        unsafe { SwigluBackward(self.swiglu()).launch(self.on) }?;
        for (linear, dy, beta) in [(&layout.gate, work.gate, 0.0), (&layout.up, work.up, 1.0)] {
            self.narrow(dy, mlp)?;
            self.project_backward(linear, work.middle_normed, dy, work.dnormed, beta)?;
        }
        // The stream goes round the MLP as well.
        let middle = self.all(work.middle, work.middle_factors);
        self.norm_backward(middle, &layout.post_norm, work.dnormed, work.dout.wide, true)?;
        self.narrow(work.dout, hidden)?;
        self.project_backward(&layout.o, work.attended, work.dout, work.dattended, 0.0)?;
        self.attend(&[FlashPass::Queries, FlashPass::Keys])?;
        for of in self.queries_and_keys() {
            self.rotate(of.dx.wide, of.heads, true)?;
            if let Some(norm) = of.norm {
                let rows = Normed { x: of.raw, index: NULL, rows: self.rows * of.heads, factors: of.factors };
                self.norm_backward(rows, norm, of.dx.wide, of.dx.wide, false)?;
            }
        }
        let (q, kv) = (elements(geometry.q_size()), elements(geometry.kv_size()));
        let projections = [(&layout.q, work.dq, q, 0.0), (&layout.k, work.dk, kv, 1.0), (&layout.v, work.dv, kv, 1.0)];
        for (linear, dy, count, beta) in projections {
            self.narrow(dy, count)?;
            self.project_backward(linear, work.normed, dy, work.dnormed, beta)?;
        }
        // What is before the layer is not trained.
        self.norm_weight_backward(self.all(work.inbox.hidden, work.factors), &layout.input_norm, work.dnormed)
    }
}
