//! Weights that stay codes: the bits of a plain oracle, whatever the format, the form and the number of tokens.

use crate::device::Device;
use crate::support::{FORMATS, NULL, Noise, assert_close, bits, device, from, to, widen};
use eesd::backend::cuda::coding::{Code, Coding, STEP, Storage, pack_codes};
use eesd::backend::cuda::kernels::{Embedding, Form, Format, Norm, Projection, Qkv, TableForm, per_token, project};
use eesd::backend::cuda::pack::{BLOCK_ROWS, CHUNK, TILE_ROWS, chunks};
use eesd::model::{Block, BlockType, Format as Stored, Fp8, Groups, Matrix, e4m3, floats};
use half::{bf16, f16};

/// Inputs: some classes of chunks have two, some one, and groups of every size are whole.
const INPUTS: usize = 768;
/// Rows: three blocks, the last one not whole.
const OUTPUTS: usize = 41;
const CLASSES: usize = 8;

/// Inputs that share a scale: of every scaling, and one for all.
const SIZES: [usize; 6] = [16, 32, 48, 64, 128, INPUTS];

/// Formats of all scalings, of 4 bits and of 8.
fn formats() -> Vec<Stored> {
    let groups = |bits, size, minima| Stored::Groups(Groups { bits, size, minima });
    let groups = SIZES.into_iter().flat_map(|size| {
        [(4, false), (4, true), (8, false), (8, true)].map(|(bits, minima)| groups(bits, size, minima))
    });
    BlockType::ALL.map(Stored::Blocks).into_iter().chain(groups).chain(SIZES.map(fp8)).collect()
}

fn fp8(size: usize) -> Stored {
    Stored::Fp8(Fp8 { size })
}

/// Where a block has numbers in f16, of which not all bits are numbers.
fn halves(of: BlockType) -> &'static [usize] {
    match of {
        BlockType::Q4_1 | BlockType::Q5_1 | BlockType::Q4K | BlockType::Q5K => &[0, 2],
        BlockType::Q2K => &[80, 82],
        BlockType::Q3K => &[108],
        BlockType::Q6K => &[208],
        _ => &[0],
    }
}

/// Stored rows of any bits, whose scales and minima, and codes of 8-bit floating point, are numbers.
fn stored(format: Stored, rows: usize, columns: usize, seed: u64) -> Vec<u8> {
    let mut noise = Noise::new(seed);
    let mut bytes: Vec<u8> = (0..rows * format.row_bytes(columns).unwrap()).map(|_| noise.word() as u8).collect();
    match format {
        Stored::Blocks(of) => {
            for block in bytes.chunks_mut(of.bytes()) {
                for &at in halves(of) {
                    block[at..at + 2].copy_from_slice(&f16::from_f64(noise.unit() * 0.1).to_le_bytes());
                }
            }
        }
        Stored::Groups(groups) => {
            for row in bytes.chunks_mut(format.row_bytes(columns).unwrap()) {
                let numbers = columns.div_ceil(groups.size) * if groups.minima { 2 } else { 1 };
                for number in row.chunks_mut(4).take(numbers) {
                    number.copy_from_slice(&((noise.unit() * 0.1) as f32).to_le_bytes());
                }
            }
        }
        Stored::Fp8(of) => {
            for row in bytes.chunks_mut(format.row_bytes(columns).unwrap()) {
                let (scales, codes) = row.split_at_mut(columns.div_ceil(of.size) * 4);
                for scale in scales.chunks_mut(4) {
                    scale.copy_from_slice(&((noise.unit() * 0.02) as f32).to_le_bytes());
                }
                codes.iter_mut().filter(|code| e4m3(**code).is_nan()).for_each(|code| *code ^= 1);
            }
        }
        Stored::Float(_) => panic!("{format}"),
    }
    bytes
}

fn storage(matrix: &Matrix<'_>) -> (Storage, Coding) {
    match Storage::of(matrix).unwrap() {
        storage @ Storage::Codes(coding) => (storage, coding),
        other => panic!("{other:?}"),
    }
}

fn packed(matrix: &Matrix<'_>, coding: Coding) -> Vec<u8> {
    let block = Storage::Codes(coding).block_bytes(matrix.cols);
    let mut packed = vec![0; Storage::Codes(coding).packed_bytes(matrix.rows, matrix.cols)];
    assert_eq!(packed.len(), matrix.rows.div_ceil(TILE_ROWS) * 2 * block);
    for (index, target) in packed.chunks_mut(block).take(matrix.rows.div_ceil(BLOCK_ROWS)).enumerate() {
        pack_codes(target, coding, matrix, index * BLOCK_ROWS..matrix.rows.min((index + 1) * BLOCK_ROWS));
    }
    packed
}

