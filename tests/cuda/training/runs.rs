//! Whole runs: they follow the processor's, give the same bits twice, go on from a state, and stand what is not finite.

use super::subject::{Case, bits, can_multiply, difference, step};
use eesd::backend::training::cuda::Operands;
use eesd::backend::training::{Student, StudentState, TeacherBatch};

const UPDATES: u64 = 20;

/// Losses before each update, and the state behind the last one.
fn train(student: &mut dyn Student, case: &Case) -> (Vec<f64>, StudentState) {
    let batch = case.batch();
    let losses = (1..=UPDATES).map(|number| {
        let loss = student.learn(&batch, &case.loss).unwrap().all().mean().loss;
        student.update(&step(number)).unwrap();
        loss
    });
    (losses.collect(), student.state().unwrap())
}

fn case() -> Case {
    let mut case = Case::new((4, 2), Some(12), &[24, 16]);
    case.geometry.qk_norm = true;
    case
}

fn recurrent() -> Case {
    Case::chains(3, (2, 1), None, &[12, 9])
}

#[test]
fn losses_follow_the_processors_and_the_same_run_gives_the_same_bits() {
    if !can_multiply() {
        return;
    }
    losses_follow(&case());
    losses_follow(&recurrent());
}

fn losses_follow(case: &Case) {
    let (expected, state) = train(&mut case.cpu(), case);
    assert!(expected[UPDATES as usize - 1] < 0.9 * expected[0], "the processor learns nothing: {expected:?}");
    for (operands, curve, moved) in [(Operands::F32, 1e-5, 2e-3), (Operands::Bf16, 3e-3, 0.1)] {
        let (found, values) = train(&mut *case.cuda(operands, 0), case);
        for (number, (found, expected)) in found.iter().zip(&expected).enumerate() {
            assert!((found - expected).abs() < curve * expected, "{operands}: {found} {expected} at {number}");
        }
        // Of how far training has moved them; AdamW makes much of the smallest gradients.
        let from = case.layout().1;
        let way = |to: &[f32]| to.iter().zip(&from).map(|(to, from)| to - from).collect::<Vec<f32>>();
        let off = difference(&way(&values.values), &way(&state.values));
        assert!(off < moved, "{operands}: values are off by {off:.1e} of the way");
        let again = train(&mut *case.cuda(operands, 2), case);
        assert_eq!(again.0, found);
        let all = |state: &StudentState| [&state.values, &state.mean, &state.square].map(|x| bits(x));
        assert!(all(&again.1) == all(&values), "{operands}: the same run gave other bits");
    }
}

#[test]
fn accumulated_batches_are_one_batch() {
    if !can_multiply() {
        return;
    }
    let case = case();
    let [mut once, mut twice] = [1, 2].map(|_| case.cuda(Operands::F32, 0));
    once.learn(&case.batch(), &case.loss).unwrap();
    for _ in 0..2 {
        twice.learn(&case.batch(), &case.loss).unwrap();
    }
    let norms = [&mut once, &mut twice].map(|student| student.update(&step(1)).unwrap());
    assert!((norms[0] - norms[1]).abs() < 1e-5 * norms[0], "{norms:?}");
}

#[test]
fn a_restored_student_goes_on_and_a_gradient_that_is_not_finite_changes_nothing() {
    if !can_multiply() {
        return;
    }
    for (operands, case) in [(Operands::F32, case()), (Operands::Bf16, case()), (Operands::Bf16, recurrent())] {
        let (batch, mut student) = (case.batch(), case.cuda(operands, 1));
        student.learn(&batch, &case.loss).unwrap();
        student.update(&step(1)).unwrap();
        let kept = student.state().unwrap();
        let poisoned = {
            let mut hidden = batch.hidden.clone();
            hidden[0] = f32::NAN;
            TeacherBatch { hidden, ..batch.clone() }
        };
        student.learn(&poisoned, &case.loss).unwrap();
        assert!(!student.update(&step(2)).unwrap().is_finite());
        assert_eq!(student.state().unwrap(), kept);
        let go_on = |student: &mut dyn Student| {
            student.learn(&batch, &case.loss).unwrap();
            student.update(&step(2)).unwrap();
            student.state().unwrap()
        };
        let expected = go_on(&mut *student);
        assert_ne!(expected, kept);
        student.restore(kept.clone()).unwrap();
        assert_eq!(go_on(&mut *student), expected);
        // What was learned from and not used is forgotten with a restored state.
        student.learn(&batch, &case.loss).unwrap();
        student.restore(kept.clone()).unwrap();
        assert_eq!(go_on(&mut *student), expected);
        let mut short = kept;
        short.mean.pop();
        assert!(student.restore(short).unwrap_err().to_string().contains("expected"));
    }
}
