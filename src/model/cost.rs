//! What a round is worth where reading weights is what costs: a draft step costs `r` plain steps,
//! and a round with `k` drafts, each accepted with chance `α`, emits `(1 - α^{k+1}) / (1 - α)` tokens
//! for the price of `1 + k·r` steps. Of a recurrent exit block all drafts of a round but the first cost less.

use super::{ExitWeights, LayerWeights, Matrix, ModelWeights};

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

/// What the draft steps of a round cost, in plain steps.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DraftCosts {
    /// `r` of the first one.
    pub first: f64,
    /// Of each after it.
    pub later: f64,
}

impl From<f64> for DraftCosts {
    /// All alike.
    fn from(r: f64) -> Self {
        Self { first: r, later: r }
    }
}

impl DraftCosts {
    /// By the bytes that they read: layers before the exit, the exit layer and its matrices, its head. A recurrent block's
    /// go without the model's layers, but the first one makes the block's state at the row before it. Those of a plain step
    /// are all layers and the head.
    pub fn of(model: &ModelWeights<'_>, exit: &ExitWeights<'_>) -> Self {
        let layers = |layers: &[LayerWeights<'_>]| layers.iter().map(layer_bytes).sum::<u64>();
        let bytes = |matrix: Matrix<'_>| matrix.bytes.len() as u64;
        let (layer, head) = (layer_bytes(&exit.layer), bytes(exit.head.unwrap_or(model.head)));
        let begun = exit.input.map_or(0, bytes) + layer;
        let (first, later) = match exit.recurrent.map(bytes) {
            None => {
                let all = layers(&model.layers[..exit.after]) + begun + head;
                (all, all)
            }
            Some(recurrent) => (begun + recurrent + layer + head, recurrent + layer + head),
        };
        let plain = (layers(&model.layers) + bytes(model.head)) as f64;
        Self { first: first as f64 / plain, later: later as f64 / plain }
    }

    /// Of so many drafts.
    pub fn sum(self, drafts: usize) -> f64 {
        if drafts == 0 { 0.0 } else { self.first + (drafts - 1) as f64 * self.later }
    }
}

/// Tokens that a round with `k` drafts emits on average, each accepted with chance `alpha`.
pub fn tokens_per_round(alpha: f64, k: usize) -> f64 {
    (0..=k).map(|i| alpha.powi(i as i32)).sum()
}

/// Speed against plain decoding with `k` drafts a round.
pub fn speed_up(r: impl Into<DraftCosts>, alpha: f64, k: usize) -> f64 {
    tokens_per_round(alpha, k) / (1.0 + r.into().sum(k))
}

/// The draft length up to `most` that gains most, and its speed-up; 0 where drafting does not pay.
pub fn best(r: impl Into<DraftCosts>, alpha: f64, most: usize) -> (usize, f64) {
    let r = r.into();
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
        // A first draft that does not pay for itself pays for those after it.
        let (k, speed) = best(DraftCosts { first: 0.8, later: 0.05 }, 0.7, 16);
        assert!(k > 4 && speed > 1.3, "{speed} with {k}");
        assert_eq!(speed_up(DraftCosts { first: 0.8, later: 0.1 }, 1.0, 3), 2.0);
    }

    #[test]
    fn tokens_by_the_closed_form() {
        let (alpha, k) = (0.8f64, 5);
        let closed = (1.0 - alpha.powi(k + 1)) / (1.0 - alpha);
        assert!((tokens_per_round(alpha, 5) - closed).abs() < 1e-12);
    }
}
