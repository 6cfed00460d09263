//! Launches, copies and recordings, one after another on the stream.
//!
//! # Overlapping kernels
//!
//! On GPUs of compute capability 9.0 a kernel may be launched so that it begins before the one ahead of it
//! on the stream has ended (programmatic dependent launch): the projections then load their first weights
//! while the last blocks of the kernel ahead still run. It is right where all of this holds:
//!
//! 1. A kernel `B` launched so waits (`griddepcontrol.wait`) until `A` ahead of it has ended and its writes
//!    are visible, before it touches anything that any kernel writes. Kernels compiled for older GPUs do
//!    not wait, nor do some files' kernels: those are never launched so ([`Kernel::overlaps`]).
//! 2. When `B` has ended, `A` has: at least one block of `B` waited for it. So what waits for `B`, be it a
//!    kernel, a copy, an event or the host, waits for all that was queued before `B` as well.
//! 3. What `B` reads before it waits are weights alone. They are older than the kernel ahead: what wrote
//!    them (a copy, a kernel that makes weights) is not overlapped, so the first kernel behind it started
//!    after it had ended and its writes were visible, and every later kernel starts after that one did.
//!
//! So a kernel is launched so only if the thing queued just before it is a kernel of which the same holds.
//! Behind copies, zeroing, events and graphs, and as a graph's or a loop body's first, it starts when they have
//! ended. A body's last kernel does not overlap, so that each turn begins when the one before it has ended.

use super::calls::SUCCESS;
use super::cublaslt;
use super::device::Device;
use super::loops::Body;
use super::modules::{Kernel, Modules, Relaxed};
use super::products::Products;
use crate::backend::BackendError;
use crate::backend::cuda::kernels::{Address, ContinueLoop, Shape};
use crate::backend::cuda::loop_probe::Loops;
use crate::backend::cuda::matmul::Matmul;
use cudarc::driver::sys;
use std::ffi::c_void;
use std::sync::Arc;

/// Largest argument structure: what any driver takes.
const MOST_ARGUMENT_BYTES: usize = 4096;
/// The first driver that records overlapping launches in graphs as such.
const LEAST_OVERLAPPING_DRIVER: (u32, u32) = (12, 3);

/// What is queued, one thing at a time: whoever has it has the stream.
pub struct Queue {
    pub device: Arc<Device>,
    modules: Modules,
    /// Once a product has been asked for.
    products: Option<Products>,
    /// The thing queued last is a kernel that overlaps.
    behind_overlapping: bool,
    /// Kernels may overlap at all.
    pub overlap: bool,
    /// The driver can, and the kernel that ends loops is there.
    has_loops: bool,
    /// Loops that may be recorded: none before somebody has tried them. Those that overlap become ones in order once a
    /// driver has refused a graph with such a loop: nowhere is it said that all drivers take them.
    allowed_loops: Loops,
    /// The loop whose body is being recorded.
    body: Option<Body>,
    /// The recording in progress holds a loop.
    has_recorded_loop: bool,
}

/// A recording, ready to be launched.
pub struct Executable {
    pub executable: sys::CUgraphExec,
    /// What it was made of, where that has a loop: the condition is this graph's.
    pub graph: Option<sys::CUgraph>,
}

impl Queue {
    pub fn new(device: Arc<Device>, modules: Modules) -> Self {
        let has_loops = modules.has_loops();
        Self {
            device,
            modules,
            products: None,
            behind_overlapping: false,
            overlap: true,
            has_loops,
            allowed_loops: Loops::None,
            body: None,
            has_recorded_loop: false,
        }
    }

    /// Which loops may be recorded from here on.
    pub fn allow_loops(&mut self, loops: Loops) {
        self.allowed_loops = loops;
    }

    /// A recording may hold a loop.
    pub fn loops(&self) -> bool {
        self.has_loops && self.allowed_loops != Loops::None
    }

