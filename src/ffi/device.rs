//! What this machine has.

use super::argument::{Place, Versioned, fixed, optional_string};
use super::status::{Failure, Outcome, Status, entry};
use crate::backend::Device;
use crate::backend::cpu::{Simd, system};
use crate::backend::cuda::gpu::{self, GpuInfo, Kernels};
use std::ffi::c_char;

/// A device and its memory.
#[repr(C)]
pub struct DeviceInfo {
    /// sizeof(eesd_device_info); to be set before the call.
    pub struct_size: usize,
    /// As in "NVIDIA H200", or "cpu, avx512".
    pub name: [c_char; 128],
    /// Bytes of memory; 0 where the system does not say.
    pub memory: u64,
    /// Bytes of memory that are available; 0 where the system does not say, and for GPUs, which are not opened for this.
    pub memory_available: u64,
    /// Threads that this process may use; 0 for a GPU.
    pub threads: usize,
    /// Compute capability as in 90 for 9.0; 0 for the processor.
    pub compute_capability: u32,
    /// 1: this build has kernels for it.
    pub usable: i32,
}

// SAFETY: repr(C), struct_size first, integers.
unsafe impl Versioned for DeviceInfo {
    const NAME: &'static str = "eesd_device_info";
}

/// Writes the number of CUDA devices; 0 without a driver that works.
///
/// # Safety
///
/// `count` is NULL or good to write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eesd_cuda_device_count(count: *mut usize) -> Status {
    entry(|| {
        // SAFETY: the caller vouches for it.
        unsafe { Place::new(count, "count") }?.write(gpu::list().map_or(0, |gpus| gpus.len()));
        Ok(())
    })
}

/// Describes a device: "cpu", "cuda", "cuda:N"; NULL and "auto": the one that sessions take by default.
///
/// EESD_STATUS_DEVICE_FAILED if there is none of this name.
///
/// # Safety
///
/// `device` is NULL or ends in a zero; `info` is NULL, or as its struct_size, which is set, says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eesd_device_get_info(device: *const c_char, info: *mut DeviceInfo) -> Status {
    entry(|| {
        // SAFETY: the caller vouches for both.
        let (device, place) = unsafe { (read(device)?, Place::structure(info)?) };
        place.write(match device {
            Device::Auto | Device::Cpu => processor(),
            Device::Cuda(number) => of_gpu(number)?,
        });
        Ok(())
    })
}

/// A device by its name; NULL is `auto`.
///
/// # Safety
///
/// `device` is NULL or ends in a zero.
pub(super) unsafe fn read(device: *const c_char) -> Outcome<Device> {
    // SAFETY: the same is asked of the caller.
    let name = unsafe { optional_string(device, "device") }?.unwrap_or("auto");
    name.parse().map_err(|error| Failure::argument(format!("device: {name:?}: {error}")))
}

fn processor() -> DeviceInfo {
    let (memory, memory_available) = (system::total().unwrap_or(0), system::free().unwrap_or(0));
    DeviceInfo {
        struct_size: size_of::<DeviceInfo>(),
        name: fixed(&format!("cpu, {}", Simd::detect())),
        memory,
        memory_available,
        threads: std::thread::available_parallelism().map_or(1, usize::from),
        compute_capability: 0,
        usable: 1,
    }
}

fn of_gpu(number: usize) -> Outcome<DeviceInfo> {
    let failed = |why| Failure::new(Status::DeviceFailed, format!("cuda:{number}: {why}"));
    let gpus = gpu::list().map_err(failed)?;
    let gpu: &GpuInfo = gpus.get(number).ok_or_else(|| failed(format!("this machine has {} GPUs", gpus.len())))?;
    Ok(DeviceInfo {
        struct_size: size_of::<DeviceInfo>(),
        name: fixed(&gpu.name),
        memory: gpu.memory,
        memory_available: 0,
        threads: 0,
        compute_capability: gpu.capability.0 * 10 + gpu.capability.1,
        usable: (gpu.kernels() != Kernels::None).into(),
    })
}
