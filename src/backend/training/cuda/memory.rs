//! What a student keeps on the device, laid out before any memory is taken.

use super::{CudaStudentOptions, Operands};
use crate::backend::BackendError;
use crate::backend::cuda::arena::Arena;
use crate::backend::cuda::budget::{Amount, allowed};
use crate::backend::cuda::driver::MemoryInfo;
use crate::backend::cuda::kernels::training::{AboutGradient, ColumnSums, GradientSquares, PositionLoss};
use crate::backend::cuda::kernels::{Address, RowTile};
use crate::backend::training::parameters::Layout;
use crate::model::Geometry;
use std::fmt;

/// An f32 array that products multiply with: by itself, or as its bf16 copy.
#[derive(Debug, Clone, Copy)]
pub struct Operand {
    /// f32.
    pub wide: Address,
    /// What products read: the copy, or `wide`.
    pub factor: Address,
}

impl Operand {
    fn take(arena: &mut Arena, operands: Operands, elements: usize) -> Self {
        let wide = arena.array::<f32>(elements);
        let factor = match operands {
            Operands::Bf16 => arena.take(elements * operands.number().bytes()),
            Operands::F32 => wide,
        };
        Self { wide, factor }
    }
}

/// Parameters and the optimiser's memory.
pub struct Parameters {
    /// `[Layout::len]`; bf16 copies are written by whoever changes values.
    pub values: Operand,
    /// `[Layout::trained]` f32, as all that follow.
    pub gradient: Address,
    /// AdamW's.
    pub mean: Address,
    /// AdamW's.
    pub square: Address,
    /// `[window, head_dim / 2, 2]` f32: cos, sin.
    pub turns: Address,
    /// `[draft vocabulary]` u32, where the layout lists its tokens; else null.
    pub draft_ids: Address,
}

impl Parameters {
    /// Lays them out from `base` on; returns them and the bytes they take.
    pub fn plan(base: Address, layout: &Layout, geometry: &Geometry, options: &CudaStudentOptions) -> (Self, usize) {
        let mut arena = Arena::new(base);
        let parameters = Self {
            values: Operand::take(&mut arena, options.operands, layout.len()),
            gradient: arena.array::<f32>(layout.trained()),
            mean: arena.array::<f32>(layout.trained()),
            square: arena.array::<f32>(layout.trained()),
            turns: arena.array::<f32>(options.window * geometry.head_dim),
            draft_ids: layout.draft_vocab().ids.map_or(Address(0), |ids| arena.array::<u32>(ids.len())),
        };
        (parameters, arena.taken())
    }
}

/// What a batch is told.
pub struct Inbox {
    /// Where it begins.
    pub base: Address,
    /// `[rows]` i32: positions in their segments.
    pub positions: Address,
    /// At most `[rows]` of [`RowTile`].
    pub tiles: Address,
    /// `[positions]` u32: rows that count.
    pub index: Address,
    /// `[positions]` u32: of the next tokens in the student's rows.
    pub columns: Address,
    /// `[positions]` f64.
    pub weights: Address,
    /// `[rows, hidden]` f32.
    pub hidden: Address,
    /// Of all of it.
    pub bytes: usize,
}

/// Everything of a pass; `[rows, ..]` each but where it says otherwise.
pub struct Workspace {
    /// Inputs.
    pub inbox: Inbox,
    pub normed: Operand,
    pub factors: Address,
    /// Before the norms of queries and keys; unused without.
    pub raw_q: Address,
    pub raw_k: Address,
    pub q_factors: Address,
    pub k_factors: Address,
    pub q: Address,
    pub k: Address,
    pub v: Address,
    pub attended: Operand,
    pub lse: Address,
    pub delta: Address,
    /// The residual stream after attention.
    pub middle: Address,
    pub middle_normed: Operand,
    pub middle_factors: Address,
    /// Their gradients on the way back, as `up` and `gated`.
    pub gate: Operand,
    pub up: Operand,
    pub gated: Operand,
    /// The residual stream after the layer.
    pub out: Address,
    pub dout: Operand,
    pub dnormed: Address,
    pub dattended: Address,
    pub dq: Operand,
    pub dk: Operand,
    pub dv: Operand,
    /// Of a piece: `[piece, ..]`.
    pub head_normed: Operand,
    pub head_factors: Address,
    pub logits: Operand,
    pub teacher: Address,
    /// `[positions]` of [`PositionLoss`].
    pub losses: Address,
    /// `[slices, widest]` f32: sums over slices of rows.
    pub partial: Address,
    /// `[chunks]` f64.
    pub squares: Address,
    pub about: Address,
    /// The library's.
    pub library: Address,
    /// Positions whose logits are there at a time.
    pub piece: usize,
}

