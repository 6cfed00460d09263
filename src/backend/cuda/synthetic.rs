//! Models of any geometry with random weights, made on the device: nothing to load, and nothing of it is
//! ever on the host. For measuring the engine; what such a model writes means nothing.
//!
//! All norms are one, and every projection keeps the variance of its input, so that residual stream and
//! logits have the sizes of a trained model's. Weights are made in the order in which kernels read them, padding
//! included: what meets padded columns is zero, and padded rows are not read.

use super::driver::Driver;
use super::kernels::{Address, Format, RandomWeights, TableForm, random_weights};
use super::upload::{self, Cargo};
use super::weights::{Layer, Packed};
use super::{CudaBackend, CudaOptions};
use crate::backend::{Backend, BackendError};
use crate::control::Way;
use crate::model::{Dtype, ExitWeights, Geometry, LayerWeights, Matrix, ModelWeights, Vector};
use std::sync::Arc;

/// Standard deviation of the logits: the likeliest of 32,000 tokens then has a probability anywhere
/// between 0.1 and 0.9.
const LOGITS: f32 = 6.0;
/// Bytes of a weight.
const ELEMENT: usize = 2;
/// Elements that `random_weights` makes at a time.
const UNIT: u64 = 8;

impl<D: Driver> CudaBackend<D> {
    /// A bf16 model with random weights, the same ones every time.
    ///
    /// The layers from `exit_after` on write `tail_scale` times as much to the residual stream as they would,
    /// and the exit block is a copy of the first of them, with the model's own norm and head. At 0 it drafts
    /// what the model writes; the greater the scale, the more it misses.
    ///
    /// # Errors
    /// If there is too little memory, the kernels do not compute with this geometry, `exit_after` is not in
    /// `1..layers`, or the device fails.
    pub fn synthetic(
        driver: Arc<D>,
        geometry: &Geometry,
        exit_after: usize,
        tail_scale: f32,
        options: &CudaOptions,
    ) -> Result<Box<dyn Backend>, BackendError> {
        Self::synthetic_drafting(Way::FirstLayers, driver, geometry, exit_after, tail_scale, options)
    }

    /// A [`synthetic`](Self::synthetic) model whose drafts after a round's first are made this way: for recurrent ones its
    /// exit block has a random matrix more.
    ///
    /// # Errors
    /// As there.
    pub fn synthetic_drafting(
        later: Way,
        driver: Arc<D>,
        geometry: &Geometry,
        exit_after: usize,
        tail_scale: f32,
        options: &CudaOptions,
    ) -> Result<Box<dyn Backend>, BackendError> {
        geometry.check().map_err(BackendError::Model)?;
        ExitWeights::check_place(exit_after, geometry).map_err(BackendError::Exit)?;
        let ones: Vec<u8> = 1f32.to_le_bytes().repeat(geometry.hidden_size.max(geometry.head_dim));
        let weights = shapes(geometry, &ones);
        let layer = shape_of_layer(geometry, &ones);
        let hidden = geometry.hidden_size;
        let recurrent = (later == Way::Recurrent).then(|| matrix(hidden, 2 * hidden));
        let (input, norm) = (None, weights.norm);
        let exit = ExitWeights { after: exit_after, input, recurrent, layer, norm, head: None, draft_ids: None };
        let (backend, mut cargo) = Self::reserve(driver, geometry, &weights, Some(&exit), options)?;
        // Of the matrices there are shapes alone.
        cargo.retain(|item| matches!(item, Cargo::Floats { .. }));
        // SAFETY: planned for this memory, which is new and so zero.
        unsafe { upload::upload(&backend.driver, &cargo) }?;
        // SAFETY: nothing else is queued that uses the weights.
        unsafe { backend.make_weights(exit_after, tail_scale) }?;
        backend.driver.wait()?;
        Ok(Box::new(backend))
    }

