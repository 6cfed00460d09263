//! Training on the emulated device, or on a GPU where `EESD_TEST_DEVICE=cuda:N` says so, against training on the
//! processor: gradients, losses, updates, states; memory, waits, and what is refused.
//!
//! `cargo test --release --features emulated-kernels --test training_cuda`
#![cfg(feature = "emulated-kernels")]

#[path = "../common/blocks.rs"]
mod blocks;
mod device;
mod gradients;
mod runs;
mod subject;
#[path = "../common/tested_gpu.rs"]
mod tested_gpu;
