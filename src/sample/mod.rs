//! From logits to tokens, and from drafts to a lossless verdict.
//!
//! [`SamplingParams`] say what the user wants; a [`Sampler`] is that, checked, with its seed. The
//! draft and the target pass through the same filters, position by position, so `q` is exactly what
//! the draft was sampled from. All randomness is counter-based ([`Philox`]): keyed by request seed,
//! absolute position and purpose, never by batch slot or step count.
//!
//! A row of logits loses what a [constraint](crate::constrain) does not allow, passes penalties and biases
//! ([`Sampler::biases`]: those asked for, and `-inf` for what must not come next), then temperature, top-k, top-p and min-p, and what is
//! left becomes a distribution in f64.
//!
//! ```
//! use eesd::sample::{History, Sampler, SamplingParams};
//!
//! # fn main() -> Result<(), eesd::sample::ParamError> {
//! let sampler = Sampler::new(SamplingParams { temperature: 0.8, seed: Some(7), ..SamplingParams::default() }, 3)?;
//! let (before, logits) = ([0, 1], [0.1, 1.5, 0.3]);
//! let draft = sampler.draft(History { tokens: &before, prompt: 2 }, 0, &logits, None);
//!
//! // The target says the same here, so the draft is accepted, and one more token follows.
//! let after = [0, 1, draft.token];
//! let target = [logits, [2.0, 0.0, 0.5]].concat();
//! let verdict = sampler.accept(History { tokens: &after, prompt: 2 }, &target, &[draft.clone()]);
//! assert_eq!(verdict.accepted, 1);
//!
//! // With a seed, plain decoding would have drawn the same tokens.
//! assert_eq!(sampler.accept(History { tokens: &before, prompt: 2 }, &logits, &[]).next, draft.token);
//! assert_eq!(sampler.accept(History { tokens: &after, prompt: 2 }, &target[3..], &[]).next, verdict.next);
//! # Ok(())
//! # }
//! ```

mod biases;
mod distribution;
mod exp;
mod filters;
mod gumbel;
mod params;
mod penalties;
mod philox;
mod sampler;
mod softmax;

pub(crate) use params::check_tokens;
pub use params::{ParamError, Rule, SamplingParams, VerifyMode};
pub use philox::{Philox, Purpose};
pub use sampler::{Drafted, History, Sampler, TokenLogprobs, Verdict};