    /// Fills every matrix.
    ///
    /// # Safety
    /// Nothing that runs at the same time uses the weights.
    unsafe fn make_weights(&self, exit_after: usize, tail_scale: f32) -> Result<(), BackendError> {
        let (geometry, weights) = (&self.model.geometry, &self.model.weights);
        let scale_of = |index: usize| if index < exit_after { 1.0 } else { tail_scale };
        // SAFETY: the addresses are those of the matrices, as long as the plan made them.
        unsafe {
            if weights.embedding_form == TableForm::Rows {
                let elements = (geometry.vocab_size * geometry.hidden_size) as u64;
                self.make(weights.embedding, elements.next_multiple_of(UNIT), EMBEDDING, 1.0)?;
            }
            self.make_matrix(weights.head.matrix, HEAD, LOGITS)?;
            for (index, layer) in weights.layers.iter().enumerate() {
                self.make_layer(layer, index, scale_of(index))?;
            }
            match &weights.exit {
                // The same seeds and scales make the same weights.
                Some(exit) => {
                    exit.recurrent.map_or(Ok(()), |matrix| self.make_matrix(matrix, RECURRENT, 1.0))?;
                    self.make_layer(&exit.layer, exit.after, scale_of(exit.after))
                }
                None => Ok(()),
            }
        }
    }

    /// One layer, as the `like`-th of the model.
    unsafe fn make_layer(&self, layer: &Layer, like: usize, output_scale: f32) -> Result<(), BackendError> {
        let seed = FIRST_LAYER + 4 * like as u64;
        // SAFETY: the caller's promise.
        unsafe {
            for (part, _) in layer.qkv.rows_from(0) {
                self.make_matrix(part, seed, 1.0)?;
            }
            self.make_matrix(layer.o, seed + 1, output_scale)?;
            self.make_matrix(layer.gate_up, seed + 2, 1.0)?;
            self.make_matrix(layer.down, seed + 3, output_scale)
        }
    }

    /// A projection that changes the deviation of its input by `gain`.
    unsafe fn make_matrix(&self, matrix: Packed, seed: u64, gain: f32) -> Result<(), BackendError> {
        let scale = gain / (matrix.inputs as f32).sqrt();
        // SAFETY: the caller's promise.
        unsafe { self.make(matrix.at, (matrix.bytes() / ELEMENT) as u64, seed, scale) }
    }

    unsafe fn make(&self, target: Address, elements: u64, seed: u64, scale: f32) -> Result<(), BackendError> {
        let arguments = RandomWeights { target, seed, elements, scale, padding: 0 };
        // SAFETY: the caller's promise.
        unsafe { random_weights(&*self.driver, Format::Bf16, &arguments) }
    }
}

/// Seeds: one for each matrix, the four of a layer in a row.
const EMBEDDING: u64 = 1;
const HEAD: u64 = 2;
const RECURRENT: u64 = 3;
const FIRST_LAYER: u64 = 16;

/// A model whose matrices have shapes and no contents, and whose norms are one.
fn shapes<'a>(geometry: &Geometry, ones: &'a [u8]) -> ModelWeights<'a> {
    let vocabulary = matrix(geometry.vocab_size, geometry.hidden_size);
    ModelWeights {
        embed: vocabulary,
        layers: vec![shape_of_layer(geometry, ones); geometry.layers],
        norm: norm(ones, geometry.hidden_size),
        head: vocabulary,
    }
}

fn shape_of_layer<'a>(geometry: &Geometry, ones: &'a [u8]) -> LayerWeights<'a> {
    let Geometry { hidden_size: hidden, intermediate_size: mlp, head_dim, qk_norm, .. } = *geometry;
    let (q, kv) = (geometry.q_size(), geometry.kv_size());
    LayerWeights {
        input_norm: norm(ones, hidden),
        q: matrix(q, hidden),
        k: matrix(kv, hidden),
        v: matrix(kv, hidden),
        o: matrix(hidden, q),
        q_bias: None,
        k_bias: None,
        v_bias: None,
        o_bias: None,
        q_norm: qk_norm.then(|| norm(ones, head_dim)),
        k_norm: qk_norm.then(|| norm(ones, head_dim)),
        post_norm: norm(ones, hidden),
        gate: matrix(mlp, hidden),
        up: matrix(mlp, hidden),
        down: matrix(hidden, mlp),
        gate_bias: None,
        up_bias: None,
        down_bias: None,
    }
}

fn matrix(rows: usize, cols: usize) -> Matrix<'static> {
    Matrix::new(Dtype::BF16, rows, cols, &[])
}

fn norm(ones: &[u8], len: usize) -> Vector<'_> {
    Vector { dtype: Dtype::F32, len, bytes: &ones[..len * Dtype::F32.size()] }
}
