//! What a student keeps on the device, laid out before any memory is taken.

use super::places::{Operand, Places};
use super::{CudaStudentOptions, Operands};
use crate::backend::cuda::arena::Arena;
use crate::backend::cuda::kernels::training::{AboutGradient, ColumnSums, GradientSquares, PositionLoss};
use crate::backend::cuda::kernels::{Address, RowTile};
use crate::backend::training::parameters::{Head, Layout};
use crate::model::Geometry;

/// Parameters, the optimiser's memory, and what is kept of the model.
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
    /// Of the model's last norm, `[hidden]` f32.
    pub model_norm: Address,
    /// The model's rows of the drafted tokens, as products read them, `[draft vocabulary, hidden]`; unused where the
    /// student's head is the model's.
    pub model_head: Address,
    /// `[vocabulary, hidden]`, each row normalised, as products read them; unused where nothing is recurrent.
    pub embeddings: Address,
}

impl Parameters {
    /// Lays them out from `base` on; returns them and the bytes they take.
    pub fn plan(base: Address, layout: &Layout, geometry: &Geometry, options: &CudaStudentOptions) -> (Self, usize) {
        let mut places = Places { arena: Arena::new(base), operands: options.operands };
        let hidden = geometry.hidden_size;
        let head_rows = if layout.kind == Head::Shared { 0 } else { layout.draft_vocab().size };
        let embedded = if layout.is_recurrent() { geometry.vocab_size } else { 0 };
        let parameters = Self {
            values: places.operand(layout.len()),
            gradient: places.floats(layout.trained()),
            mean: places.floats(layout.trained()),
            square: places.floats(layout.trained()),
            turns: places.floats(options.window * geometry.head_dim),
            model_norm: places.floats(hidden),
            model_head: places.factors(head_rows * hidden),
            embeddings: places.factors(embedded * hidden),
        };
        (parameters, places.arena.taken())
    }
}

/// What a batch is told.
pub struct Inbox {
    /// Where it begins.
    pub base: Address,
    /// `[rows]` i32: positions of the text's rows in their segments.
    pub positions: Address,
    /// `[steps, chains]` i32: positions of the chains in each step.
    pub chain_positions: Address,
    /// `[steps - 1, chains]` u32: the tokens that they embed in each step but the first.
    pub tokens: Address,
    /// `[chains]` u32: the text's rows where they start.
    pub starts: Address,
    /// At most `[rows]` of [`RowTile`]: of chains.
    pub query_tiles: Address,
    /// Likewise, of keys.
    pub key_tiles: Address,
    /// `[drafts]` u32: rows of all steps' `out` that draft what counts.
    pub drafts: Address,
    /// `[drafts]` u32: the position that each drafts, counted from the first one of its piece.
    pub drafted: Address,
    /// `[positions]` u32: of the next tokens in the student's rows.
    pub columns: Address,
    /// `[positions]` u32: likewise, of the teacher's likeliest tokens.
    pub likeliest: Address,
    /// `[positions]` f32.
    pub log_totals: Address,
    /// `[positions]` f64.
    pub weights: Address,
    /// `h_N` of the text, `[rows, hidden]` f32.
    pub hidden: Address,
    /// The teacher's last hidden states, `[positions, hidden]` f32.
    pub last: Address,
    /// Of all of it.
    pub bytes: usize,
}

/// Rows of the residual stream under a norm, `[rows, ..]` each.
pub struct Stream {
    /// f32.
    pub x: Address,
    /// Under the norm.
    pub normed: Operand,
    /// The norm's.
    pub factors: Address,
}

/// Keys and values of some rows, `[rows, ..]` f32 each, and their gradients.
pub struct Keys {
    /// Before a norm of keys; unused without.
    pub raw: Address,
    /// That norm's.
    pub factors: Address,
    pub k: Address,
    pub v: Address,
    pub dk: Address,
    pub dv: Address,
}

/// What a step other than the first has of its own, `[rows, ..]` each.
pub struct Own {
    /// Embeddings, as products read them.
    pub embedded: Address,
    /// The keys that it makes for its chains.
    pub keys: Keys,
}

