//! Students of small blocks, on the device to be tested and on the processor.

pub use super::blocks::Case;

use super::blocks::Sizes;
use crate::tested_gpu::tested_gpu;
use eesd::backend::BackendError;
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
        Self { states: true, ..Self::sized(SIZES, heads, window, lengths) }
    }

    /// A recurrent block with an input matrix, in chains of so many steps.
    pub fn chains(steps: usize, heads: (usize, usize), window: Option<usize>, lengths: &[usize]) -> Self {
        Self { input: true, steps, ..Self::new(heads, window, lengths) }
    }

    pub fn cpu(&self) -> CpuStudent {
        let (layout, values) = self.layout();
        let student = CpuStudent::new(&self.geometry, layout, values, WINDOW, Some(1)).unwrap();
        student.with_model(&self.model(), self.steps).unwrap()
    }

    /// On the device to be tested, with the logits of so many positions at a time.
    pub fn in_pieces(&self, positions: usize) -> Box<dyn Student> {
        let logits = positions * self.steps * self.draft_vocab;
        let options = CudaStudentOptions { logits, ..self.options(Operands::F32) };
        match tested_gpu() {
            Some(number) => Box::new(self.with(&Arc::new(Gpu::open(number).unwrap()), options)),
            None => Box::new(self.with(&emulated(1), options)),
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
        self.with(driver, self.options(operands))
    }

    fn with<D: Driver>(&self, driver: &Arc<D>, options: CudaStudentOptions) -> CudaStudent<D> {
        self.made(driver, options).unwrap()
    }

    /// A student, or why there is none.
    pub fn made<D: Driver>(
        &self,
        driver: &Arc<D>,
        options: CudaStudentOptions,
    ) -> Result<CudaStudent<D>, BackendError> {
        let (layout, values) = self.layout();
        CudaStudent::new(driver.clone(), &self.geometry, &self.model(), layout, values, options)
    }

    pub fn options(&self, operands: Operands) -> CudaStudentOptions {
        let logits = CudaStudentOptions::LOGITS;
        CudaStudentOptions { window: WINDOW, rows: ROWS, steps: self.steps, memory_fraction: 0.9, operands, logits }
    }
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
