//! The paged KV cache's bookkeeping: which pages exist, which sequence holds which, and whose texts they keep.
//!
//! A page keeps [`PAGE_TOKENS`] positions of K and V for *all* layers, the exit layer being one more:
//! one block table per sequence serves draft and verifier. Where the numbers lie is the backend's affair.
//!
//! ```
//! use eesd::kv::{BlockTable, PAGE_TOKENS, PagePool};
//!
//! let mut pool = PagePool::new(4);
//! let mut table = BlockTable::default();
//! table.reserve(PAGE_TOKENS + 5, &mut pool).expect("two of four pages");
//! table.set_len(PAGE_TOKENS + 4); // after a pass over four drafts of the second page ...
//! table.set_len(PAGE_TOKENS + 1); // ... of which one was accepted
//! assert_eq!((table.pages().len(), pool.free()), (2, 2));
//! assert_eq!(table.reserve(5 * PAGE_TOKENS, &mut pool), Err(1), "a page is missing, and none was taken");
//! table.release(&mut pool);
//! assert_eq!(pool.free(), 4);
//! ```

mod pages;
mod prefix;
mod table;

pub use pages::{PAGE_TOKENS, PageId, PagePool};
pub use prefix::PrefixCache;
pub use table::BlockTable;