/// What a step of the chains leaves for the way back; `[rows, ..]` each. Those of `out`, of `dout` and of the own keys
/// lie one after another through all steps.
pub struct Step {
    /// What the layer reads. (In the first step, rows of the text; the norm's factors are there.)
    pub inputs: Stream,
    /// Of every step but the first.
    pub own: Option<Own>,
    /// Before a norm of queries; unused without.
    pub raw_q: Address,
    pub q_factors: Address,
    pub q: Address,
    pub attended: Operand,
    pub lse: Address,
    /// The residual stream after attention.
    pub middle: Stream,
    /// Their gradients on the way back, as `up` and the wide side of `gated`.
    pub gate: Address,
    pub up: Address,
    pub gated: Operand,
    /// The residual stream after the layer.
    pub out: Operand,
    /// Its gradient.
    pub dout: Address,
}

/// Everything of a pass.
pub struct Workspace {
    /// Inputs.
    pub inbox: Inbox,
    /// `h_N` of the text, for a matrix that multiplies it.
    pub hidden: Operand,
    /// What the layer reads of the text, and the keys that it makes there.
    pub text: Stream,
    pub text_keys: Keys,
    pub steps: Vec<Step>,
    /// Rows that every array has room for.
    pub rows: usize,
    /// Gradients in one step at a time, and in what the layer reads of the text.
    pub dnormed: Address,
    pub dattended: Address,
    pub delta: Address,
    pub dq: Address,
    pub dtext: Address,
    /// The copy of a gradient that products read.
    pub narrowed: Address,
    /// Of a piece of positions: `[drafts, ..]`.
    pub head_normed: Operand,
    pub head_factors: Address,
    pub logits: Operand,
    pub dhead: Address,
    /// `[positions, draft vocabulary]` f32.
    pub teacher: Address,
    /// `[drafts]` of [`PositionLoss`].
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

/// How large everything is.
struct Sizes {
    rows: usize,
    steps: usize,
    hidden: usize,
    mlp: usize,
    q: usize,
    kv: usize,
    /// Norms of queries, and of keys.
    q_norms: usize,
    k_norms: usize,
    heads: usize,
}

impl Sizes {
    fn of(layout: &Layout, geometry: &Geometry, options: &CudaStudentOptions) -> Self {
        let normed = usize::from(layout.q_norm.is_some());
        Self {
            rows: options.rows,
            steps: options.steps,
            hidden: geometry.hidden_size,
            mlp: geometry.intermediate_size,
            q: geometry.q_size(),
            kv: geometry.kv_size(),
            q_norms: geometry.heads * normed,
            k_norms: geometry.kv_heads * normed,
            heads: geometry.heads,
        }
    }

