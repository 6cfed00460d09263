//! Every gradient against central differences of the very same code in f64, and training end to end.

#[path = "../../../tests/common/blocks.rs"]
mod blocks;

use super::adamw::AdamStep;
use super::cpu::{CpuStudent, frame, pass};
use super::layer::Frame;
use super::loss::{LossOptions, Losses, Scratch, Taught, lose};
use super::model_side::ModelSide;
use super::parameters::{Head, Slot};
use super::{Position, Student, Targets, TeacherBatch};
use crate::model::RopeScaling;
use blocks::{Case, Sizes};

/// Widths that divide nothing.
const SIZES: Sizes = Sizes { vocab: 23, hidden: 12, mlp: 10, head_dim: 6 };

impl Case {
    fn new(heads: (usize, usize), window: Option<usize>, lengths: &[usize]) -> Self {
        Self::sized(SIZES, heads, window, lengths)
    }

    /// Its constants in numbers of 64 bits, and its parameters.
    fn wide(&self) -> (Frame<f64>, Vec<f64>) {
        let (layout, values) = self.layout();
        let mut frame = frame::<f64>(&self.geometry, layout, 512).unwrap();
        frame.model = Some(ModelSide::new(&self.model(), &frame.layout, frame.epsilon));
        frame.steps = self.steps;
        (frame, values.into_iter().map(f64::from).collect())
    }

    /// Compares some elements of each tensor, the largest gradients among them.
    fn check(&self, name: &str) {
        let (frame, values) = self.wide();
        let (layout, batch) = (&frame.layout, self.batch());
        let mut gradient = vec![0.0; values.len()];
        let loss = pass(&frame, &values, &batch, &self.loss, Some(&mut gradient)).all();
        let (trained, frozen) = gradient.split_at(layout.trained());
        assert!(frozen.iter().all(|&g| g == 0.0), "{name}: the frozen head has a gradient");
        let largest = trained.iter().fold(0f64, |most, g| most.max(g.abs()));
        let step = 7; // coprime to every width here
        for at in (0..trained.len()).step_by(step) {
            let at_shifted = |by: f64| {
                let mut shifted = values.clone();
                shifted[at] += by;
                pass(&frame, &shifted, &batch, &self.loss, None).all().loss
            };
            let h = 1e-5;
            let difference = (at_shifted(h) - at_shifted(-h)) / (2.0 * h);
            let error = (difference - trained[at]).abs();
            let tolerance = 1e-6 * largest + 1e-5 * difference.abs();
            assert!(error < tolerance, "{name}: element {at}: {} (expected {difference}) {layout:?}", trained[at]);
        }
        assert!(loss.loss.is_finite() && trained.iter().all(|g| g.is_finite()), "{name}");
    }
}

#[test]
fn gradients_are_central_differences() {
    let plain = || Case::new((2, 2), None, &[5, 1, 9]);
    plain().check("plain");
    Case::new((4, 2), Some(3), &[7, 4]).check("grouped heads, sliding window");
    Case { biases: true, ..plain() }.check("biases");
    let mut normed = Case::new((4, 1), None, &[6]);
    normed.geometry.qk_norm = true;
    normed.check("norms of queries and keys");
    let mut scaled = plain();
    scaled.geometry.rope.scaling = RopeScaling::Yarn {
        factor: 4.0,
        beta_fast: 32.0,
        beta_slow: 1.0,
        attention_factor: 1.3,
        truncate: true,
        original_max_positions: 8,
    };
    scaled.check("a rotation with a magnitude");
    Case { head: Head::Frozen, draft_vocab: 11, ..plain() }.check("frozen head of fewer tokens");
    Case { head: Head::Frozen, draft_vocab: 11, listed: true, ..plain() }.check("frozen head of listed tokens");
    Case { head: Head::Shared, ..plain() }.check("the model's head");
    let terms = [(1.0, 2.0, 0.0, 0.0), (0.0, 1.0, 1.0, 0.0), (0.0, 1.0, 0.0, 1.0), (0.6, 0.7, 0.4, 0.5)];
    for (soft, temperature, hard, variation) in terms {
        let loss = LossOptions { soft, temperature, hard, variation };
        Case { loss, ..plain() }.check(&format!("{loss:?}"));
        Case { loss, draft_vocab: 11, ..plain() }.check(&format!("{loss:?}, fewer tokens"));
        Case { loss, draft_vocab: 11, listed: true, ..plain() }.check(&format!("{loss:?}, listed tokens"));
        Case { loss, states: true, ..plain() }.check(&format!("{loss:?}, hidden states"));
        let few = Case { draft_vocab: 11, listed: true, states: true, ..plain() };
        Case { loss, ..few }.check(&format!("{loss:?}, listed tokens, hidden states"));
    }
}

