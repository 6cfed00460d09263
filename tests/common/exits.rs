//! Exit blocks for tests: shipped ones, or made of the model itself.

use eesd::TokenId;
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
    // Some draft from a part of the vocabulary only: its first tokens, or listed ones.
    match after {
        2 => ExitWeights { head: Some(rows_of(model.head, &(0..300).collect::<Vec<_>>())), ..exit },
        3 => {
            let ids: Vec<TokenId> = (0..model.head.rows as TokenId).filter(|id| id * id % 7 != 2).collect();
            ExitWeights { head: Some(rows_of(model.head, &ids)), draft_ids: Some(ids.leak()), ..exit }
        }
        _ => exit,
    }
}

/// The rows of these tokens. Leaks, as tests may: views of weights borrow.
pub fn rows_of(head: Matrix<'_>, ids: &[TokenId]) -> Matrix<'static> {
    let row = head.row_bytes();
    let bytes: Vec<u8> = ids.iter().flat_map(|&id| &head.bytes[id as usize * row..][..row]).copied().collect();
    Matrix::new(head.format, ids.len(), head.cols, bytes.leak())
}
