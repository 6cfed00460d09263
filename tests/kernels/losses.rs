//! Losses of self-distillation and their gradients, against their definitions in float64: every term, heads of fewer
//! tokens, the first ones or listed ones, ties, a token that cannot be drafted, several drafts for a position.

use crate::support::{NULL, Noise, assert_close, bits, from, schedules, to};
use crate::training::wide;
use eesd::backend::cuda::kernels::training::{DistillLoss, PositionLoss};
use eesd::backend::training::loss::LossOptions;

fn softmax(logits: &[f64]) -> Vec<f64> {
    let most = logits.iter().copied().fold(f64::MIN, f64::max);
    let total: f64 = logits.iter().map(|x| (x - most).exp()).sum();
    logits.iter().map(|x| (x - most).exp() / total).collect()
}

fn first_of_largest(values: &[f64]) -> usize {
    (0..values.len()).rev().max_by(|&a, &b| values[a].total_cmp(&values[b])).unwrap()
}

/// The loss and the other figures by their definitions, and the gradient of the loss. `ids` are the tokens of the
/// student's logits.
fn lose(student: &[f64], teacher: &[f64], ids: &[u32], token: u32, options: &LossOptions) -> (PositionLoss, Vec<f64>) {
    let LossOptions { soft, temperature, hard, variation } = *options;
    let drafted = student.len();
    let of_ids = |x: &[f64]| ids.iter().map(|&id| x[id as usize]).collect::<Vec<f64>>();
    let (p, q) = (of_ids(&softmax(teacher)), softmax(student));
    let softened = |x: &[f64]| softmax(&x.iter().map(|x| x / temperature).collect::<Vec<_>>());
    let (soft_p, soft_q) = (softened(&of_ids(teacher)), softened(student));
    let cross: f64 = soft_p.iter().zip(&soft_q).map(|(p, q)| -p * q.ln()).sum();
    let overlap: f64 = p.iter().zip(&q).map(|(p, q)| p.min(*q)).sum();
    let seen: f64 = p.iter().sum();
    let own = ids.iter().position(|&id| id == token);
    let hard = if own.is_some() { hard } else { 0.0 };
    let surprise = own.map_or(0.0, |own| -q[own].ln());
    let position = PositionLoss {
        loss: soft * temperature.powi(2) * cross + hard * surprise + variation * (1.0 - overlap),
        divergence: p.iter().zip(&q).map(|(p, q)| p / seen * (p / seen / q).ln()).sum(),
        overlap,
        agreement: f64::from(u8::from(first_of_largest(teacher) == ids[first_of_largest(student)] as usize)),
    };
    let sign = |at: usize| if q[at] > p[at] { 0.5 } else { -0.5 };
    let mean: f64 = (0..drafted).map(|at| q[at] * sign(at)).sum();
    let gradient = |at: usize| {
        let target = if own == Some(at) { 1.0 } else { 0.0 };
        soft * temperature * (soft_q[at] - soft_p[at]) + hard * (q[at] - target) + variation * q[at] * (sign(at) - mean)
    };
    (position, (0..drafted).map(gradient).collect())
}

