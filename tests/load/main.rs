//! Opening model folders: what is read, what is refused, and in which words.

mod added;
mod chat;
mod config;
mod exit;
mod exit_copies;
mod exit_recurrent;
mod export;
mod files;
mod folder;
mod generation;
mod gguf;
mod gguf_errors;
#[path = "../common/gguf_file.rs"]
mod gguf_file;
mod gguf_tokens;
#[path = "../common/grown.rs"]
mod grown;
mod jinja;
mod limits;
mod messages;
mod quantised;
mod quantised_refusals;
mod tensors;
mod tokenizer;
mod values;
