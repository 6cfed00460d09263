//! A draft loop on the device: `next_draft` between its passes, `continue_loop` at its end.

use super::{Address, Launcher, Shape, launch};
use crate::backend::BackendError;

arguments! {
    /// A round that follows a plan (`cuda/next_draft.cu`).
    DraftLoop {
        /// Chance that all drafts so far are accepted; 1 at first.
        survival: f64,
        /// Most drafts, at least 1.
        limit: u32,
        /// So far.
        drafted: u32,
        /// Upper edges of bins of confidence, at most [`LANES`](Self::LANES).
        edges: u32,
        /// 0: drafting goes on to the limit.
        has_rules: u32,
        /// End tokens, at most [`LANES`](Self::LANES).
        ends: u32,
        /// 0 when the loop is done.
        go_on: u32,
    }
}

impl DraftLoop {
    /// Edges that the kernel has a thread for, and end tokens.
    pub const LANES: usize = 32;
    /// Where [`go_on`](Self::go_on) lies in the structure.
    pub const GO_ON: usize = std::mem::offset_of!(Self, go_on);
}

arguments! {
    /// What follows from a draft in a bin.
    DraftRule {
        /// Multiplies survival.
        kept: f64,
        /// Times survival, above 1: go on.
        worth: f64,
    }
}

arguments! {
    /// `cuda/next_draft.cu`.
    NextDraft {
        /// `[slots · max_draft]` of [`RowChoice`](super::RowChoice).
        choices: Address,
        /// One [`DraftLoop`].
        state: Address,
        /// `[edges]` f32, ascending.
        edges: Address,
        /// `[limit - 1, edges + 1]` of [`DraftRule`].
        rules: Address,
        /// `[ends]` u32.
        ends: Address,
        /// One token.
        ids: Address,
        /// One position, i32.
        start: Address,
        /// One row of `keep_rows`, u32.
        keep: Address,
        /// One [`JudgedRow`](super::JudgedRow).
        row: Address,
        /// `[max_draft]` u32, or null.
        recent: Address,
    }
}

arguments! {
    /// `cuda/continue_loop.cu`.
    ContinueLoop {
        /// Of a conditional node.
        handle: u64,
        /// One u32, not 0 to go on.
        condition: Address,
    }
}

/// Moves a loop on to its next draft, or ends it.
///
/// # Safety
/// As [`Launcher::launch`].
///
/// # Errors
/// If the device refuses or fails.
pub unsafe fn next_draft(on: &impl Launcher, arguments: &NextDraft) -> Result<(), BackendError> {
    let shape = Shape { grid: [1; 3], threads: DraftLoop::LANES as u32, shared_bytes: 0 };
    // SAFETY: the caller's promise.
    unsafe { launch(on, "next_draft", shape, arguments) }
}

impl ContinueLoop {
    /// The kernel, which a build by an older nvcc does not have.
    pub const KERNEL: &'static str = "continue_loop";
    /// Its one thread.
    pub const SHAPE: Shape = Shape { grid: [1; 3], threads: 1, shared_bytes: 0 };
}
