//! Products against their definition, for every format, instruction set and number of rows.

use super::super::lanes::padded;
use super::super::pack::Packer;
use super::super::pool::Pool;
use super::*;
use crate::model::{Format, Fp8, Matrix};

/// Numbers in -1..1 that look random.
pub fn noise(seed: u32, len: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761) | 1;
    let step = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..len).map(step).collect()
}

/// The instruction sets of this machine.
pub fn levels() -> impl Iterator<Item = Simd> {
    Simd::ALL.into_iter().filter(|level| level.is_available())
}

/// Numbers as a file stores them, and what they are once stored.
fn stored(dtype: Dtype, numbers: &[f32]) -> (Vec<u8>, Vec<f32>) {
    match dtype {
        Dtype::F32 => (numbers.iter().flat_map(|x| x.to_le_bytes()).collect(), numbers.to_vec()),
        Dtype::F16 => {
            let halves: Vec<f16> = numbers.iter().map(|&x| f16::from_f32(x)).collect();
            (halves.iter().flat_map(|x| x.to_le_bytes()).collect(), halves.iter().map(|x| x.to_f32()).collect())
        }
        Dtype::BF16 => {
            let halves: Vec<bf16> = numbers.iter().map(|&x| bf16::from_f32(x)).collect();
            (halves.iter().flat_map(|x| x.to_le_bytes()).collect(), halves.iter().map(|x| x.to_f32()).collect())
        }
    }
}

/// `x · wᵀ` by [`gemm`], in two ranges of panels; rows of `outputs` floats.
fn product(simd: Simd, rows: usize, x: &[f32], matrix: Matrix<'_>) -> Vec<f32> {
    let mut pool = Pool::new(1).unwrap();
    let mut packer = Packer::new(true);
    let panels = packer.matrix(matrix);
    let packed = packer.pack(&mut pool).unwrap();
    let stride = row_stride(matrix.cols);
    let mut spaced = vec![0.0; rows * stride];
    for (row, x) in x.chunks(matrix.cols).take(rows).enumerate() {
        spaced[row * stride..][..matrix.cols].copy_from_slice(x);
    }
    let out_stride = row_stride(matrix.rows);
    let (mut out, mut scratch) = (vec![f32::NAN; rows * out_stride], vec![0.0; SCRATCH]);
    let cut = panels.count / 3;
    for range in [0..cut, cut..panels.count] {
        let x = Inputs { floats: Rows { at: spaced.as_ptr(), stride }, codes: None };
        let out = Rows { at: out.as_mut_ptr(), stride: out_stride };
        // SAFETY: the buffers are as large as the matrix asks.
        unsafe { gemm(simd, rows, x, (&packed, &panels), range, out, scratch.as_mut_ptr()) };
    }
    assert!(out.chunks(out_stride).all(|row| row[matrix.rows..padded(matrix.rows)].iter().all(|&pad| pad == 0.0)));
    out.chunks(out_stride).flat_map(|row| row[..matrix.rows].to_vec()).collect()
}

/// One accumulator, fused multiply-adds in order: the definition, to the bit, and in `f64` the truth.
#[test]
fn every_element_is_one_sum_in_order() {
    for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16] {
        for (inputs, outputs) in [(64, 160), (37, 21), (515, 70)] {
            let (bytes, weights) = stored(dtype, &noise(inputs as u32, inputs * outputs));
            let matrix = Matrix::new(dtype, outputs, inputs, &bytes);
            let x = noise(7, 40 * inputs);
            let expected: Vec<f32> = x
                .chunks(inputs)
                .flat_map(|x| {
                    weights.chunks(inputs).map(|w| x.iter().zip(w).fold(0.0, |sum, (x, w)| w.mul_add(*x, sum)))
                })
                .collect();
            for (index, expected) in expected.iter().enumerate() {
                let (x, w) = (&x[index / outputs * inputs..][..inputs], &weights[index % outputs * inputs..][..inputs]);
                let truth: f64 = x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
                assert!((f64::from(*expected) - truth).abs() < 1e-6 * inputs as f64);
            }
            for simd in levels() {
                for rows in (1..=16).chain([25, 40]) {
                    let found = product(simd, rows, &x, matrix);
                    let same = found.iter().zip(&expected).all(|(a, b)| a.to_bits() == b.to_bits());
                    assert!(same, "{simd}, {dtype}, {rows} rows of {inputs}, {outputs} outputs");
                }
            }
        }
    }
}

/// E4M3 numbers, all of them among them, with scales for each `size` inputs.
fn eights(size: usize, rows: usize, cols: usize) -> Vec<u8> {
    let scales = noise(11, cols.div_ceil(size) * rows);
    let mut codes = (0..=u8::MAX).filter(|code| code & 0x7f != 0x7f).cycle();
    let row = |scales: &[f32]| {
        let scales = scales.iter().flat_map(|scale| (scale * 0.01).to_le_bytes());
        scales.chain(codes.by_ref().take(cols)).collect::<Vec<u8>>()
    };
    scales.chunks(cols.div_ceil(size)).flat_map(row).collect()
}

