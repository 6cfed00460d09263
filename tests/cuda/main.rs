//! The CUDA backend from end to end: whole models, rounds and requests, and training, on the emulated device, or on a
//! GPU where `EESD_TEST_DEVICE=cuda:N` says so.
//!
//! `cargo test --release --features emulated-kernels --test cuda`

mod constrained;
mod draft_vocab;
#[path = "../common/exits.rs"]
mod exits;
mod generation;
mod kv;
mod loop_probe;
mod loops;
mod memory;
mod non_finite;
#[path = "../common/non_finite.rs"]
mod non_finite_requests;
mod passes;
mod prefill;
mod products;
mod proposals;
mod quantised;
mod recurrent;
#[path = "../common/recurrent.rs"]
mod recurrent_blocks;
#[path = "../common/requests.rs"]
mod requests;
mod sampling;
#[path = "../common/saved_pages.rs"]
mod saved_pages;
#[path = "../common/simulated_times.rs"]
mod simulated_times;
mod sources;
mod support;
mod swap;
mod synthetic;
#[path = "../common/tested_gpu.rs"]
mod tested_gpu;
mod texts;
mod training;
#[path = "../common/turns.rs"]
mod turns;
