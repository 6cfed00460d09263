//! The kernels of training but for attention and losses, against float64 references, or the processor's bits where
//! its code can be called.

use crate::support::{NULL, Noise, assert_close, bits, from, schedules, to};
use eesd::backend::cuda::kernels::training::{
    AboutGradient, Adamw, AddPartials, AddRows, ColumnSums, GradientNorm, GradientSquares, Narrow, RmsNorm,
    RmsNormBackward, Rotate, StartRows, Swiglu, SwigluBackward, TakeNarrow, TakeRows, TakeWide,
};
use eesd::backend::training::adamw::{self, AdamStep};
use half::bf16;

/// Relative errors of sums of some hundred f32 terms, and of functions of them.
const TOLERANCE: f64 = 3e-6;

pub fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&x| f64::from(x)).collect()
}

fn largest(values: &[f64]) -> f64 {
    values.iter().fold(0f64, |most, x| most.max(x.abs()))
}

#[track_caller]
fn assert_all_close(found: &[f32], expected: &[f64], tolerance: f64, name: &str) {
    assert_eq!(found.len(), expected.len());
    let tolerance = tolerance * largest(expected);
    for (at, (&found, &expected)) in found.iter().zip(expected).enumerate() {
        assert_close(found.into(), expected, tolerance, || format!("{name}[{at}]"));
    }
}

const EPSILON: f32 = 1e-5;

/// Norms of gathered rows: outputs, gradients in rows that grow, and the gradient in the weight, over several slices.
#[test]
fn norms_and_their_gradients() {
    for (rows, width) in [(3, 8), (150, 70), (5, 600)] {
        let mut noise = Noise::new(7);
        let stored = rows + 2;
        let (x, weight) = (noise.floats(stored * width, 2.0), noise.floats(width, 1.5));
        let (dy, before) = (noise.floats(rows * width, 1.0), noise.floats(stored * width, 1.0));
        let dw_before = noise.floats(width, 1.0);
        let index: Vec<u32> = (0..rows).map(|row| ((row * 7 + 1) % stored) as u32).collect();
        let unequal = index.iter().collect::<std::collections::BTreeSet<_>>().len() == rows;
        let index: Vec<u32> = if unequal { index } else { (0..rows as u32).map(|row| row + 1).collect() };

        let (mut y, mut dx, mut dw) = (Vec::new(), wide(&before), wide(&dw_before));
        let mut overwritten = vec![f64::NAN; stored * width];
        for (row, &source) in index.iter().enumerate() {
            let at = source as usize * width;
            let row_x = wide(&x[at..][..width]);
            let factor = (row_x.iter().map(|x| x * x).sum::<f64>() / width as f64 + f64::from(EPSILON)).sqrt().recip();
            let g: Vec<f64> = (0..width).map(|i| f64::from(dy[row * width + i]) * f64::from(weight[i])).collect();
            let dot: f64 = g.iter().zip(&row_x).map(|(g, x)| g * x).sum();
            for i in 0..width {
                y.push(row_x[i] * factor * f64::from(weight[i]));
                let gradient = factor * g[i] - row_x[i] * factor.powi(3) * dot / width as f64;
                dx[at + i] += gradient;
                overwritten[at + i] = gradient;
                dw[i] += f64::from(dy[row * width + i]) * row_x[i] * factor;
            }
        }
        for on in schedules() {
            let (mut found_y, mut factors) = (vec![f32::NAN; rows * width], vec![f32::NAN; rows]);
            let (mut found_dx, mut found_dw) = (before.clone(), dw_before.clone());
            let slice = ColumnSums::slice(rows);
            let slices = rows.div_ceil(slice);
            let mut partial = vec![f32::NAN; slices * width];
            let (rows, width) = (rows as i32, width as i32);
            let forward = RmsNorm {
                x: from(&x),
                index: from(&index),
                weight: from(&weight),
                y: to(&mut found_y),
                factors: to(&mut factors),
                rows,
                width,
                epsilon: EPSILON,
                padding: 0,
            };
            let backward = RmsNormBackward {
                x: from(&x),
                index: from(&index),
                weight: from(&weight),
                factors: from(&factors),
                dy: from(&dy),
                dx: to(&mut found_dx),
                rows,
                width,
                add: 1,
                padding: 0,
            };
            let sums = ColumnSums {
                dy: from(&dy),
                x: from(&x),
                index: from(&index),
                factors: from(&factors),
                partial: to(&mut partial),
                rows,
                width,
                slice: slice as i32,
                padding: 0,
            };
            let add = AddPartials { partial: from(&partial), sum: to(&mut found_dw), width, slices: slices as i32 };
            // SAFETY: buffers of the sizes that cuda/rms_norm.cu and cuda/column_sums.cu state.
            unsafe {
                forward.launch(&on).unwrap();
                backward.launch(&on).unwrap();
                sums.launch(&on).unwrap();
                add.launch(&on).unwrap();
            }
            assert_all_close(&found_y, &y, TOLERANCE, "y");
            assert_all_close(&found_dx, &dx, TOLERANCE, "dx");
            assert_all_close(&found_dw, &dw, TOLERANCE, "dw");
            // SAFETY: as above.
            unsafe { RmsNormBackward { add: 0, ..backward }.launch(&on) }.unwrap();
            for (at, &expected) in overwritten.iter().enumerate().filter(|(_, x)| !x.is_nan()) {
                assert_close(found_dx[at].into(), expected, TOLERANCE * largest(&dx), || format!("dx[{at}]"));
            }
        }
    }
}

