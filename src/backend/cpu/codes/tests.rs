//! Products of quantised weights against their definition, for every format, instruction set and number of rows.

use super::super::Simd;
use super::super::gemm::tests::{levels, noise};
use super::super::gemm::{self, Inputs, Rows, gemm, row_stride};
use super::super::lanes::LANES;
use super::super::pack::Packer;
use super::super::pool::Pool;
use super::*;
use crate::model::{BlockType, Format, Groups, Matrix};
use half::f16;

/// Every format that has a layout.
fn formats() -> Vec<Format> {
    let mut formats: Vec<Format> = BlockType::ALL.map(Format::Blocks).to_vec();
    for bits in [4, 8] {
        for minima in [false, true] {
            formats.extend([32, 128, 1 << 20].map(|size| Format::Groups(Groups { bits, size, minima })));
        }
    }
    formats
}

/// A matrix of random codes with scales that are neither zero nor large.
fn random(format: Format, rows: usize, cols: usize) -> Vec<u8> {
    let row_bytes = format.row_bytes(cols).unwrap();
    let mut bytes: Vec<u8> = noise(11, rows * row_bytes).iter().map(|x| (x.to_bits() >> 3) as u8).collect();
    let number = |at: usize| 0.01 + (at % 97) as f32 * 1e-4;
    match format {
        Format::Blocks(of) => {
            let halves: &[usize] = match of {
                BlockType::Q2K => &[80, 82],
                BlockType::Q3K => &[108],
                BlockType::Q6K => &[208],
                BlockType::Q4_1 | BlockType::Q5_1 | BlockType::Q4K | BlockType::Q5K => &[0, 2],
                _ => &[0],
            };
            for (index, block) in bytes.chunks_exact_mut(of.bytes()).enumerate() {
                for &at in halves {
                    block[at..at + 2].copy_from_slice(&f16::from_f32(number(index + at)).to_le_bytes());
                }
            }
        }
        Format::Groups(groups) => {
            let numbers = cols.div_ceil(groups.size) * if groups.minima { 2 } else { 1 };
            for row in bytes.chunks_exact_mut(row_bytes) {
                for (index, bytes) in row[..numbers * 4].as_chunks_mut::<4>().0.iter_mut().enumerate() {
                    *bytes = number(index).to_le_bytes();
                }
            }
        }
        _ => unreachable!("plain numbers"),
    }
    bytes
}

/// Rows in 8 bits, and what they stand for.
fn quantised(simd: Simd, rows: usize, x: &[f32], len: usize) -> (QuantisedRows, Vec<f32>) {
    let buffer = QuantisedRows::new(rows, len).unwrap();
    let (codes, mut meant) = (buffer.rows(), Vec::new());
    for (row, x) in x.chunks_exact(len).take(rows).enumerate() {
        let mut padded = x.to_vec();
        padded.resize(len.next_multiple_of(LANES), 0.0);
        let out = codes.from(row);
        let blocks = len.div_ceil(BLOCK);
        for blocks in [0..blocks / 3, blocks / 3..blocks] {
            simd.run(Quantise { x: padded.as_ptr(), len, blocks, out });
        }
        for i in 0..len {
            // SAFETY: the row has just been written.
            meant
                .push(unsafe { f32::from((*out.at.add(i / BLOCK)).codes[i % BLOCK]) * (*out.at.add(i / BLOCK)).scale });
        }
    }
    (buffer, meant)
}

/// The product of some rows, in two ranges of panels.
fn product(simd: Simd, rows: usize, x: &[f32], matrix: Matrix<'_>) -> Vec<f32> {
    let mut packer = Packer::new(true);
    let panels = packer.matrix(matrix);
    let packed = packer.pack(&mut Pool::new(1).unwrap()).unwrap();
    let (buffer, _) = quantised(simd, rows, x, matrix.cols);
    let stride = row_stride(matrix.rows);
    let (mut out, mut scratch) = (vec![f32::NAN; rows * stride], vec![0.0; gemm::SCRATCH]);
    let floats = Rows { at: x.as_ptr(), stride: matrix.cols };
    let inputs = Inputs { floats, codes: Some(buffer.rows()) };
    let cut = panels.count / 3;
    for range in [0..cut, cut..panels.count] {
        let out = Rows { at: out.as_mut_ptr(), stride };
        // SAFETY: the buffers are as large as the matrix asks.
        unsafe { gemm(simd, rows, inputs, (&packed, &panels), range, out, scratch.as_mut_ptr()) };
    }
    out.chunks(stride).flat_map(|row| row[..matrix.rows].to_vec()).collect()
}

