//! Training but for its attention: norms, rotation, SwiGLU, sums over rows, losses, AdamW.
//!
//! Each argument structure has its launch: `arguments.launch(on)`.

use super::{Address, Launcher, Shape, launch};
use crate::backend::BackendError;

const THREADS: u32 = 256;

/// Blocks of `each` for `count`; one axis of a grid has room for 2^31 - 1.
fn blocks(count: usize, each: usize) -> u32 {
    count.div_ceil(each) as u32
}

/// Launches of one kernel: its name, and the blocks along two axes.
macro_rules! launches {
    ($name:ident, |$self:ident| $kernel:expr, $x:expr, $y:expr) => {
        impl $name {
            /// Launches the kernel.
            ///
            /// # Safety
            /// As [`Launcher::launch`]; buffers have the shapes that the kernel's file states.
            ///
            /// # Errors
            /// If the device refuses or fails.
            pub unsafe fn launch(&self, on: &impl Launcher) -> Result<(), BackendError> {
                let $self = self;
                let shape = Shape { grid: [$x, $y, 1], threads: THREADS, shared_bytes: 0 };
                // SAFETY: the caller's promise.
                unsafe { launch(on, $kernel, shape, $self) }
            }
        }
    };
}

arguments! {
    /// `rms_norm` of `cuda/rms_norm.cu`.
    RmsNorm {
        /// `[.., width]` f32.
        x: Address,
        /// `[rows]` u32: rows of `x`; or null.
        index: Address,
        /// `[width]` f32.
        weight: Address,
        /// `[rows, width]` f32.
        y: Address,
        /// `[rows]` f32.
        factors: Address,
        /// Rows.
        rows: i32,
        /// Columns.
        width: i32,
        /// Added to the mean square.
        epsilon: f32,
        /// Zero.
        padding: u32,
    }
}
launches!(RmsNorm, |it| "rms_norm", blocks(it.rows as usize, 8), 1);

arguments! {
    /// `rms_norm_backward` of `cuda/rms_norm.cu`.
    RmsNormBackward {
        /// As in the forward pass.
        x: Address,
        /// Likewise.
        index: Address,
        /// Likewise.
        weight: Address,
        /// What the forward pass left.
        factors: Address,
        /// `[rows, width]` f32.
        dy: Address,
        /// As `x`.
        dx: Address,
        /// Rows.
        rows: i32,
        /// Columns.
        width: i32,
        /// 1: `dx` grows; 0: it is overwritten.
        add: i32,
        /// Zero.
        padding: u32,
    }
}
launches!(RmsNormBackward, |it| "rms_norm_backward", blocks(it.rows as usize, 8), 1);

arguments! {
    /// `cuda/rotate.cu`.
    Rotate {
        /// `[rows, heads, head_dim]` f32.
        x: Address,
        /// `[rows]` i32.
        positions: Address,
        /// `[positions, head_dim / 2, 2]` f32: cos, sin.
        turns: Address,
        /// Rows.
        rows: i32,
        /// Heads of a row.
        heads: i32,
        /// Width of a head.
        head_dim: i32,
        /// 1: the transposed rotation.
        back: i32,
    }
}
launches!(Rotate, |it| "rotate", blocks(it.rows as usize * it.heads as usize * (it.head_dim as usize / 2), 256), 1);

arguments! {
    /// `cuda/start_rows.cu`.
    StartRows {
        /// `[rows, width]` f32, or null.
        residual: Address,
        /// `[width]` f32, or null.
        bias: Address,
        /// `[rows, width]` f32.
        y: Address,
        /// Rows.
        rows: i32,
        /// Columns.
        width: i32,
    }
}
launches!(StartRows, |it| "start_rows", blocks(it.rows as usize * it.width as usize, 256), 1);

arguments! {
    /// `take_rows` of `cuda/take_rows.cu`.
    TakeRows {
        /// `[.., width]`; as [`AddRows`]: `[rows, width]`.
        from: Address,
        /// `[rows]` u32; unequal as [`AddRows`].
        index: Address,
        /// `[rows, width]`; as [`AddRows`]: `[.., width]`, which grows.
        to: Address,
        /// Rows.
        rows: i32,
        /// Columns.
        width: i32,
    }
}

/// Rows of f32.
#[repr(transparent)]
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
pub struct TakeWide(pub TakeRows);
launches!(TakeWide, |it| "take_rows_f32", blocks(it.0.rows as usize * it.0.width as usize, 256), 1);

/// Rows of bf16.
#[repr(transparent)]
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
pub struct TakeNarrow(pub TakeRows);
launches!(TakeNarrow, |it| "take_rows_bf16", blocks(it.0.rows as usize * it.0.width as usize, 256), 1);

/// `add_rows`: rows of f32 that are added where [`TakeWide`] takes them from.
#[repr(transparent)]
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
pub struct AddRows(pub TakeRows);
launches!(AddRows, |it| "add_rows", blocks(it.0.rows as usize * it.0.width as usize, 256), 1);

arguments! {
    /// `cuda/narrow.cu`.
    Narrow {
        /// `[count]` f32.
        from: Address,
        /// `[count]` bf16, at a multiple of 4 bytes.
        to: Address,
        /// Elements.
        count: u64,
    }
}
launches!(Narrow, |it| "narrow_bf16", blocks(it.count as usize, 512), 1);

arguments! {
    /// `cuda/swiglu.cu`.
    Swiglu {
        /// `[count]` f32.
        gate: Address,
        /// `[count]` f32.
        up: Address,
        /// `[count]` f32: the result, or its gradient.
        gated: Address,
        /// Elements.
        count: u64,
    }
}
launches!(Swiglu, |it| "swiglu", blocks(it.count as usize, 256), 1);

