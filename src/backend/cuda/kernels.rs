//! The kernels' arguments, as `cuda/*.cu` declare them, and how each is launched.
//!
//! Shapes are in the head comment of each kernel file. Addresses are the device's; 0 is null.

use super::pack::TILE_ROWS;
use crate::backend::BackendError;

/// An address in the launcher's memory.
#[repr(transparent)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Address(pub u64);

/// Grid and block of a launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub threads: u32,
    /// Bytes of dynamic shared memory.
    pub shared_bytes: u32,
}

/// What can run a kernel: a GPU's stream, or the emulator.
pub trait Launcher {
    /// Launches `kernel` with its one parameter, the bytes of an argument structure.
    ///
    /// # Safety
    /// Every address among the arguments must be good for what the kernel reads and writes there.
    ///
    /// # Errors
    /// If the device refuses or fails.
    unsafe fn launch(&self, kernel: &str, shape: Shape, arguments: &[u8]) -> Result<(), BackendError>;
}

/// Number format of weights, activations and cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// The upper half of a binary32.
    Bf16,
    /// IEEE 754 binary16.
    F16,
}

impl Format {
    fn suffix(self) -> &'static str {
        match self {
            Format::Bf16 => "bf16",
            Format::F16 => "f16",
        }
    }
}

/// The two implementations of a projection; their results are the same bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// `cuda/common/skinny.cuh`: reads the weights once, 1 to 16 tokens.
    Skinny,
    /// `cuda/common/gemm.cuh`: any number of tokens.
    Gemm,
}

impl Form {
    /// Most tokens of [`Form::Skinny`].
    pub const SKINNY_TOKENS: i32 = 16;

    /// The faster one for this many tokens.
    pub fn for_tokens(tokens: i32) -> Self {
        if tokens <= Self::SKINNY_TOKENS { Form::Skinny } else { Form::Gemm }
    }
}

