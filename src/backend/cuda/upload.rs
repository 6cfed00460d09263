//! Weights from the host (usually a memory map) to the device, through two page-locked buffers in turn:
//! while one is copied to the device, the other is filled. Projections are packed by the device itself, but codes, of which
//! there are many formats and fewer bytes, by the threads that fill the buffers.

use super::coding::{Coding, Storage, pack_codes};
use super::driver::{Driver, HostMemory, Memory};
use super::kernels::{Address, PackWeights, pack_weights};
use super::pack::BLOCK_ROWS;
use crate::backend::BackendError;
use crate::model::{Matrix, RowOrder};
use std::borrow::Cow;
use std::num::NonZeroUsize;
use std::sync::Arc;

/// Bytes of one buffer: large enough for a copy to run at full speed, and all the memory this needs.
const BUFFER_BYTES: usize = 32 << 20;
/// Threads that fill a buffer: one alone does not read a memory map as fast as a GPU takes it in.
const FILLERS: usize = 4;
/// A piece that is not worth another thread.
const PIECE_BYTES: usize = 1 << 20;

/// Something to be brought to the device, and where it belongs there.
#[allow(missing_docs)] // one name each, which says it
pub enum Cargo<'a> {
    /// Rows to be packed on the way: 16-row block `b` becomes block `first_block + b · block_step`.
    Rows { matrix: Matrix<'a>, target: Address, first_block: usize, block_step: usize },
    /// The same of rows of codes, which are packed on the host.
    Codes { matrix: Matrix<'a>, coding: Coding, target: Address, first_block: usize, block_step: usize },
    /// Bytes as they are.
    Bytes { bytes: &'a [u8], target: Address },
    /// Numbers widened or computed on the host.
    Floats { floats: Vec<f32>, target: Address },
}

/// Brings everything to where it belongs, and waits for it.
///
/// # Safety
/// Each target has room for its cargo, and is zero.
///
/// # Errors
/// If memory for the buffers cannot be had, or the device fails.
pub unsafe fn upload<D: Driver>(driver: &Arc<D>, cargo: &[Cargo<'_>]) -> Result<(), BackendError> {
    // SAFETY: the caller's promise.
    unsafe { upload_through(driver, cargo, BUFFER_BYTES) }
}

/// As [`upload`], through buffers of at most `most` bytes (but of a block of rows at least).
///
/// # Safety
/// As [`upload`].
///
/// # Errors
/// As [`upload`].
pub unsafe fn upload_through<D: Driver>(driver: &Arc<D>, cargo: &[Cargo<'_>], most: usize) -> Result<(), BackendError> {
    // Bytes of an item, and of the smallest piece that it can be cut into.
    let sizes = |item: &Cargo<'_>| match item {
        Cargo::Rows { matrix, .. } => (matrix.bytes.len(), BLOCK_ROWS * row_bytes(matrix)),
        Cargo::Codes { matrix, coding, .. } => {
            let block = Storage::Codes(*coding).block_bytes(matrix.cols);
            (matrix.rows.div_ceil(BLOCK_ROWS) * block, block)
        }
        Cargo::Bytes { bytes, .. } => (bytes.len(), 1),
        Cargo::Floats { floats, .. } => (size_of_val(&floats[..]), 1),
    };
    let largest = cargo.iter().map(|item| sizes(item).0).max().unwrap_or(0);
    let piece = cargo.iter().map(|item| sizes(item).1).max().unwrap_or(1);
    let bytes = largest.min(most).max(piece);
    let lanes = [Lane::new(driver, bytes)?, Lane::new(driver, bytes)?];
    let mut uploader = Uploader { driver, turn: 0, lanes, bytes };
    for item in cargo {
        // SAFETY: the caller's promise.
        unsafe {
            match item {
                Cargo::Rows { matrix, target, first_block, block_step } => {
                    uploader.rows(matrix, *target, *first_block, *block_step)?;
                }
                Cargo::Codes { matrix, coding, target, first_block, block_step } => {
                    uploader.codes(matrix, *coding, *target, *first_block, *block_step)?;
                }
                Cargo::Bytes { bytes, target } => uploader.bytes(bytes, *target)?,
                Cargo::Floats { floats, target } => uploader.bytes(bytemuck::cast_slice(floats), *target)?,
            }
        }
    }
    driver.wait()
}

fn row_bytes(matrix: &Matrix<'_>) -> usize {
    matrix.row_bytes()
}

/// A page-locked buffer, its counterpart on the device, and when both are free again.
struct Lane<D: Driver> {
    host: HostMemory<D>,
    device: Memory<D>,
    busy: Option<D::Event>,
}

impl<D: Driver> Lane<D> {
    fn new(driver: &Arc<D>, bytes: usize) -> Result<Self, BackendError> {
        let device = Memory::zeroed(driver, bytes, "loading")?;
        Ok(Self { host: HostMemory::zeroed(driver, bytes)?, device, busy: None })
    }
}

struct Uploader<'d, D: Driver> {
    driver: &'d Arc<D>,
    lanes: [Lane<D>; 2],
    turn: usize,
    bytes: usize,
}

impl<D: Driver> Uploader<'_, D> {
    /// Rows of a matrix, as many whole blocks at a time as a buffer holds.
    unsafe fn rows(
        &mut self,
        matrix: &Matrix<'_>,
        target: Address,
        first_block: usize,
        block_step: usize,
    ) -> Result<(), BackendError> {
        let blocks_at_once = self.bytes / (BLOCK_ROWS * row_bytes(matrix));
        let rows_at_once = blocks_at_once * BLOCK_ROWS;
        for (piece, first) in (0..matrix.rows).step_by(rows_at_once).enumerate() {
            let rows = first..matrix.rows.min(first + rows_at_once);
            let bytes: Cow<'_, [u8]> = match matrix.order {
                RowOrder::AsStored => matrix.bytes[rows.start * row_bytes(matrix)..rows.end * row_bytes(matrix)].into(),
                RowOrder::PairedHalves { .. } => rows.clone().flat_map(|row| matrix.row(row)).copied().collect(),
            };
            // SAFETY: the buffer on the device is as large as the one on the host.
            let staged = unsafe { self.stage(&bytes, None) }?;
            let arguments = PackWeights {
                rows: staged,
                target,
                row_count: rows.len() as i32,
                columns: matrix.cols as i32,
                first_block: (first_block + piece * blocks_at_once * block_step) as i32,
                block_step: block_step as i32,
            };
            // SAFETY: the rows were staged; the target has room by the caller's promise.
            unsafe { pack_weights(&**self.driver, &arguments) }?;
            self.end_turn()?;
        }
        Ok(())
    }

    /// Rows of a matrix of codes, as many whole packed blocks at a time as a buffer holds.
    unsafe fn codes(
        &mut self,
        matrix: &Matrix<'_>,
        coding: Coding,
        target: Address,
        first_block: usize,
        block_step: usize,
    ) -> Result<(), BackendError> {
        let block_bytes = Storage::Codes(coding).block_bytes(matrix.cols);
        let blocks: Vec<usize> = (0..matrix.rows.div_ceil(BLOCK_ROWS)).collect();
        for piece in blocks.chunks(self.bytes / block_bytes) {
            let lane = self.free_lane()?;
            let packed = &mut lane.host.contents_mut()[..piece.len() * block_bytes];
            // Taking codes apart computes, about a nanosecond for each: 70B is a matter of all cores.
            let packers = std::thread::available_parallelism().map_or(FILLERS, NonZeroUsize::get);
            let share = piece.len().div_ceil(packers);
            std::thread::scope(|scope| {
                for (packed, blocks) in packed.chunks_mut(share * block_bytes).zip(piece.chunks(share)) {
                    scope.spawn(move || {
                        for (packed, &block) in packed.chunks_exact_mut(block_bytes).zip(blocks) {
                            let rows = block * BLOCK_ROWS..matrix.rows.min((block + 1) * BLOCK_ROWS);
                            pack_codes(packed, coding, matrix, rows);
                        }
                    });
                }
            });
            // Blocks that follow each other are one copy.
            let run = if block_step == 1 { piece.len() } else { 1 };
            let from = lane.host.at();
            for (index, blocks) in piece.chunks(run).enumerate() {
                let to = Address(target.0 + ((first_block + blocks[0] * block_step) * block_bytes) as u64);
                let from = from.wrapping_add(index * run * block_bytes);
                // SAFETY: the host's buffer is left alone until its event has come; the target has room by the caller's
                // promise.
                unsafe { self.driver.copy_to_device(to, from, blocks.len() * block_bytes) }?;
            }
            self.end_turn()?;
        }
        Ok(())
    }

    unsafe fn bytes(&mut self, bytes: &[u8], target: Address) -> Result<(), BackendError> {
        for (piece, part) in bytes.chunks(self.bytes).enumerate() {
            let to = Address(target.0 + (piece * self.bytes) as u64);
            // SAFETY: the caller's promise.
            unsafe { self.stage(part, Some(to)) }?;
            self.end_turn()?;
        }
        Ok(())
    }

    /// Fills the buffer whose turn it is and queues its copy to `target`, or to the buffer on the device;
    /// returns where it goes.
    unsafe fn stage(&mut self, bytes: &[u8], target: Option<Address>) -> Result<Address, BackendError> {
        let lane = self.free_lane()?;
        fill(&mut lane.host.contents_mut()[..bytes.len()], bytes);
        let (target, from) = (target.unwrap_or(lane.device.at()), lane.host.at());
        // SAFETY: the host's buffer is left alone until its event has come.
        unsafe { self.driver.copy_to_device(target, from, bytes.len()) }?;
        Ok(target)
    }

    /// The buffer whose turn it is, once what was in it has arrived.
    fn free_lane(&mut self) -> Result<&mut Lane<D>, BackendError> {
        let lane = &mut self.lanes[self.turn];
        if let Some(event) = lane.busy.take() {
            self.driver.wait_for(&event)?;
        }
        Ok(lane)
    }

    fn end_turn(&mut self) -> Result<(), BackendError> {
        self.lanes[self.turn].busy = Some(self.driver.record()?);
        self.turn = 1 - self.turn;
        Ok(())
    }
}

/// Copies with several threads.
fn fill(to: &mut [u8], from: &[u8]) {
    let share = from.len().div_ceil(FILLERS).max(PIECE_BYTES);
    std::thread::scope(|scope| {
        let mut pieces = to.chunks_mut(share).zip(from.chunks(share));
        let first = pieces.next();
        for (to, from) in pieces {
            scope.spawn(|| to.copy_from_slice(from));
        }
        if let Some((to, from)) = first {
            to.copy_from_slice(from);
        }
    });
}
