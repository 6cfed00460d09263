//! Makes blocks of plain numbers: Q8_0 and Q4_0 exactly as the reference rounds them, Q4_K and Q6_K by a [`search`] for the
//! scales and minima that leave the least error.

mod search;

use super::{BlockType, Format, Matrix};
use half::f16;
use std::num::NonZeroUsize;
use std::sync::Mutex;
use std::thread;

/// A type of blocks that numbers can be put into.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Encoder {
    /// 8 bits, a scale per 32: no other one is nearer.
    Q8_0,
    /// 4 bits, a scale per 32.
    Q4_0,
    /// 4 bits, a scale and a minimum of 6 bits per 32.
    Q4K,
    /// 6 bits, a scale of 8 bits per 16.
    Q6K,
}

/// A number that no block can hold: it is none, infinite, or so large that its scale is more than f16 has.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
#[error("row {row}, column {column}: {number} (expected a number that fits blocks of {of}, whose scales are in f16)")]
pub struct NotEncodable {
    /// Where it is.
    pub row: usize,
    /// Where it is in its row; the largest number of a block whose scale is too large.
    pub column: usize,
    /// What is there.
    pub number: f32,
    /// What was to hold it.
    pub of: BlockType,
}

impl Encoder {
    /// The blocks that it makes.
    pub fn blocks(self) -> BlockType {
        match self {
            Self::Q8_0 => BlockType::Q8_0,
            Self::Q4_0 => BlockType::Q4_0,
            Self::Q4K => BlockType::Q4K,
            Self::Q6K => BlockType::Q6K,
        }
    }

    /// Whether rows of `cols` numbers are whole blocks.
    pub fn fits(self, cols: usize) -> bool {
        cols.is_multiple_of(self.blocks().len())
    }

    /// Puts a row of numbers into blocks.
    ///
    /// # Errors
    /// The column of the first number that does not fit.
    ///
    /// # Panics
    /// If the row is not whole blocks, or `stored` not as long as these.
    pub fn encode(self, numbers: &[f32], stored: &mut [u8]) -> Result<(), usize> {
        let of = self.blocks();
        assert_eq!(Format::Blocks(of).row_bytes(numbers.len()), Some(stored.len()), "bytes of a row in {of}");
        let blocks = numbers.chunks_exact(of.len()).zip(stored.chunks_exact_mut(of.bytes()));
        for (index, (numbers, stored)) in blocks.enumerate() {
            let largest = largest(numbers);
            // Of the scales of all types, Q4_0's is the largest: an eighth of the largest number.
            if !f16::from_f32(numbers[largest] / 8.0).is_finite() || numbers.iter().any(|x| !x.is_finite()) {
                let first = numbers.iter().position(|x| !x.is_finite()).unwrap_or(largest);
                return Err(index * of.len() + first);
            }
            match self {
                Self::Q8_0 => q8_0(numbers, numbers[largest], stored),
                Self::Q4_0 => q4_0(numbers, numbers[largest], stored),
                Self::Q4K => search::q4_k(numbers, stored),
                Self::Q6K => search::q6_k(numbers, stored),
            }
        }
        Ok(())
    }

    /// The rows of a matrix in blocks, in their own order, made by so many threads.
    ///
    /// # Errors
    /// A number that does not fit.
    ///
    /// # Panics
    /// If the rows are no whole blocks.
    pub fn encode_matrix(self, matrix: &Matrix<'_>, threads: NonZeroUsize) -> Result<OwnedMatrix, NotEncodable> {
        let format = Format::Blocks(self.blocks());
        let row_bytes = format.row_bytes(matrix.cols).expect("rows of whole blocks");
        let mut bytes = vec![0; matrix.rows * row_bytes];
        let share = matrix.rows.div_ceil(threads.get()).max(1);
        let failed: Mutex<Option<NotEncodable>> = Mutex::new(None);
        thread::scope(|scope| {
            for (number, part) in bytes.chunks_mut(share * row_bytes).enumerate() {
                let failed = &failed;
                scope.spawn(move || {
                    let mut numbers = vec![0.0; matrix.cols];
                    for (row, stored) in (number * share..).zip(part.chunks_exact_mut(row_bytes)) {
                        matrix.dequantise_row(row, &mut numbers);
                        if let Err(column) = self.encode(&numbers, stored) {
                            let found = NotEncodable { row, column, number: numbers[column], of: self.blocks() };
                            let mut failed = failed.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                            let first = failed.get_or_insert(found);
                            if found.row < first.row {
                                *first = found;
                            }
                            return;
                        }
                    }
                });
            }
        });
        match failed.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner) {
            Some(found) => Err(found),
            None => Ok(OwnedMatrix { format, rows: matrix.rows, cols: matrix.cols, bytes }),
        }
    }
}

