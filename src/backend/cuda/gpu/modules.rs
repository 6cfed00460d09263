//! The kernels on the device: loaded from the fat binaries, found by name.

use super::calls::{BAD_IMAGE, NOT_FOUND, SUCCESS};
use super::device::Device;
use super::loops::LEAST_LOOPING_DRIVER;
use super::probe::compiler_release;
use crate::backend::BackendError;
use crate::backend::cuda::kernels::ContinueLoop;
use cudarc::driver::sys::{self, CUfunction_attribute as Attribute};
use std::collections::HashMap;
use std::ffi::{CString, c_int};
use std::sync::Arc;

/// The files (`cuda/<name>.cu`) whose kernels may begin while the kernel before them still runs: in each,
/// every block that touches anything a kernel writes calls `await_previous_kernel` first, and at least one
/// block does. Kernels of other files, as those that make weights, are overlapped on neither side.
const OVERLAPPING: [&str; 17] = [
    "accept",
    "adjust",
    "append",
    "attention",
    "embedding",
    "gate_up",
    "gather_rows",
    "keep_rows",
    "lm_head",
    "next_draft",
    "prefill_attention",
    "qkv",
    "recurrent_input",
    "residual",
    "sample",
    "unpack_weights",
    "weigh",
];

/// The virtual architecture that `await_previous_kernel` is compiled to an instruction for.
const LEAST_OVERLAPPING_ARCH: c_int = 90;

/// The file whose kernel calls a function of the driver's that older drivers do not have.
const LOOP_FILE: &str = "continue_loop";

/// Shared memory that a block may have without asking.
const USUAL_SHARED_BYTES: c_int = 48 << 10;

/// A kernel, ready to be launched.
#[derive(Clone, Copy)]
pub struct Kernel {
    pub function: sys::CUfunction,
    /// It waits for the kernel before it by itself.
    pub overlaps: bool,
    /// Bytes of dynamic shared memory that it may be launched with.
    shared_bytes: u32,
}

/// All kernels of this build, on a device.
pub struct Modules {
    device: Arc<Device>,
    modules: Vec<(&'static str, sys::CUmodule)>,
    /// Kernels that were launched before.
    kernels: HashMap<String, Kernel>,
}

// SAFETY: the driver's handles may be used from any thread.
unsafe impl Send for Modules {}

impl Modules {
    /// Loads all images, so that a GPU without kernels is told at once and memory is taken before anybody
    /// counts it.
    pub fn load(device: &Arc<Device>, images: &[(&'static str, &'static [u8])]) -> Result<Self, BackendError> {
        device.make_current()?;
        let mut loaded = Self { device: device.clone(), modules: Vec::new(), kernels: HashMap::new() };
        let has_loops = device.calls.loops.is_some() && device.info.driver >= LEAST_LOOPING_DRIVER;
        for (name, image) in images.iter().filter(|(name, _)| has_loops || *name != LOOP_FILE) {
            let mut module = std::ptr::null_mut();
            // SAFETY: a fat binary as nvcc made it, which tells its own length; the context is current.
            let code = unsafe { (device.calls.cuModuleLoadData)(&mut module, image.as_ptr().cast()) };
            if *name == LOOP_FILE && code != SUCCESS {
                continue; // No loops, and all else works.
            }
            device.checked(code, || {
                let hint =
                    if BAD_IMAGE.contains(&code) { age_hint(device.info.driver, compiler_release()) } else { None };
                let (major, minor) = device.info.capability;
                format!(
                    "kernels {name} for sm_{major}{minor}{}",
                    hint.map(|hint| format!(" ({hint})")).unwrap_or_default()
                )
            })?;
            loaded.modules.push((name, module));
        }
        Ok(loaded)
    }

    /// Whether graphs can hold loops: the driver can, and the kernel that ends them is there.
    pub fn has_loops(&self) -> bool {
        self.modules.iter().any(|(file, _)| *file == LOOP_FILE) && self.find(ContinueLoop::KERNEL).is_ok()
    }

    /// The kernel of that name, allowed to have as much dynamic shared memory. The context is current.
    pub fn kernel(&mut self, name: &str, shared_bytes: u32) -> Result<Kernel, BackendError> {
        if let Some(kernel) = self.kernels.get(name)
            && kernel.shared_bytes >= shared_bytes
        {
            return Ok(*kernel);
        }
        // Finding a kernel may load it, and that must neither be refused nor spoil a graph while one is
        // recorded: nothing of it is queued on the stream.
        let _relaxed = Relaxed::new(&self.device)?;
        let mut kernel = match self.kernels.get(name) {
            Some(kernel) => *kernel,
            None => self.find(name)?,
        };
        if kernel.shared_bytes < shared_bytes {
            let attribute = Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            let bytes = c_int::try_from(shared_bytes).unwrap_or(c_int::MAX);
            // SAFETY: a function of a module that is loaded.
            let code = unsafe { (self.device.calls.cuFuncSetAttribute)(kernel.function, attribute, bytes) };
            self.device.checked(code, || format!("{name}: {shared_bytes} bytes of shared memory a block"))?;
            kernel.shared_bytes = shared_bytes;
        }
        self.kernels.insert(name.into(), kernel);
        Ok(kernel)
    }

