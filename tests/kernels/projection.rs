//! `qkv`, `residual`, `gate_up`, `lm_head`: sums within f32 rounding of float64 ones, and bits that do
//! not depend on how many tokens share a launch, in what form, in what order of threads.

use crate::device::Device;
use crate::support::{
    FORMATS, NULL, Noise, assert_close, bits, device, from, narrow, schedules, to, unit_roundoff, wide, widen,
};
use eesd::backend::BackendError;
use eesd::backend::cuda::kernels::{
    Form, Format, GateUp, HeadPartial, Launcher, LmHead, Norm, Projection, Qkv, Residual, Shape, project,
};
use eesd::backend::cuda::pack::{BLOCK_ROWS, block_bytes, chunks, interleave, pack};

/// Inputs of a projection: `tokens` rows of a normalised residual stream.
pub struct Case {
    pub format: Format,
    inputs: usize,
    stride: usize,
    pub tokens: usize,
    x: Vec<u16>,
    squares: Vec<f32>,
    slots: usize,
}

const EPSILON: f32 = 1e-5;

impl Case {
    pub fn new(format: Format, inputs: usize, tokens: usize, seed: u64) -> Self {
        let (stride, slots) = (chunks(inputs) * 64, inputs.div_ceil(32));
        let mut noise = Noise::new(seed);
        let mut x = vec![0; tokens * stride];
        for row in x.chunks_mut(stride) {
            row[..inputs].copy_from_slice(&noise.numbers(format, inputs, 2.0));
        }
        let squares = noise.floats(tokens * slots, 1.0).iter().map(|v| v.abs() * 32.0 + 1.0).collect();
        Self { format, inputs, stride, tokens, x, squares, slots }
    }

    pub fn weights(&self, outputs: usize, seed: u64) -> Vec<Vec<u8>> {
        let mut noise = Noise::new(seed);
        let row = |_| noise.numbers(self.format, self.inputs, 0.5).iter().flat_map(|e| e.to_le_bytes()).collect();
        (0..outputs).map(row).collect()
    }

    /// The part of the inputs from token `first` on.
    pub fn projection(&self, weights: &[u8], outputs: usize, first: usize, tokens: usize) -> Projection {
        Projection {
            weights: from(weights),
            x: from(&self.x[first * self.stride..]),
            outputs: outputs as i32,
            chunks: chunks(self.inputs) as i32,
            stride: self.stride as i32,
            tokens: tokens as i32,
            coding: 0,
            padding: 0,
        }
    }

    pub fn norm(&self, first: usize) -> Norm {
        let (slots, width) = (self.slots as i32, self.inputs as i32);
        Norm { squares: from(&self.squares[first * self.slots..]), slots, width, epsilon: EPSILON, padding: 0 }
    }

    /// The sum and the sum of magnitudes, with the norm's factor where `normed`.
    fn expected(&self, row: &[u8], token: usize, normed: bool) -> (f64, f64) {
        let x = &self.x[token * self.stride..][..self.inputs];
        let product =
            |(w, &x): (&[u8], &u16)| widen(self.format, u16::from_le_bytes([w[0], w[1]])) * widen(self.format, x);
        let products: Vec<f64> = row.chunks(2).zip(x).map(product).collect();
        let squares: f64 = self.squares[token * self.slots..][..self.slots].iter().map(|&s| f64::from(s)).sum();
        let factor = if normed { (squares / self.inputs as f64 + f64::from(EPSILON)).sqrt().recip() } else { 1.0 };
        (products.iter().sum::<f64>() * factor, products.iter().map(|p| p.abs()).sum::<f64>() * factor)
    }
}

pub fn views(rows: &[Vec<u8>]) -> Vec<Option<&[u8]>> {
    rows.iter().map(|row| Some(row.as_slice())).collect()
}

/// `run(device, form, first, tokens)` gives the bits of each token's results. They must be those of
/// the token alone.
fn assert_batch_invariant(tokens: usize, run: impl Fn(&Device, Form, usize, usize) -> Vec<Vec<u32>>) {
    let alone: Vec<_> = (0..tokens).map(|token| run(&device(0), Form::Skinny, token, 1).remove(0)).collect();
    for schedule in schedules() {
        for count in (1..=18).chain([24, 25, 31, 32, 33, 48, 49, 63, 64]) {
            let first = (count * 3 + schedule.seed() as usize) % (tokens - count);
            assert_eq!(run(&schedule, Form::Skinny, first, count), alone[first..first + count], "{count} tokens");
        }
        for (first, count) in [(2, 1), (1, 65), (0, 66), (0, tokens)] {
            assert_eq!(run(&schedule, Form::Gemm, first, count), alone[first..first + count], "gemm, {count} tokens");
        }
    }
}

