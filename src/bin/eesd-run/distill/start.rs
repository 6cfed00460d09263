//! What a block begins as: the model's own tensors, or a block that there is already.

use crate::args::{BlockArgs, ExitChoice};
use crate::failure::{Failure, Outcome};
use crate::report::Reporter;
use crate::settings::Model;
use eesd::model::ExitWeights;

/// Hands out what a block after `n` layers begins as, if that is as the flags need it; nothing is read but the flags and
/// the block.
pub fn with_start<T>(
    args: &BlockArgs,
    model: &Model,
    n: usize,
    reporter: Reporter,
    take: impl FnOnce(&ExitWeights<'_>) -> Outcome<T>,
) -> Outcome<T> {
    let weights = model.weights(reporter)?;
    let last = weights.layers.len() - 1;
    let take = |exit: &ExitWeights<'_>| {
        enough_tokens(args, model, exit)?;
        take(exit)
    };
    match &args.init_from {
        Some(ExitChoice::File(path)) => {
            let block = model.checkpoint.open_exit(path)?;
            if block.after() != n {
                let found = format!("{} is a block after layer {}", path.display(), block.after());
                return Err(Failure::usage(format!("--init-from: {found} (expected one after layer {n})")));
            }
            take(&block.weights())
        }
        Some(ExitChoice::Layer(copied)) if *copied > last => {
            Err(Failure::usage(format!("--init-from: layer {copied} (expected a file, or a layer from 0 to {last})")))
        }
        Some(ExitChoice::Layer(copied)) => take(&ExitWeights::from_model(&weights, n, *copied)),
        None => take(&ExitWeights::from_model(&weights, n, last)),
    }
}

/// Whether the block knows as many tokens as it is to draft.
fn enough_tokens(args: &BlockArgs, model: &Model, exit: &ExitWeights<'_>) -> Outcome {
    let known = exit.draft_vocab(model.checkpoint.geometry().vocab_size).size;
    match args.draft_vocab {
        Some(size) if size > known => {
            let of = if exit.head.is_some() { ", those of the block to start from" } else { "" };
            Err(Failure::usage(format!("--draft-vocab: {size} tokens (expected 1 to {known}{of})")))
        }
        _ => Ok(()),
    }
}
