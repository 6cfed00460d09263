//! The CUDA driver's functions, found by name when first needed, and what they say when they fail.

use super::loops::{LoopCalls, Symbol};
use crate::backend::BackendError;
use cudarc::driver::sys;
use std::ffi::{CStr, c_char, c_int, c_uchar, c_uint, c_ulonglong, c_void};
use std::sync::OnceLock;

/// Declares [`Calls`].
///
/// Results are taken as plain numbers: a newer driver may return errors that the bindings' enum has not
/// heard of, and such a value in an enum is undefined behaviour. The arguments are checked against the
/// bindings when this is compiled.
macro_rules! calls {
    ($($name:ident($($argument:ty),*);)*) => {
        /// The functions used of the driver.
        #[allow(non_snake_case)]
        pub struct Calls {
            $(pub $name: unsafe extern "C" fn($($argument),*) -> u32,)*
            /// Those of loops in graphs, which the bindings do not know: `None` where the driver lacks them.
            pub loops: Option<LoopCalls>,
        }

        $(const _: unsafe fn($($argument),*) -> sys::CUresult = sys::$name;)*

        impl Calls {
            /// Finds all of them in the driver's library.
            fn find() -> Result<Self, String> {
                // SAFETY: loads the driver's library, if there is one; it may be loaded more than once.
                if !unsafe { sys::is_culib_present() } {
                    return Err(NO_DRIVER.into());
                }
                // SAFETY: as above; it is there, so this does not panic.
                let library = unsafe { sys::culib() };
                Ok(Self {
                    $($name: {
                        type Function = unsafe extern "C" fn($($argument),*) -> u32;
                        // SAFETY: the bindings declare the function with these arguments (see above); its
                        // result is an `unsigned int` to C. The library is never closed.
                        match unsafe { library.get::<Function>(concat!(stringify!($name), "\0").as_bytes()) } {
                            Ok(function) => *function,
                            Err(_) => return Err(too_old(stringify!($name))),
                        }
                    },)*
                    // SAFETY: the types are checked where the functions are declared.
                    loops: LoopCalls::find(|name| unsafe { library.get::<Symbol>(name) }.ok().map(|symbol| *symbol)),
                })
            }
        }
    };
}

calls! {
    cuInit(c_uint);
    cuDriverGetVersion(*mut c_int);
    cuGetErrorName(sys::CUresult, *mut *const c_char);
    cuGetErrorString(sys::CUresult, *mut *const c_char);
    cuDeviceGetCount(*mut c_int);
    cuDeviceGet(*mut sys::CUdevice, c_int);
    cuDeviceGetName(*mut c_char, c_int, sys::CUdevice);
    cuDeviceGetAttribute(*mut c_int, sys::CUdevice_attribute, sys::CUdevice);
    cuDeviceTotalMem_v2(*mut usize, sys::CUdevice);
    cuDevicePrimaryCtxRetain(*mut sys::CUcontext, sys::CUdevice);
    cuDevicePrimaryCtxRelease_v2(sys::CUdevice);
    cuCtxSetCurrent(sys::CUcontext);
    cuThreadExchangeStreamCaptureMode(*mut sys::CUstreamCaptureMode);
    cuModuleLoadData(*mut sys::CUmodule, *const c_void);
    cuModuleUnload(sys::CUmodule);
    cuModuleGetFunction(*mut sys::CUfunction, sys::CUmodule, *const c_char);
    cuFuncGetAttribute(*mut c_int, sys::CUfunction_attribute, sys::CUfunction);
    cuFuncSetAttribute(sys::CUfunction, sys::CUfunction_attribute, c_int);
    cuLaunchKernelEx(*const sys::CUlaunchConfig, sys::CUfunction, *mut *mut c_void, *mut *mut c_void);
    cuStreamCreate(*mut sys::CUstream, c_uint);
    cuStreamDestroy_v2(sys::CUstream);
    cuStreamSynchronize(sys::CUstream);
    cuStreamBeginCapture_v2(sys::CUstream, sys::CUstreamCaptureMode);
    cuStreamEndCapture(sys::CUstream, *mut sys::CUgraph);
    cuStreamGetCaptureInfo_v2(
        sys::CUstream,
        *mut sys::CUstreamCaptureStatus,
        *mut sys::cuuint64_t,
        *mut sys::CUgraph,
        *mut *const sys::CUgraphNode,
        *mut usize
    );
    cuStreamUpdateCaptureDependencies(sys::CUstream, *mut sys::CUgraphNode, usize, c_uint);
    cuGraphInstantiateWithFlags(*mut sys::CUgraphExec, sys::CUgraph, c_ulonglong);
    cuGraphDestroy(sys::CUgraph);
    cuGraphLaunch(sys::CUgraphExec, sys::CUstream);
    cuGraphExecDestroy(sys::CUgraphExec);
    cuEventCreate(*mut sys::CUevent, c_uint);
    cuEventRecord(sys::CUevent, sys::CUstream);
    cuEventSynchronize(sys::CUevent);
    cuEventElapsedTime(*mut f32, sys::CUevent, sys::CUevent);
    cuEventDestroy_v2(sys::CUevent);
    cuMemGetInfo_v2(*mut usize, *mut usize);
    cuMemAlloc_v2(*mut sys::CUdeviceptr, usize);
    cuMemFree_v2(sys::CUdeviceptr);
    cuMemHostAlloc(*mut *mut c_void, usize, c_uint);
    cuMemFreeHost(*mut c_void);
    cuMemHostRegister_v2(*mut c_void, usize, c_uint);
    cuMemHostGetDevicePointer_v2(*mut sys::CUdeviceptr, *mut c_void, c_uint);
    cuMemcpyHtoDAsync_v2(sys::CUdeviceptr, *const c_void, usize, sys::CUstream);
    cuMemcpyDtoHAsync_v2(*mut c_void, sys::CUdeviceptr, usize, sys::CUstream);
    cuMemcpyDtoDAsync_v2(sys::CUdeviceptr, sys::CUdeviceptr, usize, sys::CUstream);
    cuMemsetD8Async(sys::CUdeviceptr, c_uchar, usize, sys::CUstream);
    cuProfilerStart();
    cuProfilerStop();
}

