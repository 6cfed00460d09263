//! Products of quantised weights against their definition, for every format, instruction set and number of rows.

use super::super::Simd;
use super::super::gemm::tests::{levels, noise};
use super::super::gemm::{self, Inputs, Rows, gemm, row_stride};
use super::super::lanes::LANES;
use super::super::pack::{Packer, Panels};
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

/// Rows in 8 bits, in each of some orders, and what they stand for.
fn quantised(simd: Simd, rows: usize, x: &[f32], len: usize, orders: &[Option<Vec<u32>>]) -> (QuantisedRows, Vec<f32>) {
    let buffer = QuantisedRows::new(rows * orders.len(), len).unwrap();
    let mut meant = Vec::new();
    for (index, order) in orders.iter().enumerate() {
        for (row, x) in x.chunks_exact(len).take(rows).enumerate() {
            let mut padded = x.to_vec();
            padded.resize(len.next_multiple_of(LANES), 0.0);
            let out = buffer.rows().from(index * rows + row);
            let blocks = len.div_ceil(BLOCK);
            for blocks in [0..blocks / 3, blocks / 3..blocks] {
                simd.run(Quantise { x: padded.as_ptr(), len, order: order.as_deref(), blocks, out });
            }
            for i in 0..len {
                // SAFETY: the row has just been written.
                let block = unsafe { &*out.at.add(i / BLOCK) };
                meant.push(f32::from(block.codes[i % BLOCK]) * block.scale);
            }
        }
    }
    (buffer, meant)
}

/// The product of some rows, in two ranges of panels.
fn product(simd: Simd, rows: usize, x: &[f32], matrix: Matrix<'_>) -> Vec<f32> {
    let padded = product_of(simd, rows, x, |packer| packer.matrix(matrix));
    padded.chunks(padded.len() / rows).flat_map(|row| row[..matrix.rows].to_vec()).collect()
}

/// The same of whatever is packed; rows of whole panels.
fn product_of<'a>(simd: Simd, rows: usize, x: &[f32], plan: impl FnOnce(&mut Packer<'a>) -> Panels) -> Vec<f32> {
    let mut packer = Packer::new(true);
    let panels = plan(&mut packer);
    let packed = packer.pack(&mut Pool::new(1).unwrap()).unwrap();
    let (buffer, _) = quantised(simd, rows, x, panels.inputs, &panels.orders);
    let columns = panels.count * LANES;
    let stride = row_stride(columns);
    let (mut out, mut scratch) = (vec![f32::NAN; rows * stride], vec![0.0; gemm::SCRATCH]);
    let floats = Rows { at: x.as_ptr(), stride: panels.inputs };
    let inputs = Inputs { floats, codes: Some(buffer.rows()) };
    let cut = panels.count / 3;
    for range in [0..cut, cut..panels.count] {
        let out = Rows { at: out.as_mut_ptr(), stride };
        // SAFETY: the buffers are as large as the matrix asks.
        unsafe { gemm(simd, rows, inputs, (&packed, &panels), range, out, scratch.as_mut_ptr()) };
    }
    out.chunks(stride).flat_map(|row| row[..columns].to_vec()).collect()
}

#[test]
fn products_are_those_of_the_weights_and_the_quantised_inputs_to_the_bit_everywhere() {
    for format in formats() {
        for (inputs, outputs) in [(512, 37), (4096 + 768, 18)] {
            let bytes = random(format, outputs, inputs);
            let matrix = Matrix::new(format, outputs, inputs, &bytes);
            let x = noise(7, 40 * inputs);
            let expected = product(Simd::Portable, 40, &x, matrix);
            let (_, meant) = quantised(Simd::Portable, 40, &x, inputs, &[None]);
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
    let (_, meant) = quantised(Simd::Portable, 3, &x, inputs, &[None]);
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

/// Numbers below `len` in an order that looks random.
fn shuffled(seed: u32, len: usize) -> Vec<u32> {
    let keys = noise(seed, len);
    let mut order: Vec<u32> = (0..len as u32).collect();
    order.sort_by(|&a, &b| keys[a as usize].total_cmp(&keys[b as usize]));
    order
}

/// Matrices that share inputs may each have an order of its own.
#[test]
fn inputs_in_the_order_of_the_columns_are_multiplied_as_if_they_came_so() {
    let (inputs, outputs) = (4096 + 50, 32);
    let x = noise(7, 40 * inputs);
    let orders = [Some(shuffled(1, inputs)), None, Some(shuffled(2, inputs))];
    for (bits, minima) in [(4, true), (4, false), (8, false)] {
        let format = Format::Groups(Groups { bits, size: 32, minima });
        let bytes = random(format, outputs, inputs);
        let plain = Matrix::new(format, outputs, inputs, &bytes);
        let matrices = orders.each_ref().map(|order| Matrix { columns: order.as_deref(), ..plain });
        // Both ways of packing matrices together; of the last two no panels of one order follow each other.
        type Plan<'a> = &'a dyn Fn(&mut Packer<'a>) -> Panels;
        let plans: [(Plan<'_>, &[usize]); 2] = [
            (&|packer| packer.heads(&matrices, outputs), &[0, 0, 1, 1, 2, 2]),
            (&|packer| packer.interleaved(matrices[0], matrices[2]), &[0, 2, 0, 2]),
        ];
        for rows in [1, 9, 40] {
            let expected = orders.each_ref().map(|order| {
                let in_order = |x: &[f32]| match order {
                    Some(order) => order.iter().map(|&input| x[input as usize]).collect(),
                    None => x.to_vec(),
                };
                let x: Vec<f32> = x.chunks(inputs).take(rows).flat_map(in_order).collect();
                product(Simd::Portable, rows, &x, plain)
            });
            for simd in levels() {
                for (plan, order_of) in plans {
                    let found = product_of(simd, rows, &x, plan);
                    let mut seen = [0; 3];
                    for (panel, &order) in order_of.iter().enumerate() {
                        for row in 0..rows {
                            let found = &found[(row * order_of.len() + panel) * LANES..][..LANES];
                            let expected = &expected[order][row * outputs + seen[order] * LANES..][..LANES];
                            assert_eq!(found, expected, "{simd}, {format}, {rows} rows, panel {panel}, row {row}");
                        }
                        seen[order] += 1;
                    }
                }
            }
        }
    }
}

#[test]
fn a_packed_column_is_the_dequantised_row() {
    let order = shuffled(3, 768);
    let orders = |format| match format {
        Format::Groups(_) => vec![None, Some(&order[..])],
        _ => vec![None],
    };
    for (format, columns) in
        formats().into_iter().flat_map(|format| orders(format).into_iter().map(move |o| (format, o)))
    {
        let (inputs, outputs) = (768, 21);
        let bytes = random(format, outputs, inputs);
        let matrix = Matrix { columns, ..Matrix::new(format, outputs, inputs, &bytes) };
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
    let (expected, meant) = quantised(Simd::Portable, 3, &x, len, &[None]);
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
        assert!(all(&quantised(simd, 3, &x, len, &[None]).0) == all(&expected), "{simd}");
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
