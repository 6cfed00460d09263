//! `pack_weights` against the host's packing, `unpack_weights` against the rows before it, `random_weights` against the same formula over the library's Philox
//! words: bit for bit.

use crate::device::Device;
use crate::support::{FORMATS, Noise, device, from, narrow, schedules, to, widen};
use eesd::backend::cuda::kernels::{
    Format, PackWeights, RandomWeights, UnpackWeights, pack_weights, random_weights, unpack_weights,
};
use eesd::backend::cuda::pack::{block_bytes, chunks, interleave, pack, packed_bytes};
use eesd::sample::{Philox, Purpose};

const COLUMNS: [usize; 9] = [1, 8, 13, 64, 72, 136, 199, 200, 520];
/// Kernels read rows and write units 16 bytes at a time.
type Aligned = u128;

/// A matrix of 2-byte elements, none of them zero, at an aligned address.
struct Matrix {
    words: Vec<Aligned>,
    rows: usize,
    columns: usize,
}

impl Matrix {
    fn new(rows: usize, columns: usize, seed: u64) -> Self {
        let mut words = vec![0; (rows * columns).div_ceil(8)];
        let mut noise = Noise::new(seed);
        let elements: &mut [u16] = bytemuck::cast_slice_mut(&mut words);
        elements[..rows * columns].fill_with(|| noise.word() as u16 | 1);
        // Past the end lies something that must not come along.
        elements[rows * columns..].fill(u16::MAX);
        Self { words, rows, columns }
    }

    fn rows(&self) -> Vec<&[u8]> {
        let bytes: &[u8] = bytemuck::cast_slice(&self.words);
        bytes[..self.rows * self.columns * 2].chunks_exact(self.columns * 2).collect()
    }

    fn pack(&self, on: &Device, target: &mut [Aligned], first_block: usize, block_step: usize) {
        let arguments = PackWeights {
            rows: from(&self.words),
            target: to(target),
            row_count: self.rows as i32,
            columns: self.columns as i32,
            first_block: first_block as i32,
            block_step: block_step as i32,
        };
        // SAFETY: buffers of the sizes that cuda/pack_weights.cu states.
        unsafe { pack_weights(on, &arguments) }.unwrap();
    }
}

fn bytes(packed: &[Aligned]) -> &[u8] {
    bytemuck::cast_slice(packed)
}

#[test]
fn packed_as_the_host_packs() {
    for (columns, rows) in COLUMNS.into_iter().flat_map(|columns| [1, 16, 17, 40].map(|rows| (columns, rows))) {
        let matrix = Matrix::new(rows, columns, 1);
        let expected = pack(&matrix.rows().into_iter().map(Some).collect::<Vec<_>>(), columns);
        for on in schedules() {
            // What the kernel is to write holds something else before, the block past an odd number zero.
            let mut target: Vec<Aligned> = vec![0; expected.len() / 16];
            let written = rows.div_ceil(16) * packed_bytes(32, columns) / 2 / 16;
            target[..written].fill(Aligned::MAX);
            matrix.pack(&on, &mut target, 0, 1);
            assert_eq!(bytes(&target), expected, "{rows} rows, {columns} columns");
        }
    }
}

#[test]
fn stacked_as_the_host_stacks() {
    for columns in COLUMNS {
        let [q, k, v] = [(64, 2), (32, 3), (32, 4)].map(|(rows, seed)| Matrix::new(rows, columns, seed));
        let all: Vec<_> = [&q, &k, &v].into_iter().flat_map(Matrix::rows).map(Some).collect();
        let expected = pack(&all, columns);
        let mut target: Vec<Aligned> = vec![Aligned::MAX; expected.len() / 16];
        // In any order: nobody writes another one's blocks.
        for (matrix, first_block) in [(&v, 6), (&q, 0), (&k, 4)] {
            matrix.pack(&device(3), &mut target, first_block, 1);
        }
        assert_eq!(bytes(&target), expected, "{columns} columns");
    }
}

#[test]
fn interleaved_as_the_host_interleaves() {
    for (columns, rows) in COLUMNS.into_iter().flat_map(|columns| [1, 16, 17, 40].map(|rows| (columns, rows))) {
        let [gate, up] = [5, 6].map(|seed| Matrix::new(rows, columns, seed));
        let expected = pack(&interleave(&gate.rows(), &up.rows()), columns);
        let mut target: Vec<Aligned> = vec![Aligned::MAX; expected.len() / 16];
        up.pack(&device(4), &mut target, 1, 2);
        gate.pack(&device(4), &mut target, 0, 2);
        assert_eq!(bytes(&target), expected, "{rows} rows, {columns} columns");
    }
}

