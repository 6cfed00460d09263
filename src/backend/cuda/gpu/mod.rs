//! An NVIDIA GPU as a [`Driver`]: the CUDA driver's interface, found at run time, and cuBLASLt's where products are
//! asked for.
//!
//! Nothing of CUDA is needed to build or to start the program. [`list`] tells what GPUs there are,
//! [`Gpu::open`] takes one.

mod calls;
mod cublaslt;
mod device;
mod loops;
mod modules;
mod probe;
mod products;
mod queue;

pub use probe::{GpuInfo, Kernels, LEAST_CAPABILITY, compiler_release, list};
pub use queue::Event;

use super::FATBINS;
use super::driver::{Driver, MemoryInfo};
use super::kernels::{Address, Launcher, Shape};
use super::loop_probe::Loops;
use super::matmul::Matmul;
use crate::backend::BackendError;
use calls::OUT_OF_MEMORY;
use cudarc::driver::sys;
use device::Device;
use modules::Modules;
use queue::{Executable, Queue};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A GPU with this build's kernels, and one stream of it.
pub struct Gpu {
    device: Arc<Device>,
    /// Shared with graphs, whose kernels must stay loaded.
    queue: Arc<Mutex<Queue>>,
}

/// What [`Driver::end_capture`] returns: launches and copies to be replayed.
pub struct Graph {
    device: Arc<Device>,
    queue: Arc<Mutex<Queue>>,
    recorded: Executable,
}

// SAFETY: the driver's handles may be used from any thread.
unsafe impl Send for Graph {}

impl Drop for Graph {
    fn drop(&mut self) {
        if self.device.make_current().is_ok() {
            // SAFETY: made by `end_capture`. One that still runs is given back when it is done.
            unsafe { (self.device.calls.cuGraphExecDestroy)(self.recorded.executable) };
            if let Some(graph) = self.recorded.graph {
                // It may still run, and its condition is this graph's.
                let _ = self.device.wait();
                // SAFETY: made by `end_capture`; what was made of it is done and gone.
                unsafe { (self.device.calls.cuGraphDestroy)(graph) };
            }
        }
    }
}

impl Gpu {
    /// Opens the GPU `cuda:ordinal` and loads this build's kernels.
    ///
    /// # Errors
    /// If this build has no kernels, none for this GPU, or there is no driver or no such GPU.
    pub fn open(ordinal: usize) -> Result<Self, BackendError> {
        if FATBINS.is_empty() {
            let text = "this program was built without GPU kernels: nvcc was not found, or KERNELS=skip";
            return Err(BackendError::Device(format!("cuda:{ordinal}: {text}")));
        }
        let device = Device::open(ordinal).map_err(BackendError::Device)?;
        let modules = Modules::load(&device, FATBINS)?;
        let queue = Arc::new(Mutex::new(Queue::new(device.clone(), modules)));
        Ok(Self { device, queue })
    }

