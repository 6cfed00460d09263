//! The memory that `weigh` and `sample` work in.

use crate::support::to;
use eesd::backend::cuda::kernels::{Address, Sample};

/// What sampling keeps beside weights and choices.
pub struct Scratch {
    filters: Vec<u64>,
    parts: Vec<u64>,
}

impl Scratch {
    /// Of so many rows.
    pub fn new(rows: usize, vocab: usize) -> Self {
        let parts = rows * Sample::slices(vocab) * Sample::PART_BYTES / 8;
        Self { filters: vec![0; rows * Sample::FILTER_BYTES / 8], parts: vec![u64::MAX; parts] }
    }

    /// Where the filters and the parts are.
    pub fn addresses(&mut self) -> [Address; 2] {
        [to(&mut self.filters), to(&mut self.parts)]
    }

    /// All but what is kept of each row is as before the first launch.
    pub fn check(&self) {
        for row in self.filters.chunks(Sample::FILTER_BYTES / 8) {
            let [sums @ .., _last, bin_and_weighed, sampled] = row else { panic!("a row of filters is longer") };
            assert!(sums.iter().all(|&sum| sum == 0) && bin_and_weighed >> 32 == 0 && *sampled == 0);
        }
    }
}
