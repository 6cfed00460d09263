//! What the runtime asks of a device: memory, copies, launches, graphs. Everything is queued on one
//! stream and done in order.

use super::kernels::{Address, Launcher};
use super::loop_probe::Loops;
use super::matmul::Matmul;
use crate::backend::BackendError;
use std::sync::Arc;

/// A device: a GPU, or the emulator.
///
/// # Safety
/// Memory that is allocated is as large, as aligned and as zero as said, and nobody else's until it is given back; host
/// memory may be used from any thread. What was waited for is done.
pub unsafe trait Driver: Launcher + Send + Sync + 'static {
    /// Launches and copies that were recorded to be replayed.
    type Graph: Send;
    /// A place in the queue.
    type Event: Send;

    /// The device in words, as in `NVIDIA H200, sm_90, driver 13.0`.
    fn describe(&self) -> String;

    /// Its memory.
    ///
    /// # Errors
    /// If the device fails.
    fn memory(&self) -> Result<MemoryInfo, BackendError>;

    /// Device memory, all zeros, aligned to 256 bytes; `what` it is for is named where there is none.
    /// Not while recording.
    ///
    /// # Errors
    /// If there is not enough.
    fn allocate(&self, bytes: usize, what: &'static str) -> Result<Address, BackendError>;

    /// Gives memory back.
    ///
    /// # Safety
    /// `at` came from [`allocate`](Self::allocate) of this device, and nothing queued uses it.
    unsafe fn free(&self, at: Address);

    /// Page-locked host memory, all zeros, aligned to 256 bytes. Not while recording.
    ///
    /// # Errors
    /// If there is not enough.
    fn allocate_host(&self, bytes: usize) -> Result<*mut u8, BackendError>;

    /// Gives host memory back.
    ///
    /// # Safety
    /// `at` came from [`allocate_host`](Self::allocate_host) of this device with as many bytes, and
    /// nothing queued uses it.
    unsafe fn free_host(&self, at: *mut u8, bytes: usize);

    /// Queues a copy from page-locked host memory.
    ///
    /// # Safety
    /// Both sides have `bytes` bytes, in memory that this device allocated, and the host's are left alone until the
    /// copy is done: at every replay, where it was recorded.
    ///
    /// # Errors
    /// If the device fails.
    unsafe fn copy_to_device(&self, to: Address, from: *const u8, bytes: usize) -> Result<(), BackendError>;

    /// Queues a copy to page-locked host memory.
    ///
    /// # Safety
    /// As [`copy_to_device`](Self::copy_to_device).
    ///
    /// # Errors
    /// If the device fails.
    unsafe fn copy_to_host(&self, to: *mut u8, from: Address, bytes: usize) -> Result<(), BackendError>;

    /// Queues zeroing.
    ///
    /// # Safety
    /// There are `bytes` bytes at `at`.
    ///
    /// # Errors
    /// If the device fails.
    unsafe fn zero(&self, at: Address, bytes: usize) -> Result<(), BackendError>;

    /// Bytes of device memory that [`matmul`](Self::matmul) works in, aligned to 256 bytes. To be asked before any
    /// product: what multiplies is a library that not every machine has.
    ///
    /// # Errors
    /// Which library is missing, too old, or does not start.
    fn matmul_workspace(&self) -> Result<usize, BackendError>;

    /// Queues a product of matrices. In which order sums are made is the library's choice: it depends on shapes,
    /// strides, formats and alignment, on the device and on the library, and on nothing else.
    ///
    /// # Safety
    /// All matrices lie in memory of this device as the product says, `c` apart from the others, and so does the
    /// workspace, which nothing else that is queued uses at the same time.
    ///
    /// # Errors
    /// If the product is none ([`Matmul::check`]), there is no library, or the device refuses or fails.
    unsafe fn matmul(&self, product: &Matmul) -> Result<(), BackendError>;

    /// Marks the end of what is queued so far. Not while recording.
    ///
    /// # Errors
    /// If the device fails.
    fn record(&self) -> Result<Self::Event, BackendError>;

    /// Waits until everything queued before the event is done.
    ///
    /// # Errors
    /// If something queued failed.
    fn wait_for(&self, event: &Self::Event) -> Result<(), BackendError>;

    /// Waits until everything queued is done.
    ///
    /// # Errors
    /// If something queued failed.
    fn wait(&self) -> Result<(), BackendError>;

    /// Tells an attached profiler to record from here on, or no longer; false where there is nobody to tell.
    ///
    /// # Errors
    /// If the device fails.
    fn set_profiling(&self, _on: bool) -> Result<bool, BackendError> {
        Ok(false)
    }

    /// From here on launches, copies and zeroing are recorded instead of queued.
    ///
    /// # Errors
    /// If the device fails.
    fn begin_capture(&self) -> Result<(), BackendError>;

    /// Says which loops recordings may hold from here on, as far as the driver has them. A GPU makes none before.
    fn allow_loops(&self, loops: Loops);

    /// Whether a recording may hold a loop.
    fn loops(&self) -> bool;

    /// While recording: the launches from here on are the body of a loop. Copies and zeroing may not be among them,
    /// nor another loop.
    ///
    /// # Errors
    /// If the device has no loops, or fails.
    fn begin_loop(&self) -> Result<(), BackendError>;

    /// Ends the loop's body: each replay runs it once, and then again while the u32 at `condition` is not 0.
    ///
    /// # Safety
    /// The u32 is there at every replay, and some turn of the body leaves 0 in it.
    ///
    /// # Errors
    /// If no loop was begun, or the device fails.
    unsafe fn end_loop(&self, condition: Address) -> Result<(), BackendError>;

    /// What was recorded. Also called after a failure, to end the recording.
    ///
    /// # Errors
    /// If the device cannot make a graph of it.
    fn end_capture(&self) -> Result<Self::Graph, BackendError>;

    /// Queues all that a graph holds.
    ///
    /// # Safety
    /// What was promised of each launch and copy still holds.
    ///
    /// # Errors
    /// If the device fails.
    unsafe fn replay(&self, graph: &Self::Graph) -> Result<(), BackendError>;
}

