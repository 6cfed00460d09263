//! A whole run as `distill --recurrent` makes one on a device, with the teacher there too: ridge regression, then updates.

use super::subject::{can_multiply, emulated};
use crate::support::{Subject, options};
use crate::tested_gpu::tested_gpu;
use eesd::backend::cuda::gpu::Gpu;
use eesd::backend::training::cuda::{CudaStudent, CudaStudentOptions, Operands};
use eesd::backend::training::loss::Losses;
use eesd::backend::training::parameters::{Head, Layout};
use eesd::backend::training::{CpuStudent, Student};
use eesd::distill::data::{Batches, Document};
use eesd::distill::{Cadence, Identity, Teacher, TrainPlan, Trainer};
use eesd::model::{Dtype, ExitWeights, Matrix};
use std::ops::ControlFlow;
use std::sync::Arc;

const AFTER: usize = 1;

/// `[I, 0]`, or `I`.
fn unit(rows: usize, columns: usize) -> Vec<u8> {
    let element = |at: usize| if at / columns == at % columns { 1f32 } else { 0.0 };
    (0..rows * columns).flat_map(|at| element(at).to_le_bytes()).collect()
}

/// The losses of each update.
fn run(on_device: bool, ridge: bool) -> Vec<Losses> {
    let subject = Subject::fixture("llama");
    let (geometry, weights) = (subject.geometry(), subject.checkpoint.weights());
    let text: Vec<Document> = (0..8).map(|seed| Document { tokens: subject.text(seed, 40), prompt: 5 }).collect();
    let (steps, recurrent) = (2, 3);
    let plan = TrainPlan { steps, recurrent, ridge, window: 40, batch_tokens: 160, warmup: 1, ..TrainPlan::default() };
    let train = Batches::new(&text, plan.window, plan.batch_tokens, plan.seed).unwrap();
    let hidden = geometry.hidden_size;
    let (input, joined) = (unit(hidden, hidden), unit(hidden, 2 * hidden));
    let exit = ExitWeights {
        input: Some(Matrix::new(Dtype::F32, hidden, hidden, &input)),
        recurrent: Some(Matrix::new(Dtype::F32, hidden, 2 * hidden, &joined)),
        ..ExitWeights::from_model(&weights, AFTER, geometry.layers - 1)
    };
    let (layout, values) = Layout::new(&exit, &weights, Head::Trained, None).unwrap();
    let identity = Identity::new("a fixture", &layout, &values, &text, plan.clone());
    let student: Box<dyn Student> = if on_device {
        let options = CudaStudentOptions {
            window: plan.window,
            rows: plan.batch_tokens,
            steps: plan.recurrent,
            memory_fraction: 0.5,
            operands: Operands::Bf16,
            logits: CudaStudentOptions::LOGITS,
        };
        match tested_gpu() {
            Some(number) => {
                let gpu = Arc::new(Gpu::open(number).unwrap());
                Box::new(CudaStudent::new(gpu, geometry, &weights, layout, values, options).unwrap())
            }
            None => Box::new(CudaStudent::new(emulated(0), geometry, &weights, layout, values, options).unwrap()),
        }
    } else {
        let student = CpuStudent::new(geometry, layout, values, plan.window, Some(1)).unwrap();
        Box::new(student.with_model(&weights, plan.recurrent).unwrap())
    };
    let reader = if on_device { subject.cuda(None, &options(1)) } else { subject.cpu(None, 1) };
    let teacher = Teacher::new(reader, AFTER, plan.window).unwrap();
    let mut trainer = Trainer::new(teacher, student, &train, None, identity, None).unwrap();
    trainer.fit_input(&mut |_, _| ControlFlow::Continue(())).unwrap();
    let mut losses = Vec::new();
    let cadence = Cadence { measure: 100, save: 100, patience: None };
    trainer
        .run(cadence, &mut |report| {
            losses.push(report.losses.clone());
            ControlFlow::Continue(())
        })
        .unwrap();
    losses
}

#[test]
fn a_run_on_the_device_is_close_to_the_processors() {
    if !can_multiply() {
        return;
    }
    let (found, expected, unfitted) = (run(true, true), run(false, true), run(false, false));
    let means = |losses: &Losses| losses.steps.iter().map(|of| of.mean().loss).collect::<Vec<f64>>();
    let far = |found: &[f64], expected: &[f64]| {
        let off = |(found, expected): (&f64, &f64)| (found - expected).abs() / expected;
        found.iter().zip(expected).map(off).fold(0.0, f64::max)
    };
    for (found, expected) in found.iter().zip(&expected) {
        let (found, expected) = (means(found), means(expected));
        assert_eq!(found.len(), 3);
        assert!(far(&found, &expected) < 0.02, "{found:?} {expected:?}");
    }
    assert_eq!(found.len(), 2);
    // The regression shows.
    let (fitted, unfitted) = (means(&expected[0]), means(&unfitted[0]));
    assert!(far(&fitted[..1], &unfitted[..1]) > 0.02, "{fitted:?} {unfitted:?}");
}
