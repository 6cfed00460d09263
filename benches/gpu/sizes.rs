//! The models that are measured: real geometries, and a tiny one for the emulator.

use crate::geometry::llama;
use eesd::model::cost::DraftCosts;
use eesd::model::{Dtype, Geometry};

/// A model's geometry and what is measured with it.
#[derive(Debug, Clone)]
pub struct Size {
    /// Its name.
    pub name: &'static str,
    /// Its shape.
    pub geometry: Geometry,
    /// N of the exit block.
    pub exit_after: usize,
    /// Positions in the cache, ascending.
    pub contexts: &'static [usize],
    /// Rows of a pass, ascending.
    pub rows: &'static [usize],
    /// Rows of a launch of a kernel, ascending: also more than a pass of one sequence has.
    pub kernel_rows: &'static [usize],
    /// Tokens that the sampler is measured with.
    pub sampled_vocab: usize,
    /// Rows that it samples, ascending.
    pub sampled_rows: &'static [usize],
    /// Lengths of prompts, ascending.
    pub prompts: &'static [usize],
    /// Most rows of a prefill pass, ascending: one after the other for fast prefill, the first of them for exact.
    pub prefill_rows: &'static [usize],
    /// Rows, columns and products of the large matrix product that prefill is told in parts of.
    pub product: usize,
    /// Memory that a kernel's weights are spread over, so that they never come from a cache.
    pub spread_bytes: usize,
    /// Launches in one measurement.
    pub launches: usize,
    /// Measurements of which the median counts.
    pub repetitions: usize,
}

/// Room for the rows of a round at the end of each context.
pub const ROUND: usize = 16;

impl Size {
    /// Llama 2's 7B, with room for long contexts.
    pub fn seven() -> Self {
        real("7b", llama(32_000, 4096, 11_008, 32, (32, 32, 128)), 4)
    }

    /// Llama 2's 13B.
    pub fn thirteen() -> Self {
        real("13b", llama(32_000, 5120, 13_824, 40, (40, 40, 128)), 5)
    }

    /// One of Llama 2's 70B.
    pub fn seventy() -> Self {
        real("70b", llama(32_000, 8192, 28_672, 80, (64, 8, 128)), 8)
    }

    /// Outputs and inputs of each projection of a layer, and of the head, by the names of their kernels.
    pub fn projections(&self) -> [(&'static str, usize, usize); 5] {
        let Geometry { hidden_size: hidden, intermediate_size: mlp, vocab_size: vocab, .. } = self.geometry;
        let q = self.geometry.q_size();
        [
            ("qkv", q + 2 * self.geometry.kv_size(), hidden),
            ("residual (o)", hidden, q),
            ("gate_up", 2 * mlp.next_multiple_of(16), hidden),
            ("residual (down)", hidden, mlp),
            ("lm_head", vocab, hidden),
        ]
    }

    /// Bytes of the matrices that a plain step reads: every layer and the head.
    pub fn step_bytes(&self) -> u64 {
        self.layers_bytes(self.geometry.layers)
    }

    /// What a draft through the first layers costs by the bytes it reads.
    pub fn draft_costs(&self) -> DraftCosts {
        (self.layers_bytes(self.exit_after + 1) as f64 / self.step_bytes() as f64).into()
    }

    /// Bytes of the matrices of so many layers and of the head.
    fn layers_bytes(&self, layers: usize) -> u64 {
        let geometry = &self.geometry;
        let layer = 2 * (geometry.q_size() + geometry.kv_size()) + 3 * geometry.intermediate_size;
        ((layers * layer + geometry.vocab_size) * geometry.hidden_size * Dtype::BF16.size()) as u64
    }

    /// Small enough for the emulator.
    #[cfg(feature = "emulated-kernels")]
    pub fn tiny() -> Self {
        Self {
            name: "tiny",
            geometry: llama(320, 128, 192, 3, (4, 2, 32)),
            exit_after: 1,
            contexts: &[32, 64],
            rows: &[1, 2, 4],
            kernel_rows: &[1, 17, 65],
            sampled_vocab: 1000,
            sampled_rows: &[1, 2],
            prompts: &[40, 160],
            prefill_rows: &[144],
            product: 64,
            spread_bytes: 1 << 16,
            launches: 2,
            repetitions: 1,
        }
    }
}

fn real(name: &'static str, geometry: Geometry, exit_after: usize) -> Size {
    Size {
        name,
        geometry,
        exit_after,
        contexts: &[128, 2048, 16_384],
        rows: &[1, 2, 4, 8, 16],
        kernel_rows: &[1, 8, 16, 24, 32, 48, 64, 65],
        sampled_vocab: 128_256,
        sampled_rows: &[1, 16],
        prompts: &[129, 256, 512, 1024, 4096],
        prefill_rows: &[1024, 4096],
        product: 8192,
        spread_bytes: 512 << 20,
        launches: 128,
        repetitions: 7,
    }
}