#[test]
fn biases_get_the_sums_of_columns() {
    for (rows, width) in [(1, 1), (65, 300), (400, 17)] {
        let mut noise = Noise::new(8);
        let (dy, before) = (noise.floats(rows * width, 1.0), noise.floats(width, 1.0));
        let sum = |column: usize| (0..rows).map(|row| f64::from(dy[row * width + column])).sum::<f64>();
        let expected: Vec<f64> = (0..width).map(|column| f64::from(before[column]) + sum(column)).collect();
        for on in schedules() {
            let (slice, mut found) = (ColumnSums::slice(rows), before.clone());
            let slices = rows.div_ceil(slice);
            let mut partial = vec![f32::NAN; slices * width];
            let (rows, width) = (rows as i32, width as i32);
            let sums = ColumnSums {
                dy: from(&dy),
                x: NULL,
                index: NULL,
                factors: NULL,
                partial: to(&mut partial),
                rows,
                width,
                slice: slice as i32,
                padding: 0,
            };
            let add = AddPartials { partial: from(&partial), sum: to(&mut found), width, slices: slices as i32 };
            // SAFETY: buffers of the sizes that cuda/column_sums.cu states.
            unsafe {
                sums.launch(&on).unwrap();
                add.launch(&on).unwrap();
            }
            assert_all_close(&found, &expected, TOLERANCE, "sums");
        }
    }
}

/// Turned as complex numbers are, and back to where they were.
#[test]
fn rotations_and_their_transpose() {
    let (rows, heads, head_dim) = (9, 3, 32);
    let mut noise = Noise::new(9);
    let x = noise.floats(rows * heads * head_dim, 2.0);
    let angles: Vec<f64> = (0..5 * head_dim / 2).map(|_| 3.0 * noise.unit()).collect();
    let turns: Vec<f32> = angles.iter().flat_map(|angle| [angle.cos() as f32, angle.sin() as f32]).collect();
    let positions: Vec<i32> = (0..rows as i32).map(|row| row % 5).collect();
    for on in schedules() {
        let mut found = x.clone();
        let arguments = Rotate {
            x: to(&mut found),
            positions: from(&positions),
            turns: from(&turns),
            rows: rows as i32,
            heads: heads as i32,
            head_dim: head_dim as i32,
            back: 0,
        };
        // SAFETY: buffers of the sizes that cuda/rotate.cu states.
        unsafe { arguments.launch(&on) }.unwrap();
        for (at, found) in found.iter().enumerate() {
            let (row, i) = (at / (heads * head_dim), at % head_dim);
            let (pair, half) = (i % (head_dim / 2), head_dim / 2);
            let angle = angles[positions[row] as usize * half + pair];
            let [low, high] = [x[at - i + pair], x[at - i + pair + half]].map(f64::from);
            let expected =
                if i < half { low * angle.cos() - high * angle.sin() } else { high * angle.cos() + low * angle.sin() };
            assert_close((*found).into(), expected, 1e-6, || format!("element {at}"));
        }
        // SAFETY: as above.
        unsafe { Rotate { back: 1, ..arguments }.launch(&on) }.unwrap();
        assert_all_close(&found, &wide(&x), 1e-6, "turned back");
    }
}

