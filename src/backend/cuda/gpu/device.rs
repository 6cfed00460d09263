//! The device's context, its stream, and how its handles are given back.

use super::calls::{Calls, driver};
use super::probe::{self, GpuInfo, LEAST_CAPABILITY};
use crate::backend::BackendError;
use cudarc::driver::sys;
use std::sync::Arc;

/// A device's primary context and one stream of it. All that belongs to it keeps it alive.
pub struct Device {
    pub calls: &'static Calls,
    pub info: GpuInfo,
    pub stream: sys::CUstream,
    pub context: sys::CUcontext,
    device: sys::CUdevice,
}

// SAFETY: the driver's handles may be used from any thread, by several at once.
unsafe impl Send for Device {}
// SAFETY: as above.
unsafe impl Sync for Device {}

impl Device {
    pub fn open(ordinal: usize) -> Result<Arc<Self>, String> {
        let calls = driver().map_err(|why| format!("cuda:{ordinal}: {why}"))?;
        let device = probe::device(calls, ordinal)?;
        let info = GpuInfo::of(calls, ordinal, device)?;
        supported(&info)?;
        let mut context = std::ptr::null_mut();
        // SAFETY: writes one handle, released in `drop`.
        let code = unsafe { (calls.cuDevicePrimaryCtxRetain)(&mut context, device) };
        calls.check(code, || format!("opening cuda:{ordinal}"))?;
        // From here on `drop` gives back what there is.
        let mut opened = Self { calls, info, stream: std::ptr::null_mut(), device, context };
        opened.make_current().map_err(|error| error.to_string())?;
        // Non-blocking: the legacy default stream, which others in the process may use, does not hold it up.
        let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: writes one handle; the context is current.
        let code = unsafe { (calls.cuStreamCreate)(&mut opened.stream, flags) };
        calls.check(code, || format!("a stream on cuda:{ordinal}"))?;
        Ok(Arc::new(opened))
    }

    /// Makes the context the calling thread's. Before every call that is made for the device, because
    /// any thread may make it; it costs nanoseconds.
    pub fn make_current(&self) -> Result<(), BackendError> {
        // SAFETY: retained, so alive.
        self.calls
            .checked(unsafe { (self.calls.cuCtxSetCurrent)(self.context) }, || "entering the GPU's context".into())
    }

    /// Turns what a function returned into a result. `what` failed, for people.
    pub fn checked(&self, code: u32, what: impl FnOnce() -> String) -> Result<(), BackendError> {
        self.calls.checked(code, what)
    }

    /// Waits until everything queued is done.
    pub fn wait(&self) -> Result<(), BackendError> {
        self.make_current()?;
        // SAFETY: the stream is alive.
        self.checked(unsafe { (self.calls.cuStreamSynchronize)(self.stream) }, || "waiting for the GPU".into())
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // Failures have nobody to be told to any more; after a fatal one all of these fail.
        if self.make_current().is_ok() && !self.stream.is_null() {
            // SAFETY: created by `open`; whoever used it held a reference to this.
            unsafe {
                (self.calls.cuStreamSynchronize)(self.stream);
                (self.calls.cuStreamDestroy_v2)(self.stream);
            }
        }
        // SAFETY: retained once by `open`. A context that is gone must not stay any thread's current one;
        // only this thread's can be taken away, and every entry sets its own.
        unsafe {
            (self.calls.cuCtxSetCurrent)(std::ptr::null_mut());
            (self.calls.cuDevicePrimaryCtxRelease_v2)(self.device);
        }
    }
}

/// Refuses GPUs that the kernels cannot run on.
fn supported(gpu: &GpuInfo) -> Result<(), String> {
    let ((major, minor), (least, least_minor)) = (gpu.capability, LEAST_CAPABILITY);
    if gpu.capability < LEAST_CAPABILITY {
        return Err(format!(
            "cuda:{}: {} has compute capability {major}.{minor}; {least}.{least_minor} (Ampere, 2020) or later is needed",
            gpu.ordinal, gpu.name
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_gpu_is_refused_with_what_is_needed() {
        let gpu = |capability| {
            let name = "Tesla V100".to_string();
            GpuInfo { ordinal: 1, name, capability, memory: 16 << 30, driver: (12, 4) }
        };
        let told = supported(&gpu((7, 0))).unwrap_err();
        for part in ["cuda:1", "Tesla V100", "7.0", "8.0"] {
            assert!(told.contains(part), "{told}");
        }
        for capability in [(8, 0), (8, 9), (9, 0), (12, 0)] {
            assert_eq!(supported(&gpu(capability)), Ok(()));
        }
    }
}
