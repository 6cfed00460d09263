//! Exit blocks for tests: shipped ones, or made of the model itself.

use eesd::load::{Checkpoint, ExitBlock};
use eesd::model::{ExitWeights, Matrix};

/// The shipped block after layer `after`, or an untrained copy of the model's last layer, which drafts badly and so
/// tries the refusals.
pub fn exit_after<'a>(checkpoint: &'a Checkpoint, shipped: &'a [ExitBlock], after: usize) -> ExitWeights<'a> {
    if let Some(block) = shipped.iter().find(|block| block.after() == after) {
        return block.weights();
    }
    let model = checkpoint.weights();
    let exit = ExitWeights::from_model(&model, after, model.layers.len() - 1);
    // One of them drafts from a part of the vocabulary only.
    let rows = 300;
    let bytes = &model.head.bytes[..rows * model.head.cols * model.head.dtype.size()];
    ExitWeights { head: (after == 2).then_some(Matrix { rows, bytes, ..model.head }), ..exit }
}
