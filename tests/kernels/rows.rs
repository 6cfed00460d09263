//! `embedding`, `gather_rows`, `keep_rows` and `recurrent_input`: exact copies, the operand rounded once, squares within
//! f32 rounding.

use crate::device::Device;
use crate::support::{FORMATS, NULL, Noise, assert_close, device, from, narrow, schedules, to, unit_roundoff, widen};
use eesd::backend::cuda::kernels::{
    Address, Embedding, Format, GatherRows, KeepRows, RecurrentInput, keep_rows, per_token,
};
use eesd::backend::cuda::pack::{chunks, pack};

/// Widths of the residual stream, none of them whole warps.
const HIDDEN: [usize; 3] = [8, 72, 200];

/// What a kernel that starts a residual stream writes.
struct Outputs {
    hidden: usize,
    stride: usize,
    slots: usize,
    residual: Vec<f32>,
    operand: Vec<u16>,
    squares: Vec<f32>,
}

impl Outputs {
    fn new(hidden: usize, tokens: usize) -> Self {
        let (stride, slots) = (chunks(hidden) * 64, hidden.div_ceil(32));
        Self {
            hidden,
            stride,
            slots,
            residual: vec![f32::NAN; tokens * hidden],
            operand: vec![0; tokens * stride],
            squares: vec![f32::NAN; tokens * slots],
        }
    }

    /// Checks one token: its residual is `row`.
    fn check(&self, format: Format, token: usize, row: &[f32], norm: &[f32]) {
        assert_eq!(&self.residual[token * self.hidden..][..self.hidden], row);
        let operand = &self.operand[token * self.stride..][..self.stride];
        for (column, (&x, &norm)) in row.iter().zip(norm).enumerate() {
            assert_eq!(operand[column], narrow(format, f64::from(x * norm)), "({token}, {column})");
        }
        assert!(operand[self.hidden..].iter().all(|&e| e == 0), "written past the row");
        let squares: f64 = self.squares[token * self.slots..][..self.slots].iter().map(|&s| f64::from(s)).sum();
        let expected: f64 = row.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
        assert_close(squares, expected, 1e-6 * expected, || format!("squares of {token}"));
    }
}

#[test]
fn embedding() {
    let ids = [5u32, 49, 0, 17, 5].to_vec();
    for (hidden, format) in HIDDEN.into_iter().flat_map(|hidden| FORMATS.map(|format| (hidden, format))) {
        let mut noise = Noise::new(1);
        let table = noise.numbers(format, 50 * hidden, 1.0);
        let norm = noise.floats(hidden, 2.0);
        let bytes: Vec<Vec<u8>> =
            table.chunks(hidden).map(|row| row.iter().flat_map(|e| e.to_le_bytes()).collect()).collect();
        let packed = pack(&bytes.iter().map(|row| Some(row.as_slice())).collect::<Vec<_>>(), hidden);
        for (schedule, is_packed) in schedules().iter().flat_map(|s| [(s, 0), (s, 1)]) {
            let mut out = Outputs::new(hidden, ids.len());
            let arguments = Embedding {
                ids: from(&ids),
                table: if is_packed == 1 { from(&packed) } else { from(&table) },
                form: is_packed,
                hidden: hidden as i32,
                residual: to(&mut out.residual),
                norm: from(&norm),
                operand: to(&mut out.operand),
                stride: out.stride as i32,
                padding: 0,
                squares: to(&mut out.squares),
            };
            // SAFETY: buffers of the sizes that cuda/embedding.cu states.
            unsafe { per_token(schedule, "embedding", format, ids.len(), &arguments) }.unwrap();
            for (token, &id) in ids.iter().enumerate() {
                let row: Vec<f32> =
                    table[id as usize * hidden..][..hidden].iter().map(|&e| widen(format, e) as f32).collect();
                out.check(format, token, &row, &norm);
            }
        }
    }
}

/// Gathers rows `index` of `stored`, or, where that is null, the rows of `out.residual` in place.
fn gather(on: &Device, format: Format, out: &mut Outputs, stored: Address, index: &[u32], norm: &[f32]) {
    let index = index.to_vec();
    let residual = to(&mut out.residual);
    let arguments = GatherRows {
        stored: if stored == NULL { residual } else { stored },
        index: from(&index),
        hidden: out.hidden as i32,
        padding: 0,
        residual,
        norm: from(norm),
        operand: to(&mut out.operand),
        stride: out.stride as i32,
        padding_2: 0,
        squares: to(&mut out.squares),
    };
    // SAFETY: buffers of the sizes that cuda/gather_rows.cu states.
    unsafe { per_token(on, "gather_rows", format, index.len(), &arguments) }.unwrap();
}

/// And a token alone has the same squares, bit for bit.
#[test]
fn gather_rows() {
    let index = [4u32, 0, 5];
    for (hidden, format) in HIDDEN.into_iter().flat_map(|hidden| FORMATS.map(|format| (hidden, format))) {
        let mut noise = Noise::new(2);
        let (stored, norm) = (noise.floats(6 * hidden, 3.0), noise.floats(hidden, 2.0));
        let mut all = Outputs::new(hidden, index.len());
        gather(&device(3), format, &mut all, from(&stored), &index, &norm);
        for (token, &row) in index.iter().enumerate() {
            all.check(format, token, &stored[row as usize * hidden..][..hidden], &norm);
            let mut alone = Outputs::new(hidden, 1);
            gather(&device(3), format, &mut alone, from(&stored), &[row], &norm);
            assert_eq!(alone.squares, all.squares[token * all.slots..][..all.slots]);
        }
    }
}