/// A matrix that owns its bytes.
#[derive(Debug, Clone)]
pub struct OwnedMatrix {
    format: Format,
    rows: usize,
    cols: usize,
    bytes: Vec<u8>,
}

impl OwnedMatrix {
    /// Its view.
    pub fn view(&self) -> Matrix<'_> {
        let Self { format, rows, cols, bytes } = self;
        Matrix::new(*format, *rows, *cols, bytes)
    }
}

/// Where the number is that is farthest from 0, the first of several; of numbers that are none, it is any.
fn largest(numbers: &[f32]) -> usize {
    (0..numbers.len()).fold(0, |largest, at| if numbers[at].abs() > numbers[largest].abs() { at } else { largest })
}

fn inverse(scale: f32) -> f32 {
    if scale == 0.0 { 0.0 } else { 1.0 / scale }
}

fn q8_0(numbers: &[f32], largest: f32, stored: &mut [u8]) {
    let scale = largest.abs() / 127.0;
    let inverse = inverse(scale);
    stored[..2].copy_from_slice(&f16::from_f32(scale).to_le_bytes());
    for (code, number) in stored[2..].iter_mut().zip(numbers) {
        // To the nearest, halves away from 0: the sum is exact in f64.
        let steps = f64::from(number * inverse);
        *code = (steps + 0.5f64.copysign(steps)) as i8 as u8;
    }
}