/// A row's codes, and scale and minimum of each 16 columns, straight from the format.
fn decoded(matrix: &Matrix<'_>, row: usize) -> (Vec<f32>, Vec<(f32, Option<f32>)>) {
    let (mut codes, mut scales) = (Vec::new(), Vec::new());
    match matrix.format {
        Stored::Blocks(of) => {
            let mut block = Block::default();
            for stored in matrix.row(row).chunks(of.bytes()) {
                of.decode(stored, &mut block);
                codes.extend(block.codes[..of.len()].iter().map(|&code| f32::from(code)));
                scales.extend((0..of.len() / STEP).map(|step| {
                    let group = step * STEP / of.group();
                    (block.scale_of(group), of.has_minima().then(|| block.minimum_of(group)))
                }));
            }
        }
        Stored::Groups(groups) => {
            let (of_scales, of_minima, of_codes) = groups.split(matrix.row(row), matrix.cols);
            let (of_scales, of_minima): (Vec<f32>, Vec<f32>) =
                (floats(of_scales).collect(), floats(of_minima).collect());
            codes.extend((0..matrix.cols).map(|at| f32::from(groups.code(of_codes, at))));
            scales.extend((0..matrix.cols / STEP).map(|step| {
                let group = step * STEP / groups.size;
                (of_scales[group], of_minima.get(group).copied())
            }));
        }
        Stored::Fp8(of) => {
            let (of_scales, of_codes) = matrix.row(row).split_at(matrix.cols.div_ceil(of.size) * 4);
            let of_scales: Vec<f32> = floats(of_scales).collect();
            codes.extend(of_codes.iter().map(|&code| e4m3(code)));
            scales.extend((0..matrix.cols / STEP).map(|step| (of_scales[step * STEP / of.size], None)));
        }
        Stored::Float(_) => panic!("{}", matrix.format),
    }
    (codes, scales)
}

/// Columns of a step in the order in which the emulator's fragments multiply them.
const ORDER: [usize; STEP] = [0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15];

/// A sum as the kernels define it. Zero minima change no bit.
fn oracle(codes: &[f32], scales: &[(f32, Option<f32>)], x: &[f32]) -> f32 {
    let sum_of = |products: &mut dyn FnMut(usize) -> f32| ORDER.iter().fold(0.0f32, |sum, &i| sum + products(i));
    let of_class = |class: usize| {
        let steps = (class..x.len() / CHUNK).step_by(CLASSES).flat_map(|chunk| chunk * 4..chunk * 4 + 4);
        steps.fold(0.0f32, |sum, step| {
            let at = |i: usize| step * STEP + i;
            let (scale, minimum) = scales[step];
            let sum = scale.mul_add(sum_of(&mut |i| codes[at(i)] * x[at(i)]), sum);
            minimum.map_or(sum, |minimum| minimum.mul_add(sum_of(&mut |i| x[at(i)]), sum))
        })
    };
    (0..CLASSES).fold(0.0, |total, class| total + of_class(class))
}

struct Case {
    format: Format,
    x: Vec<u16>,
}

impl Case {
    fn new(format: Format, tokens: usize, seed: u64) -> Self {
        Self { format, x: Noise::new(seed).numbers(format, tokens * INPUTS, 2.0) }
    }

    fn token(&self, token: usize) -> Vec<f32> {
        self.x[token * INPUTS..][..INPUTS].iter().map(|&x| widen(self.format, x) as f32).collect()
    }

    /// `W x` of some tokens, by rows of tokens.
    fn run(
        &self,
        on: &Device,
        form: Form,
        (weights, outputs): (&[u8], usize),
        coding: Storage,
        first: usize,
        tokens: usize,
    ) -> Vec<f32> {
        let mut out = vec![f32::NAN; tokens * outputs];
        let arguments = Qkv {
            projection: Projection {
                weights: from(weights),
                x: from(&self.x[first * INPUTS..]),
                outputs: outputs as i32,
                chunks: chunks(INPUTS) as i32,
                stride: INPUTS as i32,
                tokens: tokens as i32,
                coding: coding.word(),
                padding: 0,
            },
            norm: Norm { squares: NULL, slots: 0, width: 0, epsilon: 0.0, padding: 0 },
            bias: NULL,
            out: to(&mut out),
            stride: outputs as i32,
            padding: 0,
        };
        // SAFETY: buffers of the sizes that cuda/qkv.cu states.
        unsafe { project(on, "qkv", self.format, form, &arguments) }.unwrap();
        out
    }
}

