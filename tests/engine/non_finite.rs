//! Numbers that are not finite, on the processor.

use super::common::non_finite::{self, Make};
use eesd::TokenId;
use eesd::backend::cpu::{CpuBackend, CpuOptions, KvFormat};
use eesd::backend::{Backend, BackendError, Chunk};
use eesd::kv::PageId;
use eesd::model::{Dtype, Geometry, LayerWeights, Matrix, ModelWeights, Rope, RopeScaling, Vector};
use eesd::sample::{Philox, Purpose};

fn on(threads: usize, test: fn(Make<'_>)) {
    let options = CpuOptions { threads: Some(threads), slots: 3, context: 256, max_draft: 4, ..CpuOptions::default() };
    test(&|geometry, weights, exit| CpuBackend::new(geometry, weights, Some(exit), &options).unwrap());
}

#[test]
fn a_prompt_that_is_not_finite_fails_alone() {
    on(2, non_finite::a_prompt_that_is_not_finite_fails_alone);
}

#[test]
fn a_refused_draft_that_is_not_finite_changes_nothing() {
    on(2, non_finite::a_refused_draft_that_is_not_finite_changes_nothing);
}

#[test]
fn a_broken_proposal_is_known_until_another_takes_its_place() {
    on(2, non_finite::a_broken_proposal_is_known_until_another_takes_its_place);
}

#[test]
fn an_answer_goes_as_far_as_its_numbers_are_finite() {
    on(1, non_finite::an_answer_goes_as_far_as_its_numbers_are_finite);
}

/// No width fills whole vectors; token 7 has an infinite embedding.
fn odd_model(kv: KvFormat) -> Box<dyn Backend> {
    let geometry = Geometry {
        family: "llama".into(),
        vocab_size: 50,
        hidden_size: 40,
        intermediate_size: 24,
        layers: 2,
        heads: 2,
        kv_heads: 1,
        head_dim: 10,
        rms_norm_eps: 1e-5,
        rope: Rope { theta: 100.0, scaling: RopeScaling::Default },
        windows: vec![None; 2],
        max_positions: 64,
        qk_norm: false,
        tied_head: false,
    };
    let noise = |seed: u64, len: usize| -> Vec<f32> {
        (0..len).map(|i| Philox::new(seed, i, Purpose::Controller, 0).uniform() as f32 - 0.5).collect()
    };
    // Leaks, as tests may: views of weights borrow.
    let bytes = |numbers: Vec<f32>| -> &'static [u8] {
        numbers.into_iter().flat_map(f32::to_le_bytes).collect::<Vec<_>>().leak()
    };
    let matrix = |seed, rows, cols| Matrix::new(Dtype::F32, rows, cols, bytes(noise(seed, rows * cols)));
    let norm = Vector { dtype: Dtype::F32, len: 40, bytes: bytes(vec![1.0; 40]) };
    let layer = LayerWeights {
        input_norm: norm,
        q: matrix(1, 20, 40),
        k: matrix(2, 10, 40),
        v: matrix(3, 10, 40),
        o: matrix(4, 40, 20),
        q_bias: None,
        k_bias: None,
        v_bias: None,
        o_bias: None,
        q_norm: None,
        k_norm: None,
        post_norm: norm,
        gate: matrix(5, 24, 40),
        up: matrix(6, 24, 40),
        down: matrix(7, 40, 24),
        gate_bias: None,
        up_bias: None,
        down_bias: None,
    };
    let mut embedding = noise(8, 50 * 40);
    embedding[7 * 40..8 * 40].fill(f32::INFINITY);
    let embed = Matrix::new(Dtype::F32, 50, 40, bytes(embedding));
    let weights = ModelWeights { embed, layers: vec![layer; 2], norm, head: matrix(9, 50, 40) };
    let options = CpuOptions { threads: Some(2), context: 64, kv, pages: Some(2), ..CpuOptions::default() };
    CpuBackend::new(&geometry, &weights, None, &options).unwrap()
}

/// Heads of 10 numbers take room for 16: what a page is reckoned at is what it takes.
#[test]
fn a_page_takes_the_bytes_it_is_reckoned_at() {
    // K and V of two layers and the exit layer, one head; in 8 bits a scale of each besides.
    for (kv, of_token) in [(KvFormat::Full, 16 * 4), (KvFormat::Eight, 16 + 4)] {
        let mut backend = odd_model(kv);
        let reckoned = CpuBackend::page_bytes(backend.geometry(), kv);
        assert_eq!(reckoned, 64 * 2 * 3 * of_token);
        assert_eq!(backend.save_pages(&[PageId(0)]).unwrap().bytes().len(), reckoned);
    }
}

/// What a request leaves in the buffers that passes work in is not there for the next one.
#[test]
fn rows_of_a_pass_keep_nothing_of_the_pass_before() {
    let logits = |backend: &mut dyn Backend| {
        let tokens: Vec<TokenId> = (10..40).collect();
        let chunk = Chunk { pages: &[PageId(0)], start: 0, tokens: &tokens };
        let logits = backend.evaluate(&chunk, 1).unwrap().logits;
        logits.iter().map(|logit| logit.to_bits()).collect::<Vec<_>>()
    };
    let expected = logits(&mut *odd_model(KvFormat::Full));
    let mut backend = odd_model(KvFormat::Full);
    let broken = Chunk { pages: &[PageId(1)], start: 0, tokens: &[1, 7, 2, 7, 7] };
    assert_eq!(backend.evaluate(&broken, 1).unwrap_err(), BackendError::NonFinite { position: 1 });
    assert_eq!(logits(&mut *backend), expected);
    backend.prefill(&[broken]).unwrap();
    assert_eq!(backend.first_non_finite(&[PageId(1)], 0..5), Some(1));
    assert_eq!(logits(&mut *backend), expected);
}