#[test]
fn numbers_of_eight_bits_stay_so_and_give_the_bits_of_what_they_stand_for() {
    for (size, inputs, outputs) in [(128, 512, 70), (43, 200, 21), (1 << 20, 515, 37), (64, 100, 16)] {
        let format = Format::Fp8(Fp8 { size });
        let bytes = eights(size, outputs, inputs);
        let matrix = Matrix::new(format, outputs, inputs, &bytes);
        let mut row = vec![0.0f32; inputs];
        let mut widened = Vec::new();
        for output in 0..outputs {
            matrix.dequantise_row(output, &mut row);
            widened.extend(row.iter().flat_map(|x| x.to_le_bytes()));
        }
        let x = noise(7, 40 * inputs);
        let expected = product(Simd::Portable, 40, &x, Matrix::new(Dtype::F32, outputs, inputs, &widened));
        for simd in levels() {
            for rows in (1..=9).chain([16, 25, 40]) {
                let found = product(simd, rows, &x, matrix);
                let same = found.iter().zip(&expected).all(|(a, b)| a.to_bits() == b.to_bits());
                assert!(same, "{simd}, {format}, {rows} rows of {inputs}, {outputs} outputs");
            }
        }

        let mut packer = Packer::new(true);
        let panels = packer.matrix(matrix);
        let packed = packer.pack(&mut Pool::new(2).unwrap()).unwrap();
        let [(form, ..)] = panels.parts(0..panels.count).collect::<Vec<_>>()[..] else { panic!() };
        assert!(form.panel_bytes(inputs) < inputs * LANES * 2, "{format}: less than 16 bits each, scales and all");
        for output in 0..outputs {
            matrix.dequantise_row(output, &mut row);
            let mut column = vec![0.0; inputs];
            packed.column(&panels, output, 0..5, &mut column);
            packed.column(&panels, output, 5..inputs, &mut column[5..]);
            assert_eq!(column, row, "{format}, output {output}");
        }
    }
}

#[test]
fn a_code_of_no_number_makes_its_output_none_and_no_other() {
    let (size, inputs, outputs) = (32, 64, 20);
    for code in [0x7f, 0xff] {
        let mut bytes = eights(size, outputs, inputs);
        let row = bytes.len() / outputs;
        bytes[7 * row + 2 * 4 + 40] = code;
        let matrix = Matrix::new(Format::Fp8(Fp8 { size }), outputs, inputs, &bytes);
        let x = noise(9, 40 * inputs);
        for simd in levels() {
            for rows in [1, 40] {
                let found = product(simd, rows, &x, matrix);
                assert!(found.iter().enumerate().all(|(at, x)| x.is_nan() == (at % outputs == 7)), "{simd}, {code:#x}");
            }
        }
    }
}

#[test]
fn a_packed_column_is_the_stored_row() {
    for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16] {
        let (inputs, outputs) = (21, 35);
        let (bytes, weights) = stored(dtype, &noise(3, inputs * outputs));
        let mut packer = Packer::new(true);
        let panels = packer.matrix(Matrix::new(dtype, outputs, inputs, &bytes));
        let packed = packer.pack(&mut Pool::new(2).unwrap()).unwrap();
        for column in 0..outputs {
            let mut row = vec![0.0; inputs];
            packed.column(&panels, column, 0..5, &mut row);
            packed.column(&panels, column, 5..inputs, &mut row[5..]);
            assert_eq!(row, weights[column * inputs..][..inputs]);
        }
    }
}

#[test]
fn fused_matrices_keep_their_formats() {
    let (inputs, outputs) = (19, 32);
    let (half_bytes, half) = stored(Dtype::F16, &noise(1, inputs * outputs));
    let (brain_bytes, brain) = stored(Dtype::BF16, &noise(2, inputs * outputs));
    let matrix = |dtype: Dtype, bytes| Matrix::new(dtype, outputs, inputs, bytes);
    let mut packer = Packer::new(true);
    let panels = packer.interleaved(matrix(Dtype::F16, &half_bytes), matrix(Dtype::BF16, &brain_bytes));
    let packed = packer.pack(&mut Pool::new(1).unwrap()).unwrap();
    let forms: Vec<Form> = panels.parts(0..4).map(|(form, ..)| form).collect();
    assert_eq!(forms, [Dtype::F16, Dtype::BF16, Dtype::F16, Dtype::BF16].map(Form::Floats));
    let mut row = vec![0.0; inputs];
    packed.column(&panels, 16 + 3, 0..inputs, &mut row);
    assert_eq!(row, brain[3 * inputs..][..inputs]);
    packed.column(&panels, 32 + 3, 0..inputs, &mut row);
    assert_eq!(row, half[(16 + 3) * inputs..][..inputs]);
}