/// `gate` and `up` of a [`Swiglu`] become their gradients.
#[repr(transparent)]
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
pub struct SwigluBackward(pub Swiglu);
launches!(SwigluBackward, |it| "swiglu_backward", blocks(it.0.count as usize, 256), 1);

arguments! {
    /// `column_sums` of `cuda/column_sums.cu`.
    ColumnSums {
        /// `[rows, width]` f32.
        dy: Address,
        /// For a norm's weight: `[.., width]` f32; or null.
        x: Address,
        /// `[rows]` u32: rows of `x`; or null.
        index: Address,
        /// `[rows]` f32, with `x`.
        factors: Address,
        /// `[slices, width]` f32.
        partial: Address,
        /// Rows.
        rows: i32,
        /// Columns.
        width: i32,
        /// Rows of a slice.
        slice: i32,
        /// Zero.
        padding: u32,
    }
}
launches!(ColumnSums, |it| "column_sums", blocks(it.width as usize, 256), blocks(it.rows as usize, it.slice as usize));

impl ColumnSums {
    /// Most slices: what has to be kept of their sums.
    pub const MOST_SLICES: usize = 256;

    /// Rows of a slice: no fewer than are worth a thread, and no more slices than that.
    pub fn slice(rows: usize) -> usize {
        rows.div_ceil(Self::MOST_SLICES).max(64)
    }
}

arguments! {
    /// `add_partials` of `cuda/column_sums.cu`.
    AddPartials {
        /// `[slices, width]` f32.
        partial: Address,
        /// `[width]` f32, which grows.
        sum: Address,
        /// Columns.
        width: i32,
        /// Slices.
        slices: i32,
    }
}
launches!(AddPartials, |it| "add_partials", blocks(it.width as usize, 256), 1);

arguments! {
    /// What a position costs (`cuda/distill_loss.cu`); each times its weight.
    PositionLoss {
        /// The loss.
        loss: f64,
        /// KL(p, q) in nats over the tokens that the student can draft.
        divergence: f64,
        /// 1 - TV(p, q).
        overlap: f64,
        /// 1 where both have the same likeliest token.
        agreement: f64,
    }
}

arguments! {
    /// `cuda/distill_loss.cu`.
    DistillLoss {
        /// `[rows, vocab]` f32; the gradient, where that is asked for.
        student: Address,
        /// `[positions, vocab]` f32.
        teacher: Address,
        /// `[rows]` u32: the position that each row drafts.
        positions: Address,
        /// `[positions]` f32: the logarithm of the sum of exponentials of all tokens; null where there are no others.
        log_totals: Address,
        /// `[positions]` u32: the column of the likeliest token of all, above `vocab` where it has none; null likewise.
        likeliest: Address,
        /// `[positions]` u32: of the next token; `vocab` or more where it has none.
        columns: Address,
        /// `[positions]` f64.
        weights: Address,
        /// `[rows]` of [`PositionLoss`].
        losses: Address,
        /// As in [`LossOptions`](crate::backend::training::loss::LossOptions).
        soft: f64,
        /// Likewise.
        temperature: f64,
        /// Likewise.
        hard: f64,
        /// Likewise.
        variation: f64,
        /// Tokens that the student can draft.
        vocab: i32,
        /// 1: the gradient is wanted.
        gradient: i32,
        /// Rows: the kernel's grid.
        rows: u32,
        /// Zero.
        padding: u32,
    }
}
launches!(DistillLoss, |it| "distill_loss", it.rows, 1);

arguments! {
    /// `gradient_squares` of `cuda/adamw.cu`.
    GradientSquares {
        /// `[count]` f32.
        gradient: Address,
        /// `[chunks]` f64.
        partial: Address,
        /// Elements.
        count: u64,
    }
}
launches!(GradientSquares, |it| "gradient_squares", blocks(it.count as usize, GradientSquares::CHUNK), 1);

impl GradientSquares {
    /// Elements of a chunk.
    pub const CHUNK: usize = 16384;
}

arguments! {
    /// What `gradient_norm` finds.
    AboutGradient {
        /// The norm of the mean gradient, before clipping.
        norm: f64,
        /// What the sum of gradients is to be scaled with.
        scale: f32,
        /// 1 where the norm is a number and not infinite.
        finite: i32,
    }
}

arguments! {
    /// `gradient_norm` of `cuda/adamw.cu`.
    GradientNorm {
        /// `[chunks]` f64.
        partial: Address,
        /// One [`AboutGradient`].
        about: Address,
        /// Chunks.
        chunks: i32,
        /// Zero.
        padding: u32,
        /// 1 over the weight of the positions in the gradient.
        per_position: f64,
        /// The largest norm of the gradient.
        clip: f64,
    }
}
launches!(GradientNorm, |it| "gradient_norm", 1, 1);

arguments! {
    /// `adamw` of `cuda/adamw.cu`.
    Adamw {
        /// One [`AboutGradient`].
        about: Address,
        /// `[count]` f32.
        gradient: Address,
        /// `[count]` f32.
        values: Address,
        /// `[count]` f32.
        mean: Address,
        /// `[count]` f32.
        square: Address,
        /// `[count]` bf16, or null.
        copy: Address,
        /// Elements.
        count: u64,
        /// What values are multiplied with: 1, or less by weight decay.
        shrink: f32,
        /// Learning rate.
        rate: f32,
        /// Decay of the mean.
        beta1: f32,
        /// Decay of the mean square.
        beta2: f32,
        /// Added to the root of the mean square.
        epsilon: f32,
        /// Bias correction of the mean.
        by_mean: f32,
        /// Bias correction of the mean square.
        by_square: f32,
        /// Zero.
        padding: u32,
    }
}
launches!(Adamw, |it| "adamw", blocks(it.count as usize, 256), 1);