/// Launches a third of the blocks: each takes several tiles.
struct FewerBlocks(Device);

impl Launcher for FewerBlocks {
    unsafe fn launch(&self, kernel: &str, mut shape: Shape, arguments: &[u8]) -> Result<(), BackendError> {
        shape.grid[0] = shape.grid[0].div_ceil(3);
        // SAFETY: the caller's promise.
        unsafe { self.0.launch(kernel, shape, arguments) }
    }
}

/// Relative to the sum of magnitudes: f32 accumulation over a few thousand products, and the norm.
const SUM_TOLERANCE: f64 = 2e-6;

#[test]
fn qkv() {
    for (format, inputs, outputs, with_bias) in
        [(FORMATS[0], 1288, 100, true), (FORMATS[1], 200, 160, false), (FORMATS[0], 8, 72, true)]
    {
        let case = Case::new(format, inputs, 137, 1);
        let rows = case.weights(outputs, 2);
        let packed = pack(&views(&rows), inputs);
        let bias = Noise::new(3).floats(outputs, 1.0);
        let run = |on: &Device, form, first, tokens| {
            let mut out = vec![f32::NAN; tokens * outputs];
            let arguments = Qkv {
                projection: case.projection(&packed, outputs, first, tokens),
                norm: case.norm(first),
                bias: if with_bias { from(&bias) } else { NULL },
                out: to(&mut out),
                stride: outputs as i32,
                padding: 0,
            };
            // SAFETY: buffers of the sizes that cuda/qkv.cu states.
            unsafe { project(on, "qkv", format, form, &arguments) }.unwrap();
            out
        };
        let out = run(&device(2), Form::Gemm, 0, case.tokens);
        for token in (0..case.tokens).step_by(17) {
            for output in 0..outputs {
                let (sum, magnitude) = case.expected(&rows[output], token, true);
                let expected = sum + if with_bias { f64::from(bias[output]) } else { 0.0 };
                let found = f64::from(out[token * outputs + output]);
                assert_close(found, expected, SUM_TOLERANCE * (magnitude + 1.0), || format!("({token}, {output})"));
            }
        }
        assert_batch_invariant(case.tokens, |on, form, first, tokens| {
            run(on, form, first, tokens).chunks(outputs).map(bits).collect()
        });
    }
}

/// The exit layer's cache is filled by the key and value rows alone: the same weights from a later tile on.
#[test]
fn keys_and_values_without_queries() {
    let (format, inputs, queries, outputs) = (FORMATS[0], 320, 96, 160);
    let case = Case::new(format, inputs, 20, 15);
    let packed = pack(&views(&case.weights(outputs, 16)), inputs);
    let run = |skipped: usize| {
        let mut out = vec![f32::NAN; case.tokens * outputs];
        let weights = &packed[skipped / BLOCK_ROWS * block_bytes(inputs)..];
        let arguments = Qkv {
            projection: case.projection(weights, outputs - skipped, 0, case.tokens),
            norm: case.norm(0),
            bias: NULL,
            out: to(&mut out[skipped..]),
            stride: outputs as i32,
            padding: 0,
        };
        // SAFETY: buffers of the sizes that cuda/qkv.cu states.
        unsafe { project(&device(2), "qkv", format, Form::for_tokens(case.tokens as i32), &arguments) }.unwrap();
        out
    };
    let (all, part) = (run(0), run(queries));
    for (all, part) in all.chunks(outputs).zip(part.chunks(outputs)) {
        assert!(part[..queries].iter().all(|y| y.is_nan()), "queries are not written");
        assert_eq!(bits(&part[queries..]), bits(&all[queries..]));
    }
}

