// From logits to weights, per row: temperature, and what top-k and top-p, in this order, keep of it. top-p sees what top-k
// kept. Greedy rows have neither.
//
// in     as sample.cu, which follows
// out    for a row's destination d: weights [d] u64 (common/sampling.cuh), before any filter, `stride` apart (untouched where
//        a draft head does not know a token: zero from the beginning); filters [row]: how far they are kept
// grid   (slices, rows), 512 threads; the last block of a row finds what is kept
// order  sums are of integers, in any order; ties go to the lowest id
// bytes  a row of logits, and of weights; with filters one block reads the weights once more for each, twice for both
#include "common/sampled_row.cuh"

// What a running sum is of: tokens, or their weights.
enum Summed { NUMBER, MASS };

__device__ __forceinline__ uint64_t of_bin(const RowFilter& filter, int bin, Summed summed) {
  return summed == NUMBER ? filter.counts[bin] : filter.sums[bin];
}

// A bin, and what the running sum lacks before it; no bin where the whole sum is not enough.
struct ReachedBin {
  int bin;
  uint64_t lacking;
};

// The bin in which the running sum, highest bins first, reaches `goal`.
__device__ __forceinline__ ReachedBin bin_reaching(const RowFilter& filter, uint64_t goal, Summed summed) {
  constexpr int SHARE = WEIGHT_BINS / WARP;
  static_assert(WEIGHT_BINS % WARP == 0, "lanes have equal shares");
  SHARED(ReachedBin, reached);
  if (threadIdx.x == 0) reached = {-1, 0};
  __syncthreads();
  if (threadIdx.x < WARP) {
    const int highest = WEIGHT_BINS - 1 - int(threadIdx.x) * SHARE;
    uint64_t sum = 0;
    for (int i = 0; i < SHARE; i++) sum += of_bin(filter, highest - i, summed);
    uint64_t up_to = sum;
    UNROLL for (int by = 1; by < WARP; by <<= 1) {
      const uint64_t higher = __shfl_up_sync(ALL_LANES, up_to, by);
      if (int(threadIdx.x) >= by) up_to += higher;
    }
    uint64_t before = up_to - sum;
    if (before < goal && goal <= up_to) {
      int bin = highest;
      for (; before + of_bin(filter, bin, summed) < goal; bin--) before += of_bin(filter, bin, summed);
      reached = {bin, goal - before};
    }
  }
  __syncthreads();
  const ReachedBin found = reached;
  __syncthreads();
  return found;
}

// The smallest rank at which the running sum over the tokens of one bin reaches `goal`.
__device__ __forceinline__ uint64_t rank_in_bin(const SampledRow& row, int bin, uint64_t goal, Summed summed) {
  constexpr int MOST = 1024;  // tokens that are compared with each other; more of them digit by digit
  SHARED(uint64_t, ranks, [MOST]);
  SHARED(uint64_t, values, [MOST]);
  SHARED(int, count);
  SHARED(uint64_t, found);
  const auto value_of = [&](int column) {
    const uint64_t weight = row.weights[column];
    return weight == 0 || bin_of(weight) != bin ? 0 : summed == NUMBER ? 1 : weight;
  };
  if (threadIdx.x == 0) count = 0;
  __syncthreads();
  for (int column = threadIdx.x; column < row.vocab; column += SAMPLING_THREADS) {
    const uint64_t value = value_of(column);
    if (value == 0) continue;
    const int at = atomicAdd(&count, 1);
    if (at < MOST) ranks[at] = row.rank(column), values[at] = value;
  }
  __syncthreads();
  if (count > MOST) return rank_reaching(goal, row.vocab, [&](int column) { return row.rank(column); }, value_of);
  for (int i = threadIdx.x; i < count; i += SAMPLING_THREADS) {
    uint64_t before = 0;
    for (int j = 0; j < count; j++) before += ranks[j] < ranks[i] ? values[j] : 0;
    if (before < goal && goal <= before + values[i]) found = ranks[i];
  }
  __syncthreads();
  const uint64_t rank = found;
  __syncthreads();
  return rank;
}

// Tokens up to a rank, of a bin or higher ones.
struct Kept {
  int bin = 0;
  uint64_t last = ~uint64_t(0);
};

