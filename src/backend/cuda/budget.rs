//! How the device's memory is shared out, before any of it is taken.

use super::driver::MemoryInfo;
use crate::backend::BackendError;
use std::fmt;

/// Left to the driver: for graphs, for kernels that it loads late, for buffers of loading and of inputs.
const SPARED: u64 = 256 << 20;

/// What the memory is wanted for, in bytes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Budget {
    /// The device's memory when asked.
    pub memory: MemoryInfo,
    /// The part of all memory that may be used.
    pub fraction: f64,
    /// Weights of model and exit block, and rotary tables.
    pub weights: u64,
    /// Buffers of passes.
    pub workspace: u64,
    /// The part of those that only fast prefill needs.
    pub fast_prefill: u64,
    /// One page of the cache, in all layers.
    pub page: u64,
    /// Pages of one sequence as long as the context.
    pub pages_of_context: u64,
}

impl Budget {
    /// How much may be used.
    pub fn allowed(&self) -> u64 {
        allowed(self.memory, self.fraction)
    }

    /// How many of `wanted` pages there is room for: at least one sequence's.
    ///
    /// # Errors
    /// If one sequence as long as the context does not fit, with all the numbers.
    pub fn pages(&self, wanted: usize) -> Result<usize, BackendError> {
        let left = self.allowed().saturating_sub(self.weights + self.workspace);
        let room = left / self.page;
        if room < self.pages_of_context.min(wanted as u64) || self.weights + self.workspace > self.allowed() {
            return Err(BackendError::DeviceMemory(*self));
        }
        Ok(wanted.min(usize::try_from(room).unwrap_or(usize::MAX)))
    }
}

impl fmt::Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cache = self.pages_of_context * self.page;
        let (part, remedy) = match self.fast_prefill {
            0 => (String::new(), ""),
            bytes => (format!(" ({} of it for --prefill fast)", Amount(bytes)), "leave out --prefill fast, "),
        };
        write!(
            f,
            "not enough GPU memory: weights {}, workspace {}{part} and the cache of one sequence {} are {} together, \
             but {} may be used ({} of {}, of which {} are free): {remedy}lower --ctx-size, --batch-size or \
             --draft-max, or raise --gpu-memory-fraction",
            Amount(self.weights),
            Amount(self.workspace),
            Amount(cache),
            Amount(self.weights + self.workspace + cache),
            Amount(self.allowed()),
            self.fraction,
            Amount(self.memory.total),
            Amount(self.memory.free),
        )
    }
}

/// How much of a device's memory may be used, if `fraction` of all of it may.
pub(in crate::backend) fn allowed(memory: MemoryInfo, fraction: f64) -> u64 {
    let most = (memory.total as f64 * fraction) as u64;
    most.min(memory.free.saturating_sub(SPARED.min(memory.free / 16)))
}

/// Bytes for people.
pub(in crate::backend) struct Amount(pub u64);

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.0 as f64;
        if bytes < 1e9 { write!(f, "{:.1} MB", bytes / 1e6) } else { write!(f, "{:.2} GB", bytes / 1e9) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GB: u64 = 1_000_000_000;

    fn budget() -> Budget {
        Budget {
            memory: MemoryInfo { free: 23 * GB, total: 24 * GB },
            fraction: 0.9,
            weights: 13 * GB,
            workspace: GB,
            fast_prefill: 0,
            page: 50_000_000,
            pages_of_context: 64,
        }
    }

    #[test]
    fn the_cache_gets_what_is_left() {
        assert_eq!(budget().allowed(), 21_600_000_000);
        assert_eq!(budget().pages(64), Ok(64));
        assert_eq!(budget().pages(1000), Ok(152));
        let crowded = Budget { memory: MemoryInfo { free: 18 * GB, total: 24 * GB }, ..budget() };
        assert_eq!(crowded.pages(1000), Ok((18 * GB - SPARED - 14 * GB) as usize / 50_000_000));
    }

    #[test]
    fn too_little_memory_is_told_with_all_numbers() {
        let small = Budget { memory: MemoryInfo { free: 15 * GB, total: 16 * GB }, ..budget() };
        assert_eq!(
            small.pages(640).map_err(|e| e.to_string()),
            Err(
                "not enough GPU memory: weights 13.00 GB, workspace 1.00 GB and the cache of one sequence 3.20 GB are \
                 17.20 GB together, but 14.40 GB may be used (0.9 of 16.00 GB, of which 15.00 GB are free): lower \
                 --ctx-size, --batch-size or --draft-max, or raise --gpu-memory-fraction"
                    .to_string()
            )
        );
        let fast = Budget { fast_prefill: 700_000_000, ..small };
        assert_eq!(
            fast.pages(640).map_err(|e| e.to_string()),
            Err(
                "not enough GPU memory: weights 13.00 GB, workspace 1.00 GB (700.0 MB of it for --prefill fast) and the \
                 cache of one sequence 3.20 GB are 17.20 GB together, but 14.40 GB may be used (0.9 of 16.00 GB, of \
                 which 15.00 GB are free): leave out --prefill fast, lower --ctx-size, --batch-size or --draft-max, or \
                 raise --gpu-memory-fraction"
                    .to_string()
            )
        );
        assert!(small.pages(4).is_ok());
        assert!(Budget { weights: 15 * GB, ..small }.pages(0).is_err());
    }
}
