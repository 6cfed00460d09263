//! Pages to the host and back: what a sequence keeps while its pages serve another one.
//!
//! Saved bytes lie as the cache does, `[layer][K or V][page]`, with the pages in the order they were named in. So
//! neighbours among them are one run of bytes on both sides, and a sequence whose pages lie together is as many copies
//! as the cache has arrays. All go through the outbox, whose memory is page-locked.

use super::CudaBackend;
use super::driver::Driver;
use super::kernels::Address;
use super::workspace::Cache;
use crate::backend::{BackendError, SavedPages};
use crate::kv::PageId;

/// Bytes of the cache that lie together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Run {
    at: Address,
    bytes: usize,
}

impl<D: Driver> CudaBackend<D> {
    /// Copies pages that the cache has to the host.
    pub(super) fn save(&self, pages: &[PageId]) -> Result<SavedPages, BackendError> {
        let all = runs(&self.model.cache, pages);
        let total = all.iter().map(|run| run.bytes).sum();
        let mut bytes = Vec::new();
        let no_room = |_| BackendError::OutOfMemory { what: "saved pages", bytes: total };
        bytes.try_reserve_exact(total).map_err(no_room)?;
        for load in loads(&all, self.host.outbox.contents().len()) {
            let len = self.each_of(&load, |run, offset| {
                // SAFETY: a run of the cache; the outbox has room for the load, and is read after the wait alone.
                unsafe { self.driver.copy_to_host(self.host.outbox.at().add(offset), run.at, run.bytes) }
            })?;
            bytes.extend_from_slice(&self.host.outbox.contents()[..len]);
        }
        Ok(SavedPages::new(pages.len(), bytes))
    }

    /// Copies what [`save`](Self::save) returned for as many pages into pages that the cache has.
    pub(super) fn restore(&mut self, saved: &SavedPages, pages: &[PageId]) -> Result<(), BackendError> {
        let mut rest = saved.bytes();
        for load in loads(&runs(&self.model.cache, pages), self.host.outbox.contents().len()) {
            let now;
            (now, rest) = rest.split_at(load.iter().map(|run| run.bytes).sum());
            self.host.outbox.contents_mut()[..now.len()].copy_from_slice(now);
            self.each_of(&load, |run, offset| {
                // SAFETY: a run of the cache; the outbox holds the load, and is left alone until the wait.
                unsafe { self.driver.copy_to_device(run.at, self.host.outbox.at().add(offset), run.bytes) }
            })?;
        }
        Ok(())
    }

    /// Queues a copy of each run of a load, and waits for them. The copy is given the run's place in the load; the
    /// load's bytes are returned.
    fn each_of(
        &self,
        load: &[Run],
        mut copy: impl FnMut(&Run, usize) -> Result<(), BackendError>,
    ) -> Result<usize, BackendError> {
        let mut offset = 0;
        let queued = load.iter().try_for_each(|run| {
            copy(run, offset)?;
            offset += run.bytes;
            Ok(())
        });
        // Even after a failure: what is queued uses the outbox.
        self.driver.wait().and(queued)?;
        Ok(offset)
    }
}

/// What pages are made of, in the order in which it is saved.
fn runs(cache: &Cache, pages: &[PageId]) -> Vec<Run> {
    let neighbours: Vec<&[PageId]> = pages.chunk_by(|page, next| page.0 + 1 == next.0).collect();
    let of_array = |array| {
        let run =
            move |pages: &&[PageId]| Run { at: cache.part(array, pages[0]), bytes: pages.len() * cache.part_bytes() };
        neighbours.iter().map(run)
    };
    (0..cache.arrays()).flat_map(of_array).collect()
}

/// The same bytes in the same order, in loads of at most `most` bytes.
fn loads(runs: &[Run], most: usize) -> Vec<Vec<Run>> {
    let mut loads: Vec<Vec<Run>> = Vec::new();
    let mut room = 0;
    for &Run { mut at, mut bytes } in runs {
        while bytes > 0 {
            if room == 0 {
                loads.push(Vec::new());
                room = most;
            }
            let now = bytes.min(room);
            loads.last_mut().expect("just made").push(Run { at, bytes: now });
            (at, bytes, room) = (Address(at.0 + now as u64), bytes - now, room - now);
        }
    }
    loads
}
