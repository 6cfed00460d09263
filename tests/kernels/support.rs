//! Numbers, memory and launches shared by the kernels' tests.

use crate::device::{Device, address};
use eesd::backend::cuda::emulator::Emulator;
use eesd::backend::cuda::kernels::{Address, Format};
use half::{bf16, f16};

pub const FORMATS: [Format; 2] = [Format::Bf16, Format::F16];

/// Largest relative error of one rounding to the format.
pub fn unit_roundoff(format: Format) -> f64 {
    match format {
        Format::Bf16 => 1.0 / 256.0,
        Format::F16 => 1.0 / 2048.0,
    }
}

pub fn widen(format: Format, bits: u16) -> f64 {
    match format {
        Format::Bf16 => bf16::from_bits(bits).to_f64(),
        Format::F16 => f16::from_bits(bits).to_f64(),
    }
}

pub fn narrow(format: Format, x: f64) -> u16 {
    match format {
        Format::Bf16 => bf16::from_f64(x).to_bits(),
        Format::F16 => f16::from_f64(x).to_bits(),
    }
}

/// Numbers roughly uniform in (-1, 1), the same for a seed.
pub struct Noise(u64);

impl Noise {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn word(&mut self) -> u64 {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ z >> 31
    }

    pub fn unit(&mut self) -> f64 {
        (self.word() >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    }

    pub fn floats(&mut self, n: usize, scale: f64) -> Vec<f32> {
        (0..n).map(|_| (self.unit() * scale) as f32).collect()
    }

    pub fn numbers(&mut self, format: Format, n: usize, scale: f64) -> Vec<u16> {
        (0..n).map(|_| narrow(format, self.unit() * scale)).collect()
    }
}

/// The address of a buffer that a kernel may write.
pub fn to<T>(buffer: &mut [T]) -> Address {
    address(buffer); // that a GPU could reach it
    Address(buffer.as_mut_ptr() as u64)
}

/// The address of a buffer that a kernel only reads.
pub fn from<T>(buffer: &[T]) -> Address {
    Address(address(buffer))
}

pub const NULL: Address = Address(0);

/// Orders of threads that tests run under: ascending, descending, random, and random with all blocks
/// alive at once. A GPU has its own.
pub fn schedules() -> Vec<Device> {
    if Device::gpu(0).is_some() {
        return (0..2).filter_map(Device::gpu).collect();
    }
    let mut together = emulator(5);
    together.coresident = true;
    (0..4).map(emulator).chain([together]).map(Device::Emulated).collect()
}

/// The GPU, or an emulator.
pub fn device(seed: u64) -> Device {
    Device::gpu(seed).unwrap_or_else(|| Device::Emulated(emulator(seed)))
}

/// The kernels linked in, or those of the library that `workshop` has this process run on.
fn emulator(seed: u64) -> Emulator {
    let Some(library) = std::env::var_os("EMULATOR_LIBRARY") else { return Emulator::new(seed) };
    let race_check = std::env::var_os("EMULATOR_RACE").is_some();
    // SAFETY: a library that `workshop` has just made of cuda/, for the race check where it says so.
    unsafe { Emulator::load(library.as_ref(), race_check, seed) }.unwrap()
}

/// Fails unless `found` is within `tolerance` of `expected`; NaN never is.
#[track_caller]
pub fn assert_close(found: f64, expected: f64, tolerance: f64, what: impl FnOnce() -> String) {
    let error = (found - expected).abs();
    assert!(error <= tolerance, "{}: {found}, expected {expected} ± {tolerance}", what());
}

pub fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

pub fn wide(values: &[u16]) -> Vec<u32> {
    values.iter().map(|&value| value.into()).collect()
}
