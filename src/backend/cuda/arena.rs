//! Places in one block of memory, one after another.

use super::kernels::Address;

/// Every place begins on such a boundary: enough for any load, and for whole sectors of a cache.
pub const ALIGNMENT: usize = 256;

/// Hands out places of a block of memory from its beginning on.
///
/// Whoever lays something out does it twice: from [`NOWHERE`](Self::NOWHERE), to learn how much memory it takes,
/// and then in that memory.
pub struct Arena {
    base: Address,
    taken: usize,
}

impl Arena {
    /// Where there is no memory yet.
    pub const NOWHERE: Address = Address(0);

    /// An arena that begins at `base`.
    pub fn new(base: Address) -> Self {
        Self { base, taken: 0 }
    }

    /// A place of `bytes` bytes.
    pub fn take(&mut self, bytes: usize) -> Address {
        let at = Address(self.base.0 + self.taken as u64);
        self.taken += bytes.next_multiple_of(ALIGNMENT);
        at
    }

    /// A place of `count` elements.
    pub fn array<T>(&mut self, count: usize) -> Address {
        self.take(count * size_of::<T>())
    }

    /// Bytes handed out so far.
    pub fn taken(&self) -> usize {
        self.taken
    }
}
