//! Small blocks of every kind, a batch for each, and students of them.

use crate::tested_gpu::tested_gpu;
use eesd::backend::cuda::driver::Driver;
use eesd::backend::cuda::emulator::{EmulatedDevice, Emulator};
use eesd::backend::cuda::gpu::Gpu;
use eesd::backend::training::adamw::AdamStep;
use eesd::backend::training::cuda::{CudaStudent, CudaStudentOptions, Operands};
use eesd::backend::training::loss::LossOptions;
use eesd::backend::training::parameters::{Head, Layout};
use eesd::backend::training::{CpuStudent, Position, Student, TeacherBatch};
use eesd::model::{Dtype, ExitWeights, Geometry, LayerWeights, Matrix, ModelWeights, Rope, RopeScaling, Vector};
use std::sync::Arc;

/// Numbers roughly uniform in (-1, 1) times `scale`, the same for a seed.
pub fn noise(seed: u64, len: usize, scale: f64) -> Vec<f32> {
    let value = |i: u64| {
        // SplitMix64.
        let z = (seed << 40).wrapping_add(i + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let z = (z ^ z >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        let unit = ((z ^ z >> 31) >> 11) as f64 / (1u64 << 52) as f64 - 1.0;
        (unit * scale) as f32
    };
    (0..len as u64).map(value).collect()
}

/// Leaks, as tests may: views of weights borrow.
fn bytes(seed: u64, len: usize, offset: f32, scale: f64) -> &'static [u8] {
    noise(seed, len, scale).into_iter().flat_map(|x| (x + offset).to_le_bytes()).collect::<Vec<u8>>().leak()
}

fn matrix(seed: u64, rows: usize, cols: usize) -> Matrix<'static> {
    Matrix { dtype: Dtype::F32, rows, cols, bytes: bytes(seed, rows * cols, 0.0, 1.5 / (cols as f64).sqrt()) }
}

fn vector(seed: u64, len: usize, offset: f32) -> Vector<'static> {
    Vector { dtype: Dtype::F32, len, bytes: bytes(seed, len, offset, 0.3) }
}

/// Most tokens of a segment, and of a batch.
pub const WINDOW: usize = 64;
pub const ROWS: usize = 128;

#[derive(Clone)]
pub struct Case {
    pub geometry: Geometry,
    pub biases: bool,
    pub head: Head,
    pub draft_vocab: usize,
    pub lengths: Vec<usize>,
    pub loss: LossOptions,
}

impl Case {
    pub fn new(heads: (usize, usize), window: Option<usize>, lengths: &[usize]) -> Self {
        let geometry = Geometry {
            family: "llama".into(),
            vocab_size: 90,
            hidden_size: 40,
            intermediate_size: 56,
            layers: 3,
            heads: heads.0,
            kv_heads: heads.1,
            head_dim: 32,
            rms_norm_eps: 1e-5,
            rope: Rope { theta: 100.0, scaling: RopeScaling::Default },
            windows: vec![window; 3],
            max_positions: 512,
            qk_norm: false,
            tied_head: false,
        };
        let loss = LossOptions::default();
        Self { geometry, biases: false, head: Head::Trained, draft_vocab: 90, lengths: lengths.to_vec(), loss }
    }

    pub fn layout(&self) -> (Layout, Vec<f32>) {
        let g = &self.geometry;
        let bias = |seed, len| self.biases.then(|| vector(seed, len, 0.0));
        let head_norm = |seed| g.qk_norm.then(|| vector(seed, g.head_dim, 1.0));
        let layer = LayerWeights {
            input_norm: vector(1, g.hidden_size, 1.0),
            q: matrix(2, g.q_size(), g.hidden_size),
            k: matrix(3, g.kv_size(), g.hidden_size),
            v: matrix(4, g.kv_size(), g.hidden_size),
            o: matrix(5, g.hidden_size, g.q_size()),
            q_bias: bias(6, g.q_size()),
            k_bias: bias(7, g.kv_size()),
            v_bias: bias(8, g.kv_size()),
            o_bias: bias(9, g.hidden_size),
            q_norm: head_norm(10),
            k_norm: head_norm(11),
            post_norm: vector(12, g.hidden_size, 1.0),
            gate: matrix(13, g.intermediate_size, g.hidden_size),
            up: matrix(14, g.intermediate_size, g.hidden_size),
            down: matrix(15, g.hidden_size, g.intermediate_size),
            gate_bias: bias(16, g.intermediate_size),
            up_bias: bias(17, g.intermediate_size),
            down_bias: bias(18, g.hidden_size),
        };
        let head = matrix(19, g.vocab_size, g.hidden_size);
        let norm = vector(20, g.hidden_size, 1.0);
        let model = ModelWeights { embed: head, layers: vec![layer; g.layers], norm, head };
        let exit = ExitWeights { after: 1, layer, norm, head: None };
        exit.check(g).unwrap();
        Layout::new(&exit, &model, self.head, Some(self.draft_vocab)).unwrap()
    }

