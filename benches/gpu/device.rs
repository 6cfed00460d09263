//! What these measurements ask of a device beyond what a backend does.

use eesd::backend::BackendError;
use eesd::backend::cuda::driver::{Driver, Memory};
use eesd::backend::cuda::gpu::Gpu;
use eesd::backend::cuda::kernels::Address;
use std::sync::Arc;

/// Work that is queued.
pub type Work<'a> = &'a mut dyn FnMut() -> Result<(), BackendError>;

/// A device that can be measured.
pub trait Measurable: Driver {
    /// Seconds that the device takes for what `work` queues.
    fn seconds(&self, work: Work<'_>) -> Result<f64, BackendError>;

    /// Queues a copy inside the device's memory.
    ///
    /// # Safety
    /// Both sides have `bytes` bytes and do not overlap.
    unsafe fn copy_inside(&self, to: Address, from: Address, bytes: usize) -> Result<(), BackendError>;
}

impl Measurable for Gpu {
    fn seconds(&self, work: Work<'_>) -> Result<f64, BackendError> {
        self.time(work)
    }

    unsafe fn copy_inside(&self, to: Address, from: Address, bytes: usize) -> Result<(), BackendError> {
        // SAFETY: the caller's promise.
        unsafe { self.copy(to, from, bytes) }
    }
}

#[cfg(feature = "emulated-kernels")]
impl Measurable for eesd::backend::cuda::emulator::EmulatedDevice {
    fn seconds(&self, work: Work<'_>) -> Result<f64, BackendError> {
        self.wait()?;
        let start = std::time::Instant::now();
        work()?;
        self.wait()?;
        Ok(start.elapsed().as_secs_f64())
    }

    unsafe fn copy_inside(&self, to: Address, from: Address, bytes: usize) -> Result<(), BackendError> {
        self.wait()?;
        // SAFETY: the emulated device's memory is the process's own, and nothing is queued; the rest is the
        // caller's promise.
        unsafe { std::ptr::copy_nonoverlapping(from.0 as *const u8, to.0 as *mut u8, bytes) };
        Ok(())
    }
}

/// A copy of a large buffer: the yardstick of everything else.
pub struct CopyProbe<D: Measurable> {
    driver: Arc<D>,
    buffers: [Memory<D>; 2],
}

impl<D: Measurable> CopyProbe<D> {
    /// Copies in one measurement, and measurements of which the median counts.
    const COPIES: usize = 8;
    const REPETITIONS: usize = 7;
    const WARM_UP: std::time::Duration = std::time::Duration::from_millis(500);

    /// A copy of `bytes` bytes, which should be many times any cache.
    pub fn new(driver: &Arc<D>, bytes: usize) -> Result<Self, BackendError> {
        let buffer = || Memory::zeroed(driver, bytes, "copies");
        Ok(Self { driver: driver.clone(), buffers: [buffer()?, buffer()?] })
    }

    /// Copies for as long as a GPU takes to raise its clocks.
    ///
    /// # Errors
    /// If the device fails.
    pub fn warm_up(&self) -> Result<(), BackendError> {
        let start = std::time::Instant::now();
        while start.elapsed() < Self::WARM_UP {
            self.rate()?;
        }
        Ok(())
    }

    /// Bytes read and written, per second.
    pub fn rate(&self) -> Result<f64, BackendError> {
        let [from, to] = &self.buffers;
        let mut copies = || {
            // SAFETY: two buffers of as many bytes.
            (0..Self::COPIES).try_for_each(|_| unsafe { self.driver.copy_inside(to.at(), from.at(), from.bytes()) })
        };
        let mut rates = Vec::new();
        copies()?;
        for _ in 0..Self::REPETITIONS {
            let seconds = self.driver.seconds(&mut copies)?;
            rates.push((2 * Self::COPIES * from.bytes()) as f64 / seconds);
        }
        Ok(crate::costs::median(&rates))
    }

    /// Bytes of one buffer.
    pub fn bytes(&self) -> usize {
        self.buffers[0].bytes()
    }
}
