//! Models with random weights, made on the device: they draft as well as they were made to, and drafts change no token.

use eesd::backend::cuda::emulator::{EmulatedDevice, Emulator};
use eesd::backend::cuda::{CudaBackend, CudaOptions};
use eesd::backend::{Backend, BackendError};
use eesd::control::{ControllerSpec, Way};
use eesd::engine::{Completion, Engine, Request};
use eesd::model::{Geometry, Rope, RopeScaling};
use std::ops::ControlFlow;
use std::sync::Arc;

/// Odd sizes: rows and columns of padding in every matrix, heads that share keys.
fn tiny() -> Geometry {
    Geometry {
        family: "llama".to_owned(),
        vocab_size: 300,
        hidden_size: 96,
        intermediate_size: 112,
        layers: 4,
        heads: 4,
        kv_heads: 2,
        head_dim: 32,
        rms_norm_eps: 1e-5,
        rope: Rope { theta: 10_000.0, scaling: RopeScaling::Default },
        windows: vec![None; 4],
        max_positions: 128,
        qk_norm: false,
        tied_head: false,
    }
}

fn backend(geometry: &Geometry, tail_scale: f32) -> Box<dyn Backend> {
    let device = Arc::new(EmulatedDevice::new(Emulator::new(3), 1 << 28));
    let options = CudaOptions { context: 64, prefill_rows: 24, ..CudaOptions::default() };
    CudaBackend::synthetic(device, geometry, 2, tail_scale, &options).unwrap()
}

fn answer(geometry: &Geometry, tail_scale: f32, controller: &str) -> Completion {
    let controller = controller.parse::<ControllerSpec>().unwrap().build();
    let mut engine = Engine::new(backend(geometry, tail_scale), controller, None, Vec::new());
    engine.generate(&Request::new(vec![5, 7, 299], 30), &mut |_| ControlFlow::Continue(())).unwrap()
}

#[test]
fn without_a_tail_every_draft_is_kept() {
    for geometry in [tiny(), Geometry { qk_norm: true, tied_head: true, ..tiny() }] {
        let plain = answer(&geometry, 0.0, "off");
        let drafted = answer(&geometry, 0.0, "fixed:3");
        assert_eq!(drafted.tokens, plain.tokens);
        // 30 tokens: seven rounds of four, and one of two, whose drafts past the end are not counted on.
        assert!(drafted.stats.accepted() >= 21, "{} accepted", drafted.stats.accepted());
        assert!(drafted.stats.rounds <= 8, "{} rounds", drafted.stats.rounds);
    }
}

#[test]
fn a_tail_makes_drafts_miss_and_changes_no_token_by_it() {
    let plain = answer(&tiny(), 1.0, "off");
    let drafted = answer(&tiny(), 1.0, "fixed:3");
    assert_eq!(drafted.tokens, plain.tokens);
    assert!(drafted.stats.rounds > 8, "no draft was refused");
    let mut different = plain.tokens.clone();
    different.sort_unstable();
    different.dedup();
    assert!(different.len() > 5, "{:?}", plain.tokens);
}

#[test]
fn a_recurrent_block_drafts_recurrently_and_changes_no_token() {
    let device = Arc::new(EmulatedDevice::new(Emulator::new(3), 1 << 28));
    let options = CudaOptions { context: 64, prefill_rows: 24, ..CudaOptions::default() };
    let way = Way::Recurrent;
    let backend = CudaBackend::synthetic_drafting(way, device.clone(), &tiny(), 2, 1.0, &options).unwrap();
    assert!(backend.is_recurrent());
    let controller = "fixed:3".parse::<ControllerSpec>().unwrap().build();
    let mut engine = Engine::new(backend, controller, None, Vec::new());
    let found = engine.generate(&Request::new(vec![5, 7, 299], 30), &mut |_| ControlFlow::Continue(())).unwrap();
    assert_eq!(found.tokens, answer(&tiny(), 1.0, "off").tokens);
    assert!(device.counts().turns > 0, "no recurrent draft was made in a loop");
}

#[test]
fn an_exit_outside_the_model_is_refused() {
    for after in [0, 4] {
        let device = Arc::new(EmulatedDevice::new(Emulator::new(0), 1 << 28));
        let made = CudaBackend::synthetic(device, &tiny(), after, 0.1, &CudaOptions::default());
        assert!(matches!(made.err(), Some(BackendError::Exit(_))), "after {after}");
    }
}
