//! GGUF, as llama.cpp has it: a whole model in one file, or in several that belong together.
//!
//! `part` reads one file (its `bytes`, its `value`s), and `parts` finds the files of a model. What the metadata say becomes
//! what the files of a Hugging Face folder say, so that all else is shared: the configuration (`config`, `rope`, and what is not done in `unread`), the
//! tensors' names (`names`), and documents in place of the small files: the tokenizer's (`documents`, `vocabulary`,
//! `pieces`, `split`). A key that is wrong is named as the file has it.

mod bytes;
mod config;
mod documents;
mod names;
mod part;
mod parts;
mod pieces;
mod rope;
mod split;
mod unread;
mod value;
mod vocabulary;

pub(super) use config::parse;
pub(super) use names::{is_paired, name, stored_name};
pub(super) use part::Entry;
pub(super) use parts::{Gguf, in_folder};
pub(super) use split::rule_of;