impl Workspace {
    /// Lays the buffers out from `base` on; returns them and the bytes they take. `library` is how many bytes the
    /// library of matrix products works in.
    pub fn plan(
        base: Address,
        layout: &Layout,
        geometry: &Geometry,
        options: &CudaStudentOptions,
        library: usize,
    ) -> (Self, usize) {
        let Geometry { hidden_size: hidden, intermediate_size: mlp, heads, kv_heads, vocab_size, .. } = *geometry;
        let (rows, q, kv) = (options.rows, geometry.q_size(), geometry.kv_size());
        let piece = (options.logits / vocab_size).clamp(1, rows);
        let mut arena = Arena::new(base);
        let inbox = Inbox {
            base,
            positions: arena.array::<i32>(rows),
            tiles: arena.array::<RowTile>(rows),
            index: arena.array::<u32>(rows),
            columns: arena.array::<u32>(rows),
            weights: arena.array::<f64>(rows),
            hidden: arena.array::<f32>(rows * hidden),
            bytes: arena.taken(),
        };
        let arena = &mut arena;
        let floats = |arena: &mut Arena, width: usize| arena.array::<f32>(rows * width);
        let operand = |arena: &mut Arena, width: usize| Operand::take(arena, options.operands, rows * width);
        let normed_heads = usize::from(layout.q_norm.is_some());
        let workspace = Self {
            inbox,
            normed: operand(arena, hidden),
            factors: floats(arena, 1),
            raw_q: floats(arena, q * normed_heads),
            raw_k: floats(arena, kv * normed_heads),
            q_factors: floats(arena, heads * normed_heads),
            k_factors: floats(arena, kv_heads * normed_heads),
            q: floats(arena, q),
            k: floats(arena, kv),
            v: floats(arena, kv),
            attended: operand(arena, q),
            lse: floats(arena, heads),
            delta: floats(arena, heads),
            middle: floats(arena, hidden),
            middle_normed: operand(arena, hidden),
            middle_factors: floats(arena, 1),
            gate: operand(arena, mlp),
            up: operand(arena, mlp),
            gated: operand(arena, mlp),
            out: floats(arena, hidden),
            dout: operand(arena, hidden),
            dnormed: floats(arena, hidden),
            dattended: floats(arena, q),
            dq: operand(arena, q),
            dk: operand(arena, kv),
            dv: operand(arena, kv),
            head_normed: Operand::take(arena, options.operands, piece * hidden),
            head_factors: arena.array::<f32>(piece),
            logits: Operand::take(arena, options.operands, piece * layout.draft_vocab().size),
            teacher: arena.array::<f32>(piece * vocab_size),
            losses: arena.array::<PositionLoss>(rows),
            partial: arena.array::<f32>(ColumnSums::MOST_SLICES * hidden.max(mlp).max(q).max(kv)),
            squares: arena.array::<f64>(layout.trained().div_ceil(GradientSquares::CHUNK)),
            about: arena.array::<AboutGradient>(1),
            library: arena.take(library),
            piece,
        };
        (workspace, arena.taken())
    }
}

/// What a student wants of the device's memory, in bytes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TrainingBudget {
    /// The device's memory when asked.
    pub memory: MemoryInfo,
    /// The part of all memory that may be used.
    pub fraction: f64,
    /// Parameters, their gradient, and the optimiser's memory.
    pub parameters: u64,
    /// Buffers of passes.
    pub workspace: u64,
    /// Most rows of a batch.
    pub rows: usize,
}

impl TrainingBudget {
    /// Refuses what does not fit.
    ///
    /// # Errors
    /// With all the numbers.
    pub fn check(&self) -> Result<(), BackendError> {
        let fits = self.parameters + self.workspace <= allowed(self.memory, self.fraction);
        if fits { Ok(()) } else { Err(BackendError::TrainingMemory(*self)) }
    }
}

