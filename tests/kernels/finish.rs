//! The form of projections that finishes sums made elsewhere: the bits that the fused form gives to the same sums.

use crate::device::Device;
use crate::projection::{Case, views};
use crate::support::{FORMATS, NULL, Noise, bits, device, from, schedules, to};
use eesd::backend::cuda::kernels::{Form, GateUp, Norm, Projection, Qkv, Residual, project};
use eesd::backend::cuda::pack::{chunks, interleave, pack};

/// Outputs of one, of several warps and of several blocks, with columns left over.
const OUTPUTS: [usize; 4] = [8, 100, 328, 2120];
const INPUTS: usize = 72;
const TOKENS: usize = 5;

/// The plain sums of a case, `[tokens, stride]`; what lies between rows must not be looked at.
struct Sums {
    values: Vec<f32>,
    stride: usize,
}

impl Sums {
    fn new(case: &Case, packed: &[u8], outputs: usize) -> Self {
        let stride = outputs + 12;
        let mut values = vec![f32::NAN; case.tokens * stride];
        let arguments = Qkv {
            projection: case.projection(packed, outputs, 0, case.tokens),
            norm: Norm { squares: NULL, slots: 0, width: 0, epsilon: 0.0, padding: 0 },
            bias: NULL,
            out: to(&mut values),
            stride: stride as i32,
            padding: 0,
        };
        // SAFETY: buffers of the sizes that cuda/qkv.cu states.
        unsafe { project(&device(0), "qkv", case.format, Form::Gemm, &arguments) }.unwrap();
        Self { values, stride }
    }

    /// The fused form's argument, or that of the form which finishes.
    fn projection(&self, form: Form, fused: Projection) -> Projection {
        match form {
            Form::Finish => {
                Projection { weights: NULL, x: from(&self.values), chunks: 0, stride: self.stride as i32, ..fused }
            }
            _ => fused,
        }
    }
}

/// `run(device, form)` gives the bits of all results.
fn assert_finished_alike(run: impl Fn(&Device, Form) -> Vec<u32>) {
    let fused = run(&device(0), Form::Gemm);
    for on in schedules() {
        assert!(run(&on, Form::Finish) == fused, "seed {}", on.seed());
    }
}

#[test]
fn qkv() {
    for (format, outputs) in FORMATS.into_iter().flat_map(|format| OUTPUTS.map(|outputs| (format, outputs))) {
        let case = Case::new(format, INPUTS, TOKENS, 21);
        let packed = pack(&views(&case.weights(outputs, 22)), INPUTS);
        let (sums, bias) = (Sums::new(&case, &packed, outputs), Noise::new(23).floats(outputs, 1.0));
        for bias in [from(&bias), NULL] {
            assert_finished_alike(|on, form| {
                let mut out = vec![f32::NAN; TOKENS * (outputs + 3)];
                let arguments = Qkv {
                    projection: sums.projection(form, case.projection(&packed, outputs, 0, TOKENS)),
                    norm: case.norm(0),
                    bias,
                    out: to(&mut out),
                    stride: outputs as i32 + 3,
                    padding: 0,
                };
                // SAFETY: buffers of the sizes that cuda/qkv.cu states.
                unsafe { project(on, "qkv", format, form, &arguments) }.unwrap();
                bits(&out)
            });
        }
    }
}

#[test]
fn residual() {
    for (format, hidden) in FORMATS.into_iter().flat_map(|format| OUTPUTS.map(|hidden| (format, hidden))) {
        let case = Case::new(format, INPUTS, TOKENS, 24);
        let packed = pack(&views(&case.weights(hidden, 25)), INPUTS);
        let sums = Sums::new(&case, &packed, hidden);
        let mut noise = Noise::new(26);
        let (bias, norm) = (noise.floats(hidden, 1.0), noise.floats(hidden, 2.0));
        let before = noise.floats(TOKENS * hidden, 4.0);
        let stride = chunks(hidden) * 64;
        for (bias, adds) in [(from(&bias), true), (NULL, true), (NULL, false)] {
            assert_finished_alike(|on, form| {
                let (mut residual, mut operand) = (before.clone(), vec![0u16; TOKENS * stride]);
                let mut squares = vec![f32::NAN; TOKENS * hidden.div_ceil(32)];
                let arguments = Residual {
                    projection: sums.projection(form, case.projection(&packed, hidden, 0, TOKENS)),
                    bias,
                    from: if adds { from(&residual) } else { NULL },
                    residual: to(&mut residual),
                    next_norm: from(&norm),
                    operand: to(&mut operand),
                    stride: stride as i32,
                    padding: 0,
                    squares: to(&mut squares),
                };
                // SAFETY: buffers of the sizes that cuda/residual.cu states.
                unsafe { project(on, "residual", format, form, &arguments) }.unwrap();
                let operand = operand.iter().map(|&x| x.into());
                [bits(&residual), bits(&squares)].concat().into_iter().chain(operand).collect()
            });
        }
    }
}

#[test]
fn gate_up() {
    for (format, intermediate) in FORMATS.into_iter().flat_map(|format| [8, 48, 72, 1064].map(|mlp| (format, mlp))) {
        let case = Case::new(format, INPUTS, TOKENS, 27);
        let matrices = [28, 29].map(|seed| case.weights(intermediate, seed));
        let [gate, up] = matrices.each_ref().map(|matrix| matrix.iter().map(Vec::as_slice).collect::<Vec<_>>());
        let order = interleave(&gate, &up);
        let (packed, outputs) = (pack(&order, INPUTS), order.len());
        let (sums, bias) = (Sums::new(&case, &packed, outputs), Noise::new(30).floats(outputs, 1.0));
        let stride = chunks(intermediate) * 64;
        for bias in [from(&bias), NULL] {
            assert_finished_alike(|on, form| {
                let mut out = vec![0u16; TOKENS * stride];
                let arguments = GateUp {
                    projection: sums.projection(form, case.projection(&packed, outputs, 0, TOKENS)),
                    norm: case.norm(0),
                    bias,
                    out: to(&mut out),
                    stride: stride as i32,
                    intermediate: intermediate as i32,
                };
                // SAFETY: buffers of the sizes that cuda/gate_up.cu states.
                unsafe { project(on, "gate_up", format, form, &arguments) }.unwrap();
                out.iter().map(|&x| x.into()).collect()
            });
        }
    }
}
