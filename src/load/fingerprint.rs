//! Tells whether an exit block was trained for this model.

use crate::model::{Format, Geometry, RopeScaling};
use std::collections::BTreeMap;
use std::fmt::Write;

/// 32 hexadecimal digits over what an exit block depends on: the geometry, and every tensor's name,
/// shape and number format. Not over the weights' values, which would mean reading the whole model;
/// nor over `max_positions`, which people change to use a model differently.
///
/// The text that is hashed is part of the exit block format: changing it orphans every block.
pub(super) fn fingerprint(
    geometry: &Geometry,
    plan: &BTreeMap<String, Vec<usize>>,
    formats: &BTreeMap<String, Format>,
) -> String {
    let Geometry { family, vocab_size, hidden_size, intermediate_size, layers, .. } = geometry;
    let Geometry { heads, kv_heads, head_dim, rms_norm_eps, rope, windows, qk_norm, tied_head, .. } = geometry;
    let mut text = format!(
        "family {family}\nvocab {vocab_size}\nhidden {hidden_size}\nmlp {intermediate_size}\nlayers {layers}\n\
         heads {heads} {kv_heads} {head_dim}\neps {rms_norm_eps:e}\ntheta {:e}\nrope {}\n\
         qk_norm {qk_norm}\ntied {tied_head}\n",
        rope.theta,
        scaling(&rope.scaling),
    );
    for window in windows {
        // Writing to a `String` cannot fail.
        let _ = writeln!(text, "window {}", window.unwrap_or(0));
    }
    for ((name, shape), format) in plan.iter().zip(formats.values()) {
        let _ = writeln!(text, "tensor {name} {shape:?} {format}");
    }
    format!("{:032x}", fnv1a(text.as_bytes()))
}

fn scaling(scaling: &RopeScaling) -> String {
    match scaling {
        RopeScaling::Default => "default".into(),
        RopeScaling::Linear { factor } => format!("linear {factor:e}"),
        RopeScaling::Dynamic { factor, original_max_positions } => {
            format!("dynamic {factor:e} {original_max_positions}")
        }
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions } => {
            format!("llama3 {factor:e} {low_freq_factor:e} {high_freq_factor:e} {original_max_positions}")
        }
        RopeScaling::Yarn {
            factor,
            beta_fast,
            beta_slow,
            attention_factor,
            truncate,
            original_max_positions,
            // Six digits: its logarithm may differ in the last bit from one system to the next.
        } => format!(
            "yarn {factor:e} {beta_fast:e} {beta_slow:e} {attention_factor:.6e} {truncate} {original_max_positions}"
        ),
        RopeScaling::Divisors(divisors) => {
            divisors.iter().fold("divisors".into(), |text, divisor| format!("{text} {divisor:e}"))
        }
    }
}

/// FNV-1a with 128 bits (Fowler, Noll, Vo): enough against mix-ups, which is all this is for.
pub(crate) fn fnv1a(bytes: &[u8]) -> u128 {
    const OFFSET: u128 = 0x6c62272e07bb014262b821756295c58d;
    const PRIME: u128 = 0x0000000001000000000000000000013b;
    bytes.iter().fold(OFFSET, |hash, &byte| (hash ^ u128::from(byte)).wrapping_mul(PRIME))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fnv1a_of_published_test_vectors() {
        assert_eq!(fnv1a(b""), 0x6c62272e07bb014262b821756295c58d);
        assert_eq!(fnv1a(b"a"), 0xd228cb696f1a8caf78912b704e4a8964);
        assert_eq!(fnv1a(b"foobar"), 0x343e1662793c64bf6f0d3597ba446f18);
    }
}
