//! The paged KV cache's bookkeeping: which pages exist, which sequence holds which, and whose texts they keep.
//!
//! A page keeps [`PAGE_TOKENS`] positions of K and V for *all* layers, the exit layer being one more:
//! one block table per sequence serves draft and verifier. Where the numbers lie is the backend's affair.

mod pages;
mod prefix;
mod table;

pub use pages::{PAGE_TOKENS, PageId, PagePool};
pub use prefix::PrefixCache;
pub use table::BlockTable;
