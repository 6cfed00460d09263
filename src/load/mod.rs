//! Opens a Hugging Face model folder or a GGUF file: everything is checked before it is used, and errors name the
//! file, the key, what was found and what was expected.
//!
//! [`Checkpoint`] is the whole model. What a GGUF file says, `gguf` turns into what the files of a folder do.
//! Behind it, one file a concern: where the bytes lie (`source`), JSON with names for its errors (`json`), the
//! configuration (`config`, `rope`), the tensors (`header`, `tensors`, and `store`, which writes them), the parts
//! of quantised matrices (`quantised`), which tensors a model needs (`weights`), and the exit blocks (`exit`, what
//! ties them to a model: `base`, `fingerprint`, and what they `promise`); [`export`] writes a model as a GGUF file. Text becomes tokens
//! and back in `tokenizer` (its steps in `encode`, what they make of a text's length in `growth`) and `detokenize`,
//! with the tokens that stand beside the vocabulary (`added`) and those that have a name (`specials`); `generation`
//! has what a model asks for, and `unhonoured` what of that it does not get. How large all of this may be stands in
//! `limits`. What users write for the model to continue is a [`Prompt`]: `lines` and `prompts` read files of them,
//! in whose [`encoding`] people have various tastes.
//!
//! ```
//! use eesd::load::Checkpoint;
//! use std::path::Path;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let checkpoint = Checkpoint::open(Path::new("models/pycode-4m"))?;
//! assert_eq!(checkpoint.geometry().layers, 8);
//! let tokenizer = checkpoint.tokenizer().expect("this folder has one");
//! let tokens = tokenizer.encode("import os", true)?;
//! assert_eq!(tokenizer.decode(&tokens[1..]), "import os");
//! let exits: Vec<usize> = checkpoint.exit_blocks()?.iter().map(|block| block.after()).collect();
//! assert_eq!(exits, [1, 2, 3]);
//!
//! let error = Checkpoint::open(Path::new("models")).err().expect("this is no model");
//! assert!(error.to_string().contains("config.json"), "{error}");
//! # Ok(())
//! # }
//! ```

mod added;
mod base;
mod bundled;
mod chat;
mod checkpoint;
mod config;
mod detokenize;
mod draft_index;
mod encode;
pub mod encoding;
mod error;
mod exit;
pub mod export;
mod fingerprint;
mod generation;
mod gguf;
mod growth;
mod header;
mod json;
mod limits;
mod lines;
mod promise;
mod prompt;
mod prompts;
mod quantised;
mod rope;
mod source;
mod specials;
pub(crate) mod store;
mod tensors;
mod tokenizer;
mod unhonoured;
mod user_turn;
mod weights;

pub use bundled::BUNDLED_EXIT;
#[cfg(feature = "bundled-model")]
pub use bundled::bundled_prompts;
pub use chat::{Chat, ChatTemplate, Message};
pub use checkpoint::Checkpoint;
pub use detokenize::TextStream;
pub use error::LoadError;
pub use exit::ExitBlock;
pub(crate) use fingerprint::fnv1a;
pub use generation::GenerationDefaults;
pub use lines::{JsonLines, Keys, json_error};
pub use promise::{Promise, most_promising};
pub use prompt::{Prompt, PromptEncoder, PromptError};
pub use prompts::{PromptFile, Prompts, PromptsError, REQUEST_KEYS, is_json_lines};
pub use tokenizer::Tokenizer;
pub use user_turn::UserTurn;
