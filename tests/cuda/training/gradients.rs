//! The whole block's gradients and losses against the processor's, for every kind of block and every term of the loss.

use super::subject::{Case, ROWS, WINDOW, can_multiply, difference, step};
use eesd::backend::training::adamw::AdamStep;
use eesd::backend::training::cuda::Operands;
use eesd::backend::training::loss::{LossOptions, LossSum, Losses};
use eesd::backend::training::parameters::Head;
use eesd::backend::training::{Student, Targets, TeacherBatch};
use eesd::model::RopeScaling;

/// Losses of a batch by step, the norm of its mean gradient, and that gradient: AdamW's mean where it forgets all before.
fn learn(student: &mut dyn Student, batch: &TeacherBatch, loss: &LossOptions) -> (Losses, f64, Vec<f32>) {
    let step = AdamStep { beta1: 0.0, clip: f64::INFINITY, ..step(1) };
    let tested = student.test(batch, loss).unwrap();
    let losses = student.learn(batch, loss).unwrap();
    assert_eq!(losses, tested);
    let norm = student.update(&step).unwrap();
    (losses, norm, student.state().unwrap().mean)
}

fn check(case: &Case, name: &str) {
    check_on(case, &case.batch(), name);
}

fn check_on(case: &Case, batch: &TeacherBatch, name: &str) {
    let expected = learn(&mut case.cpu(), batch, &case.loss);
    // f32 factors: what is left is the order of sums. bf16 factors: each is off by up to one part in 256. The total
    // variation's gradient jumps where both distributions meet: tokens that rounding brings to the other side show.
    let rounded = if case.loss.variation > 0.0 { 0.3 } else { 1.5e-2 };
    for (operands, tolerance) in [(Operands::F32, 3e-6), (Operands::Bf16, rounded)] {
        let found = learn(&mut *case.cuda(operands, 3), batch, &case.loss);
        let error = difference(&found.2, &expected.2);
        assert!(error < tolerance, "{name}, {operands}: gradients are off by {error:.1e}");
        if operands == Operands::F32 {
            let largest = expected.2.iter().fold(0f32, |most, x| most.max(x.abs()));
            for (at, (found, expected)) in found.2.iter().zip(&expected.2).enumerate() {
                assert!((found - expected).abs() < 2e-5 * largest, "{name}: element {at}: {found} {expected}");
            }
        }
        assert!((found.1 - expected.1).abs() < tolerance * expected.1, "{name}, {operands}: norms");
        assert_eq!(found.0.steps.len(), case.steps, "{name}");
        for (step, (found, expected)) in found.0.steps.iter().zip(&expected.0.steps).enumerate() {
            assert_eq!(found.weight, expected.weight, "{name}, step {step}");
            if operands == Operands::F32 {
                assert_eq!(found.agreement, expected.agreement, "{name}, step {step}");
            }
            let figures = |of: &LossSum| [of.loss, of.divergence, of.overlap];
            for (found, expected) in figures(found).into_iter().zip(figures(expected)) {
                let error = (found - expected).abs() / expected.abs();
                assert!(error < tolerance * 2.0, "{name}, {operands}, step {step}: {found}, expected {expected}");
            }
        }
    }
}

#[test]
fn kinds_of_blocks() {
    if !can_multiply() {
        return;
    }
    let plain = || Case::new((2, 2), None, &[37, 1, 20]);
    check(&plain(), "plain");
    check(&Case::new((4, 2), Some(9), &[40, 14]), "grouped heads, sliding window");
    check(&Case { biases: true, ..plain() }, "biases");
    let mut normed = Case::new((4, 1), None, &[33, 8]);
    normed.geometry.qk_norm = true;
    check(&normed, "norms of queries and keys");
    normed.biases = true;
    check(&normed, "biases and norms");
    let mut scaled = plain();
    scaled.geometry.rope.scaling = RopeScaling::Yarn {
        factor: 4.0,
        beta_fast: 32.0,
        beta_slow: 1.0,
        attention_factor: 1.3,
        truncate: true,
        original_max_positions: 8,
    };
    check(&scaled, "a rotation with a magnitude");
}