    /// Asks one file after another.
    fn find(&self, name: &str) -> Result<Kernel, BackendError> {
        let calls = self.device.calls;
        let unknown = || BackendError::Device(format!("this build has no kernel {name:?}"));
        let c_name = CString::new(name).map_err(|_| unknown())?;
        for (file, module) in &self.modules {
            let mut function = std::ptr::null_mut();
            // SAFETY: a loaded module, a terminated string; writes one handle.
            let code = unsafe { (calls.cuModuleGetFunction)(&mut function, *module, c_name.as_ptr()) };
            if code == NOT_FOUND {
                continue;
            }
            self.device.checked(code, || format!("kernel {name}"))?;
            let attribute = |attribute| {
                let mut value = 0;
                // SAFETY: writes one integer.
                let code = unsafe { (calls.cuFuncGetAttribute)(&mut value, attribute, function) };
                self.device.checked(code, || format!("kernel {name}")).map(|()| value)
            };
            // Code for older GPUs, which a newer one runs too where `KERNEL_ARCHS` left it nothing else,
            // does not wait for anything.
            let waits = attribute(Attribute::CU_FUNC_ATTRIBUTE_PTX_VERSION)? >= LEAST_OVERLAPPING_ARCH;
            // Static and dynamic together, unless more is asked for.
            let static_bytes = attribute(Attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES)?;
            let shared_bytes = u32::try_from(USUAL_SHARED_BYTES - static_bytes).unwrap_or(0);
            return Ok(Kernel { function, overlaps: waits && OVERLAPPING.contains(file), shared_bytes });
        }
        Err(unknown())
    }
}

impl Drop for Modules {
    fn drop(&mut self) {
        // Kernels that are queued must be done. What fails now was told by whoever waited before.
        let _ = self.device.wait();
        for (_, module) in &self.modules {
            // SAFETY: loaded by `load`; kernels are launched through this alone, and graphs hold it.
            unsafe { (self.device.calls.cuModuleUnload)(*module) };
        }
    }
}

/// While this lives, the calling thread may make calls that a recording forbids.
pub struct Relaxed<'a> {
    device: &'a Device,
    before: sys::CUstreamCaptureMode,
}

impl<'a> Relaxed<'a> {
    pub fn new(device: &'a Device) -> Result<Self, BackendError> {
        let mut mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: exchanges the calling thread's mode for the one given; all modes are in the bindings.
        let code = unsafe { (device.calls.cuThreadExchangeStreamCaptureMode)(&mut mode) };
        device.checked(code, || "allowing what a recording forbids".into())?;
        Ok(Self { device, before: mode })
    }
}

impl Drop for Relaxed<'_> {
    fn drop(&mut self) {
        let mut mode = self.before;
        // SAFETY: as above.
        unsafe { (self.device.calls.cuThreadExchangeStreamCaptureMode)(&mut mode) };
    }
}

/// Says so where the driver is of an older generation than the compiler.
fn age_hint(driver: (u32, u32), compiler: Option<(u32, u32)>) -> Option<String> {
    let (compiler, driver_version) = (compiler?, driver);
    (compiler.0 > driver_version.0).then(|| {
        let ((c, c_minor), (d, d_minor)) = (compiler, driver_version);
        format!("they were made by CUDA {c}.{c_minor}, and the driver knows CUDA {d}.{d_minor}: update it, or build with an nvcc of its generation")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::path::Path;

    #[test]
    fn only_kernels_that_wait_are_overlapped() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("cuda");
        let code = |file: &str| {
            let text = fs::read_to_string(folder.join(file)).unwrap();
            text.lines().map(|line| line.split("//").next().unwrap().to_string() + "\n").collect::<String>()
        };
        let waits = |file: &str| code(file).contains("await_previous_kernel()");
        for part in ["skinny", "gemm", "finish"] {
            assert!(
                waits(&format!("common/{part}.cuh")),
                "{part}: what PROJECTION and FINISH_PROJECTION make kernels of"
            );
        }
        for name in OVERLAPPING {
            let file = format!("{name}.cu");
            assert!(
                waits(&file) || code(&file).contains("PROJECTION("),
                "{file} does not wait for the kernel before it"
            );
        }
        assert!(!waits("wrappers.cu") && !OVERLAPPING.contains(&"wrappers"));
    }

    #[test]
    fn an_older_driver_than_the_compiler_is_told() {
        let told = age_hint((12, 4), Some((13, 0))).unwrap();
        assert!(told.contains("13.0") && told.contains("12.4"), "{told}");
        assert_eq!(age_hint((13, 0), Some((13, 3))), None, "of one generation");
        assert_eq!(age_hint((12, 4), None), None);
    }
}
