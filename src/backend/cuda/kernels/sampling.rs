//! Sampling and acceptance: `count_tokens`, `adjust`, `weigh` and `sample`, `accept`.

use super::{Address, Launcher, Shape, launch};
use crate::backend::BackendError;
use crate::sample::{Rule, Sampler};

arguments! {
    /// One request's parameters (`SamplingParams` in `cuda/common/sampling.cuh`).
    Params {
        /// Divides the logits.
        temperature: f64,
        /// 1: off.
        top_p: f64,
        /// 0: off.
        min_p: f64,
        /// 1: off.
        repetition_penalty: f64,
        /// 0: off.
        presence_penalty: f64,
        /// 0: off.
        frequency_penalty: f64,
        /// Keys all randomness.
        seed: u64,
        /// 0: off.
        top_k: u32,
        /// 0 greedy, 1 rejection, 2 coupled.
        rule: u32,
    }
}

impl Params {
    /// The device's view of a request.
    pub fn new(sampler: &Sampler) -> Self {
        let params = sampler.params();
        let rule = match sampler.rule() {
            Rule::Greedy => 0,
            Rule::Rejection => 1,
            Rule::Coupled => 2,
        };
        Self {
            temperature: params.temperature,
            top_p: params.top_p,
            min_p: params.min_p,
            repetition_penalty: params.repetition_penalty,
            presence_penalty: params.presence_penalty,
            frequency_penalty: params.frequency_penalty,
            seed: sampler.key(),
            top_k: u32::try_from(params.top_k).unwrap_or(u32::MAX),
            rule,
        }
    }
}

arguments! {
    /// What one row of logits is for.
    JudgedRow {
        /// Index of its parameters, of its list of biases, and of its mask.
        sequence: u32,
        /// Of the token to be decided.
        position: u32,
        /// Drafts of this round before it.
        drafted: u32,
        /// Row of occurrence counts.
        slot: u32,
        /// Row of `weights` and `choices` that the outcome goes to.
        destination: u32,
    }
}

arguments! {
    /// What `cuda/sample.cu` decides about a row.
    RowChoice {
        /// The token; of a target row under rejection sampling, the most probable one.
        token: u32,
        /// Largest probability of the raw logits.
        confidence: f32,
        /// Of the row's weights.
        total: u64,
    }
}

arguments! {
    /// One entry of a logit bias.
    TokenBias {
        /// The token.
        token: u32,
        /// Added to its logit.
        bias: f32,
    }
}

arguments! {
    /// `cuda/adjust.cu`.
    Adjust {
        /// `[rows, vocab]` f32.
        logits: Address,
        /// `[sequences]` of [`Params`].
        params: Address,
        /// `[rows]` of [`JudgedRow`].
        rows: Address,
        /// `[slots, counts_stride]` u32.
        counts: Address,
        /// `[rows, most_drafts]` u32.
        recent: Address,
        /// `[sequences + 1]` i32.
        bias_begin: Address,
        /// Of [`TokenBias`].
        bias: Address,
        /// `[vocab]` u32, ascending: the token of each logit; null where that is its column.
        draft_ids: Address,
        /// `[sequences, mask_words]` u32, a bit for each token of the model that is allowed; null: all are.
        masks: Address,
        /// `[rows, vocab]` f32.
        adjusted: Address,
        /// `[rows, vocab / 32]` of [`HeadPartial`](super::HeadPartial).
        partials: Address,
        /// The same of the logits that masks leave, before anything is added to them; not written without masks.
        raw_partials: Address,
        /// Logits of a row.
        vocab: i32,
        /// Tokens of a row of `counts`: the model's vocabulary.
        counts_stride: i32,
        /// Elements of a row of `recent`.
        most_drafts: i32,
        /// Elements of a mask: at least a bit for each token of the model.
        mask_words: i32,
    }
}

arguments! {
    /// `cuda/weigh.cu` and `cuda/sample.cu`.
    Sample {
        /// `[rows, vocab]` f32, after penalties.
        logits: Address,
        /// Of those.
        partials: Address,
        /// Of the logits before penalties, under a mask of those that it leaves.
        raw_partials: Address,
        /// `[sequences]` of [`Params`].
        params: Address,
        /// `[rows]` of [`JudgedRow`].
        rows: Address,
        /// `[destinations, stride]` u64, by token.
        weights: Address,
        /// `[destinations]` of [`RowChoice`].
        choices: Address,
        /// `[vocab]` u32, ascending: the token of each logit; null where that is its column.
        draft_ids: Address,
        /// `[rows]` of [`FILTER_BYTES`](Self::FILTER_BYTES) each, zero before the first launch.
        filters: Address,
        /// `[rows, slices]` of [`PART_BYTES`](Self::PART_BYTES) each.
        parts: Address,
        /// Logits of a row.
        vocab: i32,
        /// 1: draft rows; 0: target rows.
        draws: i32,
        /// Elements between rows of `weights`, at least `vocab`.
        stride: i32,
        /// Zero.
        padding: u32,
    }
}

