//! The host's side of every pass: page-locked memory for what goes to the device and what comes back.

use super::driver::{Driver, HostMemory, Memory};
use super::graphs::Graphs;
use super::inbox::{Inbox, Layout, Shape};
use super::kernels::{Address, DraftLoop, RowChoice, Verdict};
use crate::backend::{BackendError, Limits};
use std::sync::Arc;

/// Least bytes of the inbox: enough for a few sequences without biases.
const INBOX_BYTES: usize = 64 << 10;
/// Least bytes of the outbox: rows of logits are read back in such pieces.
const OUTBOX_BYTES: usize = 1 << 20;

/// Buffers on the host, and the inbox's counterpart on the device.
pub struct Host<D: Driver> {
    /// What the next pass is told.
    pub inbox: HostMemory<D>,
    on_device: Memory<D>,
    /// What the last pass answered.
    pub outbox: HostMemory<D>,
}

impl<D: Driver> Host<D> {
    /// Buffers for passes within `limits`.
    ///
    /// # Errors
    /// If memory cannot be had.
    pub fn new(driver: &Arc<D>, limits: &Limits) -> Result<Self, BackendError> {
        let choices = limits.slots * limits.max_draft * size_of::<RowChoice>() + size_of::<DraftLoop>();
        // And the flag before them.
        let verdicts = (1 + limits.slots) * size_of::<Verdict>();
        let tokens = limits.context * size_of::<crate::TokenId>();
        Ok(Self {
            inbox: HostMemory::zeroed(driver, INBOX_BYTES)?,
            on_device: Memory::zeroed(driver, INBOX_BYTES, "inputs of a pass")?,
            outbox: HostMemory::zeroed(driver, OUTBOX_BYTES.max(choices).max(tokens).max(verdicts))?,
        })
    }

    /// The inbox for a pass of this shape. If it has to grow it moves, and recorded passes are forgotten.
    ///
    /// # Errors
    /// If memory cannot be had.
    pub fn inbox(
        &mut self,
        driver: &Arc<D>,
        shape: &Shape,
        max_draft: usize,
        graphs: &mut Graphs<D>,
    ) -> Result<Inbox, BackendError> {
        let layout = Layout::new(shape, max_draft);
        if layout.bytes > self.on_device.bytes() {
            let bytes = layout.bytes.next_power_of_two();
            graphs.clear();
            self.inbox = HostMemory::zeroed(driver, bytes)?;
            self.on_device = Memory::zeroed(driver, bytes, "inputs of a pass")?;
        }
        Ok(Inbox { layout, at: self.on_device.at() })
    }

    /// Reads numbers back.
    ///
    /// # Errors
    /// If the device fails.
    pub fn download(&self, driver: &D, from: Address, count: usize) -> Result<Vec<f32>, BackendError> {
        let mut numbers = Vec::with_capacity(count);
        let at_once = self.outbox.contents().len() / size_of::<f32>();
        while numbers.len() < count {
            let (done, now) = (numbers.len(), at_once.min(count - numbers.len()));
            // SAFETY: the outbox has room, and is read only after the copy is waited for.
            unsafe { driver.copy_to_host(self.outbox.at(), Address(from.0 + 4 * done as u64), now * 4) }?;
            driver.wait()?;
            numbers.extend_from_slice(&bytemuck::cast_slice(self.outbox.contents())[..now]);
        }
        Ok(numbers)
    }
}