    fn widest(&self) -> usize {
        self.hidden.max(self.mlp).max(self.q).max(self.kv)
    }
}

/// Places that steps share.
struct Shared {
    /// The f32 side of norms, and of `gated`.
    normed: Address,
    gated: Address,
    out: Address,
    dout: Address,
    /// Keys, values, and their gradients, from step 1 on.
    own: [Address; 4],
}

impl Inbox {
    fn plan(arena: &mut Arena, sizes: &Sizes) -> Self {
        let &Sizes { rows, steps, hidden, .. } = sizes;
        Self {
            base: arena.take(0),
            positions: arena.array::<i32>(rows),
            chain_positions: arena.array::<i32>(rows * steps),
            tokens: arena.array::<u32>(rows * (steps - 1)),
            starts: arena.array::<u32>(rows),
            query_tiles: arena.array::<RowTile>(rows),
            key_tiles: arena.array::<RowTile>(rows),
            drafts: arena.array::<u32>(rows * steps),
            drafted: arena.array::<u32>(rows * steps),
            columns: arena.array::<u32>(rows),
            likeliest: arena.array::<u32>(rows),
            log_totals: arena.array::<f32>(rows),
            weights: arena.array::<f64>(rows),
            hidden: arena.array::<f32>(rows * hidden),
            last: arena.array::<f32>(rows * hidden),
            bytes: arena.taken(),
        }
    }
}

impl Stream {
    /// That of `x`; `scratch` as for [`Places::copy`].
    fn plan(places: &mut Places, x: Address, scratch: Address, sizes: &Sizes) -> Self {
        Self { x, normed: places.copy(scratch, sizes.rows * sizes.hidden), factors: places.floats(sizes.rows) }
    }
}

impl Keys {
    /// Those whose four arrays are there.
    fn plan(places: &mut Places, [k, v, dk, dv]: [Address; 4], sizes: &Sizes) -> Self {
        let raw = if sizes.k_norms > 0 { places.floats(sizes.rows * sizes.kv) } else { Address(0) };
        Self { raw, factors: places.floats(sizes.rows * sizes.k_norms), k, v, dk, dv }
    }
}

impl Step {
    fn plan(places: &mut Places, shared: &Shared, step: usize, sizes: &Sizes) -> Self {
        let &Sizes { rows, steps, hidden, mlp, q, kv, .. } = sizes;
        let part = |all: Address, step: usize, width: usize| Address(all.0 + (4 * step * rows * width) as u64);
        let [x, middle] = [(); 2].map(|()| places.floats(rows * hidden));
        let own = step.checked_sub(1).map(|before| Own {
            embedded: places.factors(rows * hidden),
            keys: Keys::plan(places, shared.own.map(|all| part(all, before, kv)), sizes),
        });
        let (out, dout) = (part(shared.out, step, hidden), part(shared.dout, step, hidden));
        let last = step + 1 == steps;
        Self {
            inputs: Stream::plan(places, x, shared.normed, sizes),
            own,
            raw_q: if sizes.q_norms > 0 { places.floats(rows * q) } else { Address(0) },
            q_factors: places.floats(rows * sizes.q_norms),
            q: places.floats(rows * q),
            attended: places.operand(rows * q),
            lse: places.floats(rows * sizes.heads),
            middle: Stream::plan(places, middle, shared.normed, sizes),
            gate: places.floats(rows * mlp),
            up: places.floats(rows * mlp),
            gated: places.copy(shared.gated, rows * mlp),
            // No other step multiplies what the last one leaves.
            out: if last { Operand { wide: out, factor: out } } else { places.operand_of(out, rows * hidden) },
            dout,
        }
    }
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
        let sizes = &Sizes::of(layout, geometry, options);
        let &Sizes { rows, steps, hidden, mlp, q, kv, .. } = sizes;
        let vocab = layout.draft_vocab().size;
        let piece = (options.logits / (vocab * steps)).clamp(1, rows);
        let drafts = piece * steps;
        let mut arena = Arena::new(base);
        let inbox = Inbox::plan(&mut arena, sizes);
        let places = &mut Places { arena, operands: options.operands };

        let copied = options.operands != Operands::F32;
        let dnormed = places.floats(rows * hidden);
        let shared = Shared {
            normed: dnormed, // not of the same time
            gated: if copied { places.floats(rows * mlp) } else { Address(0) },
            out: places.floats(steps * rows * hidden),
            dout: places.floats(steps * rows * hidden),
            own: [(); 4].map(|()| places.floats((steps - 1) * rows * kv)),
        };
        let read = if layout.input.is_some() {
            (places.operand_of(inbox.hidden, rows * hidden), places.floats(rows * hidden))
        } else {
            (Operand { wide: inbox.hidden, factor: inbox.hidden }, inbox.hidden)
        };
        let text_keys = [(); 4].map(|()| places.floats(rows * kv));
        let workspace = Self {
            inbox,
            hidden: read.0,
            text: Stream::plan(places, read.1, shared.normed, sizes),
            text_keys: Keys::plan(places, text_keys, sizes),
            steps: (0..steps).map(|step| Step::plan(places, &shared, step, sizes)).collect(),
            rows,
            dnormed,
            dattended: places.floats(rows * q),
            delta: places.floats(rows * sizes.heads),
            dq: places.floats(rows * q),
            dtext: places.floats(rows * hidden),
            narrowed: if copied { places.factors(rows * sizes.widest()) } else { Address(0) },
            head_normed: places.operand(drafts * hidden),
            head_factors: places.floats(drafts),
            logits: places.operand(drafts * vocab),
            dhead: places.floats(drafts * hidden),
            teacher: places.floats(piece * vocab),
            losses: places.arena.array::<PositionLoss>(steps * rows),
            partial: places.floats(ColumnSums::MOST_SLICES * sizes.widest()),
            squares: places.arena.array::<f64>(layout.trained().div_ceil(GradientSquares::CHUNK)),
            about: places.arena.array::<AboutGradient>(1),
            library: places.arena.take(library),
            piece,
        };
        (workspace, places.arena.taken())
    }
}

#[cfg(test)]
mod tests;
