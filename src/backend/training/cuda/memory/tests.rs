//! Memory of blocks as large as real ones.

use super::*;
use crate::backend::training::parameters::{Linear, Slot};
use crate::model::{Rope, RopeScaling};

/// Of Llama's 7B, without weights.
fn subject(kind: Head) -> (Geometry, Layout) {
    let geometry = Geometry {
        family: "llama".into(),
        vocab_size: 32_000,
        hidden_size: 4096,
        intermediate_size: 11_008,
        layers: 32,
        heads: 32,
        kv_heads: 32,
        head_dim: 128,
        rms_norm_eps: 1e-5,
        rope: Rope { theta: 1e4, scaling: RopeScaling::Default },
        windows: vec![None; 32],
        max_positions: 4096,
        qk_norm: false,
        tied_head: false,
    };
    let mut end = 0;
    let mut slot = |rows: usize, columns: usize| {
        let start = end;
        end += rows * columns;
        Slot { shape: [rows, columns], range: start..end }
    };
    let (hidden, mlp) = (geometry.hidden_size, geometry.intermediate_size);
    let mut linear = |rows, columns| Linear { weight: slot(rows, columns), bias: None };
    let [q, k, v, o] = [(); 4].map(|()| linear(hidden, hidden));
    let (gate, up, down) = (linear(mlp, hidden), linear(mlp, hidden), linear(hidden, mlp));
    let [input_norm, post_norm, norm] = [(); 3].map(|()| slot(1, hidden));
    let head = slot(geometry.vocab_size, hidden);
    let (q_norm, k_norm) = (None, None);
    let draft_ids = None;
    let layout = Layout {
        input: None,
        recurrent: None,
        input_norm,
        q,
        k,
        v,
        q_norm,
        k_norm,
        o,
        post_norm,
        gate,
        up,
        down,
        norm,
        head,
        draft_ids,
        kind,
        after: 2,
    };
    (geometry, layout)
}

fn options(operands: Operands) -> CudaStudentOptions {
    let logits = CudaStudentOptions::LOGITS;
    CudaStudentOptions { window: 512, rows: 4096, steps: 1, memory_fraction: 0.9, operands, logits }
}

/// Bytes of parameters and of a workspace, both laid out.
fn bytes(kind: Head, operands: Operands) -> [usize; 2] {
    let ((geometry, layout), options) = (subject(kind), options(operands));
    let parameters = Parameters::plan(Arena::NOWHERE, &layout, &geometry, &options).1;
    [parameters, Workspace::plan(Arena::NOWHERE, &layout, &geometry, &options, 32 << 20).1]
}

#[test]
fn memory_is_what_the_readme_says() {
    let tenths = |bytes: usize| (bytes as f64 / 1e8).round() / 10.0;
    let trained = bytes(Head::Trained, Operands::Bf16);
    assert_eq!(trained.map(tenths), [6.3, 2.4]);
    assert_eq!(tenths(bytes(Head::Frozen, Operands::Bf16).iter().sum()), 7.0);
    // Without copies a value is 16 bytes, and there is no second array of any operand.
    let wide = bytes(Head::Trained, Operands::F32);
    assert_eq!(tenths(wide[0]), 5.9);
    assert!(wide[1] < trained[1]);
}
