//! The steps of a pass, each a few launches: what kernels and products are given.

use super::memory::Stream;
use super::pass::{Done, Pass};
use super::places::Operand;
use crate::backend::cuda::driver::Driver;
use crate::backend::cuda::kernels::Address;
use crate::backend::cuda::kernels::training::{
    AddPartials, AddRows, ColumnSums, Narrow, RmsNorm, RmsNormBackward, Rotate, StartRows, TakeNarrow, TakeRows,
    TakeWide,
};
use crate::backend::cuda::matmul::{Matmul, Number, RowMajor};
use crate::backend::training::parameters::{Linear, Slot};

/// No address.
pub const NULL: Address = Address(0);

/// An address some elements further on.
pub fn at<T>(base: Address, elements: usize) -> Address {
    Address(base.0 + (elements * size_of::<T>()) as u64)
}

/// A factor of a product: where it is, elements from one row to the next, and whether it is transposed.
pub type Factor = (Address, usize, bool);

/// Rows that go through the layer, and their positions.
#[derive(Clone, Copy)]
pub struct Rows {
    pub count: usize,
    /// `[count]` i32.
    pub positions: Address,
}

/// Rows of something under a norm, and where they come from.
#[derive(Clone, Copy)]
pub struct Normed {
    /// `[.., width]`.
    pub x: Address,
    /// Rows of `x`, or null.
    pub index: Address,
    /// How many there are.
    pub rows: usize,
    /// `[rows]`, of the forward pass.
    pub factors: Address,
}

impl Normed {
    /// The first `rows` rows of a stream.
    pub fn of(stream: &Stream, rows: usize) -> Self {
        Self { x: stream.x, index: NULL, rows, factors: stream.factors }
    }
}

/// A matrix `[outputs, inputs]` to be trained, or some columns of one.
#[derive(Clone, Copy)]
pub struct Weight {
    outputs: usize,
    inputs: usize,
    /// Elements from one row to the next.
    stride: usize,
    /// As products read it.
    factor: Address,
    /// f32.
    gradient: Address,
}