// The first tokens of a row, as many as bring the running sum to `goal`.
__device__ __forceinline__ Kept first_tokens(const SampledRow& row, uint64_t goal, Summed summed) {
  const ReachedBin reached = bin_reaching(row.filter, goal, summed);
  Kept kept;
  if (reached.bin < 0) return kept;
  kept.bin = reached.bin;
  if (reached.lacking < of_bin(row.filter, reached.bin, summed))
    kept.last = rank_in_bin(row, reached.bin, reached.lacking, summed);
  return kept;
}

// What top-k and top-p keep of a row that all its blocks have weighed.
__device__ __forceinline__ Kept filtered(const SampledRow& row, bool top_k, bool top_p) {
  Kept kept;
  if (top_k) kept = first_tokens(row, row.params.top_k, NUMBER);
  if (top_p) {
    uint64_t sum = 0;
    if (top_k) {
      for (int column = threadIdx.x; column < row.vocab; column += SAMPLING_THREADS) {
        const uint64_t weight = row.weights[column];
        if (weight && bin_of(weight) >= kept.bin && row.rank(column) <= kept.last) sum += weight;
      }
    } else {
      for (int bin = threadIdx.x; bin < WEIGHT_BINS; bin += SAMPLING_THREADS) sum += row.filter.sums[bin];
    }
    const uint64_t goal = uint64_t(ceil(row.params.top_p * double(block_sum(sum))));
    const Kept likely = first_tokens(row, goal < 1 ? 1 : goal, MASS);
    kept.bin = max(kept.bin, likely.bin);
    kept.last = likely.last < kept.last ? likely.last : kept.last;
  }
  return kept;
}

__device__ __forceinline__ void weigh(const SampleArgs& args) {
  SHARED(SharedSums<WEIGHT_BINS>, sums);
  SHARED(uint32_t, counts, [WEIGHT_BINS]);
  await_previous_kernel();
  const SampledRow row(args);
  const SamplingParams& params = row.params;
  if (params.rule == GREEDY) return;
  const float max = logit_of(row.best_rank(args.partials));
  const bool forbidden = max == NEGATIVE_INFINITY;  // all tokens: the first one is certain
  const bool top_k = params.top_k > 0 && params.top_k < uint32_t(row.vocab), top_p = params.top_p < 1;
  const bool filters = !forbidden && (top_k || top_p);
  if (filters) {
    sums.clear();
    for (int bin = threadIdx.x; bin < WEIGHT_BINS; bin += SAMPLING_THREADS) counts[bin] = 0;
    __syncthreads();
  }
  for (int column = row.begin() + threadIdx.x; column < row.end(); column += SAMPLING_THREADS) {
    const float logit = row.logits[column];
    uint64_t weight = column == 0;
    if (!forbidden)
      weight = logit > NEGATIVE_INFINITY
                   ? uint64_t(exp_of_negative(score_of(logit, max, params.temperature)) * WEIGHT_ONE + 0.5)
                   : 0;
    row.weights[column] = weight;
    if (filters && weight) sums.add(bin_of(weight), weight), atomicAdd(&counts[bin_of(weight)], 1u);
  }
  if (!filters) {
    if (blockIdx.x == 0 && threadIdx.x == 0) row.filter.bin = 0, row.filter.last = ~uint64_t(0);
    return;
  }
  __syncthreads();
  for (int bin = threadIdx.x; bin < WEIGHT_BINS; bin += SAMPLING_THREADS)
    if (counts[bin]) {
      atomicAdd(reinterpret_cast<unsigned long long*>(&row.filter.sums[bin]), (unsigned long long)sums.at(bin));
      atomicAdd(&row.filter.counts[bin], counts[bin]);
    }
  if (!last_block(&row.filter.weighed, gridDim.x)) return;
  const Kept kept = filtered(row, top_k, top_p);
  if (threadIdx.x == 0) row.filter.bin = kept.bin, row.filter.last = kept.last;
  __syncthreads();
  for (int bin = threadIdx.x; bin < WEIGHT_BINS; bin += SAMPLING_THREADS) row.filter.sums[bin] = row.filter.counts[bin] = 0;
}

KERNEL(weigh_rows, SAMPLING_THREADS, 1, SampleArgs, weigh(args))