macro_rules! arguments {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $type:ty,)* }) => {
        $(#[$doc])*
        #[repr(C)]
        #[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
        pub struct $name { $($(#[$field_doc])* pub $field: $type,)* }
    };
}

arguments! {
    /// `y = W x`.
    Projection {
        /// Packed ([`pack`](super::pack)).
        weights: Address,
        /// `[tokens, stride]`, zero past the last input.
        x: Address,
        /// Rows of `W`, without padding.
        outputs: i32,
        /// Of 64 inputs.
        chunks: i32,
        /// Elements between tokens of `x`, at least `64 · chunks`.
        stride: i32,
        /// Tokens.
        tokens: i32,
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
        /// `o_proj` or `down_proj`.
        projection: Projection,
        /// f32, or null.
        bias: Address,
        /// `[tokens, outputs]` f32, read and written.
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
        /// Interleaved ([`interleave`](super::pack::interleave)).
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
        /// The lowest token that has it.
        token: u32,
        /// Of `exp(logit - max)`.
        sum: f32,
    }
}

arguments! {
    /// `cuda/embedding.cu`.
    Embedding {
        /// `[tokens]` u32.
        ids: Address,
        /// `[vocab, hidden]`, by rows or packed.
        table: Address,
        /// 1 where `table` is packed, else 0.
        packed: i32,
        /// Width of the residual stream.
        hidden: i32,
        /// `[tokens, hidden]` f32.
        residual: Address,
        /// Weight of the first norm, f32.
        norm: Address,
        /// Input of the first projection.
        operand: Address,
        /// Of `operand`.
        stride: i32,
        /// Zero.
        padding: u32,
        /// Of the first norm.
        squares: Address,
    }
}

arguments! {
    /// `cuda/gather_rows.cu`.
    GatherRows {
        /// `[rows, hidden]` f32.
        stored: Address,
        /// `[tokens]` u32.
        index: Address,
        /// Width of the residual stream.
        hidden: i32,
        /// Zero.
        padding: u32,
        /// `[tokens, hidden]` f32.
        residual: Address,
        /// Weight of the norm that follows, f32.
        norm: Address,
        /// Input of the projection that follows.
        operand: Address,
        /// Of `operand`.
        stride: i32,
        /// Zero.
        padding_2: u32,
        /// Of the norm that follows.
        squares: Address,
    }
}

arguments! {
    /// A ragged batch over the paged cache (`cuda/common/paged_kv.cuh`).
    PagedBatch {
        /// `[batch + 1]` i32.
        row_begin: Address,
        /// `[batch]` i32.
        start: Address,
        /// `[batch, max_pages]` u32.
        block_table: Address,
        /// Columns of the block table.
        max_pages: i32,
        /// Zero.
        padding: u32,
    }
}

arguments! {
    /// `cuda/attention.cu`, `cuda/prefill_attention.cu`, `cuda/append.cu`.
    Attention {
        /// Sequences and their rows.
        batch: PagedBatch,
        /// `[tokens, (heads + 2 kv_heads) head_dim]` f32.
        qkv: Address,
        /// `[pages, kv_heads, 64, head_dim]`.
        k_cache: Address,
        /// `[pages, kv_heads, 64, head_dim]`.
        v_cache: Address,
        /// `[positions, head_dim / 2, 2]` f32: cos, sin.
        rotary: Address,
        /// `[head_dim]` f32, or null.
        q_norm: Address,
        /// `[head_dim]` f32, or null.
        k_norm: Address,
        /// Of those norms.
        epsilon: f32,
        /// Softmax scale times log2(e).
        scale: f32,
        /// Query heads.
        heads: i32,
        /// Key/value heads.
        kv_heads: i32,
        /// Sliding window; 0: none.
        window: i32,
        /// Most query tiles of a sequence ([`row_tiles`](Self::row_tiles)).
        row_tiles: i32,
        /// `[tokens, stride]`.
        out: Address,
        /// Of `out`.
        stride: i32,
        /// Zero.
        padding: u32,
        /// Workspace of split attention.
        partial: Address,
        /// Counters of split attention, zero between launches.
        arrived: Address,
    }
}

impl Attention {
    /// Positions that one block of split attention reads.
    pub const CHUNK_TOKENS: u32 = 256;
    const TILE: usize = 16;
    const THREADS: u32 = 128;

    /// Query tiles of a sequence with `rows` rows.
    pub fn row_tiles(rows: usize, heads: usize, kv_heads: usize) -> usize {
        (rows * (heads / kv_heads)).div_ceil(Self::TILE)
    }

    /// Bytes of `partial`.
    pub fn partial_bytes(batch: usize, kv_heads: usize, row_tiles: usize, chunks: usize, head_dim: usize) -> usize {
        batch * kv_heads * row_tiles * chunks * Self::TILE * (head_dim + 2) * 4
    }
}

/// Launches a kernel of `arguments`.
///
/// # Safety
/// As [`Launcher::launch`].
unsafe fn launch<A: bytemuck::Pod>(
    on: &impl Launcher,
    kernel: &str,
    shape: Shape,
    arguments: &A,
) -> Result<(), BackendError> {
    // SAFETY: the caller's promise.
    unsafe { on.launch(kernel, shape, bytemuck::bytes_of(arguments)) }
}

/// Kernels of the family `name` (`qkv`, `residual`, `gate_up`, `lm_head`), whose arguments begin with a
/// [`Projection`].
///
/// # Safety
/// As [`Launcher::launch`]; [`Form::Skinny`] takes at most 16 tokens.
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
    let (suffix, grid, shared_bytes) = match form {
        Form::Skinny => (if tokens <= 8 { "8" } else { "16" }, [outputs.div_ceil(TILE_ROWS as u32), 1, 1], 0),
        Form::Gemm => ("gemm", [outputs.div_ceil(128), tokens.div_ceil(128), 1], 3 * (16 + 16) * 1024),
    };
    let kernel = format!("{name}_{}_{suffix}", format.suffix());
    // SAFETY: the caller's promise.
    unsafe { launch(on, &kernel, Shape { grid, threads: 256, shared_bytes }, arguments) }
}

/// One block per token: `embedding` and `gather_rows`.
///
/// # Safety
/// As [`Launcher::launch`].
///
/// # Errors
/// If the device refuses or fails.
pub unsafe fn per_token<A: bytemuck::Pod>(
    on: &impl Launcher,
    name: &str,
    format: Format,
    tokens: usize,
    arguments: &A,
) -> Result<(), BackendError> {
    let shape = Shape { grid: [tokens as u32, 1, 1], threads: 256, shared_bytes: 0 };
    // SAFETY: the caller's promise.
    unsafe { launch(on, &format!("{name}_{}", format.suffix()), shape, arguments) }
}

/// How a batch reaches attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttentionForm {
    /// `cuda/attention.cu`: appends, then attends, over `chunks` chunks of 256 positions at most.
    Split {
        /// Chunks of the longest context.
        chunks: usize,
    },
    /// `cuda/prefill_attention.cu`: attends over a cache that [`AttentionForm::Append`] has filled.
    Prefill,
    /// `cuda/append.cu`: only appends, `rows` rows of a sequence at most.
    Append {
        /// Rows of the longest one.
        rows: usize,
    },
}

/// # Safety
/// As [`Launcher::launch`].
///
/// # Errors
/// If the device refuses or fails; there is a kernel for `head_dim` 32, 64, 80, 96, 128 and 256.
pub unsafe fn attend(
    on: &impl Launcher,
    format: Format,
    form: AttentionForm,
    batch: usize,
    head_dim: usize,
    arguments: &Attention,
) -> Result<(), BackendError> {
    let (kv_heads, tiles) = (arguments.kv_heads as u32, arguments.row_tiles as u32);
    let (name, grid) = match form {
        AttentionForm::Split { chunks } => ("attention", [chunks as u32, kv_heads * tiles, batch as u32]),
        AttentionForm::Prefill => ("prefill_attention", [tiles, kv_heads, batch as u32]),
        AttentionForm::Append { rows } => ("append", [rows.div_ceil(4) as u32, kv_heads, batch as u32]),
    };
    let kernel = format!("{name}_{}_{head_dim}", format.suffix());
    // SAFETY: the caller's promise.
    unsafe { launch(on, &kernel, Shape { grid, threads: Attention::THREADS, shared_bytes: 0 }, arguments) }
}