impl<D: Driver> Pass<'_, D> {
    /// Makes the copy that products read.
    pub fn narrow(&self, operand: Operand, elements: usize) -> Done {
        if operand.factor == operand.wide {
            return Ok(());
        }
        let arguments = Narrow { from: operand.wide, to: operand.factor, count: elements as u64 };
        // SAFETY: as promised to the pass.
        unsafe { arguments.launch(self.on) }
    }

    /// A gradient as products read it, up to the next one.
    pub fn narrowed(&self, wide: Address, elements: usize) -> Result<Address, super::BackendError> {
        let factor = if self.work.narrowed == NULL { wide } else { self.work.narrowed };
        self.narrow(Operand { wide, factor }, elements)?;
        Ok(factor)
    }

    /// `c = a b + beta c`, `c` `[m, n]` f32, `k` products in a sum.
    pub fn multiply(&self, [m, n, k]: [usize; 3], a: Factor, b: Factor, c: (Address, usize), beta: f32) -> Done {
        let number = self.operands.number();
        let product = Matmul {
            m,
            n,
            k,
            a: RowMajor { at: a.0, stride: a.1, number },
            transpose_a: a.2,
            b: RowMajor { at: b.0, stride: b.1, number },
            transpose_b: b.2,
            c: RowMajor { at: c.0, stride: c.1, number: Number::F32 },
            alpha: 1.0,
            beta,
            workspace: self.work.library,
        };
        // SAFETY: as promised to the pass.
        unsafe { self.on.matmul(&product) }
    }

    /// A matrix that is trained.
    pub fn weight(&self, slot: &Slot) -> Weight {
        let [outputs, inputs] = slot.shape;
        Weight { outputs, inputs, stride: inputs, factor: self.factor(slot), gradient: self.gradient(slot) }
    }

    /// Its left half, and its right one.
    pub fn halves(&self, slot: &Slot) -> [Weight; 2] {
        let whole = self.weight(slot);
        let inputs = whole.inputs / 2;
        let bytes = inputs * self.operands.number().bytes();
        let left = Weight { inputs, ..whole };
        let factor = Address(whole.factor.0 + bytes as u64);
        [left, Weight { factor, gradient: at::<f32>(whole.gradient, inputs), ..left }]
    }

    /// `y = x Wᵀ + beta y`.
    pub fn times(&self, weight: Weight, rows: usize, x: Address, y: Address, beta: f32) -> Done {
        let Weight { outputs, inputs, stride, factor, .. } = weight;
        self.multiply([rows, outputs, inputs], (x, inputs, false), (factor, stride, true), (y, outputs), beta)
    }

    /// Adds the gradient of a matrix; `x` and `dy` are as products read them.
    pub fn weight_backward(&self, weight: Weight, rows: usize, x: Address, dy: Address) -> Done {
        let Weight { outputs, inputs, stride, gradient, .. } = weight;
        self.multiply([outputs, inputs, rows], (dy, outputs, true), (x, inputs, false), (gradient, stride), 1.0)
    }

    /// `dx = dy W + beta dx`; `dy` is as products read it.
    pub fn times_backward(&self, weight: Weight, rows: usize, dy: Address, dx: Address, beta: f32) -> Done {
        let Weight { outputs, inputs, stride, factor, .. } = weight;
        self.multiply([rows, inputs, outputs], (dy, outputs, false), (factor, stride, false), (dx, inputs), beta)
    }

    /// A tensor's values as products read them.
    pub fn factor(&self, slot: &Slot) -> Address {
        Address(self.parameters.values.factor.0 + (slot.range.start * self.operands.number().bytes()) as u64)
    }

    /// A tensor's values.
    pub fn values(&self, slot: &Slot) -> Address {
        at::<f32>(self.parameters.values.wide, slot.range.start)
    }

    /// A tensor's gradient, which it has only if it is trained.
    pub fn gradient(&self, slot: &Slot) -> Address {
        at::<f32>(self.parameters.gradient, slot.range.start)
    }

    /// `y = x Wᵀ + b`, and a residual stream; `x` is as products read it.
    pub fn project(&self, linear: &Linear, rows: usize, x: Address, y: Address, residual: Address) -> Done {
        let outputs = linear.weight.shape[0];
        let bias = linear.bias.as_ref().map_or(NULL, |slot| self.values(slot));
        let started = residual != NULL || bias != NULL;
        if started {
            let arguments = StartRows { residual, bias, y, rows: rows as i32, width: outputs as i32 };
            // SAFETY: as promised to the pass.
            unsafe { arguments.launch(self.on) }?;
        }
        self.times(self.weight(&linear.weight), rows, x, y, if started { 1.0 } else { 0.0 })
    }

    /// Adds the gradients of a projection's parameters, then makes (`beta` 0) or adds (1) that of its input; `x` is as
    /// products read it, `dy` f32.
    pub fn project_backward(
        &self,
        linear: &Linear,
        rows: usize,
        x: Address,
        dy: Address,
        dx: Address,
        beta: f32,
    ) -> Done {
        let weight = self.weight(&linear.weight);
        let factor = self.narrowed(dy, rows * weight.outputs)?;
        self.weight_backward(weight, rows, x, factor)?;
        if let Some(bias) = &linear.bias {
            self.add_sums(Normed { x: NULL, index: NULL, rows, factors: NULL }, dy, bias)?;
        }
        self.times_backward(weight, rows, factor, dx, beta)
    }

    /// Adds sums over rows to a vector's gradient: of `dy`, or of `dy` times normalised rows.
    fn add_sums(&self, of: Normed, dy: Address, slot: &Slot) -> Done {
        let (width, slice) = (slot.range.len() as i32, ColumnSums::slice(of.rows));
        let sums = ColumnSums {
            dy,
            x: of.x,
            index: of.index,
            factors: of.factors,
            partial: self.work.partial,
            rows: of.rows as i32,
            width,
            slice: slice as i32,
            padding: 0,
        };
        let slices = of.rows.div_ceil(slice) as i32;
        let add = AddPartials { partial: self.work.partial, sum: self.gradient(slot), width, slices };
        // SAFETY: as promised to the pass; there are no more slices than there is room for.
        unsafe {
            sums.launch(self.on)?;
            add.launch(self.on)
        }
    }

    /// `y` `[rows, width]`, normalised; `weight` `[width]` f32.
    pub fn norm(&self, of: Normed, weight: Address, width: usize, y: Address) -> Done {
        let arguments = RmsNorm {
            x: of.x,
            index: of.index,
            weight,
            y,
            factors: of.factors,
            rows: of.rows as i32,
            width: width as i32,
            epsilon: self.geometry.rms_norm_eps,
            padding: 0,
        };
        // SAFETY: as promised to the pass.
        unsafe { arguments.launch(self.on) }
    }

    /// The norm of the first `rows` rows of a stream, as products read it.
    pub fn norm_stream(&self, stream: &Stream, rows: usize, weight: &Slot) -> Done {
        let width = weight.range.len();
        self.norm(Normed::of(stream, rows), self.values(weight), width, stream.normed.wide)?;
        self.narrow(stream.normed, rows * width)
    }

    /// Adds the gradient of a norm's weight.
    pub fn norm_weight_backward(&self, of: Normed, weight: &Slot, dy: Address) -> Done {
        self.add_sums(of, dy, weight)
    }

    /// Adds the gradient of a norm's weight, then makes that of its rows, or adds to it; `dx` may be `dy`.
    pub fn norm_backward(&self, of: Normed, weight: &Slot, dy: Address, dx: Address, add: bool) -> Done {
        self.norm_weight_backward(of, weight, dy)?;
        let arguments = RmsNormBackward {
            x: of.x,
            index: of.index,
            weight: self.values(weight),
            factors: of.factors,
            dy,
            dx,
            rows: of.rows as i32,
            width: weight.range.len() as i32,
            add: add.into(),
            padding: 0,
        };
        // SAFETY: as promised to the pass.
        unsafe { arguments.launch(self.on) }
    }

    /// Rotates heads in place, or their gradients back.
    pub fn rotate(&self, rows: Rows, x: Address, heads: usize, back: bool) -> Done {
        let arguments = Rotate {
            x,
            positions: rows.positions,
            turns: self.parameters.turns,
            rows: rows.count as i32,
            heads: heads as i32,
            head_dim: self.geometry.head_dim as i32,
            back: back.into(),
        };
        // SAFETY: as promised to the pass.
        unsafe { arguments.launch(self.on) }
    }

    fn rows_by(&self, from: Address, index: Address, to: Address, rows: usize) -> TakeRows {
        TakeRows { from, index, to, rows: rows as i32, width: self.geometry.hidden_size as i32 }
    }

    /// Rows `index` of a residual stream.
    pub fn take(&self, from: Address, index: Address, to: Address, rows: usize) -> Done {
        // SAFETY: as promised to the pass.
        unsafe { TakeWide(self.rows_by(from, index, to, rows)).launch(self.on) }
    }

    /// The same of what products read.
    pub fn take_factors(&self, from: Address, index: Address, to: Address, rows: usize) -> Done {
        let taken = self.rows_by(from, index, to, rows);
        match self.operands.number() {
            Number::F32 => self.take(from, index, to, rows),
            // SAFETY: as promised to the pass.
            _ => unsafe { TakeNarrow(taken).launch(self.on) },
        }
    }

    /// Adds gradients of such rows to those of the stream.
    pub fn add_back(&self, from: Address, index: Address, to: Address, rows: usize) -> Done {
        // SAFETY: as promised to the pass.
        unsafe { AddRows(self.rows_by(from, index, to, rows)).launch(self.on) }
    }
}