    /// # Safety
    /// Every address among the arguments must be good for what the kernel reads and writes there.
    pub unsafe fn launch(&mut self, name: &str, shape: Shape, arguments: &[u8]) -> Result<(), BackendError> {
        // As large as any kernel's parameter, so that the driver reads inside it whatever the kernel declares.
        let mut parameter = Parameter([0; MOST_ARGUMENT_BYTES]);
        match parameter.0.get_mut(..arguments.len()) {
            Some(bytes) => bytes.copy_from_slice(arguments),
            None => return Err(BackendError::Device(format!("{name}: {} bytes of arguments", arguments.len()))),
        }
        let kernel = self.modules.kernel(name, shape.shared_bytes)?;
        let overlaps = self.may_overlap(&kernel);
        let mut value = sys::CUlaunchAttributeValue { pad: [0; 64] };
        value.programmaticStreamSerializationAllowed = 1;
        let mut attribute = sys::CUlaunchAttribute {
            id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            pad: [0; 4],
            value,
        };
        let config = sys::CUlaunchConfig {
            gridDimX: shape.grid[0],
            gridDimY: shape.grid[1],
            gridDimZ: shape.grid[2],
            blockDimX: shape.threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: shape.shared_bytes,
            hStream: self.recorded_stream(),
            attrs: &mut attribute,
            numAttrs: (overlaps && self.behind_overlapping).into(),
        };
        let mut parameters: [*mut c_void; 1] = [(&raw mut parameter).cast()];
        let launch = self.device.calls.cuLaunchKernelEx;
        // SAFETY: the kernel takes one parameter, which the driver copies before it returns; all pointers are
        // to live values. Addresses are the caller's promise, order is above.
        let code = unsafe { launch(&config, kernel.function, parameters.as_mut_ptr(), std::ptr::null_mut()) };
        self.behind_overlapping = overlaps && code == SUCCESS;
        self.device.checked(code, || {
            let Shape { grid: [x, y, z], threads, shared_bytes } = shape;
            format!(
                "launching {name} ({x} x {y} x {z} blocks of {threads} threads, {shared_bytes} bytes of shared memory)"
            )
        })
    }

    fn may_overlap(&self, kernel: &Kernel) -> bool {
        let gpu = &self.device.info;
        let here = self.overlap && (self.body.is_none() || self.allowed_loops == Loops::Overlapping);
        here && kernel.overlaps && gpu.capability >= (9, 0) && gpu.driver >= LEAST_OVERLAPPING_DRIVER
    }

    /// The stream, for something that is not a kernel.
    fn stream(&mut self) -> sys::CUstream {
        self.behind_overlapping = false;
        self.recorded_stream()
    }

    fn recorded_stream(&self) -> sys::CUstream {
        self.body.as_ref().map_or(self.device.stream, |body| body.stream)
    }

    /// # Safety
    /// Both sides have `bytes` bytes, the host's page-locked, and left alone until the copy is done.
    pub unsafe fn copy_to_device(&mut self, to: u64, from: *const u8, bytes: usize) -> Result<(), BackendError> {
        let stream = self.stream();
        // SAFETY: the caller's promise.
        let code = unsafe { (self.device.calls.cuMemcpyHtoDAsync_v2)(to, from.cast(), bytes, stream) };
        self.device.checked(code, || format!("copying {bytes} bytes to the GPU"))
    }

    /// # Safety
    /// As [`copy_to_device`](Self::copy_to_device).
    pub unsafe fn copy_to_host(&mut self, to: *mut u8, from: u64, bytes: usize) -> Result<(), BackendError> {
        let stream = self.stream();
        // SAFETY: the caller's promise.
        let code = unsafe { (self.device.calls.cuMemcpyDtoHAsync_v2)(to.cast(), from, bytes, stream) };
        self.device.checked(code, || format!("copying {bytes} bytes from the GPU"))
    }