#[test]
fn residual() {
    for (format, inputs, hidden, with_bias, adds) in [
        (FORMATS[0], 600, 104, false, true),
        (FORMATS[1], 1024, 64, true, true),
        (FORMATS[1], 72, 8, true, false),
        (FORMATS[0], 8, 72, false, true),
        (FORMATS[0], 144, 72, false, false),
    ] {
        let case = Case::new(format, inputs, 130, 4);
        let rows = case.weights(hidden, 5);
        let packed = pack(&views(&rows), inputs);
        let mut noise = Noise::new(6);
        let (bias, norm) = (noise.floats(hidden, 1.0), noise.floats(hidden, 2.0));
        let before = noise.floats(case.tokens * hidden, 4.0);
        let (stride, slots) = (chunks(hidden) * 64, hidden.div_ceil(32));
        fn launch(on: &impl Launcher, format: Format, form: Form, arguments: &Residual) {
            // SAFETY: buffers of the sizes that cuda/residual.cu states.
            unsafe { project(on, "residual", format, form, arguments) }.unwrap();
        }
        let run = |on: &Device, fewer: bool, form, first: usize, tokens: usize| {
            let mut residual = before[first * hidden..][..tokens * hidden].to_vec();
            let mut operand = vec![0u16; tokens * stride];
            let mut squares = vec![f32::NAN; tokens * slots];
            let arguments = Residual {
                projection: case.projection(&packed, hidden, first, tokens),
                bias: if with_bias { from(&bias) } else { NULL },
                from: if adds { from(&residual) } else { NULL },
                residual: to(&mut residual),
                next_norm: from(&norm),
                operand: to(&mut operand),
                stride: stride as i32,
                padding: 0,
                squares: to(&mut squares),
            };
            if fewer {
                launch(&FewerBlocks(*on), format, form, &arguments);
            } else {
                launch(on, format, form, &arguments);
            }
            (residual, operand, squares)
        };
        let (residual, operand, squares) = run(&device(3), false, Form::Gemm, 0, case.tokens);
        for token in (0..case.tokens).step_by(13) {
            let mut total = 0.0;
            for output in 0..hidden {
                let at = token * hidden + output;
                let (sum, magnitude) = case.expected(&rows[output], token, false);
                let before = if adds { f64::from(before[at]) } else { 0.0 };
                let expected = before + sum + if with_bias { f64::from(bias[output]) } else { 0.0 };
                let x = f64::from(residual[at]);
                assert_close(x, expected, SUM_TOLERANCE * (magnitude + 5.0), || format!("({token}, {output})"));
                let scaled = widen(format, operand[token * stride + output]);
                let expected = x * f64::from(norm[output]);
                let tolerance = expected.abs() * unit_roundoff(format) + 1e-7;
                assert_close(scaled, expected, tolerance, || format!("operand ({token}, {output})"));
                total += x * x;
            }
            assert!(operand[token * stride + hidden..][..stride - hidden].iter().all(|&e| e == 0));
            let found: f32 = squares[token * slots..][..slots].iter().sum();
            assert_close(f64::from(found), total, 1e-6 * total, || format!("squares of {token}"));
        }
        assert_batch_invariant(case.tokens, |on, form, first, tokens| {
            // Grids of several sizes: odd schedules have a persistent one.
            let fewer = form == Form::Skinny && on.seed() % 2 == 1;
            let (residual, operand, squares) = run(on, fewer, form, first, tokens);
            let token = |t: usize| {
                let parts = [&residual[t * hidden..][..hidden], &squares[t * slots..][..slots]];
                parts.iter().flat_map(|part| bits(part)).chain(wide(&operand[t * stride..][..stride])).collect()
            };
            (0..tokens).map(token).collect()
        });
    }
}

#[test]
fn gate_up() {
    for (format, inputs, intermediate, with_bias) in
        [(FORMATS[0], 520, 72, true), (FORMATS[1], 136, 48, false), (FORMATS[1], 72, 8, true)]
    {
        let case = Case::new(format, inputs, 129, 7);
        let (gate, up) = (case.weights(intermediate, 8), case.weights(intermediate, 9));
        let (gate_rows, up_rows): (Vec<_>, Vec<_>) =
            gate.iter().map(Vec::as_slice).zip(up.iter().map(Vec::as_slice)).unzip();
        let order = interleave(&gate_rows, &up_rows);
        let (packed, outputs) = (pack(&order, inputs), order.len());
        let bias = Noise::new(10).floats(outputs, 1.0);
        let stride = chunks(intermediate) * 64;
        let run = |on: &Device, form, first, tokens| {
            let mut out = vec![0u16; tokens * stride];
            let arguments = GateUp {
                projection: case.projection(&packed, outputs, first, tokens),
                norm: case.norm(first),
                bias: if with_bias { from(&bias) } else { NULL },
                out: to(&mut out),
                stride: stride as i32,
                intermediate: intermediate as i32,
            };
            // SAFETY: buffers of the sizes that cuda/gate_up.cu states.
            unsafe { project(on, "gate_up", format, form, &arguments) }.unwrap();
            out
        };
        let out = run(&device(1), Form::Gemm, 0, case.tokens);
        for token in (0..case.tokens).step_by(11) {
            for column in 0..intermediate {
                let bias_of = |row: usize| if with_bias { f64::from(bias[row]) } else { 0.0 };
                let row = column / 16 * 32 + column % 16;
                let (g, g_magnitude) = case.expected(&gate[column], token, true);
                let (u, u_magnitude) = case.expected(&up[column], token, true);
                let (g, u) = (g + bias_of(row), u + bias_of(row + 16));
                let expected = g / (1.0 + (-g).exp()) * u;
                let tolerance = expected.abs() * unit_roundoff(format)
                    + 2.0 * SUM_TOLERANCE * ((g_magnitude + 1.0) * u.abs() + (u_magnitude + 1.0) * g.abs() + 1.0);
                assert_close(widen(format, out[token * stride + column]), expected, tolerance, || {
                    format!("({token}, {column})")
                });
            }
            assert!(out[token * stride + intermediate..][..stride - intermediate].iter().all(|&e| e == 0));
        }
        assert_batch_invariant(case.tokens, |on, form, first, tokens| {
            run(on, form, first, tokens).chunks(stride).map(wide).collect()
        });
    }
}