fn q4_0(numbers: &[f32], largest: f32, stored: &mut [u8]) {
    let scale = largest / -8.0;
    let inverse = inverse(scale);
    stored[..2].copy_from_slice(&f16::from_f32(scale).to_le_bytes());
    let code = |number: f32| ((number * inverse + 8.5) as u8).min(15);
    for (i, byte) in stored[2..].iter_mut().enumerate() {
        *byte = code(numbers[i]) | code(numbers[i + 16]) << 4;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Block, Dtype, RowOrder};

    /// Rows of 256 numbers, then their blocks by the references; `tools/gguf_fixtures.py` wrote both.
    const QUANTISED: &[u8] = include_bytes!("../../../tests/fixtures/gguf/quantised.bin");
    const ROWS: usize = 24;
    const COLS: usize = 256;

    fn rows() -> (Vec<[f32; COLS]>, &'static [u8]) {
        let (rows, rest) = QUANTISED.split_at(ROWS * COLS * 4);
        let numbers: Vec<f32> = super::super::floats(rows).collect();
        (numbers.as_chunks::<COLS>().0.to_vec(), rest)
    }

    fn encoded(of: Encoder, numbers: &[f32]) -> Vec<u8> {
        let mut stored = vec![0; Format::Blocks(of.blocks()).row_bytes(numbers.len()).unwrap()];
        of.encode(numbers, &mut stored).unwrap();
        stored
    }

    /// Squared errors, plain and weighed as the search does.
    fn errors(of: Encoder, numbers: &[f32; COLS], stored: &[u8]) -> [f64; 2] {
        let mut found = [0.0; COLS];
        of.blocks().dequantise(stored, &mut found);
        let mut sums = [0.0; 2];
        let group = of.blocks().group();
        for (numbers, found) in numbers.chunks(group).zip(found.chunks(group)) {
            let rms = (numbers.iter().map(|x| f64::from(x * x)).sum::<f64>() / group as f64).sqrt();
            for (x, y) in numbers.iter().zip(found) {
                let error = f64::from(x - y).powi(2);
                sums[0] += error;
                sums[1] += error * (rms + f64::from(x.abs()));
            }
        }
        sums
    }

    #[test]
    fn plain_blocks_are_the_references_to_the_bit_and_searched_ones_no_worse() {
        let (rows, mut rest) = rows();
        for of in [Encoder::Q8_0, Encoder::Q4_0, Encoder::Q4K, Encoder::Q6K] {
            let (mut ours, mut theirs) = ([0.0; 2], [0.0; 2]);
            for (number, row) in rows.iter().enumerate() {
                let stored = encoded(of, row);
                let (reference, after) = rest.split_at(stored.len());
                rest = after;
                if matches!(of, Encoder::Q8_0 | Encoder::Q4_0) {
                    assert!(stored == reference, "{of:?}, row {number}");
                    continue;
                }
                let (found, expected) = (errors(of, row, &stored), errors(of, row, reference));
                assert!(found[1] <= expected[1] * 1.05, "{of:?}, row {number}: {found:?}, reference {expected:?}");
                // Of rows of one size only, so that none outweighs the others.
                let size: f64 = row.iter().map(|x| f64::from(x * x)).sum::<f64>().max(1e-30);
                for at in 0..2 {
                    ours[at] += found[at] / size.powf(1.0 + at as f64 / 2.0);
                    theirs[at] += expected[at] / size.powf(1.0 + at as f64 / 2.0);
                }
            }
            assert!(ours[0] <= theirs[0] && ours[1] <= theirs[1], "{of:?}: {ours:?}, reference {theirs:?}");
        }
        assert!(rest.is_empty());
    }

    /// Every bit of a block is where its decoder looks for it: numbers that are a block come back as they were.
    #[test]
    fn numbers_on_a_blocks_own_steps_are_kept() {
        for of in [Encoder::Q8_0, Encoder::Q4_0, Encoder::Q4K, Encoder::Q6K] {
            for row in rows().0 {
                let mut numbers = [0.0; COLS];
                of.blocks().dequantise(&encoded(of, &row), &mut numbers);
                let [error, _] = errors(of, &numbers, &encoded(of, &numbers));
                let size: f64 = numbers.iter().map(|x| f64::from(x * x)).sum();
                assert!(error <= 1e-3 * size, "{of:?}: {error} of {size}");
            }
        }
        let mut block = Block::default();
        BlockType::Q4K
            .decode(&encoded(Encoder::Q4K, &std::array::from_fn::<_, COLS, _>(|i| (i % 16) as f32)), &mut block);
        assert!(block.codes.iter().enumerate().all(|(i, &code)| code == (i % 16) as i8));
    }

    #[test]
    fn what_no_block_holds_is_refused_by_its_place() {
        for of in [Encoder::Q8_0, Encoder::Q4_0, Encoder::Q4K, Encoder::Q6K] {
            for wrong in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e9] {
                let mut rows = vec![0.5f32; 3 * COLS];
                rows[COLS + 130] = wrong;
                let bytes: Vec<u8> = rows.iter().flat_map(|x| x.to_le_bytes()).collect();
                let matrix = Matrix::new(Dtype::F32, 3, COLS, &bytes);
                let refused = of.encode_matrix(&matrix, NonZeroUsize::new(2).unwrap()).unwrap_err();
                assert_eq!((refused.row, refused.column, refused.of), (1, 130, of.blocks()), "{refused}");
            }
            let mut stored = vec![0; of.blocks().bytes() * COLS / of.blocks().len()];
            assert_eq!(of.encode(&[5e5; COLS], &mut stored), Ok(()));
        }
    }

    #[test]
    fn matrices_are_encoded_row_by_row_in_their_own_order() {
        let (rows, _) = rows();
        let bytes: Vec<u8> = rows.as_flattened().iter().flat_map(|x| x.to_le_bytes()).collect();
        let stored = Matrix::new(Dtype::F32, ROWS, COLS, &bytes);
        let paired = Matrix { order: RowOrder::PairedHalves { head_dim: 8 }, ..stored };
        for threads in [1, 5, 99] {
            for matrix in [stored, paired] {
                let made = Encoder::Q8_0.encode_matrix(&matrix, NonZeroUsize::new(threads).unwrap()).unwrap();
                for row in 0..ROWS {
                    let numbers = &rows[matrix.order.stored(row)];
                    assert_eq!(made.view().row(row), encoded(Encoder::Q8_0, numbers), "row {row}, {threads} threads");
                }
            }
        }
    }
}
