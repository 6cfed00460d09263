//! Opening model folders: what is read, what is refused, and in which words.

mod added;
mod chat;
mod config;
mod exit;
mod files;
mod folder;
mod generation;
#[path = "../common/grown.rs"]
mod grown;
mod jinja;
mod limits;
mod messages;
mod quantised;
mod tensors;
mod tokenizer;
mod values;