#[test]
fn lm_head() {
    let (format, inputs, vocab) = (FORMATS[0], 328, 200);
    let case = Case::new(format, inputs, 133, 11);
    let rows = case.weights(vocab, 12);
    let packed = pack(&views(&rows), inputs);
    let tiles = vocab.div_ceil(32);
    let run = |on: &Device, form, first, tokens| {
        let mut logits = vec![f32::NAN; tokens * vocab];
        let nothing = HeadPartial { max: f32::NAN, column: u32::MAX, sum: f32::NAN };
        let mut partials = vec![nothing; tokens * tiles];
        let arguments = LmHead {
            projection: case.projection(&packed, vocab, first, tokens),
            norm: case.norm(first),
            logits: to(&mut logits),
            partials: to(&mut partials),
        };
        // SAFETY: buffers of the sizes that cuda/lm_head.cu states.
        unsafe { project(on, "lm_head", format, form, &arguments) }.unwrap();
        (logits, partials)
    };
    let (logits, partials) = run(&device(2), Form::Gemm, 0, case.tokens);
    for token in (0..case.tokens).step_by(19) {
        let row = &logits[token * vocab..][..vocab];
        for (output, &logit) in row.iter().enumerate() {
            let (sum, magnitude) = case.expected(&rows[output], token, true);
            assert_close(logit.into(), sum, SUM_TOLERANCE * (magnitude + 1.0), || format!("({token}, {output})"));
        }
        for (tile, part) in row.chunks(32).enumerate() {
            let partial = partials[token * tiles + tile];
            let max = part.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            assert_eq!(partial.max, max);
            assert_eq!(partial.column as usize, tile * 32 + part.iter().position(|&l| l == max).unwrap());
            let sum: f64 = part.iter().map(|&l| (f64::from(l) - f64::from(max)).exp()).sum();
            assert_close(partial.sum.into(), sum, 1e-6 * sum, || format!("sum of {token}, tile {tile}"));
        }
    }
    assert_batch_invariant(case.tokens, |on, form, first, tokens| {
        let (logits, partials) = run(on, form, first, tokens);
        let partial_bits = |p: &HeadPartial| [p.max.to_bits(), p.column, p.sum.to_bits()];
        let token = |t: usize| {
            let partials = partials[t * tiles..][..tiles].iter().flat_map(partial_bits);
            bits(&logits[t * vocab..][..vocab]).into_iter().chain(partials).collect()
        };
        (0..tokens).map(token).collect()
    });
}

/// A token full of NaN, or the columns that pad eight tokens, change nothing about the others.
#[test]
fn a_bad_token_harms_nobody_else() {
    let (format, inputs, outputs) = (FORMATS[0], 200, 64);
    let mut case = Case::new(format, inputs, 10, 13);
    let rows = case.weights(outputs, 14);
    let packed = pack(&views(&rows), inputs);
    let run = |case: &Case| {
        let mut out = vec![f32::NAN; case.tokens * outputs];
        let arguments = Qkv {
            projection: case.projection(&packed, outputs, 0, case.tokens),
            norm: case.norm(0),
            bias: NULL,
            out: to(&mut out),
            stride: outputs as i32,
            padding: 0,
        };
        // SAFETY: buffers of the sizes that cuda/qkv.cu states.
        unsafe { project(&device(4), "qkv", format, Form::Skinny, &arguments) }.unwrap();
        out
    };
    let clean = run(&case);
    case.x[3 * case.stride..][..inputs].fill(narrow(format, f64::NAN));
    let dirty = run(&case);
    assert!(dirty[3 * outputs..4 * outputs].iter().all(|y| y.is_nan()));
    assert_eq!(bits(&dirty[..3 * outputs]), bits(&clean[..3 * outputs]));
    assert_eq!(bits(&dirty[4 * outputs..]), bits(&clean[4 * outputs..]));
}
