//! Which exit block a model is opened with.

use super::log::{LogLevel, log};
use super::status::{Failure, Outcome, Status};
use crate::load::{BUNDLED_EXIT, Checkpoint, ExitBlock, most_promising};
use std::path::Path;

/// exit_layer: in a folder the only block there is, of several the one that promises most (the log says which, and what),
/// or none where there is none; of the model inside the library, which has blocks after 1, 2 and 3 layers, that after 2.
pub const EESD_EXIT_DEFAULT: i32 = 0;
/// exit_layer: no exit block. Lookups draft alone.
pub const EESD_EXIT_NONE: i32 = -1;

/// The exit block asked for; by default the bundled model's best one, or of those there are the one that promises most.
pub(super) fn exit_block(
    checkpoint: &Checkpoint,
    layer: i32,
    file: Option<&Path>,
    bundled: bool,
) -> Outcome<Option<ExitBlock>> {
    let layer = match (layer, file) {
        (EESD_EXIT_DEFAULT, Some(file)) => return Ok(Some(checkpoint.open_exit(file)?)),
        (found, Some(_)) => {
            let found = format!("exit_layer: {found} beside exit_file (expected EESD_EXIT_DEFAULT, which is 0)");
            return Err(Failure::argument(found));
        }
        (EESD_EXIT_NONE, None) => return Ok(None),
        (EESD_EXIT_DEFAULT, None) => bundled.then_some(BUNDLED_EXIT),
        (layer, None) => {
            let wrong = || format!("exit_layer: {layer} (expected a layer, EESD_EXIT_DEFAULT or EESD_EXIT_NONE)");
            Some(usize::try_from(layer).map_err(|_| Failure::argument(wrong()))?)
        }
    };
    let mut blocks = checkpoint.exit_blocks()?;
    let there = blocks.iter().map(|block| block.after().to_string()).collect::<Vec<_>>().join(", ");
    let name = checkpoint.name();
    match layer {
        Some(n) => match blocks.into_iter().find(|block| block.after() == n) {
            Some(block) => Ok(Some(block)),
            None => {
                Err(Failure::new(Status::LoadFailed, format!("exit_layer: {n} (expected one of {name}'s: {there})")))
            }
        },
        None => {
            let weights = checkpoint.weights();
            let best = most_promising(&blocks, &weights).map(|index| blocks.swap_remove(index));
            if let Some(block) = best.as_ref().filter(|_| !blocks.is_empty()) {
                let (after, promise) = (block.after(), block.promise(&weights));
                log(LogLevel::Info, || {
                    format!(
                        "{name}: of the exit blocks after {there} layers, that after {after} promises most: {promise}"
                    )
                });
            }
            Ok(best)
        }
    }
}