arguments! {
    /// `cuda/count_tokens.cu`.
    CountTokens {
        /// `[count]` u32.
        tokens: Address,
        /// A row of occurrence counts, `[vocab]` u32.
        counts: Address,
        /// Tokens to count.
        count: i32,
        /// How many of them, from the first one on, are of the prompt.
        prompt: i32,
    }
}

arguments! {
    /// A sequence whose drafts are to be judged.
    VerifiedSequence {
        /// Row of drafts and counts.
        slot: u32,
        /// First of its target rows.
        first_row: u32,
        /// Tokens before the drafts.
        committed: u32,
        /// Drafts, at most `most_drafts`.
        drafts: u32,
        /// How many of them, the first ones, were drawn from the draft's distributions; the others were proposed.
        sampled: u32,
        /// Where the proposed ones begin among `ids`.
        proposed: u32,
    }
}

arguments! {
    /// What `cuda/accept.cu` decides.
    Verdict {
        /// Drafts kept.
        accepted: u32,
        /// The token that follows them.
        next: u32,
    }
}

arguments! {
    /// `cuda/accept.cu`.
    Accept {
        /// `[sequences]` of [`VerifiedSequence`].
        sequences: Address,
        /// `[sequences]` of [`Params`].
        params: Address,
        /// `[rows]` of [`RowChoice`].
        target: Address,
        /// `[rows, vocab]` u64.
        target_weights: Address,
        /// `[slots, most_drafts]` of [`RowChoice`].
        draft: Address,
        /// `[slots, most_drafts, vocab]` u64.
        draft_weights: Address,
        /// u32: proposed tokens, where [`VerifiedSequence::proposed`] says.
        ids: Address,
        /// `[slots, vocab]` u32, or null.
        counts: Address,
        /// `[sequences]` of [`Verdict`].
        verdicts: Address,
        /// Tokens of the vocabulary.
        vocab: i32,
        /// Most drafts of a round.
        most_drafts: i32,
    }
}

/// Argument structures that are a sampling kernel each.
pub trait SamplingKernel: bytemuck::Pod {
    /// The kernel's name.
    const KERNEL: &'static str;
    /// Its shape for `count` rows (sequences, for [`Accept`]; one, for [`CountTokens`]).
    fn shape(&self, count: usize) -> Shape;
}

const THREADS: u32 = 512;

impl SamplingKernel for Adjust {
    const KERNEL: &'static str = "adjust_logits";
    fn shape(&self, count: usize) -> Shape {
        Shape { grid: [(self.vocab as u32).div_ceil(256), count as u32, 1], threads: 256, shared_bytes: 0 }
    }
}

impl Sample {
    /// Bytes that are kept of a row's filters.
    pub const FILTER_BYTES: usize = 17_688;
    /// Bytes of what a slice of a row comes to.
    pub const PART_BYTES: usize = 24;

    /// Logits of a slice, as `cuda/common/sampled_row.cuh` has it.
    const SLICE: usize = 4096;

    /// Slices of a row of `vocab` logits, a block each.
    pub const fn slices(vocab: usize) -> usize {
        vocab.div_ceil(Self::SLICE)
    }
}

impl SamplingKernel for CountTokens {
    const KERNEL: &'static str = "count_tokens";
    fn shape(&self, count: usize) -> Shape {
        debug_assert_eq!(count, 1, "a launch counts into one row");
        Shape { grid: [1; 3], threads: THREADS, shared_bytes: 0 }
    }
}

impl SamplingKernel for Accept {
    const KERNEL: &'static str = "accept_drafts";
    fn shape(&self, count: usize) -> Shape {
        Shape { grid: [count as u32, 1, 1], threads: THREADS, shared_bytes: 0 }
    }
}

/// Launches a sampling kernel over `count` rows or sequences.
///
/// # Safety
/// As [`Launcher::launch`].
///
/// # Errors
/// If the device refuses or fails.
pub unsafe fn sampling_kernel<K: SamplingKernel>(
    on: &impl Launcher,
    count: usize,
    arguments: &K,
) -> Result<(), BackendError> {
    // SAFETY: the caller's promise.
    unsafe { launch(on, K::KERNEL, arguments.shape(count), arguments) }
}

/// A token from each of `count` rows of logits. `weighs`: some of them are not greedy.
///
/// # Safety
/// As [`Launcher::launch`].
///
/// # Errors
/// If the device refuses or fails.
pub unsafe fn sample(on: &impl Launcher, count: usize, weighs: bool, arguments: &Sample) -> Result<(), BackendError> {
    let slices = if weighs { Sample::slices(arguments.vocab as usize) as u32 } else { 1 };
    let shape = Shape { grid: [slices, count as u32, 1], threads: THREADS, shared_bytes: 0 };
    // SAFETY: the caller's promise.
    unsafe {
        if weighs {
            launch(on, "weigh_rows", shape, arguments)?;
        }
        launch(on, "sample_rows", shape, arguments)
    }
}