/// One row of the layer, by its definition: what it leaves, given the keys and values of the positions that it sees.
fn layer(
    frame: &Frame<f64>,
    values: &[f64],
    x: &[f64],
    position: usize,
    seen: &mut Vec<(usize, [Vec<f64>; 2])>,
) -> Vec<f64> {
    let (layout, heads) = (&frame.layout, frame.heads);
    let times = |slot: &Slot, x: &[f64]| -> Vec<f64> {
        let row = |row: &[f64]| row.iter().zip(x).map(|(w, x)| w * x).sum();
        values[slot.range.clone()].chunks_exact(slot.shape[1]).map(row).collect()
    };
    let norm = |weight: &Slot, x: &[f64]| -> Vec<f64> {
        let square = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
        let scale = (square + frame.epsilon).sqrt().recip();
        x.iter().zip(&values[weight.range.clone()]).map(|(x, w)| x * scale * w).collect()
    };
    let add = |a: Vec<f64>, b: &[f64]| -> Vec<f64> { a.iter().zip(b).map(|(a, b)| a + b).collect() };
    let normed = norm(&layout.input_norm, x);
    let rotated = |slot: &Slot| {
        let mut x = times(slot, &normed);
        frame.rotary.rotate(&mut x, slot.shape[0], &[position]);
        x
    };
    let q = rotated(&layout.q.weight);
    seen.push((position, [rotated(&layout.k.weight), times(&layout.v.weight, &normed)]));
    let first = heads.window.map_or(0, |window| (position + 1).saturating_sub(window));
    let mut attended = Vec::new();
    for head in 0..heads.heads {
        let of = |x: &[f64], head: usize| x[head * heads.head_dim..][..heads.head_dim].to_vec();
        let (q, kv) = (of(&q, head), head * heads.kv_heads / heads.heads);
        let scores: Vec<(f64, Vec<f64>)> = seen
            .iter()
            .filter(|(at, _)| *at >= first)
            .map(|(_, [k, v])| {
                let score: f64 = q.iter().zip(of(k, kv)).map(|(q, k)| q * k).sum();
                ((score / (heads.head_dim as f64).sqrt()).exp(), of(v, kv))
            })
            .collect();
        let total: f64 = scores.iter().map(|(score, _)| score).sum();
        attended.extend((0..heads.head_dim).map(|i| scores.iter().map(|(p, v)| p * v[i]).sum::<f64>() / total));
    }
    let middle = add(times(&layout.o.weight, &attended), x);
    let normed = norm(&layout.post_norm, &middle);
    let (gate, up) = (times(&layout.gate.weight, &normed), times(&layout.up.weight, &normed));
    let gated: Vec<f64> = gate.iter().zip(up).map(|(gate, up)| gate / (1.0 + (-gate).exp()) * up).collect();
    add(times(&layout.down.weight, &gated), &middle)
}

