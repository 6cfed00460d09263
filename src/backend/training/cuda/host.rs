//! The host's side: page-locked memory for what goes to the device and what comes back.

use super::memory::Inbox;
use crate::backend::BackendError;
use crate::backend::cuda::driver::{Driver, HostMemory};
use crate::backend::cuda::kernels::Address;
use bytemuck::Pod;
use std::sync::Arc;

/// Bytes of large arrays that go at a time: enough that the wait between two copies costs nothing beside them.
const LANE: usize = 8 << 20;

/// Page-locked memory through which large arrays go, and what is queued to read it.
struct Lane<D: Driver> {
    memory: HostMemory<D>,
    busy: Option<D::Event>,
}

/// Buffers on the host.
pub struct Host<D: Driver> {
    driver: Arc<D>,
    /// As [`Inbox`] lies on the device.
    inbox: HostMemory<D>,
    /// In turn: while one is copied to the device, the other is filled.
    lanes: [Lane<D>; 2],
    turn: usize,
    outbox: HostMemory<D>,
}

impl<D: Driver> Host<D> {
    /// Buffers for an inbox and for answers of `answer` bytes.
    ///
    /// # Errors
    /// If memory cannot be had.
    pub fn new(driver: &Arc<D>, inbox: usize, answer: usize) -> Result<Self, BackendError> {
        let lane = || Ok(Lane { memory: HostMemory::zeroed(driver, LANE)?, busy: None });
        Ok(Self {
            driver: driver.clone(),
            inbox: HostMemory::zeroed(driver, inbox)?,
            lanes: [lane()?, lane()?],
            turn: 0,
            outbox: HostMemory::zeroed(driver, answer)?,
        })
    }

    /// Queues copies of arrays into the device's inbox. Nothing queued before may read the host's.
    ///
    /// # Errors
    /// If the device fails.
    ///
    /// # Panics
    /// If an array is not inside the inbox.
    pub fn tell(&mut self, inbox: &Inbox, arrays: &[(Address, &[u8])]) -> Result<(), BackendError> {
        let offset = |to: Address| (to.0 - inbox.base.0) as usize;
        let contents = self.inbox.contents_mut();
        for &(to, bytes) in arrays {
            contents[offset(to)..][..bytes.len()].copy_from_slice(bytes);
        }
        for &(to, bytes) in arrays.iter().filter(|(_, bytes)| !bytes.is_empty()) {
            // SAFETY: both sides have this place of the inbox, and the host's is written again only when the pass has
            // been waited for.
            unsafe { self.driver.copy_to_device(to, self.inbox.at().add(offset(to)), bytes.len()) }?;
        }
        Ok(())
    }

    /// Queues a copy of an array to the device, piece by piece.
    ///
    /// # Safety
    /// There is room for it.
    ///
    /// # Errors
    /// If the device fails.
    pub unsafe fn upload<T: Pod>(&mut self, to: Address, values: &[T]) -> Result<(), BackendError> {
        let mut done = 0;
        for piece in bytemuck::cast_slice::<T, u8>(values).chunks(self.lanes[0].memory.contents().len()) {
            let lane = &mut self.lanes[self.turn];
            self.turn = 1 - self.turn;
            if let Some(event) = lane.busy.take() {
                self.driver.wait_for(&event)?;
            }
            lane.memory.contents_mut()[..piece.len()].copy_from_slice(piece);
            // SAFETY: as promised; the lane is written again only behind its event.
            unsafe { self.driver.copy_to_device(Address(to.0 + done), lane.memory.at(), piece.len()) }?;
            // Without an event nobody would know when the lane is free again.
            lane.busy = Some(self.driver.record().inspect_err(|_| drop(self.driver.wait()))?);
            done += piece.len() as u64;
        }
        Ok(())
    }

    /// Reads an array back, behind all that is queued.
    ///
    /// # Safety
    /// It is there.
    ///
    /// # Errors
    /// If the device fails.
    pub unsafe fn download(&self, from: Address, count: usize) -> Result<Vec<f32>, BackendError> {
        let lane = &self.lanes[0].memory;
        let at_once = lane.contents().len() / size_of::<f32>();
        let mut values = Vec::with_capacity(count);
        while values.len() < count {
            let (done, now) = (values.len(), at_once.min(count - values.len()));
            let bytes = now * size_of::<f32>();
            // SAFETY: as promised; the lane has room, and what was queued to read it comes before.
            unsafe { self.driver.copy_to_host(lane.at(), Address(from.0 + 4 * done as u64), bytes) }?;
            self.driver.wait()?;
            values.extend_from_slice(bytemuck::cast_slice(&lane.contents()[..bytes]));
        }
        Ok(values)
    }

    /// Waits for all that is queued, and reads a few values that it leaves.
    ///
    /// # Safety
    /// They are there.
    ///
    /// # Errors
    /// If the device fails.
    ///
    /// # Panics
    /// If they are more than the outbox has room for.
    pub unsafe fn answer<T: Pod>(&mut self, from: Address, count: usize) -> Result<Vec<T>, BackendError> {
        let bytes = count * size_of::<T>();
        assert!(bytes <= self.outbox.contents().len());
        if bytes > 0 {
            // SAFETY: as promised; the outbox has room.
            unsafe { self.driver.copy_to_host(self.outbox.at(), from, bytes) }?;
        }
        self.driver.wait()?;
        self.lanes.iter_mut().for_each(|lane| lane.busy = None);
        Ok(bytemuck::cast_slice(&self.outbox.contents()[..bytes]).to_vec())
    }
}
