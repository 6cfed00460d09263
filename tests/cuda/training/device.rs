//! Memory and waits of the emulated device, and what is refused.

use super::subject::{Case, ROWS, WINDOW, emulated, options, step};
use eesd::backend::BackendError;
use eesd::backend::cuda::emulator::{EmulatedDevice, Emulator};
use eesd::backend::training::cuda::{CudaStudent, CudaStudentOptions, Operands};
use eesd::backend::training::{Position, Student, Targets, TeacherBatch};
use std::sync::Arc;

fn case() -> Case {
    Case::new((2, 1), None, &[9, 5])
}

#[test]
fn the_host_waits_once_and_all_memory_is_given_back() {
    let (case, device) = (case(), emulated(0));
    let mut student = case.on(&device, Operands::Bf16);
    let batch = case.batch();
    let waits = |work: &mut dyn FnMut()| {
        let before = device.counts().waits;
        work();
        device.counts().waits - before
    };
    assert_eq!(
        waits(&mut || {
            student.learn(&batch, &case.loss).unwrap();
        }),
        1
    );
    assert_eq!(
        waits(&mut || {
            student.test(&batch, &case.loss).unwrap();
        }),
        1
    );
    assert_eq!(
        waits(&mut || {
            student.update(&step(1)).unwrap();
        }),
        1
    );
    assert!(device.allocated().0 > 0 && device.allocated().1 > 0);
    drop(student);
    assert_eq!(device.allocated(), (0, 0));
}

#[test]
fn too_little_memory_is_told_with_all_numbers_before_any_is_taken() {
    let (case, device) = (case(), Arc::new(EmulatedDevice::new(Emulator::new(0), 1 << 19)));
    let (layout, values) = case.layout();
    let error = CudaStudent::new(device.clone(), &case.geometry, layout, values, options(Operands::F32)).err().unwrap();
    let BackendError::TrainingMemory(budget) = &error else { panic!("{error}") };
    assert!(budget.parameters > 0 && budget.workspace > 1 << 18 && budget.rows == ROWS, "{budget:?}");
    let told = error.to_string();
    for part in ["not enough GPU memory to train", "batches of 128 tokens", "0.9 of 0.5 MB", "lower --batch-tokens"] {
        assert!(told.contains(part), "{told}");
    }
    assert_eq!(device.allocated(), (0, 0));
}

#[test]
fn what_does_not_fit_is_refused_by_what_was_found() {
    let case = case();
    let (layout, values) = case.layout();
    let refused = |geometry: &eesd::model::Geometry, options: CudaStudentOptions| {
        let made = CudaStudent::new(emulated(0), geometry, layout.clone(), values.clone(), options);
        made.err().unwrap().to_string()
    };
    let mut geometry = case.geometry.clone();
    geometry.head_dim = 48;
    assert!(refused(&geometry, options(Operands::F32)).contains("head_dim 48 (expected one of"));
    let few = CudaStudentOptions { rows: WINDOW - 1, ..options(Operands::F32) };
    assert!(refused(&case.geometry, few).contains("batches of 63 tokens"));

    for (input, steps) in [(true, 1), (false, 2)] {
        let (layout, values) = Case { input, steps, ..case.clone() }.layout();
        let made = CudaStudent::new(emulated(0), &case.geometry, layout, values, options(Operands::F32));
        assert!(made.err().unwrap().to_string().contains("is not trained on a GPU yet"), "{input}, {steps} steps");
    }

    let mut student = case.on(&emulated(0), Operands::F32);
    let good = case.batch();
    let states = Case { states: true, ..case.clone() }.batch().targets;
    let last = |row| {
        let mut scored = good.scored.clone();
        scored.last_mut().unwrap().row = row;
        scored
    };
    let wrong: [(TeacherBatch, &str); 7] = [
        (TeacherBatch { lengths: vec![WINDOW + 1], ..good.clone() }, "a segment of 65 tokens (expected at most 64)"),
        (TeacherBatch { lengths: vec![WINDOW; 3], ..good.clone() }, "a batch of 192 tokens (expected at most 128)"),
        (TeacherBatch { lengths: vec![9, 4], ..good.clone() }, "hidden numbers and logits"),
        (TeacherBatch { targets: Targets::default(), ..good.clone() }, "hidden numbers and logits"),
        (TeacherBatch { targets: states, ..good.clone() }, "expected logits"),
        (TeacherBatch { scored: last(14), ..good.clone() }, "not ascending rows of 14"),
        (TeacherBatch { scored: last(0), ..good.clone() }, "not ascending rows of 14"),
    ];
    for (batch, told) in wrong {
        let error = student.learn(&batch, &case.loss).unwrap_err().to_string();
        assert!(error.contains(told), "{error}");
    }
    // And nothing of it was learned.
    assert_eq!(student.update(&step(1)).unwrap(), 0.0);
    let nothing: Vec<Position> = Vec::new();
    let empty = TeacherBatch { scored: nothing, targets: Targets::default(), ..good.clone() };
    assert_eq!(student.learn(&empty, &case.loss).unwrap().all().weight, 0.0);
    assert!(student.learn(&good, &case.loss).unwrap().all().weight > 0.0);
}
