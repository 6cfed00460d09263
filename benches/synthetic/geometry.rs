//! The shape of a Llama.

use eesd::model::{Geometry, Rope, RopeScaling};

/// One with so many tokens, of this width and MLP, with so many layers; heads, key/value heads and the width of a head.
pub fn llama(
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    layers: usize,
    (heads, kv_heads, head_dim): (usize, usize, usize),
) -> Geometry {
    Geometry {
        family: "llama".to_owned(),
        vocab_size,
        hidden_size,
        intermediate_size,
        layers,
        heads,
        kv_heads,
        head_dim,
        rms_norm_eps: 1e-5,
        rope: Rope { theta: 10_000.0, scaling: RopeScaling::Default },
        windows: vec![None; layers],
        max_positions: 32_768,
        qk_norm: false,
        tied_head: false,
    }
}