impl fmt::Display for TrainingBudget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "not enough GPU memory to train: parameters with their optimiser {} and a workspace for batches of {} \
             tokens {} are {} together, but {} may be used ({} of {}, of which {} are free): lower --batch-tokens, \
             freeze the head, or raise --gpu-memory-fraction",
            Amount(self.parameters),
            self.rows,
            Amount(self.workspace),
            Amount(self.parameters + self.workspace),
            Amount(allowed(self.memory, self.fraction)),
            self.fraction,
            Amount(self.memory.total),
            Amount(self.memory.free),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::training::parameters::{Head, Linear, Slot};
    use crate::model::{Rope, RopeScaling};

    /// Of Llama's 7B, without weights.
    fn subject(kind: Head) -> (Geometry, Layout) {
        let geometry = Geometry {
            family: "llama".into(),
            vocab_size: 32_000,
            hidden_size: 4096,
            intermediate_size: 11_008,
            layers: 32,
            heads: 32,
            kv_heads: 32,
            head_dim: 128,
            rms_norm_eps: 1e-5,
            rope: Rope { theta: 1e4, scaling: RopeScaling::Default },
            windows: vec![None; 32],
            max_positions: 4096,
            qk_norm: false,
            tied_head: false,
        };
        let mut end = 0;
        let mut slot = |rows: usize, columns: usize| {
            let start = end;
            end += rows * columns;
            Slot { shape: [rows, columns], range: start..end }
        };
        let (hidden, mlp) = (geometry.hidden_size, geometry.intermediate_size);
        let mut linear = |rows, columns| Linear { weight: slot(rows, columns), bias: None };
        let [q, k, v, o] = [(); 4].map(|()| linear(hidden, hidden));
        let (gate, up, down) = (linear(mlp, hidden), linear(mlp, hidden), linear(hidden, mlp));
        let [input_norm, post_norm, norm] = [(); 3].map(|()| slot(1, hidden));
        let head = slot(geometry.vocab_size, hidden);
        let (q_norm, k_norm) = (None, None);
        let draft_ids = None;
        let layout = Layout {
            input: None,
            recurrent: None,
            input_norm,
            q,
            k,
            v,
            q_norm,
            k_norm,
            o,
            post_norm,
            gate,
            up,
            down,
            norm,
            head,
            draft_ids,
            kind,
            after: 2,
        };
        (geometry, layout)
    }

    fn options(operands: Operands) -> CudaStudentOptions {
        let logits = CudaStudentOptions::LOGITS;
        CudaStudentOptions { window: 512, rows: 4096, memory_fraction: 0.9, operands, logits }
    }

    /// Bytes of parameters and of a workspace, both laid out.
    fn bytes(kind: Head, operands: Operands) -> [usize; 2] {
        let ((geometry, layout), options) = (subject(kind), options(operands));
        let parameters = Parameters::plan(Arena::NOWHERE, &layout, &geometry, &options).1;
        [parameters, Workspace::plan(Arena::NOWHERE, &layout, &geometry, &options, 32 << 20).1]
    }

    #[test]
    fn memory_is_what_the_readme_says() {
        let tenths = |bytes: usize| (bytes as f64 / 1e8).round() / 10.0;
        let trained = bytes(Head::Trained, Operands::Bf16);
        assert_eq!(trained.map(tenths), [6.0, 2.5]);
        assert_eq!(tenths(bytes(Head::Frozen, Operands::Bf16).iter().sum()), 6.9);
        // Without copies a value is 16 bytes, and there is no second array of any operand.
        let wide = bytes(Head::Trained, Operands::F32);
        assert_eq!(tenths(wide[0]), 5.3);
        assert!(wide[1] < trained[1]);
    }

    #[test]
    fn too_little_memory_is_told_with_all_numbers() {
        let budget = TrainingBudget {
            memory: MemoryInfo { free: 7_900_000_000, total: 8_000_000_000 },
            fraction: 0.9,
            parameters: 6_000_000_000,
            workspace: 2_400_000_000,
            rows: 4096,
        };
        assert_eq!(
            budget.check().map_err(|e| e.to_string()),
            Err("not enough GPU memory to train: parameters with their optimiser 6.00 GB and a workspace for batches \
                 of 4096 tokens 2.40 GB are 8.40 GB together, but 7.20 GB may be used (0.9 of 8.00 GB, of which \
                 7.90 GB are free): lower --batch-tokens, freeze the head, or raise --gpu-memory-fraction"
                .to_string())
        );
        assert_eq!(TrainingBudget { workspace: 1_200_000_000, ..budget }.check(), Ok(()));
    }
}
