//! **eesd**: early-exit speculative decoding.
//!
//! The first `N` layers of a model and one small trained *exit block* write a draft; the full model
//! checks the whole draft in one pass, reusing the draft's hidden states and KV cache; a controller
//! decides how long each draft is. What comes out is, token for token or in distribution, what the
//! model alone would have written. The method is EESD (Liu et al., Findings of ACL 2024,
//! arXiv 2406.03853).
//!
//! Data flows one way, and so do the modules:
//!
//! - [`load`] opens a Hugging Face folder: configuration, memory-mapped tensors checked against it,
//!   tokenizer, chat template, generation defaults, and the exit block beside them.
//! - [`model`] is what they all agree on: the geometry of a decoder and views of its weights.
//! - [`kv`] hands out the pages of the one cache that draft and verifier share.
//! - [`constrain`] says which tokens may come next, whatever the model thinks of them: JSON schemas and grammars.
//! - [`sample`] turns logits into tokens: parameters, filters, counter-based randomness, and the
//!   three lossless acceptance rules (greedy, rejection sampling, coupled).
//! - [`control`] decides how far to draft: from `off` to the Thompson-sampling `goodput-ts`.
//! - [`backend`] runs the passes (prefill, draft step, verify) on a device; it knows no controller, at
//!   most a plan that one made.
//! - [`engine`] is the round, readable aloud: draft, verify, accept, emit; it knows no device.
//! - [`distill`] trains exit blocks on what the model itself writes.
//! - [`ffi`] is all of it for C and C++: `include/eesd.h`.
//!
//! [`profile`] names these parts on a profiler's timeline.
//!
//! A model folder continues a text:
//!
//! ```
//! use eesd::backend::cpu::{CpuBackend, CpuOptions};
//! use eesd::control::GoodputTs;
//! use eesd::engine::{Engine, Request};
//! use eesd::load::Checkpoint;
//! use std::ops::ControlFlow;
//! use std::path::Path;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let checkpoint = Checkpoint::open(Path::new("models/pycode-4m"))?;
//! let exit = checkpoint.open_exit(Path::new("models/pycode-4m/exit-2.safetensors"))?;
//! let options = CpuOptions { context: 256, ..CpuOptions::default() };
//! let weights = checkpoint.weights();
//! let backend = CpuBackend::new(checkpoint.geometry(), &weights, Some(&exit.weights()), &options)?;
//!
//! let tokenizer = checkpoint.tokenizer().expect("this folder has one");
//! let ends = checkpoint.generation().end_tokens.clone();
//! let mut engine = Engine::new(backend, Box::new(GoodputTs::new(None)), Some(tokenizer.clone()), ends);
//! let request = Request::new(tokenizer.encode("def fibonacci(n):", true)?, 24);
//! let answer = engine.generate(&request, &mut |token| {
//!     print!("{}", token.text);
//!     ControlFlow::Continue(())
//! })?;
//! assert_eq!(answer.tokens.len(), 24);
//! # Ok(())
//! # }
//! ```

// Under this name its own tests know it too, and can share what those of `tests` are made of.
#[cfg(test)]
extern crate self as eesd;

pub mod backend;
pub mod constrain;
pub mod control;
pub mod distill;
pub mod draft;
pub mod engine;
pub mod ffi;
pub mod kv;
pub mod load;
pub mod model;
pub mod profile;
pub mod replace;
pub mod sample;

/// Index of a token in the model's vocabulary.
pub type TokenId = u32;
