//! What GPUs there are, and whether this build has kernels for them.

use super::calls::{Calls, driver};
use crate::backend::cuda::{BUILT_WITH, PTX};
use cudarc::driver::sys::{self, CUdevice_attribute as Attribute};
use std::ffi::{CStr, c_int};

/// The least compute capability: asynchronous copies and tensor cores for bf16.
pub const LEAST_CAPABILITY: (u32, u32) = (8, 0);

/// A GPU of this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GpuInfo {
    /// As in `cuda:0`.
    pub ordinal: usize,
    /// As in `NVIDIA H200`.
    pub name: String,
    /// As in (9, 0).
    pub capability: (u32, u32),
    /// Bytes of memory, whether taken or not.
    pub memory: u64,
    /// The newest CUDA version that the driver knows, as in (13, 0).
    pub driver: (u32, u32),
}

impl GpuInfo {
    pub(super) fn of(calls: &Calls, ordinal: usize, device: sys::CUdevice) -> Result<Self, String> {
        let what = || format!("cuda:{ordinal}");
        let mut name = [0; 256];
        // SAFETY: writes at most as many bytes as it is told, the last one a zero.
        calls.check(unsafe { (calls.cuDeviceGetName)(name.as_mut_ptr(), name.len() as c_int, device) }, what)?;
        // The last byte was never written by others and is a zero, whatever the driver did.
        name[255] = 0;
        // SAFETY: terminated, see above.
        let name = unsafe { CStr::from_ptr(name.as_ptr()) }.to_string_lossy().into_owned();
        let attribute = |attribute| {
            let mut value = 0;
            // SAFETY: writes one integer.
            calls.check(unsafe { (calls.cuDeviceGetAttribute)(&mut value, attribute, device) }, what)?;
            Ok::<_, String>(value as u32)
        };
        let major = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
        let minor = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
        let mut memory = 0;
        // SAFETY: writes one size.
        calls.check(unsafe { (calls.cuDeviceTotalMem_v2)(&mut memory, device) }, what)?;
        Ok(Self { ordinal, name, capability: (major, minor), memory: memory as u64, driver: calls.version()? })
    }

    /// What this build has for it.
    pub fn kernels(&self) -> Kernels {
        match BUILT_WITH {
            Some((_, archs)) if self.capability >= LEAST_CAPABILITY => covered(archs, PTX, self.capability),
            _ => Kernels::None,
        }
    }
}

/// The kernels that a build has for a GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kernels {
    /// Compiled for it.
    Compiled,
    /// The driver compiles them when the GPU is first opened, and keeps the result.
    CompiledByDriver,
    /// None: `KERNEL_ARCHS` has to name it.
    None,
}

/// The GPUs of this machine, none of which is touched.
///
/// # Errors
/// If there is no driver, or none that works, or it sees no GPU.
pub fn list() -> Result<Vec<GpuInfo>, String> {
    let calls = driver()?;
    (0..count(calls)?).map(|ordinal| GpuInfo::of(calls, ordinal, device(calls, ordinal)?)).collect()
}

pub(super) fn count(calls: &Calls) -> Result<usize, String> {
    let mut count = 0;
    // SAFETY: writes one integer.
    calls.check(unsafe { (calls.cuDeviceGetCount)(&mut count) }, || "the number of GPUs".into())?;
    Ok(usize::try_from(count).unwrap_or(0))
}

pub(super) fn device(calls: &Calls, ordinal: usize) -> Result<sys::CUdevice, String> {
    let count = count(calls)?;
    let index = c_int::try_from(ordinal).ok().filter(|_| ordinal < count).ok_or_else(|| no_such(ordinal, count))?;
    let mut device = 0;
    // SAFETY: writes one handle.
    calls.check(unsafe { (calls.cuDeviceGet)(&mut device, index) }, || format!("cuda:{ordinal}"))?;
    Ok(device)
}

fn no_such(ordinal: usize, count: usize) -> String {
    let has = match count {
        0 => "no GPU".into(),
        1 => "1 GPU, cuda:0".into(),
        _ => format!("{count} GPUs, cuda:0 to cuda:{}", count - 1),
    };
    format!("cuda:{ordinal}: this machine has {has}")
}