/// Each chain on its own, step by step as a round drafts, costs what all of them together do.
#[test]
fn chains_are_what_a_round_does() {
    for (window, lengths) in [(None, &[5, 2, 9][..]), (Some(3), &[7, 4]), (Some(1), &[6])] {
        let case = Case { input: true, steps: 4, ..Case::new((4, 2), window, lengths) };
        let ((frame, values), batch) = (case.wide(), case.batch());
        let Targets::Logits(targets) = &batch.targets else { panic!("hidden states") };
        let (layout, vocab, width) = (&frame.layout, SIZES.vocab, SIZES.hidden);
        let times = |slot: &Slot, x: &[f64]| -> Vec<f64> {
            let row = |row: &[f64]| row.iter().zip(x).map(|(w, x)| w * x).sum();
            values[slot.range.clone()].chunks_exact(slot.shape[1]).map(row).collect()
        };
        let read = |row: usize| {
            let hidden: Vec<f64> = batch.hidden[row * width..][..width].iter().map(|&x| x.into()).collect();
            times(layout.input.as_ref().unwrap(), &hidden)
        };
        let mut expected = vec![0.0; case.steps];
        let mut first = 0;
        for &len in lengths {
            let scored = || batch.scored.iter().enumerate().filter(|(_, p)| (first..first + len).contains(&p.row));
            let (low, high) = (scored().next().unwrap().1.row, scored().next_back().unwrap().1.row);
            for start in low..=high {
                let mut seen = Vec::new();
                let mut out = Vec::new();
                (first..=start).for_each(|row| out = layer(&frame, &values, &read(row), row - first, &mut seen));
                for (step, expected) in expected.iter_mut().enumerate() {
                    let row = start + step;
                    if row > high {
                        break;
                    }
                    if step > 0 {
                        let embedding = frame.model.as_ref().unwrap().embedding(batch.tokens[row]);
                        let x = times(layout.recurrent.as_ref().unwrap(), &[&out, embedding].concat());
                        out = layer(&frame, &values, &x, row - first, &mut seen);
                    }
                    let Some((index, position)) = scored().find(|(_, p)| p.row == row) else { continue };
                    let (normed, _) = frame.norm(&values, &layout.norm, &out);
                    let mut logits = times(&layout.head, &normed);
                    let mut taught = Taught::default();
                    taught.whole(&targets[index * vocab..][..vocab], layout.draft_vocab(), &case.loss);
                    let scratch = &mut Scratch::default();
                    let Position { token, weight, .. } = *position;
                    let vocab = layout.draft_vocab();
                    *expected += lose(&mut logits, &taught, token, weight, vocab, &case.loss, scratch).loss;
                }
            }
            first += len;
        }
        let found = pass(&frame, &values, &batch, &case.loss, None);
        for (step, (found, expected)) in found.steps.iter().zip(&expected).enumerate() {
            let error = (found.loss - expected).abs();
            assert!(error < 1e-6 * expected, "{window:?}, step {step}: {} (expected {expected})", found.loss);
        }
    }
}

/// What a student makes of last hidden states is what it makes of their logits, whichever tokens it drafts.
#[test]
fn hidden_states_say_what_their_logits_say() {
    let whole = Case { states: true, ..Case::new((2, 2), None, &[6, 3]) };
    for case in [whole.clone(), Case { draft_vocab: 11, listed: true, ..whole.clone() }] {
        let ((frame, values), mut batch) = (case.wide(), case.batch());
        let all = whole.wide();
        let Targets::States(states) = &mut batch.targets else { panic!("logits") };
        let logits = all.0.model.as_ref().unwrap().logits(&states.last, &[]);
        for (position, logits) in logits.chunks_exact(SIZES.vocab).enumerate() {
            states.log_totals[position] = logits.iter().map(|x| x.exp()).sum::<f64>().ln() as f32;
            let likeliest = (0..SIZES.vocab).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap();
            states.likeliest[position] = likeliest as u32;
        }
        let targets = Targets::Logits(logits.iter().map(|&x| x as f32).collect());
        let said = TeacherBatch { targets, ..batch.clone() };
        let loss = LossOptions { soft: 0.6, temperature: 0.7, hard: 0.4, variation: 0.5 };
        for loss in [case.loss, loss] {
            let mut gradients = [vec![0.0; values.len()], vec![0.0; values.len()]];
            let found = pass(&frame, &values, &batch, &loss, Some(&mut gradients[0])).all();
            let expected = pass(&frame, &values, &said, &loss, Some(&mut gradients[1])).all();
            let near = |a: f64, b: f64| (a - b).abs() < 1e-5 * (1.0 + b.abs());
            assert!(near(found.loss, expected.loss) && near(found.overlap, expected.overlap), "{found:?} {expected:?}");
            assert!(near(found.divergence, expected.divergence), "{found:?} {expected:?}");
            assert_eq!(found.agreement, expected.agreement);
            assert!(gradients[0].iter().zip(&gradients[1]).all(|(&a, &b)| near(a, b)));
        }
    }
}

