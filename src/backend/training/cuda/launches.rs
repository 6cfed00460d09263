//! The steps of a pass, each a few launches: what kernels and products are given.

use super::memory::Operand;
use super::pass::{Done, Pass};
use crate::backend::cuda::driver::Driver;
use crate::backend::cuda::kernels::training::{
    AddPartials, ColumnSums, Narrow, RmsNorm, RmsNormBackward, Rotate, StartRows,
};
use crate::backend::cuda::kernels::{Address, Flash, FlashPass, flash};
use crate::backend::cuda::matmul::{Matmul, Number, RowMajor};
use crate::backend::training::parameters::{Linear, Slot};

/// No address.
pub const NULL: Address = Address(0);

/// A factor of a product, and whether it is transposed.
pub type Factor = (Address, bool);

/// Rows of something, and where they come from.
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

    /// `c = a b + beta c`, `c` `[m, n]` f32, `k` products in a sum; all matrices are dense.
    pub fn multiply(&self, [m, n, k]: [usize; 3], a: Factor, b: Factor, c: Address, beta: f32) -> Done {
        let number = self.operands.number();
        let product = Matmul {
            m,
            n,
            k,
            a: RowMajor { at: a.0, stride: if a.1 { m } else { k }, number },
            transpose_a: a.1,
            b: RowMajor { at: b.0, stride: if b.1 { k } else { n }, number },
            transpose_b: b.1,
            c: RowMajor { at: c, stride: n, number: Number::F32 },
            alpha: 1.0,
            beta,
            workspace: self.work.library,
        };
        // SAFETY: as promised to the pass.
        unsafe { self.on.matmul(&product) }
    }

    /// A tensor's values as products read them.
    pub fn factor(&self, slot: &Slot) -> Address {
        Address(self.parameters.values.factor.0 + (slot.range.start * self.operands.number().bytes()) as u64)
    }

    fn values(&self, slot: &Slot) -> Address {
        Address(self.parameters.values.wide.0 + 4 * slot.range.start as u64)
    }

    /// A tensor's gradient, which it has only if it is trained.
    pub fn gradient(&self, slot: &Slot) -> Address {
        Address(self.parameters.gradient.0 + 4 * slot.range.start as u64)
    }

    /// `y = x Wᵀ + b`, and a residual stream.
    pub fn project(&self, linear: &Linear, x: Operand, y: Address, residual: Address) -> Done {
        let [outputs, inputs] = linear.weight.shape;
        let bias = linear.bias.as_ref().map_or(NULL, |slot| self.values(slot));
        let started = residual != NULL || bias != NULL;
        if started {
            let arguments = StartRows { residual, bias, y, rows: self.rows as i32, width: outputs as i32 };
            // SAFETY: as promised to the pass.
            unsafe { arguments.launch(self.on) }?;
        }
        let weight = (self.factor(&linear.weight), true);
        self.multiply([self.rows, outputs, inputs], (x.factor, false), weight, y, if started { 1.0 } else { 0.0 })
    }

    /// Adds the gradients of a projection's parameters, then makes (`beta` 0) or adds (1) that of its input.
    pub fn project_backward(&self, linear: &Linear, x: Operand, dy: Operand, dx: Address, beta: f32) -> Done {
        let [outputs, inputs] = linear.weight.shape;
        let dweight = self.gradient(&linear.weight);
        self.multiply([outputs, inputs, self.rows], (dy.factor, true), (x.factor, false), dweight, 1.0)?;
        if let Some(bias) = &linear.bias {
            let plain = Normed { x: NULL, index: NULL, rows: self.rows, factors: NULL };
            self.add_sums(plain, dy.wide, bias)?;
        }
        let weight = (self.factor(&linear.weight), false);
        self.multiply([self.rows, inputs, outputs], (dy.factor, false), weight, dx, beta)
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

    /// `y` `[rows, width]`, normalised.
    pub fn norm(&self, of: Normed, weight: &Slot, y: Address) -> Done {
        let arguments = RmsNorm {
            x: of.x,
            index: of.index,
            weight: self.values(weight),
            y,
            factors: of.factors,
            rows: of.rows as i32,
            width: weight.range.len() as i32,
            epsilon: self.epsilon,
            padding: 0,
        };
        // SAFETY: as promised to the pass.
        unsafe { arguments.launch(self.on) }
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
    pub fn rotate(&self, x: Address, heads: usize, back: bool) -> Done {
        let arguments = Rotate {
            x,
            positions: self.work.inbox.positions,
            turns: self.parameters.turns,
            rows: self.rows as i32,
            heads: heads as i32,
            head_dim: self.geometry.head_dim as i32,
            back: back.into(),
        };
        // SAFETY: as promised to the pass.
        unsafe { arguments.launch(self.on) }
    }

    /// Attention, or its gradients.
    pub fn attend(&self, passes: &[FlashPass]) -> Done {
        let (work, geometry) = (self.work, self.geometry);
        let arguments = Flash {
            tiles: work.inbox.tiles,
            q: work.q,
            k: work.k,
            v: work.v,
            out: work.attended.wide,
            lse: work.lse,
            dout: work.dattended,
            delta: work.delta,
            dq: work.dq.wide,
            dk: work.dk.wide,
            dv: work.dv.wide,
            scale: (geometry.head_dim as f64).sqrt().recip() as f32,
            heads: geometry.heads as i32,
            kv_heads: geometry.kv_heads as i32,
            window: geometry.windows[self.layout.after].unwrap_or(0).min(i32::MAX as usize) as i32,
        };
        for &pass in passes {
            // SAFETY: as promised to the pass.
            unsafe { flash(self.on, pass, self.tiles, geometry.head_dim, &arguments) }?;
        }
        Ok(())
    }
}