const NO_DRIVER: &str = "no CUDA driver: its library (libcuda.so.1) was not found";

fn too_old(function: &str) -> String {
    format!("the CUDA driver is too old: it has no {function}; driver 520 (CUDA 11.8) or later is needed")
}

/// The driver, ready to be used. What went wrong the first time is told every time.
///
/// # Errors
/// If there is no driver, none that is new enough, or none that works.
pub fn driver() -> Result<&'static Calls, String> {
    static DRIVER: OnceLock<Result<Calls, String>> = OnceLock::new();
    let driver = DRIVER.get_or_init(|| {
        let calls = Calls::find()?;
        // SAFETY: takes no pointers; may be called more than once.
        let code = unsafe { (calls.cuInit)(0) };
        calls.check(code, || "the CUDA driver does not start".into())?;
        Ok(calls)
    });
    driver.as_ref().map_err(String::clone)
}

impl Calls {
    /// Turns what a function returned into a result. `what` failed, for people.
    pub fn check(&self, code: u32, what: impl FnOnce() -> String) -> Result<(), String> {
        if code == SUCCESS { Ok(()) } else { Err(format!("{}: {}", what(), self.describe(code))) }
    }

    /// [`check`](Self::check), as a backend's error.
    pub fn checked(&self, code: u32, what: impl FnOnce() -> String) -> Result<(), BackendError> {
        self.check(code, what).map_err(BackendError::Device)
    }

    /// The driver's version, as (13, 0).
    pub fn version(&self) -> Result<(u32, u32), String> {
        let mut version = 0;
        // SAFETY: writes one integer.
        let code = unsafe { (self.cuDriverGetVersion)(&mut version) };
        self.check(code, || "the CUDA driver's version".into())?;
        Ok((version as u32 / 1000, version as u32 % 1000 / 10))
    }

