//! What a block begins as: the model's own tensors, or a block that there is already.

use crate::args::{BlockArgs, DraftVocab, ExitChoice, InputMatrix};
use crate::failure::{Failure, Outcome};
use crate::report::Reporter;
use crate::settings::Model;
use eesd::model::{Dtype, ExitWeights, Matrix};

/// What a block begins as, and whether its input matrix is to be fitted first.
pub struct Start<'a> {
    pub exit: ExitWeights<'a>,
    pub ridge: bool,
}

/// Hands out what a block after `n` layers begins as, if that is as the flags need it; nothing is read but the flags and
/// the block.
pub fn with_start<T>(
    args: &BlockArgs,
    model: &Model,
    n: usize,
    reporter: Reporter,
    take: impl FnOnce(&Start<'_>) -> Outcome<T>,
) -> Outcome<T> {
    enough_tokens(args, model)?;
    let weights = model.weights(reporter)?;
    let last = weights.layers.len() - 1;
    let take = |exit: ExitWeights<'_>| with_matrices(args, exit, model.checkpoint.geometry().hidden_size, take);
    match &args.init_from {
        Some(ExitChoice::File(path)) => {
            let block = model.checkpoint.open_exit(path)?;
            if block.after() != n {
                let found = format!("{} is a block after layer {}", path.display(), block.after());
                return Err(Failure::usage(format!("--init-from: {found} (expected one after layer {n})")));
            }
            take(block.weights())
        }
        Some(ExitChoice::Layer(copied)) if *copied > last => {
            Err(Failure::usage(format!("--init-from: layer {copied} (expected a file, or a layer from 0 to {last})")))
        }
        Some(ExitChoice::Layer(copied)) => take(ExitWeights::from_model(&weights, n, *copied)),
        None => take(ExitWeights::from_model(&weights, n, last)),
    }
}

/// Whether the model has as many tokens as the block is to draft.
fn enough_tokens(args: &BlockArgs, model: &Model) -> Outcome {
    let vocab = model.checkpoint.geometry().vocab_size;
    match args.draft_vocab {
        Some(DraftVocab::Tokens(size)) if size > vocab => {
            Err(Failure::usage(format!("--draft-vocab: {size} tokens (expected 1 to {vocab})")))
        }
        _ => Ok(()),
    }
}

/// Gives it the matrices that the flags ask for and it does not have: units, so that they change nothing yet.
fn with_matrices<T>(
    args: &BlockArgs,
    exit: ExitWeights<'_>,
    hidden: usize,
    take: impl FnOnce(&Start<'_>) -> Outcome<T>,
) -> Outcome<T> {
    if exit.recurrent.is_some() && args.recurrent.is_none() {
        return Err(Failure::usage("--init-from: the block is recurrent (expected --recurrent STEPS)"));
    }
    let ridge = match args.input_matrix {
        Some(InputMatrix::None) if exit.input.is_some() => {
            return Err(Failure::usage(
                "--input-matrix none: the block to start from has one (expected ridge, or nothing)",
            ));
        }
        Some(start) => start == InputMatrix::Ridge,
        None => args.recurrent.is_some() && exit.input.is_none(),
    };
    let unit = |columns: usize| {
        let element = |at: usize| if at / columns == at % columns { 1f32 } else { 0.0 };
        (0..hidden * columns).flat_map(|at| element(at).to_le_bytes()).collect::<Vec<u8>>()
    };
    let bytes = |wanted: bool, columns| if wanted { unit(columns) } else { Vec::new() };
    let input = bytes(ridge && exit.input.is_none(), hidden);
    let recurrent = bytes(args.recurrent.is_some() && exit.recurrent.is_none(), 2 * hidden);
    let matrix = |columns, bytes| Some(Matrix::new(Dtype::F32, hidden, columns, bytes));
    // Of a shorter life than the block that there is already.
    let mut exit: ExitWeights<'_> = exit;
    if !input.is_empty() {
        exit.input = matrix(hidden, &input);
    }
    if !recurrent.is_empty() {
        exit.recurrent = matrix(2 * hidden, &recurrent);
    }
    take(&Start { exit, ridge })
}