    /// # Safety
    /// Both sides have `bytes` bytes and do not overlap.
    pub unsafe fn copy_on_device(&mut self, to: u64, from: u64, bytes: usize) -> Result<(), BackendError> {
        let stream = self.stream();
        // SAFETY: the caller's promise.
        let code = unsafe { (self.device.calls.cuMemcpyDtoDAsync_v2)(to, from, bytes, stream) };
        self.device.checked(code, || format!("copying {bytes} bytes on the GPU"))
    }

    /// # Safety
    /// There are `bytes` bytes at `at`.
    pub unsafe fn zero(&mut self, at: u64, bytes: usize) -> Result<(), BackendError> {
        let stream = self.stream();
        // SAFETY: the caller's promise.
        let code = unsafe { (self.device.calls.cuMemsetD8Async)(at, 0, bytes, stream) };
        self.device.checked(code, || format!("zeroing {bytes} bytes on the GPU"))
    }

    /// The library of matrix products, started when first needed.
    pub fn products(&mut self) -> Result<&mut Products, BackendError> {
        if self.products.is_none() {
            let calls = cublaslt::library(self.device.calls).map_err(BackendError::Device)?;
            self.products = Some(Products::new(&self.device, calls)?);
        }
        Ok(self.products.as_mut().expect("made just now or before"))
    }

    /// # Safety
    /// As [`Driver::matmul`](crate::backend::cuda::driver::Driver::matmul).
    pub unsafe fn multiply(&mut self, product: &Matmul) -> Result<(), BackendError> {
        let (stream, device) = (self.stream(), self.device.clone());
        // The library loads a kernel when it first needs it, as `Modules` does.
        let _relaxed = Relaxed::new(&device)?;
        // SAFETY: the caller's promise.
        unsafe { self.products()?.multiply(product, stream) }
    }

    /// Marks the end of what is queued.
    pub fn record(&mut self, event: &Event) -> Result<(), BackendError> {
        let stream = self.stream();
        // SAFETY: both are alive, and of one context.
        let code = unsafe { (self.device.calls.cuEventRecord)(event.event, stream) };
        self.device.checked(code, || "recording an event".into())
    }

    /// What is queued from here on is recorded instead, until [`end_capture`](Self::end_capture), which the
    /// same thread has to call.
    pub fn begin_capture(&mut self) -> Result<(), BackendError> {
        let stream = self.stream();
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream is alive.
        let code = unsafe { (self.device.calls.cuStreamBeginCapture_v2)(stream, mode) };
        self.device.checked(code, || "beginning to record a graph".into())
    }

    /// What is recorded from here on is the body of a loop.
    pub fn begin_loop(&mut self) -> Result<(), BackendError> {
        self.behind_overlapping = false;
        if self.body.is_some() || !self.loops() {
            let why = "a loop inside of another, on a driver that has none, or before any was tried";
            return Err(BackendError::Device(why.into()));
        }
        self.body = Some(Body::begin(&self.device)?);
        Ok(())
    }

    /// Ends the body: it is run again while the word at `condition` is not 0.
    ///
    /// # Safety
    /// The word is there whenever the graph is launched.
    pub unsafe fn end_loop(&mut self, condition: Address) -> Result<(), BackendError> {
        let Some(handle) = self.body.as_ref().map(|body| body.handle) else {
            return Err(BackendError::Device("no loop was begun".into()));
        };
        let arguments = ContinueLoop { handle, condition };
        // SAFETY: the handle is of the graph that is recorded; the condition is the caller's promise.
        unsafe { self.launch(ContinueLoop::KERNEL, ContinueLoop::SHAPE, bytemuck::bytes_of(&arguments)) }?;
        self.behind_overlapping = false;
        self.has_recorded_loop = true;
        self.body.take().map_or(Ok(()), Body::end)
    }