/// The rows of `matrix`, out of a packed one, each filled up with zeros to whole chunks; past them nothing is written.
fn assert_unpacked(on: &Device, packed: &[Aligned], matrix: &Matrix, first_block: usize, block_step: usize) {
    let row_bytes = chunks(matrix.columns) * 128;
    let mut rows: Vec<Aligned> = vec![Aligned::MAX; (matrix.rows.next_multiple_of(16) + 1) * row_bytes / 16];
    let arguments = UnpackWeights {
        source: from(packed),
        rows: to(&mut rows),
        row_count: matrix.rows as i32,
        chunks: chunks(matrix.columns) as i32,
        first_block: first_block as i32,
        block_step: block_step as i32,
    };
    // SAFETY: buffers of the sizes that cuda/unpack_weights.cu states.
    unsafe { unpack_weights(on, &arguments) }.unwrap();
    let (found, past) = bytes(&rows).split_at(matrix.rows * row_bytes);
    for (number, (row, expected)) in found.chunks(row_bytes).zip(matrix.rows()).enumerate() {
        let what = format!("row {number} of {}, {} columns", matrix.rows, matrix.columns);
        assert_eq!(&row[..expected.len()], expected, "{what}");
        assert!(row[expected.len()..].iter().all(|&byte| byte == 0), "{what}: padding");
    }
    assert!(past.iter().all(|&byte| byte == u8::MAX), "past {} rows of {} columns", matrix.rows, matrix.columns);
}

fn aligned(packed: &[u8]) -> Vec<Aligned> {
    packed.chunks_exact(16).map(bytemuck::pod_read_unaligned).collect()
}

#[test]
fn unpacked_as_before_packing() {
    for (columns, rows) in COLUMNS.into_iter().flat_map(|columns| [1, 16, 17, 40].map(|rows| (columns, rows))) {
        let [gate, up] = [7, 8].map(|seed| Matrix::new(rows, columns, seed));
        let alone = aligned(&pack(&gate.rows().into_iter().map(Some).collect::<Vec<_>>(), columns));
        let both = aligned(&pack(&interleave(&gate.rows(), &up.rows()), columns));
        for on in schedules() {
            assert_unpacked(&on, &alone, &gate, 0, 1);
            assert_unpacked(&on, &both, &gate, 0, 2);
            assert_unpacked(&on, &both, &up, 1, 2);
        }
    }
    // The last rows alone, from an odd block on.
    let [first, last] = [(48, 9), (33, 10)].map(|(rows, seed)| Matrix::new(rows, 72, seed));
    let all: Vec<_> = [&first, &last].into_iter().flat_map(Matrix::rows).map(Some).collect();
    let stacked = aligned(&pack(&all, 72));
    assert_unpacked(&device(2), &stacked[3 * block_bytes(72) / 16..], &last, 0, 1);
}

fn weights(on: &Device, format: Format, elements: usize, seed: u64, scale: f32) -> Vec<u16> {
    let mut target: Vec<Aligned> = vec![0; elements / 8];
    let arguments = RandomWeights { target: to(&mut target), seed, elements: elements as u64, scale, padding: 0 };
    // SAFETY: a buffer of the size that cuda/random_weights.cu states.
    unsafe { random_weights(on, format, &arguments) }.unwrap();
    bytemuck::cast_slice(&target).to_vec()
}

/// Element `i` by the definition in cuda/random_weights.cu.
fn expected(format: Format, i: usize, seed: u64, scale: f32) -> u16 {
    let word = Philox::new(seed, 0, Purpose::Weights, 0).block(i as u32 / 4)[i % 4];
    let sum: i32 = word.to_le_bytes().into_iter().map(i32::from).sum();
    narrow(format, f64::from(scale * ((sum - 510) as f32 * (1.0 / 147.80054))))
}

#[test]
fn random_weights_are_the_reference() {
    let seed = 0x0123_4567_89ab_cdef;
    for (format, elements) in FORMATS.into_iter().flat_map(|format| [8, 1000, 4104].map(|n| (format, n))) {
        for scale in [1.0, 0.02] {
            let reference: Vec<_> = (0..elements).map(|i| expected(format, i, seed, scale)).collect();
            for on in schedules() {
                assert_eq!(weights(&on, format, elements, seed, scale), reference);
            }
        }
    }
}

#[test]
fn random_weights_are_nearly_normal() {
    const N: usize = 1 << 16;
    for format in FORMATS {
        let values: Vec<_> = weights(&device(0), format, N, 9, 0.5).iter().map(|&w| 2.0 * widen(format, w)).collect();
        let moment = |power| values.iter().map(|x| x.powi(power)).sum::<f64>() / N as f64;
        // Five standard deviations of the estimates; four uniforms have a kurtosis of 2.7.
        let standard = |variance: f64| 5.0 * (variance / N as f64).sqrt();
        assert!(moment(1).abs() < standard(1.0), "mean {}", moment(1));
        assert!((moment(2) - 1.0).abs() < standard(1.7), "variance {}", moment(2));
        assert!((moment(4) - 2.7).abs() < 0.2, "kurtosis {}", moment(4));
        let follow = values.windows(2).map(|pair| pair[0] * pair[1]).sum::<f64>() / N as f64;
        assert!(follow.abs() < standard(1.0), "correlation of neighbours {follow}");
        let other = weights(&device(0), format, N, 10, 0.5);
        let same = values.iter().zip(&other).filter(|(x, y)| **x == 2.0 * widen(format, **y)).count();
        assert!(same < N / 100, "seeds make no difference");
    }
}