#[test]
fn rows_start_from_a_stream_and_a_bias() {
    let (rows, width) = (7, 50);
    let mut noise = Noise::new(10);
    let (residual, bias) = (noise.floats(rows * width, 1.0), noise.floats(width, 1.0));
    for (with_stream, with_bias) in [(true, true), (true, false), (false, true), (false, false)] {
        let expected = (0..rows * width).map(|at| {
            let stream = if with_stream { residual[at] } else { 0.0 };
            if with_bias { stream + bias[at % width] } else { stream }
        });
        let expected: Vec<f32> = expected.collect();
        for on in schedules() {
            let mut y = vec![f32::NAN; rows * width];
            let arguments = StartRows {
                residual: if with_stream { from(&residual) } else { NULL },
                bias: if with_bias { from(&bias) } else { NULL },
                y: to(&mut y),
                rows: rows as i32,
                width: width as i32,
            };
            // SAFETY: buffers of the sizes that cuda/start_rows.cu states.
            unsafe { arguments.launch(&on) }.unwrap();
            assert_eq!(bits(&y), bits(&expected));
        }
    }
}

/// Rows taken, in both formats, and added back where they came from.
#[test]
fn rows_are_taken_and_added_back() {
    let (stored, width) = (9, 70);
    let index = vec![4u32, 0, 8, 3, 5];
    let mut noise = Noise::new(15);
    let (x, dy) = (noise.floats(stored * width, 1.0), noise.floats(index.len() * width, 1.0));
    let halves: Vec<u16> = x.iter().map(|&x| bf16::from_f32(x).to_bits()).collect();
    let rows = || index.iter().flat_map(|&row| row as usize * width..(row as usize + 1) * width);
    let mut grown = x.clone();
    rows().zip(&dy).for_each(|(at, dy)| grown[at] += dy);
    for on in schedules() {
        let (mut wide, mut narrow, mut back) = (vec![f32::NAN; dy.len()], vec![0u16; dy.len()], x.clone());
        let take = |from, to| TakeRows { from, index: crate::support::from(&index), to, rows: 5, width: width as i32 };
        // SAFETY: buffers of the sizes that cuda/take_rows.cu states.
        unsafe {
            TakeWide(take(from(&x), to(&mut wide))).launch(&on).unwrap();
            TakeNarrow(take(from(&halves), to(&mut narrow))).launch(&on).unwrap();
            AddRows(take(from(&dy), to(&mut back))).launch(&on).unwrap();
        }
        assert!(rows().zip(&wide).all(|(at, found)| x[at] == *found));
        assert!(rows().zip(&narrow).all(|(at, found)| halves[at] == *found));
        assert_eq!(bits(&back), bits(&grown));
    }
}

#[test]
fn numbers_are_rounded_to_nearest() {
    for count in [1usize, 2, 511, 1030] {
        let mut x = Noise::new(11).floats(count, 1e4);
        x[0] = f32::NAN;
        for on in schedules() {
            let mut found = vec![0u16; count + 1];
            let arguments = Narrow { from: from(&x), to: to(&mut found), count: count as u64 };
            // SAFETY: buffers of the sizes that cuda/narrow.cu states.
            unsafe { arguments.launch(&on) }.unwrap();
            assert_eq!(found[count], 0, "past the end");
            for (&found, &x) in found.iter().zip(&x) {
                let (found, expected) = (bf16::from_bits(found), bf16::from_f32(x));
                assert!(found == expected || (found.is_nan() && expected.is_nan()), "{x}: {found}");
            }
        }
    }
}

#[test]
fn swiglu_and_its_gradients() {
    let count = 700;
    let mut noise = Noise::new(12);
    let [gate, up, dgated] = [8.0, 2.0, 1.0].map(|scale| noise.floats(count, scale));
    let of = |at: usize| {
        let [gate, up, dgated] = [gate[at], up[at], dgated[at]].map(f64::from);
        let sigmoid = 1.0 / (1.0 + (-gate).exp());
        [gate * sigmoid * up, dgated * up * sigmoid * (1.0 + gate * (1.0 - sigmoid)), dgated * gate * sigmoid]
    };
    let expected = [0, 1, 2].map(|which| (0..count).map(|at| of(at)[which]).collect::<Vec<f64>>());
    for on in schedules() {
        let (mut found_gate, mut found_up, mut gated) = (gate.clone(), up.clone(), vec![f32::NAN; count]);
        let arguments =
            Swiglu { gate: to(&mut found_gate), up: to(&mut found_up), gated: to(&mut gated), count: count as u64 };
        // SAFETY: buffers of the sizes that cuda/swiglu.cu states.
        unsafe { arguments.launch(&on) }.unwrap();
        assert_all_close(&gated, &expected[0], TOLERANCE, "gated");
        gated.copy_from_slice(&dgated);
        // SAFETY: as above.
        unsafe { SwigluBackward(arguments).launch(&on) }.unwrap();
        assert_all_close(&found_gate, &expected[1], TOLERANCE, "dgate");
        assert_all_close(&found_up, &expected[2], TOLERANCE, "dup");
    }
}

