//! From logits to tokens, and from drafts to a lossless verdict.
//!
//! [`SamplingParams`] say what the user wants; a [`Sampler`] is that, checked, with its seed. The
//! draft and the target pass through the same filters, position by position, so `q` is exactly what
//! the draft was sampled from. All randomness is counter-based ([`Philox`]): keyed by request seed,
//! absolute position and purpose, never by batch slot or step count.
//!
//! A row of logits passes penalties and biases, then temperature, top-k, top-p and min-p, and what is
//! left becomes a distribution in f64.

mod distribution;
mod exp;
mod filters;
mod gumbel;
mod params;
mod penalties;
mod philox;
mod sampler;
mod softmax;

pub use params::{ParamError, Rule, SamplingParams, VerifyMode};
pub use philox::{Philox, Purpose};
pub use sampler::{Drafted, History, Sampler, TokenLogprobs, Verdict};
