//! What a student wants of a device's memory, against what there is.

use crate::backend::BackendError;
use crate::backend::cuda::budget::{Amount, allowed};
use crate::backend::cuda::driver::MemoryInfo;
use std::fmt;

/// What a student wants of the device's memory, in bytes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TrainingBudget {
    /// The device's memory when asked.
    pub memory: MemoryInfo,
    /// The part of all memory that may be used.
    pub fraction: f64,
    /// Parameters, their gradient, the optimiser's memory, and what is kept of the model.
    pub parameters: u64,
    /// Buffers of passes.
    pub workspace: u64,
    /// Most rows of a batch.
    pub rows: usize,
}

impl TrainingBudget {
    /// Refuses what does not fit.
    ///
    /// # Errors
    /// With all the numbers.
    pub fn check(&self) -> Result<(), BackendError> {
        let fits = self.parameters + self.workspace <= allowed(self.memory, self.fraction);
        if fits { Ok(()) } else { Err(BackendError::TrainingMemory(*self)) }
    }
}

impl fmt::Display for TrainingBudget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "not enough GPU memory to train: parameters with their optimiser {} and a workspace for batches of {} \
             tokens {} are {} together, but {} may be used ({} of {}, of which {} are free): lower --batch-tokens, \
             freeze the head, or raise --gpu-memory-fraction",
            Amount(self.parameters),
            self.rows,
            Amount(self.workspace),
            Amount(self.parameters + self.workspace),
            Amount(allowed(self.memory, self.fraction)),
            self.fraction,
            Amount(self.memory.total),
            Amount(self.memory.free),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_little_memory_is_told_with_all_numbers() {
        let budget = TrainingBudget {
            memory: MemoryInfo { free: 7_900_000_000, total: 8_000_000_000 },
            fraction: 0.9,
            parameters: 6_000_000_000,
            workspace: 2_400_000_000,
            rows: 4096,
        };
        assert_eq!(
            budget.check().map_err(|e| e.to_string()),
            Err("not enough GPU memory to train: parameters with their optimiser 6.00 GB and a workspace for batches \
                 of 4096 tokens 2.40 GB are 8.40 GB together, but 7.20 GB may be used (0.9 of 8.00 GB, of which \
                 7.90 GB are free): lower --batch-tokens, freeze the head, or raise --gpu-memory-fraction"
                .to_string())
        );
        assert_eq!(TrainingBudget { workspace: 1_200_000_000, ..budget }.check(), Ok(()));
    }
}
