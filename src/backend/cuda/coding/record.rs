//! Codes and scales in the places where a lane's loads find them.

use super::{Code, Coding, Row, STEP, Scales, Scaling, source};
use crate::backend::cuda::pack::{BLOCK_ROWS, CHUNK, chunks};
use crate::model::Matrix;
use half::f16;
use std::ops::Range;

/// Bytes of a lane's load, and lanes.
const UNIT: usize = 16;
const LANES: usize = 32;

/// Packs up to 16 rows of a matrix of codes; rows past the last one are zero.
///
/// # Panics
/// If there are more than 16 rows, the matrix is none of codes, or `target` is not as long as a block.
pub fn pack_codes(target: &mut [u8], coding: Coding, matrix: &Matrix<'_>, rows: Range<usize>) {
    assert!(rows.len() <= BLOCK_ROWS && target.len() == chunks(matrix.cols) * coding.record_bytes());
    let source = source(matrix.format).expect("a matrix of codes");
    target.fill(0);
    let mut row = Row::new(matrix.cols);
    for (at, index) in rows.enumerate() {
        source.read(matrix.row(index), matrix.cols, &mut row);
        let chunks = row.codes.chunks(CHUNK).zip(row.scales.chunks(CHUNK / STEP));
        for (record, (codes, scales)) in target.chunks_mut(coding.record_bytes()).zip(chunks) {
            let (of_codes, of_scales) = record.split_at_mut(coding.code_bytes());
            for (quad, codes) in codes.as_chunks().0.iter().enumerate() {
                put_codes(of_codes, coding, at, 4 * quad, *codes);
            }
            let bytes = coding.scaling.row_bytes();
            put_scales(&mut of_scales[(at % 8 * 2 + at / 8) * bytes..][..bytes], coding.scaling, scales);
        }
    }
}

/// Puts the codes of four columns, from `column` on, where one lane finds them: it has those of its row and columns in a
/// fragment, which are the first two and the last two; a step is 16 columns.
fn put_codes(record: &mut [u8], coding: Coding, row: usize, column: usize, codes: [i8; 4]) {
    let (step, lane) = (column / STEP, row % 8 * 4 + column % STEP / 4);
    match coding.code {
        Code::Four { centre } => {
            let target = &mut record[lane * UNIT + step * 4..][..4];
            let [a, b, c, d] = codes.map(|code| (code.wrapping_add(centre as i8) as u8 & 15) << (row / 8 * 4));
            for (to, code) in target.iter_mut().zip([a, c, b, d]) {
                *to |= code;
            }
        }
        Code::Eight | Code::E4m3 => {
            let above = if coding.code == Code::Eight { 128 } else { 0 };
            let [a, b, c, d] = codes.map(|code| (code as u8).wrapping_add(above));
            let target = &mut record[(step / 2 * LANES + lane) * UNIT + step % 2 * 8 + row / 8 * 2..][..6];
            target[..2].copy_from_slice(&[a, b]);
            target[4..].copy_from_slice(&[c, d]);
        }
    }
}

/// The scales of a row's 64 columns.
fn put_scales(target: &mut [u8], scaling: Scaling, of: &[Scales]) {
    let half = |x: f32| f16::from_f32(x).to_le_bytes();
    let bytes: Vec<u8> = match scaling {
        Scaling::Halves => [half(of[0].scale), half(of[2].scale)].concat(),
        Scaling::Float => of[0].scale.to_le_bytes().into(),
        Scaling::Floats => [of[0].scale.to_le_bytes(), of[2].scale.to_le_bytes()].concat(),
        Scaling::Sixteens => {
            let steps = of.iter().map(|of| of.step as u8);
            [of[0].whole, f16::ZERO].into_iter().flat_map(f16::to_le_bytes).chain(steps).collect()
        }
        Scaling::HalvesMinima => {
            [half(of[0].scale), half(of[0].minimum), half(of[2].scale), half(of[2].minimum)].concat()
        }
        Scaling::FloatMinimum => [of[0].scale.to_le_bytes(), of[0].minimum.to_le_bytes()].concat(),
        Scaling::Blocks => {
            let steps = [of[0].step, of[2].step, of[0].minimum_step, of[2].minimum_step].map(|step| step as u8);
            [of[0].whole, of[0].whole_minimum].into_iter().flat_map(f16::to_le_bytes).chain(steps).collect()
        }
        Scaling::SixteensMinima => {
            let steps = of.iter().map(|of| of.step as u8 | ((-of.minimum_step) as u8) << 4);
            [of[0].whole, of[0].whole_minimum].into_iter().flat_map(f16::to_le_bytes).chain(steps).collect()
        }
        Scaling::Wide => {
            let (scales, minima) = (of.iter().map(|of| of.scale), of.iter().map(|of| of.minimum));
            scales.chain(minima).flat_map(f32::to_le_bytes).collect()
        }
    };
    target.copy_from_slice(&bytes);
}
