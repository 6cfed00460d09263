//! Small exit blocks of every kind, with weights of their own, and a batch for each. Shared by the trainer's own tests
//! and those of its CUDA device.

use eesd::backend::training::loss::LossOptions;
use eesd::backend::training::parameters::{Head, Layout};
use eesd::backend::training::{Position, States, Targets, TeacherBatch};
use eesd::model::{Dtype, ExitWeights, Geometry, LayerWeights, Matrix, ModelWeights, Rope, RopeScaling, Vector};
use eesd::sample::{Philox, Purpose};

/// Numbers uniform in (-1, 1) times `scale`, the same for a seed.
pub fn noise(seed: u64, len: usize, scale: f64) -> Vec<f32> {
    let value = |i| (scale * (2.0 * Philox::new(seed, i, Purpose::Controller, 0).uniform() - 1.0)) as f32;
    (0..len).map(value).collect()
}

/// Leaks, as tests may: views of weights borrow.
fn bytes(seed: u64, len: usize, offset: f32, scale: f64) -> &'static [u8] {
    let values = noise(seed, len, scale).into_iter().flat_map(|x| (x + offset).to_le_bytes());
    values.collect::<Vec<u8>>().leak()
}

fn matrix(seed: u64, rows: usize, cols: usize) -> Matrix<'static> {
    let scale = 1.5 / (cols as f64).sqrt();
    Matrix::new(Dtype::F32, rows, cols, bytes(seed, rows * cols, 0.0, scale))
}

fn vector(seed: u64, len: usize, offset: f32) -> Vector<'static> {
    Vector { dtype: Dtype::F32, len, bytes: bytes(seed, len, offset, 0.3) }
}

/// Widths of a block.
#[derive(Clone, Copy)]
pub struct Sizes {
    pub vocab: usize,
    pub hidden: usize,
    pub mlp: usize,
    pub head_dim: usize,
}

/// A block, and a batch for it.
#[derive(Clone)]
pub struct Case {
    pub geometry: Geometry,
    pub biases: bool,
    pub head: Head,
    /// How many tokens to draft: the first ones, or a list of every other one.
    pub draft_vocab: usize,
    pub listed: bool,
    /// With a matrix for what it reads, and one for what it reads in chains of so many steps.
    pub input: bool,
    pub steps: usize,
    /// Its batch has the teacher's last hidden states, and no logits.
    pub states: bool,
    pub lengths: Vec<usize>,
    pub loss: LossOptions,
}

impl Case {
    /// A plain block, the whole of whose head is trained.
    pub fn sized(sizes: Sizes, heads: (usize, usize), window: Option<usize>, lengths: &[usize]) -> Self {
        let Sizes { vocab, hidden, mlp, head_dim } = sizes;
        let geometry = Geometry {
            family: "llama".into(),
            vocab_size: vocab,
            hidden_size: hidden,
            intermediate_size: mlp,
            layers: 3,
            heads: heads.0,
            kv_heads: heads.1,
            head_dim,
            rms_norm_eps: 1e-5,
            rope: Rope { theta: 100.0, scaling: RopeScaling::Default },
            windows: vec![window; 3],
            max_positions: 512,
            qk_norm: false,
            tied_head: false,
        };
        let loss = LossOptions::default();
        Self {
            geometry,
            biases: false,
            head: Head::Trained,
            draft_vocab: vocab,
            listed: false,
            input: false,
            steps: 1,
            states: false,
            lengths: lengths.to_vec(),
            loss,
        }
    }

    /// The model that it is for.
    pub fn model(&self) -> ModelWeights<'static> {
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
        ModelWeights { embed: head, layers: vec![layer; g.layers], norm, head }
    }

    /// Its places and parameters.
    pub fn layout(&self) -> (Layout, Vec<f32>) {
        let (g, model) = (&self.geometry, self.model());
        let input = self.input.then(|| matrix(21, g.hidden_size, g.hidden_size));
        let recurrent = (self.steps > 1).then(|| matrix(22, g.hidden_size, 2 * g.hidden_size));
        let exit = ExitWeights { input, recurrent, ..ExitWeights::from_model(&model, 1, 0) };
        exit.check(g).unwrap();
        let token = |column: u32| if self.listed { 2 * column + 1 } else { column };
        let ids: Vec<u32> = (0..self.draft_vocab as u32).map(token).collect();
        Layout::new(&exit, &model, self.head, (self.head != Head::Shared).then_some(&ids)).unwrap()
    }

    /// What a teacher says of segments of these lengths.
    pub fn batch(&self) -> TeacherBatch {
        let rows: usize = self.lengths.iter().sum();
        // Not every row counts, nor do those that do count alike.
        let scored: Vec<Position> = (0..rows)
            .filter(|row| row % 4 != 1)
            .map(|row| Position {
                row,
                token: (row * 5 % self.geometry.vocab_size) as u32,
                weight: 0.5 + row as f64 % 3.0,
            })
            .collect();
        let Geometry { vocab_size, hidden_size, .. } = self.geometry;
        let positions = scored.len();
        let targets = if self.states {
            Targets::States(States {
                last: noise(33, positions * hidden_size, 3.0),
                log_totals: noise(34, positions, 1.0).into_iter().map(|x| x + 4.0).collect(),
                likeliest: (0..positions).map(|position| (position * 3 % vocab_size) as u32).collect(),
                vocab: vocab_size,
            })
        } else {
            Targets::Logits(noise(32, positions * vocab_size, 3.0))
        };
        TeacherBatch {
            tokens: (0..rows).map(|row| (row * 7 % vocab_size) as u32).collect(),
            hidden: noise(31, rows * hidden_size, 2.0),
            lengths: self.lengths.clone(),
            scored,
            targets,
        }
    }
}
