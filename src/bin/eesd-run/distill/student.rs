//! Where a block is trained: on the device that reads for it.

use crate::failure::Outcome;
use crate::machine::Machine;
use crate::report::Reporter;
use crate::settings::Model;
use eesd::backend::cuda::driver::Driver;
use eesd::backend::cuda::gpu::Gpu;
use eesd::backend::training::cuda::{CudaStudent, CudaStudentOptions, Operands};
use eesd::backend::training::parameters::Layout;
use eesd::backend::training::{CpuStudent, Student};
use eesd::distill::TrainPlan;
use std::sync::Arc;

/// Least part of a GPU's memory left to the teacher: so that what it lacks is told in bytes.
const LEAST_FRACTION: f64 = 1e-3;

/// A student on the machine, for the batches and chains of a plan. What it takes of a GPU's memory is taken from what the
/// machine may use from here on.
///
/// # Errors
/// If there is no such device, it lacks a library of matrix products, or memory cannot be had.
pub fn student(
    machine: &mut Machine,
    model: &Model,
    (layout, values): (Layout, Vec<f32>),
    plan: &TrainPlan,
    reporter: Reporter,
) -> Outcome<Box<dyn Student>> {
    let (geometry, window, rows) = (model.checkpoint.geometry(), plan.window, plan.batch_tokens);
    match machine {
        Machine::Cpu(options) => {
            let student = CpuStudent::new(geometry, layout, values, window, options.threads)?;
            Ok(Box::new(student.with_model(&model.weights(reporter)?, plan.recurrent)?))
        }
        Machine::Cuda(number, options) => {
            let gpu = Arc::new(reporter.wait("opening the GPU", || Gpu::open(*number))?);
            reporter.note(
                "training has not been run on a GPU yet: compare the first losses with those of --device cpu before \
                 you trust it",
            );
            let memory_fraction = options.memory_fraction;
            let of_student = CudaStudentOptions {
                window,
                rows,
                steps: plan.recurrent,
                memory_fraction,
                operands: Operands::Bf16,
                logits: CudaStudentOptions::LOGITS,
            };
            let weights = model.weights(reporter)?;
            let student = CudaStudent::new(gpu.clone(), geometry, &weights, layout, values, of_student)?;
            let taken = student.device_bytes() as f64 / gpu.memory()?.total as f64;
            options.memory_fraction = (memory_fraction - taken).max(LEAST_FRACTION);
            Ok(Box::new(student))
        }
    }
}