/// Chains over the ends of segments, of segments that are shorter than a chain, and of rows that do not count.
#[test]
fn gradients_of_chains_are_central_differences() {
    let chains = |steps| Case { input: true, steps, ..Case::new((2, 2), None, &[5, 1, 9, 2]) };
    Case { input: true, ..Case::new((2, 2), None, &[5, 1, 9]) }.check("an input matrix alone");
    Case { input: false, ..chains(2) }.check("two steps without an input matrix");
    for steps in [2, 3, 4, 7] {
        chains(steps).check(&format!("{steps} steps"));
    }
    for (window, steps) in [(1, 4), (2, 4), (3, 3), (4, 3)] {
        let sliding = Case { steps, input: true, ..Case::new((4, 2), Some(window), &[7, 4]) };
        sliding.check(&format!("{steps} steps in a window of {window}"));
    }
    Case { biases: true, states: true, ..chains(3) }.check("biases");
    let mut normed = Case { steps: 3, input: true, ..Case::new((4, 1), None, &[6, 3]) };
    normed.geometry.qk_norm = true;
    normed.check("norms of queries and keys");
    for (head, listed) in [(Head::Trained, true), (Head::Frozen, true), (Head::Trained, false)] {
        let few = Case { head, listed, draft_vocab: 11, states: true, ..chains(3) };
        few.check(&format!("{head:?} head, listed tokens {listed}"));
    }
    Case { head: Head::Shared, states: true, ..chains(3) }.check("the model's head");
    let loss = LossOptions { soft: 0.6, temperature: 0.7, hard: 0.4, variation: 0.5 };
    Case { loss, ..chains(4) }.check("every term");
}

/// Segments past a block of queries, with and without a window that ends inside one.
#[test]
fn gradients_hold_across_blocks_of_queries() {
    for window in [None, Some(50)] {
        let mut case = Case::new((2, 1), window, &[150, 20]);
        case.geometry.hidden_size = 5;
        case.geometry.head_dim = 2;
        case.geometry.intermediate_size = 4;
        case.check(&format!("{window:?}"));
        Case { steps: 3, input: true, ..case }.check(&format!("{window:?}, chains"));
    }
}

/// Attention never looks across segments, so neither losses nor gradients know how texts were packed.
#[test]
fn segments_do_not_see_each_other() {
    segments_are_apart(&Case::new((4, 2), None, &[6, 9]));
    segments_are_apart(&Case { input: true, steps: 3, ..Case::new((4, 2), None, &[6, 9]) });
}

fn segments_are_apart(case: &Case) {
    let (frame, values) = case.wide();
    let whole = case.batch();
    let Targets::Logits(logits) = &whole.targets else { panic!("hidden states") };
    let mut together = vec![0.0; values.len()];
    let sum = pass(&frame, &values, &whole, &case.loss, Some(&mut together)).all();
    let (mut apart, mut sums) = (vec![0.0; values.len()], Losses::default());
    for (first, len) in [(0, 6), (6, 9)] {
        let hidden = case.geometry.hidden_size;
        let mine = |p: &&Position| (first..first + len).contains(&p.row);
        let before = whole.scored.iter().take_while(|p| p.row < first).count();
        let scored: Vec<Position> =
            whole.scored.iter().filter(mine).map(|p| Position { row: p.row - first, ..*p }).collect();
        let part = TeacherBatch {
            lengths: vec![len],
            tokens: whole.tokens[first..][..len].to_vec(),
            hidden: whole.hidden[first * hidden..][..len * hidden].to_vec(),
            targets: Targets::Logits(logits[before * 23..][..scored.len() * 23].to_vec()),
            scored,
        };
        sums.add(&pass(&frame, &values, &part, &case.loss, Some(&mut apart)));
    }
    let sums = sums.all();
    assert!((sum.loss - sums.loss).abs() < 1e-9 && sum.agreement == sums.agreement);
    assert!(together.iter().zip(&apart).all(|(a, b)| (a - b).abs() < 1e-9));
}

