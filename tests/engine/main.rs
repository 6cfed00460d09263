//! From prompts to tokens on the processor: passes and their bits, the cache, sampling, rounds, batches, and the data
//! that exit blocks are trained on.
//!
//! One program, because each one would compile the engine's generic code and link the library again.

#[cfg(feature = "bundled-model")]
mod batches;
mod bit_exact;
#[path = "../common"]
mod common {
    pub mod adversary;
    pub mod any_turns;
    pub mod arrivals;
    pub mod chi_squared;
    pub mod exits;
    pub mod forbidding;
    pub mod greedy;
    #[cfg(feature = "bundled-model")]
    pub mod grown;
    pub mod hash_backend;
    pub mod non_finite;
    pub mod oracle;
    pub mod recurrent;
    pub mod requests;
    pub mod saved_pages;
    pub mod simulated_times;
    pub mod timed_backend;
    pub mod turns;
}
#[cfg(feature = "bundled-model")]
mod constrained;
mod cpu_limits;
#[cfg(feature = "bundled-model")]
mod distill_data;
mod distribution;
#[cfg(feature = "bundled-model")]
mod draft_vocab;
mod gguf_fixtures;
mod hf_fixtures;
mod kv;
#[cfg(feature = "bundled-model")]
mod lossless;
mod non_finite;
#[cfg(feature = "bundled-model")]
mod prompt_files;
mod quantised_folders;
#[cfg(feature = "bundled-model")]
mod real_rounds;
mod recurrent;
mod recurrent_distribution;
#[cfg(feature = "bundled-model")]
mod regimes;
mod rounds;
mod sampling_distribution;
mod sampling_properties;
mod sampling_reference;
mod scheduler;
mod smollm2;
mod step_times;