    /// What was recorded, ready to be launched. The stream queues again, whether this fails or not.
    pub fn end_capture(&mut self) -> Result<Executable, BackendError> {
        // A body that was not ended is given up; the recording then is of no use, and fails below.
        let given_up = self.body.take().is_some();
        let has_loop = std::mem::take(&mut self.has_recorded_loop);
        let stream = self.stream();
        let calls = self.device.calls;
        let mut graph = std::ptr::null_mut();
        // SAFETY: writes one handle, null where recording had failed; ends the recording, unless on another thread than began it.
        let code = unsafe { (calls.cuStreamEndCapture)(stream, &mut graph) };
        self.device.checked(code, || "recording a graph".into())?;
        let mut executable = std::ptr::null_mut();
        let made = if given_up {
            Err(BackendError::Device("recording a graph: a loop's body was not ended".into()))
        } else {
            // SAFETY: a graph that is alive; writes one handle.
            let code = unsafe { (calls.cuGraphInstantiateWithFlags)(&mut executable, graph, 0) };
            self.device.checked(code, || "making a recorded graph executable".into())
        };
        if made.is_err() && has_loop {
            self.allowed_loops = self.allowed_loops.min(Loops::InOrder);
        }
        let kept = (made.is_ok() && has_loop).then_some(graph);
        if kept.is_none() {
            // SAFETY: nobody else has it, and what was made of it does not need it.
            unsafe { (calls.cuGraphDestroy)(graph) };
        }
        made.map(|()| Executable { executable, graph: kept })
    }

    /// # Safety
    /// The graph is of this device, and what was promised of all it holds still holds.
    pub unsafe fn replay(&mut self, graph: sys::CUgraphExec) -> Result<(), BackendError> {
        let stream = self.stream();
        // SAFETY: the caller's promise.
        let code = unsafe { (self.device.calls.cuGraphLaunch)(graph, stream) };
        self.device.checked(code, || "launching a graph".into())
    }
}

/// A kernel's parameter, aligned as any structure may ask.
#[repr(C, align(16))]
struct Parameter([u8; MOST_ARGUMENT_BYTES]);

/// A place in the queue.
pub struct Event {
    device: Arc<Device>,
    event: sys::CUevent,
}

// SAFETY: the driver's handles may be used from any thread.
unsafe impl Send for Event {}

impl Event {
    /// One to be recorded; one that is `timed` costs the GPU a little.
    pub(super) fn new(device: &Arc<Device>, timed: bool) -> Result<Self, BackendError> {
        let flags = if timed { 0 } else { sys::CUevent_flags::CU_EVENT_DISABLE_TIMING as u32 };
        let mut event = std::ptr::null_mut();
        // SAFETY: writes one handle; the context is current.
        let code = unsafe { (device.calls.cuEventCreate)(&mut event, flags) };
        device.checked(code, || "making an event".into())?;
        Ok(Self { device: device.clone(), event })
    }

    /// Waits until all that was queued before it is done.
    pub(super) fn wait(&self) -> Result<(), BackendError> {
        self.device.make_current()?;
        // SAFETY: alive until dropped.
        self.device
            .checked(unsafe { (self.device.calls.cuEventSynchronize)(self.event) }, || "waiting for the GPU".into())
    }

    /// Seconds from `start` to this one, both timed and done.
    pub(super) fn seconds_since(&self, start: &Event) -> Result<f64, BackendError> {
        let mut milliseconds = 0.0;
        let elapsed = self.device.calls.cuEventElapsedTime;
        // SAFETY: both are alive; writes one number.
        let code = unsafe { elapsed(&mut milliseconds, start.event, self.event) };
        self.device.checked(code, || "reading a time".into())?;
        Ok(f64::from(milliseconds) / 1e3)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if self.device.make_current().is_ok() {
            // SAFETY: made by `new`. One that is not reached yet is given back when it is.
            unsafe { (self.device.calls.cuEventDestroy_v2)(self.event) };
        }
    }
}