/// The processor's AdamW, bit for bit, where the scale is the same; and a norm that is not finite moves nothing.
#[test]
fn updates_are_the_processors() {
    let count = GradientSquares::CHUNK + 700;
    let mut noise = Noise::new(14);
    let (gradient, values) = (noise.floats(count, 2.0), noise.floats(count, 1.0));
    let (mean, square) = (noise.floats(count, 0.1), noise.floats(count, 0.1));
    let square: Vec<f32> = square.iter().map(|x| x.abs()).collect();
    let (per_position, decay) = (0.25, 0.1);
    for (clip, number) in [(1.0, 1), (1e9, 7)] {
        let step = AdamStep { number, rate: 0.01, beta1: 0.9, beta2: 0.99, epsilon: 1e-8, decay, clip };
        let norm = adamw::norm(&gradient) * per_position;
        let clipped = if norm > clip { clip / norm } else { 1.0 };
        let mut expected = (values.clone(), mean.clone(), square.clone());
        let decayed = 0..count;
        adamw::update(
            &step,
            per_position * clipped,
            &gradient,
            &mut expected.0,
            &mut expected.1,
            &mut expected.2,
            std::slice::from_ref(&decayed),
        );
        for (on, poison) in schedules().into_iter().flat_map(|on| [(on, false), (on, true)]) {
            let mut gradient = gradient.clone();
            if poison {
                gradient[count - 1] = if number == 1 { f32::NAN } else { f32::INFINITY };
            }
            let mut found = (values.clone(), mean.clone(), square.clone());
            let mut copy = vec![0u16; count];
            let mut partial = vec![f64::NAN; 2];
            let mut about = vec![AboutGradient { norm: 0.0, scale: 0.0, finite: 7 }];
            let squares = GradientSquares { gradient: from(&gradient), partial: to(&mut partial), count: count as u64 };
            let norms = GradientNorm {
                partial: from(&partial),
                about: to(&mut about),
                chunks: 2,
                padding: 0,
                per_position,
                clip,
            };
            let corrected = |beta: f64| (1.0 - beta.powi(number as i32)).recip() as f32;
            let update = Adamw {
                about: from(&about),
                gradient: from(&gradient),
                values: to(&mut found.0),
                mean: to(&mut found.1),
                square: to(&mut found.2),
                copy: to(&mut copy),
                count: count as u64,
                shrink: (1.0 - step.rate * step.decay) as f32,
                rate: step.rate as f32,
                beta1: step.beta1 as f32,
                beta2: step.beta2 as f32,
                epsilon: step.epsilon as f32,
                by_mean: corrected(step.beta1),
                by_square: corrected(step.beta2),
                padding: 0,
            };
            // SAFETY: buffers of the sizes that cuda/adamw.cu states.
            unsafe {
                squares.launch(&on).unwrap();
                norms.launch(&on).unwrap();
                update.launch(&on).unwrap();
            }
            if poison {
                assert!(about[0].finite == 0 && !about[0].norm.is_finite(), "{about:?}");
                assert_eq!(
                    [bits(&found.0), bits(&found.1), bits(&found.2)],
                    [&values, &mean, &square].map(|x| bits(x))
                );
                continue;
            }
            assert_close(about[0].norm, norm, 1e-12 * norm, || "norm".into());
            assert_eq!(about[0].scale, (per_position * clipped) as f32);
            let expected = [&expected.0, &expected.1, &expected.2].map(|x| bits(x));
            assert!([bits(&found.0), bits(&found.1), bits(&found.2)] == expected, "update {number}");
            assert!(copy.iter().zip(&found.0).all(|(&copy, &x)| copy == bf16::from_f32(x).to_bits()));
        }
    }
}