#[test]
fn losses_and_their_gradients() {
    let terms =
        [(1.0, 1.0, 0.0, 0.0), (1.0, 2.0, 0.0, 0.0), (0.0, 1.0, 1.0, 0.0), (0.0, 1.0, 0.0, 1.0), (0.6, 0.7, 0.4, 0.5)];
    for (vocab, teacher_vocab, listed) in [(700, 700, false), (300, 700, false), (1, 40, false), (300, 700, true)] {
        let ids: Vec<u32> = (0..vocab as u32).map(|at| if listed && at >= 100 { 2 * at + 1 } else { at }).collect();
        // Several drafts for some positions, and none for one.
        let (positions, drafted) = (4, vec![2u32, 0, 0, 3, 2]);
        let rows = drafted.len();
        let mut noise = Noise::new(13);
        let mut student = noise.floats(rows * vocab, 6.0);
        let mut teacher = noise.floats(positions * teacher_vocab, 6.0);
        // Ties of the likeliest token: the lower one counts; and one row where both agree on it.
        for at in [vocab / 3, vocab - 1] {
            for row in [1, 4] {
                student[row * vocab + at] = 9.0;
            }
            for position in [0, 2] {
                teacher[position * teacher_vocab + ids[at] as usize] = 9.0;
            }
        }
        let tokens = [0, vocab - 1, vocab, vocab / 2].map(|token| token.min(teacher_vocab - 1) as u32);
        let column = |token: u32| ids.iter().position(|&id| id == token).map_or(u32::MAX, |column| column as u32);
        let columns = tokens.map(column).to_vec();
        let weights: Vec<f64> = (0..positions).map(|position| 0.5 + position as f64).collect();
        // What the kernel is told of the teacher: logits of these tokens alone, and two figures of all.
        let rows_of_all = || teacher.chunks_exact(teacher_vocab);
        let of_drafted: Vec<f32> = rows_of_all().flat_map(|all| ids.iter().map(|&id| all[id as usize])).collect();
        let total = |all: &[f32]| wide(all).iter().map(|t| t.exp()).sum::<f64>().ln() as f32;
        let log_totals: Vec<f32> = rows_of_all().map(total).collect();
        let likeliest: Vec<u32> = rows_of_all().map(|all| column(first_of_largest(&wide(all)) as u32)).collect();
        let partial = vocab < teacher_vocab;
        for (soft, temperature, hard, variation) in terms {
            let options = LossOptions { soft, temperature, hard, variation };
            let expected: Vec<_> = (0..rows)
                .map(|row| {
                    let position = drafted[row] as usize;
                    let t = &teacher[position * teacher_vocab..][..teacher_vocab];
                    lose(&wide(&student[row * vocab..][..vocab]), &wide(t), &ids, tokens[position], &options)
                })
                .collect();
            let mut first: Option<Vec<u32>> = None;
            for on in schedules() {
                let mut logits = student.clone();
                let nothing = PositionLoss { loss: f64::NAN, divergence: 0.0, overlap: 0.0, agreement: 0.0 };
                let mut losses = vec![nothing; rows];
                let arguments = DistillLoss {
                    student: to(&mut logits),
                    teacher: from(&of_drafted),
                    positions: from(&drafted),
                    log_totals: if partial { from(&log_totals) } else { NULL },
                    likeliest: if partial { from(&likeliest) } else { NULL },
                    columns: from(&columns),
                    weights: from(&weights),
                    losses: to(&mut losses),
                    soft,
                    temperature,
                    hard,
                    variation,
                    vocab: vocab as i32,
                    gradient: 0,
                    rows: rows as u32,
                    padding: 0,
                };
                // SAFETY: buffers of the sizes that cuda/distill_loss.cu states.
                unsafe { arguments.launch(&on) }.unwrap();
                assert_eq!(bits(&logits), bits(&student), "no gradient was asked for");
                let tested: Vec<f64> = losses.iter().map(|loss| loss.loss).collect();
                // SAFETY: as above.
                unsafe { DistillLoss { gradient: 1, ..arguments }.launch(&on) }.unwrap();
                assert_eq!(losses.iter().map(|loss| loss.loss).collect::<Vec<_>>(), tested);
                for (row, (position, gradient)) in expected.iter().enumerate() {
                    let what = |name: &'static str| {
                        move || format!("{name} of row {row}, {vocab} tokens, listed: {listed}, {options:?}")
                    };
                    let (weight, found) = (weights[drafted[row] as usize], losses[row]);
                    assert_close(found.loss, position.loss * weight, 4e-5 * weight, what("loss"));
                    assert_close(found.divergence, position.divergence * weight, 4e-5 * weight, what("divergence"));
                    assert_close(found.overlap, position.overlap * weight, 1e-6 * weight, what("overlap"));
                    assert_eq!(found.agreement, position.agreement * weight, "{}", what("agreement")());
                    let gradient: Vec<f64> = gradient.iter().map(|x| x * weight).collect();
                    for (at, (&found, &expected)) in logits[row * vocab..].iter().zip(&gradient).enumerate() {
                        assert_close(found.into(), expected, 2e-6 * weight, || format!("{}[{at}]", what("gradient")()));
                    }
                }
                let all = bits(&logits);
                assert!(*first.get_or_insert_with(|| all.clone()) == all, "seed {}", on.seed());
            }
        }
    }
}
