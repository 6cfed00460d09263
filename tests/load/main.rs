//! Opening model folders: what is read, what is refused, and in which words.

mod chat;
mod config;
mod exit;
mod folder;
#[path = "../common/grown.rs"]
mod grown;
mod tensors;
mod tokenizer;
