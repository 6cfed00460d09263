// A row of logits on its way to a token, in slices, a block each: weigh.cu, then sample.cu.
//
// Each filter keeps the first tokens of the row by rank, so what all of them leave is those up to one rank, the last, which
// is found in two steps. Weights are sorted into bins as they are made; sums over the bins tell in which one the running sum
// reaches a goal, and only the tokens of that bin are compared by rank.
#pragma once
#include "memory.cuh"
#include "sampling.cuh"

constexpr int SLICE = 4096;  // columns
constexpr int BINS_AN_OCTAVE = 32, WEIGHT_BINS = 46 * BINS_AN_OCTAVE;  // of weights from 1 to WEIGHT_ONE

// What is kept of one row. Sums and counts of blocks are zero between launches.
struct RowFilter {
  uint64_t sums[WEIGHT_BINS];
  uint32_t counts[WEIGHT_BINS];
  uint64_t last;  // kept: tokens up to this rank,
  int bin;        // of this bin or a higher one
  unsigned weighed, sampled;  // blocks that have come so far
  unsigned padding;
};
static_assert(sizeof(RowFilter) == 17688, "as src/backend/cuda/kernels/sampling.rs has it");

// What a slice comes to.
struct SlicePart {
  uint64_t total;
  double best;  // of score + noise
  uint32_t winner;
  uint32_t padding;
};

struct SampleArgs {
  const float* logits;
  const HeadPartial* partials;
  const HeadPartial* raw_partials;
  const SamplingParams* params;
  const SamplingRow* rows;
  uint64_t* weights;
  RowChoice* choices;
  const uint32_t* draft_ids;
  RowFilter* filters;  // [rows]
  SlicePart* parts;    // [rows, slices]
  int vocab;
  int draws;
  int stride;  // elements between rows of weights, at least vocab
};

// A row of weights, which lie by token, as logits see it: by column.
struct WeightRow {
  uint64_t* weights;
  const uint32_t* draft_ids;
  __device__ __forceinline__ uint64_t& operator[](uint32_t column) const {
    return weights[token_of(draft_ids, column)];
  }
};

// What the blocks of a row have in common.
struct SampledRow {
  int vocab, tiles;
  const float* logits;
  SamplingRow about;
  SamplingParams params;
  WeightRow weights;
  RowFilter& filter;

  __device__ __forceinline__ explicit SampledRow(const SampleArgs& args)
      : vocab(args.vocab), tiles((args.vocab + WARP - 1) / WARP), logits(args.logits + size_t(blockIdx.y) * args.vocab),
        about(args.rows[blockIdx.y]), params(args.params[about.sequence]),
        weights{args.weights + size_t(about.destination) * args.stride, args.draft_ids},
        filter(args.filters[blockIdx.y]) {}

  // Columns of the calling block: [begin, end).
  __device__ __forceinline__ int begin() const { return blockIdx.x * SLICE; }
  __device__ __forceinline__ int end() const { return min(vocab, begin() + SLICE); }
  __device__ __forceinline__ uint64_t rank(int column) const { return rank_of(logits[column], column); }

  // The smallest rank of a row, from its partials: that of its column.
  __device__ __forceinline__ uint64_t best_rank(const HeadPartial* partials) const {
    const HeadPartial* mine = partials + size_t(blockIdx.y) * tiles;
    uint64_t best = ~uint64_t(0);
    for (int i = threadIdx.x; i < tiles; i += SAMPLING_THREADS) {
      const uint64_t rank = rank_of(mine[i].max, mine[i].column);
      best = rank < best ? rank : best;
    }
    return block_min(best);
  }
};

__device__ __forceinline__ float logit_of(uint64_t rank) {
  const uint32_t ascending = ~uint32_t(rank >> 32);
  return __uint_as_float(ascending >> 31 ? ascending & 0x7fffffffu : ~ascending);
}

// The bin of a weight above 0: its leading bits. Of two tokens the one in the higher bin is the more probable one.
__device__ __forceinline__ int bin_of(uint64_t weight) {
  const int high = int(weight >> 32), octave = high ? 63 - __clz(high) : 31 - __clz(int(uint32_t(weight)));
  return octave * BINS_AN_OCTAVE + int(weight << (63 - octave) >> 58 & (BINS_AN_OCTAVE - 1));
}
