//! `embedding`, `gather_rows` and `keep_rows`: exact copies, the operand rounded once, squares within f32
//! rounding.

use crate::support::{FORMATS, Noise, assert_close, emulator, from, narrow, schedules, to, widen};
use eesd::backend::cuda::kernels::{Embedding, GatherRows, KeepRows, keep_rows, per_token};
use eesd::backend::cuda::pack::{chunks, pack};

const HIDDEN: usize = 200;
const STRIDE: usize = 256;
const SLOTS: usize = 7;

/// What a kernel that starts a residual stream writes.
struct Outputs {
    residual: Vec<f32>,
    operand: Vec<u16>,
    squares: Vec<f32>,
}

impl Outputs {
    fn new(tokens: usize) -> Self {
        Self {
            residual: vec![f32::NAN; tokens * HIDDEN],
            operand: vec![0; tokens * STRIDE],
            squares: vec![f32::NAN; tokens * SLOTS],
        }
    }
}

#[test]
fn embedding() {
    assert_eq!(chunks(HIDDEN) * 64, STRIDE);
    let ids = [5u32, 49, 0, 17, 5];
    for format in FORMATS {
        let mut noise = Noise::new(1);
        let table = noise.numbers(format, 50 * HIDDEN, 1.0);
        let norm = noise.floats(HIDDEN, 2.0);
        let bytes: Vec<Vec<u8>> =
            table.chunks(HIDDEN).map(|row| row.iter().flat_map(|e| e.to_le_bytes()).collect()).collect();
        let packed = pack(&bytes.iter().map(|row| Some(row.as_slice())).collect::<Vec<_>>(), HIDDEN);
        for (schedule, is_packed) in schedules().iter().flat_map(|s| [(s, 0), (s, 1)]) {
            let mut out = Outputs::new(ids.len());
            let arguments = Embedding {
                ids: from(&ids),
                table: if is_packed == 1 { from(&packed) } else { from(&table) },
                packed: is_packed,
                hidden: HIDDEN as i32,
                residual: to(&mut out.residual),
                norm: from(&norm),
                operand: to(&mut out.operand),
                stride: STRIDE as i32,
                padding: 0,
                squares: to(&mut out.squares),
            };
            // SAFETY: buffers of the sizes that cuda/embedding.cu states.
            unsafe { per_token(schedule, "embedding", format, ids.len(), &arguments) }.unwrap();
            for (token, &id) in ids.iter().enumerate() {
                let row: Vec<f64> = table[id as usize * HIDDEN..][..HIDDEN].iter().map(|&e| widen(format, e)).collect();
                for (column, &x) in row.iter().enumerate() {
                    assert_eq!(f64::from(out.residual[token * HIDDEN + column]), x);
                    let scaled = narrow(format, f64::from(x as f32 * norm[column]));
                    assert_eq!(out.operand[token * STRIDE + column], scaled);
                }
                let squares: f64 = out.squares[token * SLOTS..][..SLOTS].iter().map(|&s| f64::from(s)).sum();
                let expected: f64 = row.iter().map(|x| x * x).sum();
                assert_close(squares, expected, 1e-6 * expected, || format!("squares of {token}"));
            }
        }
    }
}

/// The rows come out as embedding's do: the operand and squares of the same residual are the same bits.
#[test]
fn gather_rows() {
    let mut noise = Noise::new(2);
    let format = FORMATS[0];
    let stored = noise.floats(6 * HIDDEN, 3.0);
    let norm = noise.floats(HIDDEN, 2.0);
    let index = [4u32, 0, 5];
    let run = |index: &[u32]| {
        let mut out = Outputs::new(index.len());
        let arguments = GatherRows {
            stored: from(&stored),
            index: from(index),
            hidden: HIDDEN as i32,
            padding: 0,
            residual: to(&mut out.residual),
            norm: from(&norm),
            operand: to(&mut out.operand),
            stride: STRIDE as i32,
            padding_2: 0,
            squares: to(&mut out.squares),
        };
        // SAFETY: buffers of the sizes that cuda/gather_rows.cu states.
        unsafe { per_token(&emulator(3), "gather_rows", format, index.len(), &arguments) }.unwrap();
        out
    };
    let all = run(&index);
    for (token, &from_row) in index.iter().enumerate() {
        let row = &stored[from_row as usize * HIDDEN..][..HIDDEN];
        assert_eq!(&all.residual[token * HIDDEN..][..HIDDEN], row);
        for (column, &x) in row.iter().enumerate() {
            assert_eq!(all.operand[token * STRIDE + column], narrow(format, f64::from(x * norm[column])));
        }
        let alone = run(&[from_row]);
        assert_eq!(alone.squares, all.squares[token * SLOTS..][..SLOTS]);
    }
}

/// A residual stream goes under another norm without a copy: what is gathered from is written in place.
#[test]
fn gather_rows_in_place() {
    const TOKENS: usize = 3;
    let mut noise = Noise::new(3);
    let residual = noise.floats(TOKENS * HIDDEN, 3.0);
    let norm = noise.floats(HIDDEN, 2.0);
    for (format, schedule) in FORMATS.into_iter().flat_map(|format| schedules().into_iter().map(move |s| (format, s))) {
        let mut out = Outputs::new(TOKENS);
        out.residual.copy_from_slice(&residual);
        let arguments = GatherRows {
            stored: to(&mut out.residual),
            index: from(&[0u32, 1, 2]),
            hidden: HIDDEN as i32,
            padding: 0,
            residual: to(&mut out.residual),
            norm: from(&norm),
            operand: to(&mut out.operand),
            stride: STRIDE as i32,
            padding_2: 0,
            squares: to(&mut out.squares),
        };
        // SAFETY: buffers of the sizes that cuda/gather_rows.cu states.
        unsafe { per_token(&schedule, "gather_rows", format, TOKENS, &arguments) }.unwrap();
        assert_eq!(out.residual, residual);
        for (token, row) in residual.chunks(HIDDEN).enumerate() {
            for (column, &x) in row.iter().enumerate() {
                assert_eq!(out.operand[token * STRIDE + column], narrow(format, f64::from(x * norm[column])));
            }
            let squares: f64 = out.squares[token * SLOTS..][..SLOTS].iter().map(|&s| f64::from(s)).sum();
            let expected: f64 = row.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
            assert_close(squares, expected, 1e-6 * expected, || format!("squares of {token}"));
        }
    }
}

#[test]
fn rows_are_kept() {
    for hidden in [1, 13, 200, 300] {
        let residual = Noise::new(4).floats(3 * hidden, 3.0);
        let index = [4u32, 0, 2];
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
