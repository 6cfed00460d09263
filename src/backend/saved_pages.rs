//! Pages that are not in the cache for a while.

use super::BackendError;
use crate::kv::PageId;

/// Pages copied out of a cache, in the layout of the backend that made it.
#[derive(Clone, Default)]
pub struct SavedPages {
    pages: usize,
    bytes: Vec<u8>,
}

impl SavedPages {
    /// `pages` pages of equal size, one after the other.
    pub fn new(pages: usize, bytes: Vec<u8>) -> Self {
        Self { pages, bytes }
    }

    /// How many pages.
    pub fn pages(&self) -> usize {
        self.pages
    }

    /// Their bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Refuses to be put into another number of pages.
    pub(super) fn check(&self, pages: &[PageId], page_bytes: usize) -> Result<(), BackendError> {
        if self.pages != pages.len() || self.bytes.len() != pages.len() * page_bytes {
            let found = format!("{} saved pages of {} bytes in all", self.pages, self.bytes.len());
            return Err(BackendError::Device(format!("{found} (expected {} of {page_bytes} each)", pages.len())));
        }
        Ok(())
    }
}
