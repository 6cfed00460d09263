//! Training on the device against training on the processor: gradients, losses, updates, states; memory, waits, and what
//! is refused.

#[path = "../../common/blocks.rs"]
mod blocks;
mod device;
mod distilled;
mod gradients;
mod runs;
mod subject;
