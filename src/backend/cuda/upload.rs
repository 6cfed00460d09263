//! Weights from the host (usually a memory map) to the device, through two page-locked buffers in turn:
//! while one is copied to the device, the other is filled. Projections are packed by the device itself.

use super::driver::{Driver, HostMemory, Memory};
use super::kernels::{Address, PackWeights, pack_weights};
use super::pack::BLOCK_ROWS;
use super::weights::Cargo;
use crate::backend::BackendError;
use std::sync::Arc;

/// Bytes of one buffer: large enough for a copy to run at full speed, and all the memory this needs.
const BUFFER_BYTES: usize = 32 << 20;
/// Threads that fill a buffer: one alone does not read a memory map as fast as a GPU takes it in.
const FILLERS: usize = 4;
/// A piece that is not worth another thread.
const PIECE_BYTES: usize = 1 << 20;

/// Brings everything to where it belongs, and waits for it.
///
/// # Safety
/// Each target has room for its cargo, and is zero.
///
/// # Errors
/// If memory for the buffers cannot be had, or the device fails.
pub unsafe fn upload<D: Driver>(driver: &Arc<D>, cargo: &[Cargo<'_>]) -> Result<(), BackendError> {
    let widest = |item: &Cargo<'_>| match item {
        Cargo::Rows { matrix, .. } => BLOCK_ROWS * row_bytes(matrix),
        _ => 0,
    };
    let bytes = cargo.iter().map(widest).max().unwrap_or(0).max(BUFFER_BYTES);
    let mut uploader = Uploader { driver, turn: 0, lanes: [Lane::new(driver, bytes)?, Lane::new(driver, bytes)?], bytes };
    for item in cargo {
        // SAFETY: the caller's promise.
        unsafe {
            match item {
                Cargo::Rows { matrix, target, first_block, block_step } => {
                    uploader.rows(matrix, *target, *first_block, *block_step)?;
                }
                Cargo::Bytes { bytes, target } => uploader.bytes(bytes, *target)?,
                Cargo::Floats { floats, target } => uploader.bytes(bytemuck::cast_slice(floats), *target)?,
            }
        }
    }
    driver.wait()
}

fn row_bytes(matrix: &crate::model::Matrix<'_>) -> usize {
    matrix.cols * matrix.dtype.size()
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
        matrix: &crate::model::Matrix<'_>,
        target: Address,
        first_block: usize,
        block_step: usize,
    ) -> Result<(), BackendError> {
        let block = BLOCK_ROWS * row_bytes(matrix);
        let blocks_at_once = self.bytes / block;
        for (piece, bytes) in matrix.bytes.chunks(blocks_at_once * block).enumerate() {
            // SAFETY: the buffer on the device is as large as the one on the host.
            let staged = unsafe { self.stage(bytes, None) }?;
            let arguments = PackWeights {
                rows: staged,
                target,
                row_count: (bytes.len() / row_bytes(matrix)) as i32,
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
        let lane = &mut self.lanes[self.turn];
        if let Some(event) = lane.busy.take() {
            self.driver.wait_for(&event)?;
        }
        fill(&mut lane.host.contents_mut()[..bytes.len()], bytes);
        let target = target.unwrap_or(lane.device.at());
        // SAFETY: the host's buffer is left alone until its event has come.
        unsafe { self.driver.copy_to_device(target, lane.host.at(), bytes.len()) }?;
        Ok(target)
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