/// The oracle's bits on the emulator; a GPU's tensor cores add up 16 products in an order of their own.
fn assert_oracle(found: f32, expected: f32, what: impl FnOnce() -> String) {
    if Device::gpu(0).is_some() {
        assert_close(found.into(), expected.into(), 2e-6 * (f64::from(expected).abs() + 100.0), what);
    } else {
        assert_eq!(found.to_bits(), expected.to_bits(), "{}: {found}, expected {expected}", what());
    }
}

fn assert_oracles(case: &Case, matrix: &Matrix<'_>, coding: Coding) {
    let tokens = case.x.len() / INPUTS;
    let storage = Storage::Codes(coding);
    let out = case.run(&device(2), Form::Skinny, (&packed(matrix, coding), matrix.rows), storage, 0, tokens);
    let tokens: Vec<Vec<f32>> = (0..tokens).map(|token| case.token(token)).collect();
    for row in 0..matrix.rows {
        let (codes, scales) = decoded(matrix, row);
        for (token, x) in tokens.iter().enumerate() {
            let found = out[token * matrix.rows + row];
            assert_oracle(found, oracle(&codes, &scales, x), || format!("{coding:?}, row {row}, token {token}"));
        }
    }
}

#[test]
fn every_format_has_the_bits_of_the_oracle() {
    for (index, of) in formats().into_iter().enumerate() {
        let case = Case::new(FORMATS[index % 2], 3, 1);
        let bytes = stored(of, OUTPUTS, INPUTS, 2 + index as u64);
        let matrix = Matrix::new(of, OUTPUTS, INPUTS, &bytes);
        assert_oracles(&case, &matrix, storage(&matrix).1);
    }
    let scalings: Vec<_> = formats().into_iter().map(|of| storage(&Matrix::new(of, 0, INPUTS, &[])).1).collect();
    let count = |is: fn(Code) -> bool| {
        let mut words: Vec<i32> = scalings.iter().filter(|of| is(of.code)).map(|of| of.scaling as i32).collect();
        words.sort_unstable();
        words.dedup();
        words.len()
    };
    // Nothing of 8 bits has a scale and a minimum of 4 bits, no 8-bit floating point has f16 or minima.
    assert_eq!(count(|code| matches!(code, Code::Four { .. })), 9);
    assert_eq!(count(|code| code == Code::Eight), 8);
    assert_eq!(count(|code| code == Code::E4m3), 3);
}

/// Gate and up of two formats share one coding.
#[test]
fn a_coding_that_holds_two_formats_has_the_bits_of_both() {
    let case = Case::new(FORMATS[0], 2, 3);
    let blocks = [BlockType::Q4K, BlockType::Q6K].map(Stored::Blocks);
    for formats in [blocks, [64, 32].map(fp8)] {
        let bytes = formats.map(|of| stored(of, 32, INPUTS, 4));
        let [one, other] = [0, 1].map(|at| Matrix::new(formats[at], 32, INPUTS, &bytes[at]));
        let Some(Storage::Codes(both)) = storage(&one).0.joined(storage(&other).0) else { panic!() };
        assert_ne!(both, storage(&one).1);
        assert_oracles(&case, &one, both);
        assert_oracles(&case, &other, both);
    }
    let of = |format| storage(&Matrix::new(format, 0, INPUTS, &[])).0;
    assert_eq!(of(blocks[0]).joined(of(fp8(64))), None, "a code is an integer or is not");
}

/// A token alone, many in skinny form, many in GEMM form, on both sides of the border.
#[test]
fn forms_have_the_same_bits_whatever_the_number_of_tokens() {
    let groups = Stored::Groups(Groups { bits: 4, size: 48, minima: true });
    let blocks = [BlockType::Q4_0, BlockType::Q4K, BlockType::Q8_0, BlockType::Q6K, BlockType::Q5_1];
    for (index, of) in blocks.map(Stored::Blocks).into_iter().chain([groups, fp8(128)]).enumerate() {
        let case = Case::new(FORMATS[index % 2], 130, 5);
        let bytes = stored(of, OUTPUTS, INPUTS, 6);
        let matrix = Matrix::new(of, OUTPUTS, INPUTS, &bytes);
        let (storage, coding) = storage(&matrix);
        let packed = packed(&matrix, coding);
        let run = |seed, form, first, tokens| {
            let out = case.run(&device(seed), form, (&packed, OUTPUTS), storage, first, tokens);
            out.chunks(OUTPUTS).map(bits).collect::<Vec<_>>()
        };
        let all = run(1, Form::Gemm, 0, 130);
        for (at, count) in [1, 7, 8, 9, 16, 17, 32, 33, 63, 64].into_iter().enumerate() {
            let first = at * 7;
            assert_eq!(run(at as u64, Form::Skinny, first, count), all[first..first + count], "{of}, {count} tokens");
        }
        for (first, count) in [(3, 63), (2, 65), (1, 66)] {
            assert_eq!(run(4, Form::Gemm, first, count), all[first..first + count], "{of}, GEMM, {count} tokens");
        }
        // And the last rows alone: the exit layer's keys and values.
        let rest = &packed[storage.block_bytes(INPUTS)..];
        let padded = [rest, &vec![0; storage.block_bytes(INPUTS)]].concat();
        for form in [Form::Skinny, Form::Gemm] {
            let out = case.run(&device(2), form, (&padded, OUTPUTS - BLOCK_ROWS), storage, 0, 3);
            for (part, all) in out.chunks(OUTPUTS - BLOCK_ROWS).zip(&all) {
                assert_eq!(bits(part), all[BLOCK_ROWS..], "{of}, {form:?}");
            }
        }
    }
}