/// Whether kernels for `archs`, as in `80,90a`, and PTX for another, as in `80`, run on a GPU.
fn covered(archs: &str, ptx: &str, capability: (u32, u32)) -> Kernels {
    // Code for `90a` runs on 9.0 alone, for `100f` on its family, else on any later GPU of that generation.
    let parse = |arch: &str| {
        let digits = arch.trim().trim_end_matches(['a', 'f']);
        let number: u32 = digits.parse().ok()?;
        Some(((number / 10, number % 10), arch.trim().ends_with('a'), arch.trim().ends_with('f')))
    };
    let runs = |arch| match parse(arch) {
        Some((compiled, exact, _)) if exact => compiled == capability,
        Some((compiled, ..)) => compiled.0 == capability.0 && compiled.1 <= capability.1,
        None => false,
    };
    if archs.split(',').any(runs) {
        return Kernels::Compiled;
    }
    match parse(ptx) {
        Some((ptx, false, false)) if ptx <= capability => Kernels::CompiledByDriver,
        _ => Kernels::None,
    }
}

/// The release of the compiler that made this build's kernels, as (13, 0).
pub fn compiler_release() -> Option<(u32, u32)> {
    release(BUILT_WITH?.0)
}

/// Of what `nvcc --version` says: `Cuda compilation tools, release 13.0, V13.0.88`.
fn release(compiler: &str) -> Option<(u32, u32)> {
    let (_, rest) = compiler.split_once("release ")?;
    let (major, minor) = rest.split([',', ' ']).next()?.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn coverage_follows_the_rules_of_binaries_and_ptx() {
        let all = "80,86,89,90a,100,120";
        for capability in [(8, 0), (8, 6), (8, 7), (8, 9), (9, 0), (10, 0), (10, 3), (12, 0), (12, 1)] {
            assert_eq!(covered(all, "100", capability), Kernels::Compiled, "{capability:?}");
        }
        assert_eq!(covered(all, "120", (11, 0)), Kernels::None, "between the generations, and below the PTX");
        assert_eq!(covered(all, "100", (11, 0)), Kernels::CompiledByDriver);
        assert_eq!(covered(all, "100", (13, 0)), Kernels::CompiledByDriver);
        assert_eq!(covered("86", "86", (8, 0)), Kernels::None);
        assert_eq!(covered("80", "80", (9, 0)), Kernels::CompiledByDriver);
        assert_eq!(covered("90a", "90a", (9, 0)), Kernels::Compiled);
        assert_eq!(covered("80,90a", "90a", (10, 0)), Kernels::None, "PTX for 90a is for 9.0 alone");
        assert_eq!(covered("100f", "100f", (10, 3)), Kernels::Compiled);
        for wrong in ["", "abc", ",", "90a,,"] {
            assert_eq!(covered(wrong, wrong, (10, 0)), Kernels::None, "{wrong:?}");
        }
    }

    #[test]
    fn the_compiler_tells_its_release() {
        assert_eq!(release("Cuda compilation tools, release 13.0, V13.0.88"), Some((13, 0)));
        assert_eq!(release("Cuda compilation tools, release 12.9, V12.9.1"), Some((12, 9)));
        assert_eq!(release("unknown release"), None);
        assert_eq!(release(""), None);
    }

    #[test]
    fn a_missing_device_is_told_with_what_there_is() {
        assert_eq!(no_such(3, 1), "cuda:3: this machine has 1 GPU, cuda:0");
        assert_eq!(no_such(0, 0), "cuda:0: this machine has no GPU");
        assert_eq!(no_such(9, 2), "cuda:9: this machine has 2 GPUs, cuda:0 to cuda:1");
    }

    #[test]
    fn listing_never_panics() {
        match list() {
            Ok(gpus) => gpus.iter().for_each(|gpu| assert!(!gpu.name.is_empty() && gpu.memory > 0)),
            Err(why) => assert!(!why.is_empty()),
        }
    }
}
