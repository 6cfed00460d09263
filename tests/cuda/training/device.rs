//! Memory and waits of the emulated device, and what is refused.

use super::subject::{Case, ROWS, WINDOW, emulated, step};
use eesd::backend::BackendError;
use eesd::backend::cuda::emulator::{EmulatedDevice, Emulator};
use eesd::backend::training::cuda::{CudaStudentOptions, Operands};
use eesd::backend::training::{Position, States, Student, Targets, TeacherBatch};
use std::sync::Arc;

fn case() -> Case {
    Case::chains(3, (2, 1), None, &[9, 5])
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
    let error = case.made(&device, case.options(Operands::F32)).err().unwrap();
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
    let refused =
        |case: &Case, options: &CudaStudentOptions| case.made(&emulated(0), options.clone()).err().unwrap().to_string();
    let options = case.options(Operands::F32);
    let few = CudaStudentOptions { rows: WINDOW - 1, ..options };
    assert!(refused(&case, &few).contains("batches of 63 tokens"));
    let none = CudaStudentOptions { steps: 0, ..options };
    assert!(refused(&case, &none).contains("chains of 0 steps (expected at least 1)"));
    let plain = Case { steps: 1, ..case.clone() };
    assert!(
        refused(&plain, &options).contains("chains of 3 steps (expected 1 for a block without a recurrent matrix)")
    );
    let mut odd = case.clone();
    odd.geometry.head_dim = 48;
    assert!(refused(&odd, &options).contains("head_dim 48 (expected one of"));

    let mut student = case.on(&emulated(0), Operands::F32);
    let good = case.batch();
    let logits = Case { states: false, ..case.clone() }.batch().targets;
    let Targets::States(states) = &good.targets else { panic!("logits") };
    let last = |row| {
        let mut scored = good.scored.clone();
        scored.last_mut().unwrap().row = row;
        scored
    };
    let without_totals = Targets::States(States { log_totals: Vec::new(), ..states.clone() });
    let of_another = Targets::States(States { vocab: 91, ..states.clone() });
    let mut unknown = good.tokens.clone();
    unknown[3] = 90;
    let wrong: [(TeacherBatch, &str); 9] = [
        (TeacherBatch { lengths: vec![WINDOW + 1], ..good.clone() }, "a segment of 65 tokens (expected at most 64)"),
        (TeacherBatch { lengths: vec![WINDOW; 3], ..good.clone() }, "a batch of 192 tokens (expected at most 128)"),
        (TeacherBatch { lengths: vec![9, 4], ..good.clone() }, "tokens, hidden numbers and last ones"),
        (TeacherBatch { targets: without_totals, ..good.clone() }, "sums, likeliest tokens and logits of each"),
        (TeacherBatch { targets: of_another, ..good.clone() }, "sums, likeliest tokens and logits of each"),
        (TeacherBatch { tokens: unknown, ..good.clone() }, "token 90 (expected less than 90)"),
        (TeacherBatch { targets: logits, ..good.clone() }, "logits of the teacher (expected its last hidden states)"),
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
    let nowhere = Targets::States(States { vocab: states.vocab, ..States::default() });
    let empty = TeacherBatch { scored: nothing, targets: nowhere, ..good.clone() };
    assert_eq!(student.learn(&empty, &case.loss).unwrap().all().weight, 0.0);
    assert!(student.learn(&good, &case.loss).unwrap().all().weight > 0.0);
}