/// A device's memory in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryInfo {
    /// Not taken by anybody.
    pub free: u64,
    /// In all.
    pub total: u64,
}

/// Device memory that is given back when dropped. Not to be dropped while a graph is recorded.
pub struct Memory<D: Driver> {
    driver: Arc<D>,
    at: Address,
    bytes: usize,
}

impl<D: Driver> Memory<D> {
    /// `bytes` zeros.
    ///
    /// # Errors
    /// If there is not enough memory.
    pub fn zeroed(driver: &Arc<D>, bytes: usize, what: &'static str) -> Result<Self, BackendError> {
        let at = driver.allocate(bytes.max(1), what)?;
        Ok(Self { driver: driver.clone(), at, bytes })
    }

    /// Where it begins.
    pub fn at(&self) -> Address {
        self.at
    }

    /// The address `offset` bytes further on.
    pub fn byte(&self, offset: usize) -> Address {
        debug_assert!(offset <= self.bytes);
        Address(self.at.0 + offset as u64)
    }

    /// How much it is.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl<D: Driver> Drop for Memory<D> {
    fn drop(&mut self) {
        // What is queued may still use it; whether that failed was told to whoever waited for it.
        let _ = self.driver.wait();
        // SAFETY: allocated by `zeroed`. Nothing is queued any more: it was waited for, or the device has failed and runs
        // nothing.
        unsafe { self.driver.free(self.at) };
    }
}

/// Page-locked host memory that is given back when dropped. Not to be dropped while a graph is recorded.
pub struct HostMemory<D: Driver> {
    driver: Arc<D>,
    at: *mut u8,
    bytes: usize,
}

// SAFETY: plain memory with one owner.
unsafe impl<D: Driver> Send for HostMemory<D> {}

impl<D: Driver> HostMemory<D> {
    /// `bytes` zeros.
    ///
    /// # Errors
    /// If there is not enough memory.
    pub fn zeroed(driver: &Arc<D>, bytes: usize) -> Result<Self, BackendError> {
        let at = driver.allocate_host(bytes.max(1))?;
        Ok(Self { driver: driver.clone(), at, bytes })
    }

    /// Where it begins.
    pub fn at(&self) -> *mut u8 {
        self.at
    }

    /// Its contents. Nothing queued may write them.
    pub fn contents(&self) -> &[u8] {
        // SAFETY: `bytes` initialised bytes that this owns.
        unsafe { std::slice::from_raw_parts(self.at, self.bytes) }
    }

    /// Its contents, to be changed. Nothing queued may use them.
    pub fn contents_mut(&mut self) -> &mut [u8] {
        // SAFETY: `bytes` initialised bytes that this owns.
        unsafe { std::slice::from_raw_parts_mut(self.at, self.bytes) }
    }
}

impl<D: Driver> Drop for HostMemory<D> {
    fn drop(&mut self) {
        // As in `Memory`.
        let _ = self.driver.wait();
        // SAFETY: allocated by `zeroed` with as many bytes; the rest as there.
        unsafe { self.driver.free_host(self.at, self.bytes.max(1)) };
    }
}