    pub fn batch(&self) -> TeacherBatch {
        let rows: usize = self.lengths.iter().sum();
        let vocab = self.geometry.vocab_size;
        // Not every row counts, nor do those that do count alike.
        let weigh = |row: usize| Position { row, token: (row * 7 % vocab) as u32, weight: 0.5 + row as f64 % 3.0 };
        let scored: Vec<Position> = (0..rows).filter(|row| row % 4 != 1).map(weigh).collect();
        TeacherBatch {
            hidden: noise(31, rows * self.geometry.hidden_size, 2.0),
            logits: noise(32, scored.len() * vocab, 3.0),
            lengths: self.lengths.clone(),
            scored,
        }
    }

    pub fn cpu(&self) -> CpuStudent {
        let (layout, values) = self.layout();
        CpuStudent::new(&self.geometry, layout, values, WINDOW, Some(1)).unwrap()
    }

    /// On the device to be tested, with the teacher's logits of so many positions at a time.
    pub fn in_pieces(&self, positions: usize) -> Box<dyn Student> {
        fn made<D: Driver>(case: &Case, driver: Arc<D>, options: CudaStudentOptions) -> Box<dyn Student> {
            let (layout, values) = case.layout();
            Box::new(CudaStudent::new(driver, &case.geometry, layout, values, options).unwrap())
        }
        let logits = positions * self.geometry.vocab_size;
        let options = CudaStudentOptions { logits, ..options(Operands::F32) };
        match tested_gpu() {
            Some(number) => made(self, Arc::new(Gpu::open(number).unwrap()), options),
            None => made(self, emulated(1), options),
        }
    }

    /// On the device to be tested; where that is the emulated one, its threads run in an order of their own.
    pub fn cuda(&self, operands: Operands, seed: u64) -> Box<dyn Student> {
        match tested_gpu() {
            Some(number) => Box::new(self.on(&Arc::new(Gpu::open(number).unwrap()), operands)),
            None => Box::new(self.on(&emulated(seed), operands)),
        }
    }

    /// On a device.
    pub fn on<D: Driver>(&self, driver: &Arc<D>, operands: Operands) -> CudaStudent<D> {
        let (layout, values) = self.layout();
        CudaStudent::new(driver.clone(), &self.geometry, layout, values, options(operands)).unwrap()
    }
}

pub fn options(operands: Operands) -> CudaStudentOptions {
    let logits = CudaStudentOptions::LOGITS;
    CudaStudentOptions { window: WINDOW, rows: ROWS, memory_fraction: 0.9, operands, logits }
}

pub fn emulated(seed: u64) -> Arc<EmulatedDevice> {
    Arc::new(EmulatedDevice::new(Emulator::new(seed), 2 << 30))
}

/// Whether the device to be tested has a library of matrix products; a GPU without is said.
pub fn can_multiply() -> bool {
    let Some(number) = tested_gpu() else { return true };
    let library = Gpu::open(number).unwrap().matmul_workspace();
    if let Err(why) = &library {
        println!("left out: {why}");
    }
    library.is_ok()
}

pub fn step(number: u64) -> AdamStep {
    AdamStep { number, rate: 5e-3, beta1: 0.9, beta2: 0.99, epsilon: 1e-8, decay: 0.01, clip: 1.0 }
}

pub fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

/// Root of the mean square of what two differ by, over that of the second.
pub fn difference(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let squares = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>();
    let between = squares(&mut found.iter().zip(expected).map(|(&a, &b)| f64::from(a) - f64::from(b)));
    (between / squares(&mut expected.iter().map(|&x| f64::from(x)))).sqrt()
}