    /// Whether a kernel may begin before the one ahead of it has ended, where the GPU can; on, unless
    /// turned off to measure what it is worth.
    #[must_use]
    pub fn with_overlap(self, on: bool) -> Self {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).overlap = on;
        self
    }

    /// The GPU.
    pub fn info(&self) -> &GpuInfo {
        &self.device.info
    }

    /// Seconds that the GPU takes for what `work` queues. Not while recording.
    ///
    /// # Errors
    /// If the work or the device fails.
    pub fn time(&self, work: &mut dyn FnMut() -> Result<(), BackendError>) -> Result<f64, BackendError> {
        self.device.make_current()?;
        let (start, end) = (Event::new(&self.device, true)?, Event::new(&self.device, true)?);
        self.queue()?.record(&start)?;
        work()?;
        self.queue()?.record(&end)?;
        end.wait()?;
        end.seconds_since(&start)
    }

    /// Queues a copy from one place of the GPU's memory to another: what others' speeds are measured against.
    ///
    /// # Safety
    /// Both sides have `bytes` bytes and do not overlap.
    ///
    /// # Errors
    /// If the device fails.
    pub unsafe fn copy(&self, to: Address, from: Address, bytes: usize) -> Result<(), BackendError> {
        // SAFETY: the caller's promise.
        if bytes == 0 { Ok(()) } else { unsafe { self.queue()?.copy_on_device(to.0, from.0, bytes) } }
    }

    /// Lets kernels read and write host memory in place, at its own address: slow, and what tests of kernels need.
    ///
    /// # Safety
    /// The memory stays as long as the process.
    ///
    /// # Errors
    /// If the device fails, or would have the memory at another address.
    pub unsafe fn map_host(&self, at: *mut u8, bytes: usize) -> Result<(), BackendError> {
        self.device.make_current()?;
        let calls = self.device.calls;
        let flags = sys::CU_MEMHOSTREGISTER_PORTABLE | sys::CU_MEMHOSTREGISTER_DEVICEMAP;
        // SAFETY: the caller's promise.
        let code = unsafe { (calls.cuMemHostRegister_v2)(at.cast(), bytes, flags) };
        self.device.checked(code, || format!("mapping {bytes} bytes of the host's memory"))?;
        let mut on_device = 0;
        // SAFETY: writes one address.
        let code = unsafe { (calls.cuMemHostGetDevicePointer_v2)(&mut on_device, at.cast(), 0) };
        self.device.checked(code, || "the address of mapped memory".into())?;
        let same = || BackendError::Device("this GPU has the host's memory at addresses of its own".into());
        if on_device == at as u64 { Ok(()) } else { Err(same()) }
    }

    /// The queue, with the context made the calling thread's. A thread that panicked left it as it was
    /// between two calls of the driver.
    fn queue(&self) -> Result<MutexGuard<'_, Queue>, BackendError> {
        self.device.make_current()?;
        Ok(self.queue.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Turns the result of an allocation of `bytes` for `what` into an error.
    fn allocated(&self, code: u32, what: &'static str, bytes: usize) -> Result<(), BackendError> {
        if code == OUT_OF_MEMORY {
            return Err(BackendError::OutOfMemory { what, bytes });
        }
        self.device.checked(code, || format!("{what}: {bytes} bytes"))
    }
}

impl Launcher for Gpu {
    unsafe fn launch(&self, kernel: &str, shape: Shape, arguments: &[u8]) -> Result<(), BackendError> {
        // SAFETY: the caller's promise.
        unsafe { self.queue()?.launch(kernel, shape, arguments) }
    }
}

// SAFETY: the driver allocates, and waits, as is said; all that is queued goes to one stream.
unsafe impl Driver for Gpu {
    type Graph = Graph;
    type Event = Event;

    fn describe(&self) -> String {
        let GpuInfo { name, capability: (major, minor), driver: (release, update), .. } = self.info();
        format!("{name}, sm_{major}{minor}, driver {release}.{update}")
    }

    fn memory(&self) -> Result<MemoryInfo, BackendError> {
        self.device.make_current()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: writes two sizes; the context is current.
        let code = unsafe { (self.device.calls.cuMemGetInfo_v2)(&mut free, &mut total) };
        self.device.checked(code, || "the GPU's memory".into())?;
        Ok(MemoryInfo { free: free as u64, total: total as u64 })
    }

    fn allocate(&self, bytes: usize, what: &'static str) -> Result<Address, BackendError> {
        self.device.make_current()?;
        let mut at = 0;
        // SAFETY: writes one address, aligned to 256 bytes at least; the context is current.
        let code = unsafe { (self.device.calls.cuMemAlloc_v2)(&mut at, bytes.max(1)) };
        self.allocated(code, what, bytes)?;
        // SAFETY: just allocated with as many bytes; what is queued later comes after this.
        if let Err(error) = unsafe { self.zero(Address(at), bytes) } {
            // SAFETY: just allocated, and nothing was queued for it.
            unsafe { self.free(Address(at)) };
            return Err(error);
        }
        Ok(Address(at))
    }

    unsafe fn free(&self, at: Address) {
        if self.device.make_current().is_ok() {
            // SAFETY: the caller's promise. There is nobody to tell a failure to.
            unsafe { (self.device.calls.cuMemFree_v2)(at.0) };
        }
    }

