//! Opens a Hugging Face model folder: everything is checked before it is used, and errors name the
//! file, the key, what was found and what was expected.
//!
//! [`Checkpoint`] is the whole folder. Behind it, one file a concern: where the bytes lie (`source`),
//! JSON with names for its errors (`json`), the configuration (`config`, `rope`), the tensors (`header`,
//! `tensors`, and `store`, which writes them), which of them a model needs (`weights`), and the exit blocks (`exit`,
//! `fingerprint`). What users write for the model to continue is a [`Prompt`].

mod bundled;
mod chat;
mod checkpoint;
mod clock;
mod config;
mod detokenize;
mod error;
mod exit;
mod fingerprint;
mod generation;
mod header;
mod json;
mod prompt;
mod rope;
mod source;
pub(crate) mod store;
mod tensors;
mod tokenizer;
mod weights;

pub use bundled::BUNDLED_EXIT;
#[cfg(feature = "bundled-model")]
pub use bundled::bundled_prompts;
pub use chat::{ChatTemplate, Message};
pub use checkpoint::Checkpoint;
pub use detokenize::TextStream;
pub use error::LoadError;
pub use exit::ExitBlock;
pub(crate) use fingerprint::fnv1a;
pub use generation::GenerationDefaults;
pub use prompt::{Prompt, PromptError, json_error, json_line};
pub use tokenizer::Tokenizer;