/// A residual stream goes under another norm without a copy: what is gathered from is written in place.
#[test]
fn gather_rows_in_place() {
    let index = [0u32, 1, 2].to_vec();
    for (hidden, format) in HIDDEN.into_iter().flat_map(|hidden| FORMATS.map(|format| (hidden, format))) {
        let mut noise = Noise::new(3);
        let (residual, norm) = (noise.floats(index.len() * hidden, 3.0), noise.floats(hidden, 2.0));
        for schedule in schedules() {
            let mut out = Outputs::new(hidden, index.len());
            out.residual.copy_from_slice(&residual);
            gather(&schedule, format, &mut out, NULL, &index, &norm);
            residual.chunks(hidden).enumerate().for_each(|(token, row)| out.check(format, token, row, &norm));
        }
    }
}

/// Each token's state rounded once, and its embedding under a norm without a weight, whatever other tokens there are.
#[test]
fn recurrent_input() {
    const EPSILON: f32 = 1e-3;
    let (ids, index) = ([5u32, 49, 0, 5].to_vec(), [2u32, 0, 3, 1].to_vec());
    for (hidden, format) in [8, 72, 200, 600].into_iter().flat_map(|hidden| FORMATS.map(|format| (hidden, format))) {
        let mut noise = Noise::new(7);
        let (table, states) = (noise.numbers(format, 50 * hidden, 0.2), noise.floats(4 * hidden, 3.0));
        let bytes: Vec<Vec<u8>> =
            table.chunks(hidden).map(|row| row.iter().flat_map(|e| e.to_le_bytes()).collect()).collect();
        let packed = pack(&bytes.iter().map(|row| Some(row.as_slice())).collect::<Vec<_>>(), hidden);
        let stride = chunks(2 * hidden) * 64;
        let run = |on: &Device, is_packed: i32, first: usize, tokens: usize| {
            let mut operand = vec![0u16; tokens * stride];
            let arguments = RecurrentInput {
                ids: from(&ids[first..]),
                table: if is_packed == 1 { from(&packed) } else { from(&table) },
                form: is_packed,
                hidden: hidden as i32,
                states: from(&states),
                index: from(&index[first..]),
                operand: to(&mut operand),
                stride: stride as i32,
                epsilon: EPSILON,
            };
            // SAFETY: buffers of the sizes that cuda/recurrent_input.cu states.
            unsafe { per_token(on, "recurrent_input", format, tokens, &arguments) }.unwrap();
            operand
        };
        let operand = run(&device(3), 0, 0, ids.len());
        for (token, row) in operand.chunks(stride).enumerate() {
            let state = &states[index[token] as usize * hidden..][..hidden];
            let rounded: Vec<u16> = state.iter().map(|&x| narrow(format, f64::from(x))).collect();
            assert_eq!(row[..hidden], rounded, "the state of {token}");
            let embedding: Vec<f64> =
                table[ids[token] as usize * hidden..][..hidden].iter().map(|&e| widen(format, e)).collect();
            let mean = embedding.iter().map(|x| x * x).sum::<f64>() / hidden as f64;
            for (column, x) in embedding.iter().enumerate() {
                let expected = x / (mean + f64::from(EPSILON)).sqrt();
                let tolerance = expected.abs() * (unit_roundoff(format) + 1e-6);
                assert_close(widen(format, row[hidden + column]), expected, tolerance, || {
                    format!("({token}, {column})")
                });
            }
            assert!(row[2 * hidden..].iter().all(|&e| e == 0), "written past the row");
        }
        for schedule in schedules() {
            for (is_packed, token) in [(0, 1), (1, 2)] {
                assert_eq!(run(&schedule, is_packed, 0, ids.len()), operand, "{hidden}, packed: {is_packed}");
                let alone = run(&schedule, is_packed, token, 1);
                assert_eq!(alone, operand[token * stride..][..stride], "{hidden}, token {token} alone");
            }
        }
    }
}

#[test]
fn rows_are_kept() {
    for hidden in [1, 13, 200, 300] {
        let residual = Noise::new(4).floats(3 * hidden, 3.0);
        let index = [4u32, 0, 2].to_vec();
        for schedule in schedules() {
            let mut stored = vec![f32::MAX; 5 * hidden];
            let arguments = KeepRows {
                residual: from(&residual),
                index: from(&index),
                stored: to(&mut stored),
                hidden: hidden as i32,
                padding: 0,
            };
            // SAFETY: buffers of the sizes that cuda/keep_rows.cu states.
            unsafe { keep_rows(&schedule, index.len(), &arguments) }.unwrap();
            for (row, found) in stored.chunks(hidden).enumerate() {
                let kept = index.iter().position(|&i| i as usize == row);
                let expected = kept.map(|token| residual[token * hidden..][..hidden].to_vec());
                assert_eq!(found, expected.unwrap_or(vec![f32::MAX; hidden]), "row {row} of {hidden}");
            }
        }
    }
}