#[test]
fn products_are_those_of_the_weights_and_the_quantised_inputs_to_the_bit_everywhere() {
    for format in formats() {
        for (inputs, outputs) in [(512, 37), (4096 + 768, 18)] {
            let bytes = random(format, outputs, inputs);
            let matrix = Matrix::new(format, outputs, inputs, &bytes);
            let x = noise(7, 40 * inputs);
            let expected = product(Simd::Portable, 40, &x, matrix);
            let (_, meant) = quantised(Simd::Portable, 40, &x, inputs);
            let mut weights = vec![0.0; inputs];
            for output in 0..outputs {
                matrix.dequantise_row(output, &mut weights);
                for (row, meant) in meant.chunks_exact(inputs).enumerate().step_by(13) {
                    let products = || meant.iter().zip(&weights).map(|(x, w)| f64::from(*x) * f64::from(*w));
                    let (truth, size) = (products().sum::<f64>(), products().map(f64::abs).sum::<f64>());
                    let found = f64::from(expected[row * outputs + output]);
                    assert!((found - truth).abs() < 2e-6 * size, "{format}, {inputs}: {found}, expected {truth}");
                }
            }
            for simd in levels() {
                for rows in (1..=9).chain([16, 17, 40]) {
                    let found = product(simd, rows, &x, matrix);
                    let same = found.iter().zip(&expected).all(|(a, b)| a.to_bits() == b.to_bits());
                    assert!(same, "{simd}, {format}, {rows} rows of {inputs}");
                }
            }
        }
    }
}

#[test]
fn inputs_that_fill_no_block_are_multiplied_too() {
    let format = Format::Groups(Groups { bits: 8, size: 1 << 20, minima: true });
    let (inputs, outputs) = (50, 20);
    let bytes = random(format, outputs, inputs);
    let matrix = Matrix::new(format, outputs, inputs, &bytes);
    let x = noise(3, 3 * inputs);
    let (_, meant) = quantised(Simd::Portable, 3, &x, inputs);
    let mut weights = vec![0.0; inputs];
    for simd in levels() {
        let found = product(simd, 3, &x, matrix);
        for (index, found) in found.iter().enumerate() {
            matrix.dequantise_row(index % outputs, &mut weights);
            let meant = &meant[index / outputs * inputs..][..inputs];
            let truth: f64 = meant.iter().zip(&weights).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
            assert!((f64::from(*found) - truth).abs() < 1e-4, "{simd}: {found}, expected {truth}");
        }
    }
}

#[test]
fn a_packed_column_is_the_dequantised_row() {
    for format in formats() {
        let (inputs, outputs) = (768, 21);
        let bytes = random(format, outputs, inputs);
        let matrix = Matrix::new(format, outputs, inputs, &bytes);
        let mut packer = Packer::new(true);
        let panels = packer.matrix(matrix);
        let packed = packer.pack(&mut Pool::new(2).unwrap()).unwrap();
        for row in 0..outputs {
            let (mut expected, mut found) = (vec![0.0; inputs], vec![0.0; inputs]);
            matrix.dequantise_row(row, &mut expected);
            packed.column(&panels, row, 0..100, &mut found);
            packed.column(&panels, row, 100..inputs, &mut found[100..]);
            assert_eq!(found, expected, "{format}, row {row}");
        }
    }
}

#[test]
fn inputs_are_rounded_alike_everywhere_and_to_half_a_step() {
    let len = 32 * 5 + 20;
    let mut x: Vec<f32> = noise(5, 3 * len).iter().map(|x| x * x * x * 40.0).collect();
    // A block of nothing, one of what rounds to nothing, and one with ties.
    x[32..64].fill(0.0);
    x[64..96].fill(1e-35);
    x[96..128].copy_from_slice(&[127.0, 0.5, 1.5, -2.5].repeat(8));
    let (expected, meant) = quantised(Simd::Portable, 3, &x, len);
    for (x, meant) in x.chunks(32).zip(meant.chunks(32)).take(5) {
        let largest = x.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
        assert!(x.iter().zip(meant).all(|(x, meant)| (x - meant).abs() <= (largest / 127.0 * 0.5001).max(1e-30)));
    }
    assert_eq!(meant[96..100], [127.0, 0.0, 2.0, -2.0]);
    let all = |rows: &QuantisedRows| {
        let CodeRows { at, stride } = rows.rows();
        // SAFETY: this is the size of a buffer of three rows.
        unsafe { std::slice::from_raw_parts(at, 3 * stride).to_vec() }
    };
    for simd in levels() {
        assert!(all(&quantised(simd, 3, &x, len).0) == all(&expected), "{simd}");
    }
}

#[test]
fn what_is_not_finite_makes_its_whole_row_no_number_and_no_other() {
    let format = Format::Blocks(BlockType::Q4_1);
    let bytes = random(format, 20, 64);
    let matrix = Matrix::new(format, 20, 64, &bytes);
    for broken in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut x = noise(9, 3 * 64);
        x[64 + 40] = broken;
        for simd in levels() {
            let found = product(simd, 3, &x, matrix);
            for (index, found) in found.iter().enumerate() {
                assert_eq!(found.is_nan(), index / 20 == 1, "{simd}, {broken}, row {}", index / 20);
            }
        }
    }
}
