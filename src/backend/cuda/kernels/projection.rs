//! Projections: `qkv`, `residual`, `gate_up`, `lm_head`.

use super::{Address, Format, Launcher, Shape, launch};
use crate::backend::BackendError;
use crate::backend::cuda::pack::TILE_ROWS;

/// The forms of a projection. The first two are implementations whose results are the same bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// `cuda/common/skinny.cuh`: reads the weights once, 1 to 64 tokens.
    Skinny,
    /// `cuda/common/gemm.cuh`: any number of tokens.
    Gemm,
    /// `cuda/common/finish.cuh`: what follows sums that were made elsewhere. [`Projection::x`] is the sums, f32, and
    /// weights and chunks are not looked at. Not of `lm_head`.
    Finish,
}

/// Tokens that the kernels of the skinny form have room for, and those that multiply codes: more are groups of as many.
const SKINNY_ROOM: [u32; 6] = [8, 16, 24, 32, 48, Form::SKINNY_TOKENS as u32];
const CODED_SKINNY_ROOM: [u32; 3] = [8, 16, 32];

impl Form {
    /// Most tokens of [`Form::Skinny`].
    pub const SKINNY_TOKENS: i32 = 64;

    /// The faster implementation for this many tokens.
    pub fn for_tokens(tokens: i32) -> Self {
        if tokens <= Self::SKINNY_TOKENS { Form::Skinny } else { Form::Gemm }
    }
}

arguments! {
    /// `y = W x`.
    Projection {
        /// Packed ([`pack`](crate::backend::cuda::pack), [`coding`](crate::backend::cuda::coding)).
        weights: Address,
        /// `[tokens, stride]`, zero past the last input; or the sums ([`Form::Finish`]).
        x: Address,
        /// Rows of `W`, without padding.
        outputs: i32,
        /// Of 64 inputs.
        chunks: i32,
        /// Elements between tokens of `x`, at least `64 · chunks` (or `outputs`, of sums).
        stride: i32,
        /// Tokens.
        tokens: i32,
        /// [`Storage::word`](crate::backend::cuda::coding::Storage::word) of the weights.
        coding: i32,
        /// Zero.
        padding: u32,
    }
}

arguments! {
    /// The norm of a projection's input; `squares` null: none.
    Norm {
        /// `[tokens, slots]` f32.
        squares: Address,
        /// Partial sums of a token.
        slots: i32,
        /// Width of the residual stream.
        width: i32,
        /// Added to the mean of squares.
        epsilon: f32,
        /// Zero.
        padding: u32,
    }
}

arguments! {
    /// `cuda/qkv.cu`.
    Qkv {
        /// The stacked projections.
        projection: Projection,
        /// Of the layer's input.
        norm: Norm,
        /// f32, or null.
        bias: Address,
        /// f32.
        out: Address,
        /// Of `out`.
        stride: i32,
        /// Zero.
        padding: u32,
    }
}

arguments! {
    /// `cuda/residual.cu`.
    Residual {
        /// `o_proj` or `down_proj`, or what begins a residual stream.
        projection: Projection,
        /// f32, or null.
        bias: Address,
        /// `[tokens, outputs]` f32, what it is added to: `residual`, or null, which is zeros.
        from: Address,
        /// `[tokens, outputs]` f32.
        residual: Address,
        /// Weight of the norm that follows, f32.
        next_norm: Address,
        /// Input of the projection that follows.
        operand: Address,
        /// Of `operand`.
        stride: i32,
        /// Zero.
        padding: u32,
        /// Of the norm that follows.
        squares: Address,
    }
}

arguments! {
    /// `cuda/gate_up.cu`.
    GateUp {
        /// Interleaved ([`interleave`](crate::backend::cuda::pack::interleave)).
        projection: Projection,
        /// Of the MLP's input.
        norm: Norm,
        /// f32, interleaved, or null.
        bias: Address,
        /// Input of `down_proj`.
        out: Address,
        /// Of `out`.
        stride: i32,
        /// Width of the MLP.
        intermediate: i32,
    }
}

arguments! {
    /// `cuda/lm_head.cu`.
    LmHead {
        /// The head.
        projection: Projection,
        /// The final norm.
        norm: Norm,
        /// `[tokens, vocab]` f32.
        logits: Address,
        /// `[tokens, vocab / 32]` of [`HeadPartial`].
        partials: Address,
    }
}

arguments! {
    /// What `cuda/lm_head.cu` says of 32 logits.
    HeadPartial {
        /// The largest; NaN counts as minus infinity.
        max: f32,
        /// The lowest column that has it.
        column: u32,
        /// Of `exp(logit - max)`.
        sum: f32,
    }
}

/// Kernels of the family `name` (`qkv`, `residual`, `gate_up`, `lm_head`), whose arguments begin with a
/// [`Projection`].
///
/// # Safety
/// As [`Launcher::launch`]; [`Form::Skinny`] takes at most [`Form::SKINNY_TOKENS`].
///
/// # Errors
/// If the device refuses or fails.
pub unsafe fn project<A: bytemuck::Pod>(
    on: &impl Launcher,
    name: &str,
    format: Format,
    form: Form,
    arguments: &A,
) -> Result<(), BackendError> {
    let projection: Projection =
        bytemuck::pod_read_unaligned(&bytemuck::bytes_of(arguments)[..size_of::<Projection>()]);
    let (outputs, tokens) = (projection.outputs as u32, projection.tokens as u32);
    let (codes, rooms) = match projection.coding >> 16 {
        _ if form == Form::Finish => ("", &[][..]),
        0 => ("", &SKINNY_ROOM[..]),
        4 => ("four_", &CODED_SKINNY_ROOM[..]),
        _ => ("eight_", &CODED_SKINNY_ROOM[..]),
    };
    let (suffix, grid, shared_bytes) = match form {
        Form::Skinny => {
            let room = *rooms.iter().find(|&&room| tokens <= room).unwrap_or(&rooms[rooms.len() - 1]);
            (room.to_string(), [outputs.div_ceil(TILE_ROWS as u32), tokens.div_ceil(room), 1], 0)
        }
        Form::Gemm => ("gemm".to_owned(), [tokens.div_ceil(128), outputs.div_ceil(128), 1], 3 * (16 + 16) * 1024),
        Form::Finish => ("finish".to_owned(), [tokens, outputs.div_ceil(2048), 1], 0),
    };
    let kernel = format!("{name}_{}_{codes}{suffix}", format.suffix());
    // SAFETY: the caller's promise.
    unsafe { launch(on, &kernel, Shape { grid, threads: 256, shared_bytes }, arguments) }
}
