//! Opening model folders: what is read, what is refused, and in which words.

mod chat;
mod config;
mod exit;
mod folder;
mod jinja;
mod messages;
mod tensors;
mod tokenizer;