/// A weight that is NaN makes its output NaN for every token, whatever its input is, and no other output.
#[test]
fn a_weight_that_is_nan_makes_its_output_nan() {
    const ROW: usize = 21;
    // Ones and zeros in turn: a NaN meets either.
    let case = Case { format: FORMATS[0], x: [0x3f80, 0].repeat(3 * INPUTS / 2) };
    for (of, column, code) in [(fp8(128), 130, 0x7f), (fp8(INPUTS), 767, 0xff), (fp8(48), 0, 0x7f)] {
        let bytes = stored(of, OUTPUTS, INPUTS, 9);
        let mut broken = bytes.clone();
        let row_bytes = of.row_bytes(INPUTS).unwrap();
        broken[(ROW + 1) * row_bytes - INPUTS + column] = code;
        let run = |bytes: &[u8], form| {
            let matrix = Matrix::new(of, OUTPUTS, INPUTS, bytes);
            let (storage, coding) = storage(&matrix);
            case.run(&device(1), form, (&packed(&matrix, coding), OUTPUTS), storage, 0, 3)
        };
        for form in [Form::Skinny, Form::Gemm] {
            let (whole, found) = (run(&bytes, form), run(&broken, form));
            for (at, (found, whole)) in found.iter().zip(&whole).enumerate() {
                let is_broken = at % OUTPUTS == ROW;
                assert_eq!(found.is_nan(), is_broken, "{of}, {form:?}, output {at}");
                assert!(is_broken || found.to_bits() == whole.to_bits(), "{of}, {form:?}, output {at}");
            }
        }
    }
}

fn narrowed(format: Format, x: f32) -> u16 {
    match format {
        Format::Bf16 => bf16::from_f32(x).to_bits(),
        Format::F16 => f16::from_f32(x).to_bits(),
    }
}

/// A row of the table is the row dequantised as the processor does, to the bit.
#[test]
fn embeddings_are_dequantised_to_the_bit() {
    let ids = [5u32, 39, 0, 17].to_vec();
    for (index, of) in formats().into_iter().enumerate() {
        let format = FORMATS[index % 2];
        let bytes = stored(of, 40, INPUTS, 7);
        let matrix = Matrix::new(of, 40, INPUTS, &bytes);
        let (storage, coding) = storage(&matrix);
        let (table, norm) = (packed(&matrix, coding), Noise::new(8).floats(INPUTS, 2.0));
        let mut residual = vec![f32::NAN; ids.len() * INPUTS];
        let mut operand = vec![0u16; ids.len() * INPUTS];
        let mut squares = vec![f32::NAN; ids.len() * INPUTS / 32];
        let arguments = Embedding {
            ids: from(&ids),
            table: from(&table),
            form: TableForm::Packed(storage).word(),
            hidden: INPUTS as i32,
            residual: to(&mut residual),
            norm: from(&norm),
            operand: to(&mut operand),
            stride: INPUTS as i32,
            padding: 0,
            squares: to(&mut squares),
        };
        // SAFETY: buffers of the sizes that cuda/embedding.cu states.
        unsafe { per_token(&device(1), "embedding", format, ids.len(), &arguments) }.unwrap();
        for (token, &id) in ids.iter().enumerate() {
            let mut row = vec![0.0; INPUTS];
            matrix.dequantise_row(id as usize, &mut row);
            assert_eq!(bits(&residual[token * INPUTS..][..INPUTS]), bits(&row), "{of}, token {token}");
            let scaled: Vec<u16> = row.iter().zip(&norm).map(|(x, n)| narrowed(format, x * n)).collect();
            assert_eq!(operand[token * INPUTS..][..INPUTS], scaled, "{of}, token {token}");
        }
    }
}
