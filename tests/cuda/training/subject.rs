//! Students of small blocks, on the device to be tested and on the processor.

pub use super::blocks::Case;

use super::blocks::Sizes;
use crate::tested_gpu::tested_gpu;
use eesd::backend::cuda::driver::Driver;
use eesd::backend::cuda::emulator::{EmulatedDevice, Emulator};
use eesd::backend::cuda::gpu::Gpu;
use eesd::backend::training::adamw::AdamStep;
use eesd::backend::training::cuda::{CudaStudent, CudaStudentOptions, Operands};
use eesd::backend::training::{CpuStudent, Student};
use std::sync::Arc;

/// Most tokens of a segment, and of a batch.
pub const WINDOW: usize = 64;
pub const ROWS: usize = 128;

/// Widths that no tile divides, and heads that kernels are compiled for.
const SIZES: Sizes = Sizes { vocab: 90, hidden: 40, mlp: 56, head_dim: 32 };

impl Case {
    pub fn new(heads: (usize, usize), window: Option<usize>, lengths: &[usize]) -> Self {
        Self::sized(SIZES, heads, window, lengths)
    }

    pub fn cpu(&self) -> CpuStudent {
        let (layout, values) = self.layout();
        CpuStudent::new(&self.geometry, layout, values, WINDOW, Some(1)).unwrap()
    }

    /// On the device to be tested, with the teacher's logits of so many positions at a time.
    pub fn in_pieces(&self, positions: usize) -> Box<dyn Student> {
        fn made<D: Driver>(case: &Case, driver: Arc<D>, options: CudaStudentOptions) -> Box<dyn Student> {
            let (layout, values) = case.layout();
            Box::new(CudaStudent::new(driver, &case.geometry, layout, values, options).unwrap())
        }
        let logits = positions * self.geometry.vocab_size;
        let options = CudaStudentOptions { logits, ..options(Operands::F32) };
        match tested_gpu() {
            Some(number) => made(self, Arc::new(Gpu::open(number).unwrap()), options),
            None => made(self, emulated(1), options),
        }
    }

    /// On the device to be tested; where that is the emulated one, its threads run in an order of their own.
    pub fn cuda(&self, operands: Operands, seed: u64) -> Box<dyn Student> {
        match tested_gpu() {
            Some(number) => Box::new(self.on(&Arc::new(Gpu::open(number).unwrap()), operands)),
            None => Box::new(self.on(&emulated(seed), operands)),
        }
    }

    /// On a device.
    pub fn on<D: Driver>(&self, driver: &Arc<D>, operands: Operands) -> CudaStudent<D> {
        let (layout, values) = self.layout();
        CudaStudent::new(driver.clone(), &self.geometry, layout, values, options(operands)).unwrap()
    }
}

pub fn options(operands: Operands) -> CudaStudentOptions {
    let logits = CudaStudentOptions::LOGITS;
    CudaStudentOptions { window: WINDOW, rows: ROWS, memory_fraction: 0.9, operands, logits }
}

pub fn emulated(seed: u64) -> Arc<EmulatedDevice> {
    Arc::new(EmulatedDevice::new(Emulator::new(seed), 2 << 30))
}

/// Whether the device to be tested has a library of matrix products; a GPU without is said.
pub fn can_multiply() -> bool {
    let Some(number) = tested_gpu() else { return true };
    let library = Gpu::open(number).unwrap().matmul_workspace();
    if let Err(why) = &library {
        println!("left out: {why}");
    }
    library.is_ok()
}

pub fn step(number: u64) -> AdamStep {
    AdamStep { number, rate: 5e-3, beta1: 0.9, beta2: 0.99, epsilon: 1e-8, decay: 0.01, clip: 1.0 }
}

pub fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

/// Root of the mean square of what two differ by, over that of the second.
pub fn difference(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let squares = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>();
    let between = squares(&mut found.iter().zip(expected).map(|(&a, &b)| f64::from(a) - f64::from(b)));
    (between / squares(&mut expected.iter().map(|&x| f64::from(x)))).sqrt()
}
