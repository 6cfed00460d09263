//! Weights in device memory: `pack_weights` and its inverse `unpack_weights`, and `random_weights` for models without a checkpoint.

use super::{Address, Format, Launcher, Shape, launch};
use crate::backend::BackendError;
use crate::backend::cuda::pack::{BLOCK_ROWS, chunks};

arguments! {
    /// `cuda/pack_weights.cu`.
    PackWeights {
        /// `[row_count, columns]` of 2-byte elements, at a multiple of 16 bytes.
        rows: Address,
        /// The packed matrix, its block 0 ([`pack`](crate::backend::cuda::pack)); blocks that no launch fills
        /// must be zero already.
        target: Address,
        /// Rows; the last block is filled up with zeros.
        row_count: i32,
        /// Of the matrix, without padding.
        columns: i32,
        /// Where the first block of 16 rows goes.
        first_block: i32,
        /// Blocks from one to the next: 2 interleaves.
        block_step: i32,
    }
}

arguments! {
    /// `cuda/unpack_weights.cu`.
    UnpackWeights {
        /// The packed matrix, its block 0 ([`pack`](crate::backend::cuda::pack)).
        source: Address,
        /// `[row_count, 64 · chunks]` of 2-byte elements, at a multiple of 16 bytes.
        rows: Address,
        /// Rows.
        row_count: i32,
        /// Of 64 columns.
        chunks: i32,
        /// Where the first block of 16 rows lies.
        first_block: i32,
        /// Blocks from one to the next: 2 where they are interleaved.
        block_step: i32,
    }
}

arguments! {
    /// `cuda/random_weights.cu`.
    RandomWeights {
        /// `[elements]` of the format.
        target: Address,
        /// Same seed, same weights.
        seed: u64,
        /// A multiple of 8.
        elements: u64,
        /// The weights' standard deviation.
        scale: f32,
        /// Zero.
        padding: u32,
    }
}

const THREADS: u32 = 256;
const WARPS: usize = THREADS as usize / 32;

/// Packs a matrix, or one of several that are stacked or interleaved.
///
/// # Safety
/// As [`Launcher::launch`].
///
/// # Errors
/// If the device refuses or fails.
pub unsafe fn pack_weights(on: &impl Launcher, arguments: &PackWeights) -> Result<(), BackendError> {
    let shape = by_blocks(arguments.row_count, chunks(arguments.columns as usize));
    // SAFETY: the caller's promise.
    unsafe { launch(on, "pack_weights", shape, arguments) }
}

/// Brings a packed matrix, or one of several that are stacked or interleaved, back into rows.
///
/// # Safety
/// As [`Launcher::launch`].
///
/// # Errors
/// If the device refuses or fails.
pub unsafe fn unpack_weights(on: &impl Launcher, arguments: &UnpackWeights) -> Result<(), BackendError> {
    let shape = by_blocks(arguments.row_count, arguments.chunks as usize);
    // SAFETY: the caller's promise.
    unsafe { launch(on, "unpack_weights", shape, arguments) }
}

/// A warp for 16 rows and 64 columns.
fn by_blocks(row_count: i32, chunks: usize) -> Shape {
    let tasks = (row_count as usize).div_ceil(BLOCK_ROWS) * chunks;
    Shape { grid: [tasks.div_ceil(WARPS) as u32, 1, 1], threads: THREADS, shared_bytes: 0 }
}

/// Fills memory with nearly normal weights.
///
/// # Safety
/// As [`Launcher::launch`].
///
/// # Errors
/// If the device refuses or fails.
pub unsafe fn random_weights(
    on: &impl Launcher,
    format: Format,
    arguments: &RandomWeights,
) -> Result<(), BackendError> {
    // Enough to fill any GPU several times over; each thread goes on from there.
    const MOST_BLOCKS: u64 = 4096;
    let blocks = (arguments.elements / 8).div_ceil(THREADS.into()).min(MOST_BLOCKS);
    let shape = Shape { grid: [blocks as u32, 1, 1], threads: THREADS, shared_bytes: 0 };
    // SAFETY: the caller's promise.
    unsafe { launch(on, &format!("random_weights_{}", format.suffix()), shape, arguments) }
}