fn step(number: u64) -> AdamStep {
    AdamStep { number, rate: 5e-3, beta1: 0.9, beta2: 0.99, epsilon: 1e-8, decay: 0.01, clip: 1.0 }
}

fn student(case: &Case, threads: usize) -> CpuStudent {
    let (layout, values) = case.layout();
    let student = CpuStudent::new(&case.geometry, layout, values, 64, Some(threads)).unwrap();
    student.with_model(&case.model(), case.steps).unwrap()
}

#[test]
fn training_learns_and_gives_the_same_bits_on_any_number_of_threads() {
    let case = Case { head: Head::Trained, ..Case::new((4, 2), None, &[20, 30, 12]) };
    learns(&case);
    learns(&Case { input: true, steps: 3, ..case });
}

fn learns(case: &Case) {
    let batch = case.batch();
    let run = |threads| {
        let mut student = student(case, threads);
        let first = student.test(&batch, &case.loss).unwrap().all().mean();
        for number in 1..=60 {
            student.learn(&batch, &case.loss).unwrap();
            student.update(&step(number)).unwrap();
        }
        (first, student.test(&batch, &case.loss).unwrap().all().mean(), student.state().unwrap())
    };
    let (first, last, state) = run(1);
    assert!(last.loss < first.loss && last.divergence < 0.5 * first.divergence, "{first:?} {last:?}");
    assert!(last.overlap > first.overlap && last.agreement > first.agreement, "{first:?} {last:?}");
    let bits = |values: &[f32]| values.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    for threads in [2, 3] {
        let again = run(threads).2;
        assert_eq!(bits(&again.values), bits(&state.values), "{threads} threads");
        assert_eq!(bits(&again.square), bits(&state.square), "{threads} threads");
    }
}

#[test]
fn accumulated_batches_are_one_batch() {
    let case = Case::new((2, 2), None, &[10, 14]);
    let batch = case.batch();
    let (mut once, mut twice) = (student(&case, 1), student(&case, 1));
    once.learn(&batch, &case.loss).unwrap();
    for _ in 0..2 {
        twice.learn(&batch, &case.loss).unwrap();
    }
    let norms = [&mut once, &mut twice].map(|student| student.update(&step(1)).unwrap());
    assert!((norms[0] - norms[1]).abs() < 1e-5 * norms[0], "{norms:?}");
    let close = |(a, b): (&f32, &f32)| (a - b).abs() < 1e-5;
    assert!(once.state().unwrap().values.iter().zip(&twice.state().unwrap().values).all(close));
}

#[test]
fn a_restored_student_goes_on_and_a_gradient_that_is_not_finite_changes_nothing() {
    let case = Case::new((2, 2), None, &[8]);
    let (batch, mut student) = (case.batch(), student(&case, 2));
    student.learn(&batch, &case.loss).unwrap();
    student.update(&step(1)).unwrap();
    let kept = student.state().unwrap();
    let mut poisoned = batch.clone();
    poisoned.hidden[0] = f32::NAN;
    student.learn(&poisoned, &case.loss).unwrap();
    assert!(!student.update(&step(2)).unwrap().is_finite());
    assert_eq!(student.state().unwrap(), kept);
    let go_on = |student: &mut CpuStudent| {
        student.learn(&batch, &case.loss).unwrap();
        student.update(&step(2)).unwrap();
        student.state().unwrap()
    };
    let expected = go_on(&mut student);
    assert_ne!(expected, kept);
    student.restore(kept.clone()).unwrap();
    assert_eq!(go_on(&mut student), expected);
    let mut short = kept;
    short.mean.pop();
    assert!(student.restore(short).unwrap_err().to_string().contains("expected"));
    let long = TeacherBatch { lengths: vec![65], ..TeacherBatch::default() };
    assert!(student.learn(&long, &case.loss).unwrap_err().to_string().contains("65"));
}
