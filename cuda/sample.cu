// From weights to a distribution and a token, per row: what weigh.cu keeps, min-p, then the request's rule. Each filter sees what
// the one before it kept.
//
// in     logits [rows, vocab] f32 after penalties, partials of them; raw_partials before penalties; weights and filters
//        as weigh.cu leaves them, which need not have run where all rows are GREEDY
// out    for a row's destination d: weights [d] u64, 0 where filtered out (untouched by GREEDY); choices [d]. draws = 0:
//        target rows, whose token REJECTION leaves to accept.cu
//        Both are by token. Until then a logit goes by its column, which ranks as its token does: draft_ids
//        [vocab] ascend; null where column and token are one
// grid   (slices, rows), 512 threads; (1, rows) where all are GREEDY. The last block of a row decides
// order  sums are of integers, in any order; ties go to the lowest id
// bytes  partials once a block; unless greedy, the row of weights, of logits where a filter or COUPLED asks for them; with
//        draft_ids 4 more wherever a weight is touched
#include "common/sampled_row.cuh"

__device__ __forceinline__ float confidence_of(const HeadPartial* partials, int tiles, float max) {
  double sum = 0;
  for (int i = threadIdx.x; i < tiles; i += SAMPLING_THREADS)
    if (partials[i].sum > 0) sum += double(partials[i].sum) * double(expf(fminf(partials[i].max, max) - max));
  sum = block_fold<double>(sum, 0, [](double a, double b) { return a + b; });
  return sum > 0 ? float(1.0 / sum) : 1.0f;  // all forbidden: the choice is certain
}

// A column and its score + Gumbel noise.
struct Noisy {
  double value;
  uint32_t column;
};

// The largest of the threads' values, of equal ones the lowest column.
__device__ __forceinline__ Noisy block_best(const Noisy& mine) {
  const double most = block_max(mine.value);
  return {most, uint32_t(block_min(mine.value == most ? mine.column : ~0u))};
}

// The best of a slice's columns of positive weight and of the most probable one. Noise is the token's own; it costs two
// logarithms, spent only where a bound on it leaves a chance, and its words come four tokens at a time.
__device__ __forceinline__ Noisy noisy_best(const SampledRow& row, float max, uint32_t most_probable, const Philox& noise) {
  const auto word = [](const uint4& words, int i) {
    return i == 0 ? words.x : i == 1 ? words.y : i == 2 ? words.z : words.w;
  };
  const WeightRow& weights = row.weights;
  const uint32_t first = token_of(weights.draft_ids, most_probable);
  Noisy best{gumbel(word(noise.block(first / 4), first % 4)), most_probable};
  static_assert(SLICE % 4 == 0, "no four columns are of two slices");
  for (int four = row.begin() / 4 + threadIdx.x; four * 4 < row.end(); four += SAMPLING_THREADS) {
    uint32_t block = token_of(weights.draft_ids, four * 4) / 4;
    uint4 words = noise.block(block);
    for (uint32_t column = four * 4; column < uint32_t(min(row.end(), four * 4 + 4)); column++) {
      if (weights[column] == 0) continue;
      const uint32_t token = token_of(weights.draft_ids, column);
      if (token / 4 != block) block = token / 4, words = noise.block(block);
      const double score = score_of(row.logits[column], max, row.params.temperature);
      if (score + double(gumbel_bound(word(words, token % 4))) < best.value) continue;
      const double value = score + gumbel(word(words, token % 4));
      if (value > best.value || (value == best.value && column < best.column)) best = {value, column};
    }
  }
  return block_best(best);
}

// Puts weights to 0 that are not kept, and returns the sum of the others: of a slice.
__device__ __forceinline__ uint64_t keep(const SampledRow& row) {
  const uint64_t last = row.filter.last;
  const int bin = row.filter.bin;
  const uint64_t least = row.params.min_p > 0 ? uint64_t(ceil(row.params.min_p * WEIGHT_ONE)) : 0;  // of WEIGHT_ONE at most
  uint64_t sum = 0;
  for (int column = row.begin() + threadIdx.x; column < row.end(); column += SAMPLING_THREADS) {
    const uint64_t weight = row.weights[column];
    if (weight == 0) continue;
    const bool kept = weight >= least && (bin == 0 || bin_of(weight) >= bin) &&
                      (last == ~uint64_t(0) || row.rank(column) <= last);
    if (kept) sum += weight;
    else row.weights[column] = 0;
  }
  return block_sum(sum);
}

__device__ __forceinline__ void sample(const SampleArgs& args) {
  await_previous_kernel();
  const SampledRow row(args);
  const SamplingParams& params = row.params;
  const uint64_t best = row.best_rank(args.partials);
  const float max = logit_of(best);
  const bool forbidden = max == NEGATIVE_INFINITY;  // all tokens: the first one is certain
  uint32_t chosen = forbidden ? 0 : uint32_t(best);
  const bool coupled = params.rule == COUPLED && !forbidden, draws = params.rule == REJECTION && args.draws && !forbidden;
  uint64_t total = 0;
  if (params.rule == GREEDY) {
    if (blockIdx.x > 0) return;
  } else {
    SlicePart* parts = args.parts + size_t(blockIdx.y) * gridDim.x;
    const uint64_t sum = keep(row);
    Noisy noisy{0, 0};
    if (coupled) noisy = noisy_best(row, max, chosen, Philox(params.seed, row.about.position, GUMBEL, 0));
    if (threadIdx.x == 0) parts[blockIdx.x] = {sum, noisy.value, noisy.column, 0};
    if (!last_block(&row.filter.sampled, gridDim.x)) return;
    for (int slice = 0; slice < int(gridDim.x); slice++) {
      total += parts[slice].total;
      const Noisy other{parts[slice].best, parts[slice].winner};
      if (other.value > noisy.value || (other.value == noisy.value && other.column < noisy.column)) noisy = other;
    }
    if (coupled) chosen = noisy.column;
    if (draws) {
      uint64_t goal = drawn_sum(fine_uniform(Philox(params.seed, row.about.position, DRAFT, row.about.drafted)), total);
      int slice = 0;
      for (; parts[slice].total < goal; slice++) goal -= parts[slice].total;
      const int end = min(row.vocab, (slice + 1) * SLICE);
      chosen = token_reaching(goal, slice * SLICE, end, [&](int column) { return row.weights[column]; });
    }
  }
  const uint64_t raw_best = row.best_rank(args.raw_partials);
  const HeadPartial* raw = args.raw_partials + size_t(blockIdx.y) * row.tiles;
  const float confidence = confidence_of(raw, row.tiles, logit_of(raw_best));
  if (threadIdx.x == 0) args.choices[row.about.destination] = {token_of(args.draft_ids, chosen), confidence, total};
}

KERNEL(sample_rows, SAMPLING_THREADS, 1, SampleArgs, sample(args))