    /// `CUDA_ERROR_NAME: text`, and what to do where that is known.
    fn describe(&self, code: u32) -> String {
        let text = |function: unsafe extern "C" fn(sys::CUresult, *mut *const c_char) -> u32| {
            // SAFETY: the same function by its C declaration, where an enum is an `unsigned int`: a code
            // that the bindings do not know is passed on as it came.
            let function = unsafe {
                std::mem::transmute::<
                    unsafe extern "C" fn(sys::CUresult, *mut *const c_char) -> u32,
                    unsafe extern "C" fn(u32, *mut *const c_char) -> u32,
                >(function)
            };
            let mut text = std::ptr::null();
            // SAFETY: writes one pointer, null for a code that the driver does not know.
            let failed = unsafe { function(code, &mut text) };
            if failed != SUCCESS || text.is_null() {
                return None;
            }
            // SAFETY: a terminated string of the library, which is never closed.
            Some(unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
        };
        let name = text(self.cuGetErrorName).unwrap_or_else(|| format!("CUDA error {code}"));
        let mut described = match text(self.cuGetErrorString) {
            Some(text) => format!("{name}: {text}"),
            None => name,
        };
        if let Some(hint) = hint(code) {
            described += &format!(" ({hint})");
        }
        described
    }
}

/// No error.
pub const SUCCESS: u32 = sys::CUresult::CUDA_SUCCESS as u32;
/// No memory left.
pub const OUT_OF_MEMORY: u32 = sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY as u32;
/// No function of that name.
pub const NOT_FOUND: u32 = sys::CUresult::CUDA_ERROR_NOT_FOUND as u32;
/// All errors that say that an image does not fit the GPU or the driver.
pub const BAD_IMAGE: [u32; 5] = [
    sys::CUresult::CUDA_ERROR_INVALID_IMAGE as u32,
    sys::CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU as u32,
    sys::CUresult::CUDA_ERROR_INVALID_PTX as u32,
    sys::CUresult::CUDA_ERROR_JIT_COMPILER_NOT_FOUND as u32,
    sys::CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION as u32,
];

/// What to do about the errors that people meet.
fn hint(code: u32) -> Option<&'static str> {
    use sys::CUresult as E;
    const LOST: &str =
        "a kernel failed; this process cannot use the GPU any more, and compute-sanitizer names the kernel";
    let hints = [
        (E::CUDA_ERROR_STUB_LIBRARY, "the toolkit's stub was loaded: take its folder out of LD_LIBRARY_PATH"),
        (E::CUDA_ERROR_NO_DEVICE, "no GPU, or CUDA_VISIBLE_DEVICES hides it"),
        (
            E::CUDA_ERROR_SYSTEM_DRIVER_MISMATCH,
            "library and kernel module are of different versions: restart the machine",
        ),
        (
            E::CUDA_ERROR_SYSTEM_NOT_READY,
            "a service of the driver does not run: the fabric manager, on machines with NVSwitch",
        ),
        (E::CUDA_ERROR_UNKNOWN, "often the kernel module: see nvidia-smi and dmesg"),
        (E::CUDA_ERROR_NO_BINARY_FOR_GPU, "build again with KERNEL_ARCHS naming this GPU"),
        (E::CUDA_ERROR_INVALID_PTX, "build again with KERNEL_ARCHS naming this GPU"),
        (E::CUDA_ERROR_UNSUPPORTED_PTX_VERSION, "build again with KERNEL_ARCHS naming this GPU, or update the driver"),
        (E::CUDA_ERROR_JIT_COMPILER_NOT_FOUND, "build again with KERNEL_ARCHS naming this GPU"),
        (E::CUDA_ERROR_ILLEGAL_ADDRESS, LOST),
        (E::CUDA_ERROR_MISALIGNED_ADDRESS, LOST),
        (E::CUDA_ERROR_ILLEGAL_INSTRUCTION, LOST),
        (E::CUDA_ERROR_LAUNCH_FAILED, LOST),
    ];
    hints.into_iter().find(|(error, _)| *error as u32 == code).map(|(_, hint)| hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hints_tell_what_to_do() {
        assert!(hint(sys::CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU as u32).unwrap().contains("KERNEL_ARCHS"));
        assert!(hint(sys::CUresult::CUDA_ERROR_NO_DEVICE as u32).unwrap().contains("CUDA_VISIBLE_DEVICES"));
        assert!(hint(sys::CUresult::CUDA_ERROR_ILLEGAL_ADDRESS as u32).unwrap().contains("compute-sanitizer"));
        assert_eq!(hint(SUCCESS), None);
        assert_eq!(hint(123_456), None, "an error of a driver to come");
    }

    #[test]
    fn a_driver_that_lacks_a_function_is_too_old() {
        let told = too_old("cuLaunchKernelEx");
        assert!(told.contains("cuLaunchKernelEx") && told.contains("11.8"), "{told}");
    }

    #[test]
    fn looking_for_a_driver_never_panics() {
        match driver() {
            Ok(calls) => assert!(calls.version().unwrap() >= (11, 8)),
            Err(why) => assert_eq!(driver().err(), Some(why), "told again"),
        }
    }
}
