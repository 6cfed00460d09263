//! What a round is worth where reading weights is what costs: a draft step costs `r` plain steps,
//! and a round with `k` drafts, each accepted with chance `α`, emits `(1 - α^{k+1}) / (1 - α)` tokens
//! for the price of `1 + k·r` steps.

use super::{ExitWeights, LayerWeights, ModelWeights};

/// Bytes of one decoder layer's tensors.
pub fn layer_bytes(layer: &LayerWeights<'_>) -> u64 {
    let matrices = [layer.q, layer.k, layer.v, layer.o, layer.gate, layer.up, layer.down];
    let vectors = [
        Some(layer.input_norm),
        Some(layer.post_norm),
        layer.q_bias,
        layer.k_bias,
        layer.v_bias,
        layer.o_bias,
        layer.q_norm,
        layer.k_norm,
        layer.gate_bias,
        layer.up_bias,
        layer.down_bias,
    ];
    let matrices: usize = matrices.iter().map(|matrix| matrix.bytes.len()).sum();
    let vectors: usize = vectors.iter().flatten().map(|vector| vector.bytes.len()).sum();
    (matrices + vectors) as u64
}

/// `r`: bytes that a draft step reads (layers before the exit, the exit layer, its head) over those
/// of a plain step (all layers, the head).
pub fn draft_ratio(model: &ModelWeights<'_>, exit: &ExitWeights<'_>) -> f64 {
    let layers = |layers: &[LayerWeights<'_>]| layers.iter().map(layer_bytes).sum::<u64>();
    let exit_head = exit.head.unwrap_or(model.head).bytes.len() as u64;
    let draft = layers(&model.layers[..exit.after]) + layer_bytes(&exit.layer) + exit_head;
    let plain = layers(&model.layers) + model.head.bytes.len() as u64;
    draft as f64 / plain as f64
}

/// Tokens that a round with `k` drafts emits on average, each accepted with chance `alpha`.
pub fn tokens_per_round(alpha: f64, k: usize) -> f64 {
    (0..=k).map(|i| alpha.powi(i as i32)).sum()
}

/// Speed against plain decoding with `k` drafts a round.
pub fn speed_up(r: f64, alpha: f64, k: usize) -> f64 {
    tokens_per_round(alpha, k) / (1.0 + k as f64 * r)
}

/// The draft length up to `most` that gains most, and its speed-up; 0 where drafting does not pay.
pub fn best(r: f64, alpha: f64, most: usize) -> (usize, f64) {
    let speeds = (0..=most).map(|k| (k, speed_up(r, alpha, k)));
    speeds.reduce(|best, next| if next.1 > best.1 { next } else { best }).unwrap_or((0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Best fixed draft lengths by the closed form, for r = 0.11.
    #[test]
    fn best_draft_length() {
        let best_k = |alpha| best(0.11, alpha, 16).0;
        assert_eq!([best_k(0.6), best_k(0.8), best_k(0.9)], [3, 6, 9]);
        assert_eq!(best(0.5, 0.3, 16), (0, 1.0));
    }

    #[test]
    fn tokens_by_the_closed_form() {
        let (alpha, k) = (0.8f64, 5);
        let closed = (1.0 - alpha.powi(k + 1)) / (1.0 - alpha);
        assert!((tokens_per_round(alpha, 5) - closed).abs() < 1e-12);
    }
}
