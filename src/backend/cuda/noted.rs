//! What the device notes of keys and values that are not finite.
//!
//! A kernel sets a bit for the position, and a flag. The flag comes back with verdicts, and after texts; the bits are
//! looked at, and cleared, only where it is set. Drafts are not waited for: what they note is found by the verification
//! that follows.

use super::CudaBackend;
use super::driver::Driver;
use super::kernels::Address;
use crate::backend::{BackendError, Chunk, Sequence};
use crate::kv::{PAGE_TOKENS, PageId};

impl<D: Driver> CudaBackend<D> {
    /// The last positions of these sequences, those without `h_N`, are about to be computed from the first layer on.
    pub(super) fn forget_fresh(&mut self, batch: &[Sequence<'_>]) {
        for sequence in batch {
            let end = sequence.tokens.len();
            self.non_finite.forget(sequence.pages, end - sequence.fresh()..end);
        }
    }

    /// The positions of these chunks are about to be computed.
    pub(super) fn forget_chunks(&mut self, batch: &[Chunk<'_>]) {
        for chunk in batch {
            self.non_finite.forget(chunk.pages, chunk.start..chunk.start + chunk.tokens.len());
        }
    }

    /// Takes over what was noted, if the flag, which nothing that is queued may set, says so.
    pub(super) fn collect_noted(&mut self, flag: u32) -> Result<(), BackendError> {
        if flag == 0 {
            return Ok(());
        }
        let Self { driver, model, host, limits, .. } = self;
        let (bits, any) = (model.work.non_finite, model.work.any_non_finite);
        for (index, word) in host.download(driver, bits, 2 * limits.pages)?.into_iter().map(f32::to_bits).enumerate() {
            let places = (0..u32::BITS as usize).filter(|bit| word >> bit & 1 == 1);
            for bit in places {
                let position = index * u32::BITS as usize + bit;
                self.non_finite.add(PageId((position / PAGE_TOKENS) as u32), position % PAGE_TOKENS);
            }
        }
        // SAFETY: the arrays are the workspace's, and nothing that uses them is queued.
        let zeroed = unsafe {
            driver.zero(bits, 2 * limits.pages * size_of::<u32>()).and_then(|()| driver.zero(any, size_of::<u32>()))
        };
        driver.wait().and(zeroed)
    }

    /// The flag, after a pass that was waited for.
    pub(super) fn collect_noted_by_text(&mut self) -> Result<(), BackendError> {
        let any: Address = self.model.work.any_non_finite;
        let flag = self.floats(any, 0, 1)?[0].to_bits();
        self.collect_noted(flag)
    }
}