/// A batch as large as was planned for, and logits that are made in pieces, the last of them shorter: of any size they are
/// one batch.
#[test]
fn whole_batches_and_pieces_of_logits() {
    if !can_multiply() {
        return;
    }
    let case = Case::chains(2, (2, 1), None, &[WINDOW, WINDOW - 1, 1]);
    assert_eq!(case.lengths.iter().sum::<usize>(), ROWS);
    check(&case, "as many rows as there is room for");
    let expected = learn(&mut case.cpu(), &case.batch(), &case.loss);
    for positions in [1, 7, 64] {
        let found = learn(&mut *case.in_pieces(positions), &case.batch(), &case.loss);
        let error = difference(&found.2, &expected.2);
        assert!(error < 3e-6, "{positions} positions at a time: gradients are off by {error:.1e}");
        let [found, expected] = [&found, &expected].map(|of| of.0.all().loss);
        assert!((found - expected).abs() < 1e-5 * expected, "{positions} positions at a time");
    }
}

#[test]
fn kinds_of_heads_and_losses() {
    if !can_multiply() {
        return;
    }
    let plain = || Case::new((2, 1), None, &[20, 14]);
    check(&Case { head: Head::Frozen, draft_vocab: 41, ..plain() }, "frozen head of fewer tokens");
    check(&Case { head: Head::Frozen, draft_vocab: 41, listed: true, ..plain() }, "frozen head of listed tokens");
    check(&Case { head: Head::Shared, ..plain() }, "the model's head");
    let terms = [(1.0, 2.0, 0.0, 0.0), (0.0, 1.0, 1.0, 0.0), (0.0, 1.0, 0.0, 1.0), (0.6, 0.7, 0.4, 0.5)];
    for (soft, temperature, hard, variation) in terms {
        let loss = LossOptions { soft, temperature, hard, variation };
        check(&Case { loss, ..plain() }, &format!("{loss:?}"));
        check(&Case { loss, draft_vocab: 41, ..plain() }, &format!("{loss:?}, fewer tokens"));
        check(&Case { loss, draft_vocab: 41, listed: true, ..plain() }, &format!("{loss:?}, listed tokens"));
    }
}

/// Chains over the ends of segments, and of segments that are shorter than a chain.
#[test]
fn kinds_of_chains() {
    if !can_multiply() {
        return;
    }
    let chains = |steps| Case::chains(steps, (2, 2), None, &[37, 1, 3]);
    check(&chains(1), "an input matrix alone");
    check(&Case { input: false, ..chains(2) }, "two steps without an input matrix");
    check(&Case { biases: true, ..chains(4) }, "four steps, biases");
    for window in [1, 3, 9] {
        check(&Case::chains(4, (4, 2), Some(window), &[12, 7]), &format!("a window of {window}"));
    }
    let mut normed = Case::chains(3, (4, 1), None, &[9, 8]);
    normed.geometry.qk_norm = true;
    check(&normed, "norms of queries and keys");
    let loss = LossOptions { soft: 0.6, temperature: 0.7, hard: 0.4, variation: 0.0 };
    let few = Case { draft_vocab: 41, listed: true, loss, ..Case::chains(3, (2, 1), None, &[12]) };
    check(&few, "listed tokens");
    check(&Case { head: Head::Frozen, ..few.clone() }, "a frozen head of listed tokens");
    check(&Case { head: Head::Shared, draft_vocab: 90, listed: false, ..few }, "the model's head");
}

/// Prompts, at which no chain starts, text after the last position that counts, and a segment in which none does.
#[test]
fn chains_start_where_it_counts() {
    if !can_multiply() {
        return;
    }
    for case in [Case::chains(3, (2, 1), None, &[40, 6, 20]), Case::new((2, 1), Some(7), &[40, 6, 20])] {
        let mut batch = case.batch();
        let kept = |row: usize| (34..39).contains(&row) || (50..58).contains(&row);
        let keep: Vec<bool> = batch.scored.iter().map(|position| kept(position.row)).collect();
        let width = case.geometry.hidden_size;
        let Targets::States(states) = &mut batch.targets else { panic!("logits") };
        let mut mine = keep.iter();
        batch.scored.retain(|_| *mine.next().unwrap());
        let rows = |values: &[f32], width: usize| -> Vec<f32> {
            values.chunks_exact(width).zip(&keep).filter(|(_, keep)| **keep).flat_map(|(row, _)| row).copied().collect()
        };
        (states.last, states.log_totals) = (rows(&states.last, width), rows(&states.log_totals, 1));
        let mut mine = keep.iter();
        states.likeliest.retain(|_| *mine.next().unwrap());
        check_on(&case, &batch, &format!("{} steps", case.steps));
    }
}