    fn allocate_host(&self, bytes: usize) -> Result<*mut u8, BackendError> {
        self.device.make_current()?;
        let mut at = std::ptr::null_mut();
        // Not write-combined, which would make it slow to read.
        // SAFETY: writes one pointer, to whole pages; the context is current.
        let code = unsafe { (self.device.calls.cuMemHostAlloc)(&mut at, bytes.max(1), 0) };
        self.allocated(code, "page-locked host memory", bytes)?;
        // SAFETY: just allocated with as many bytes.
        unsafe { at.cast::<u8>().write_bytes(0, bytes.max(1)) };
        Ok(at.cast())
    }

    unsafe fn free_host(&self, at: *mut u8, _bytes: usize) {
        if self.device.make_current().is_ok() {
            // SAFETY: the caller's promise. There is nobody to tell a failure to.
            unsafe { (self.device.calls.cuMemFreeHost)(at.cast()) };
        }
    }

    unsafe fn copy_to_device(&self, to: Address, from: *const u8, bytes: usize) -> Result<(), BackendError> {
        // SAFETY: the caller's promise.
        if bytes == 0 { Ok(()) } else { unsafe { self.queue()?.copy_to_device(to.0, from, bytes) } }
    }

    unsafe fn copy_to_host(&self, to: *mut u8, from: Address, bytes: usize) -> Result<(), BackendError> {
        // SAFETY: the caller's promise.
        if bytes == 0 { Ok(()) } else { unsafe { self.queue()?.copy_to_host(to, from.0, bytes) } }
    }

    unsafe fn zero(&self, at: Address, bytes: usize) -> Result<(), BackendError> {
        // SAFETY: the caller's promise.
        if bytes == 0 { Ok(()) } else { unsafe { self.queue()?.zero(at.0, bytes) } }
    }

    fn matmul_workspace(&self) -> Result<usize, BackendError> {
        self.queue()?.products()?;
        Ok(products::WORKSPACE_BYTES)
    }

    unsafe fn matmul(&self, product: &Matmul) -> Result<(), BackendError> {
        // SAFETY: the caller's promise.
        unsafe { self.queue()?.multiply(product) }
    }

    fn record(&self) -> Result<Event, BackendError> {
        self.device.make_current()?;
        let event = Event::new(&self.device, false)?;
        self.queue()?.record(&event)?;
        Ok(event)
    }

    fn wait_for(&self, event: &Event) -> Result<(), BackendError> {
        event.wait()
    }

    fn wait(&self) -> Result<(), BackendError> {
        self.device.wait()
    }

    fn set_profiling(&self, on: bool) -> Result<bool, BackendError> {
        // What was queued before is on its own side of the line.
        self.device.wait()?;
        let calls = self.device.calls;
        // SAFETY: takes nothing; the context is current.
        let code = unsafe { if on { (calls.cuProfilerStart)() } else { (calls.cuProfilerStop)() } };
        self.device.checked(code, || "telling the profiler".into())?;
        Ok(true)
    }

    fn begin_capture(&self) -> Result<(), BackendError> {
        self.queue()?.begin_capture()
    }

    fn allow_loops(&self, loops: Loops) {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).allow_loops(loops);
    }

    fn loops(&self) -> bool {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).loops()
    }

    fn begin_loop(&self) -> Result<(), BackendError> {
        self.queue()?.begin_loop()
    }

    unsafe fn end_loop(&self, condition: Address) -> Result<(), BackendError> {
        // SAFETY: the caller's promise.
        unsafe { self.queue()?.end_loop(condition) }
    }

    fn end_capture(&self) -> Result<Graph, BackendError> {
        let recorded = self.queue()?.end_capture()?;
        Ok(Graph { device: self.device.clone(), queue: self.queue.clone(), recorded })
    }

    unsafe fn replay(&self, graph: &Graph) -> Result<(), BackendError> {
        if !Arc::ptr_eq(&self.queue, &graph.queue) {
            return Err(BackendError::Device("launching a graph of another device".into()));
        }
        // SAFETY: of this device; the rest is the caller's promise.
        unsafe { self.queue()?.replay(graph.recorded.executable) }
    }
}

#[cfg(test)]
mod tests;
