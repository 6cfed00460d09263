// Sampling parameters, the ranking of tokens, and distributions as integers.
//
// A distribution is a row of integer weights, round(2^45 exp(score)) with score = (logit - max) / temperature <= 0:
// sums of integers do not depend on their order, so every total, filter and draw is deterministic
// however the work is spread, and draft and target agree on what they mean. Tokens 2^46 times less
// probable than the first one have weight 0.
#pragma once
#include "head_partial.cuh"
#include "philox.cuh"

constexpr int SAMPLING_THREADS = 512, SAMPLING_WARPS = SAMPLING_THREADS / WARP;
constexpr double WEIGHT_ONE = 35184372088832.0;  // 2^45: sums over 2^18 tokens fit in 64 bits
constexpr float LARGEST_FLOAT = 3.402823466e38f;

enum Rule : uint32_t { GREEDY = 0, REJECTION = 1, COUPLED = 2 };

// One request's parameters (src/sample/params.rs).
struct SamplingParams {
  double temperature;  // > 0 unless the rule is GREEDY
  double top_p, min_p;
  double repetition_penalty, presence_penalty, frequency_penalty;
  uint64_t seed;
  uint32_t top_k;  // 0: off
  Rule rule;
};

// What one row of logits is for.
struct SamplingRow {
  uint32_t sequence;     // whose parameters
  uint32_t position;     // of the token to be decided
  uint32_t drafted;      // drafts of this round before it
  uint32_t slot;         // row of occurrence counts
  uint32_t destination;  // row of weights and choices that the outcome goes to
};

// What is decided about one row.
struct RowChoice {
  uint32_t token;    // chosen by the rule; of a target row under REJECTION: the most probable one
  float confidence;  // largest probability of the raw logits at temperature 1
  uint64_t total;    // of the row's weights
};

// The token of a logit: of a draft head whose rows are those of listed tokens, ascending; else its column.
__device__ __forceinline__ uint32_t token_of(const uint32_t* draft_ids, uint32_t column) {
  return draft_ids ? draft_ids[column] : column;
}

// exp(x) for x <= 0 to 10^-15, with the bits of src/sample/exp.rs on any machine; 0 below -708.
__device__ __forceinline__ double exp_of_negative(double x) {
  constexpr double ROUNDER = 6755399441055744.0;  // 1.5 * 2^52: rounds to an integer and keeps it in the low bits
  constexpr double LN2_HIGH = 0.6931471803691238, LN2_LOW = 1.9082149292705877e-10;
  if (!(x > -708.0)) return 0;
  const double rounded = x * 1.4426950408889634 + ROUNDER, n = rounded - ROUNDER;
  const double f = (x - n * LN2_HIGH) - n * LN2_LOW, f2 = f * f, f4 = f2 * f2;
  const double low = (1.0 + f) + f2 * (1.0 / 2.0 + f * (1.0 / 6.0));
  const double middle = (1.0 / 24.0 + f * (1.0 / 120.0)) + f2 * (1.0 / 720.0 + f * (1.0 / 5040.0));
  const double high = (1.0 / 40320.0 + f * (1.0 / 362880.0)) + f2 * (1.0 / 3628800.0 + f * (1.0 / 39916800.0));
  const double series = low + f4 * (middle + f4 * (high + f4 * (1.0 / 479001600.0 + f * (1.0 / 6227020800.0))));
  uint64_t bits, shift;
  memcpy(&bits, &series, 8);
  memcpy(&shift, &rounded, 8);
  bits += shift << 52;
  double result;
  memcpy(&result, &bits, 8);
  return result;
}

// A token's place among others: the most probable is the smallest, ties go to the lowest id. NaN
// counts as minus infinity, infinity as the largest number.
__device__ __forceinline__ uint64_t rank_of(float logit, uint32_t token) {
  const float value = logit != logit ? NEGATIVE_INFINITY : fminf(logit, LARGEST_FLOAT);
  const uint32_t bits = __float_as_uint(value + 0.0f);
  const uint32_t ascending = bits >> 31 ? ~bits : bits | 0x80000000u;
  return uint64_t(~ascending) << 32 | token;
}

__device__ __forceinline__ double score_of(float logit, float max, double temperature) {
  return (double(fminf(logit, max)) - double(max)) / temperature + 0.0;
}

// ---- over a block of SAMPLING_THREADS ------------------------------------------------------------

// The fold of one value per thread, the same in every thread; in a fixed order.
template <class T, class Fold> __device__ __forceinline__ T block_fold(T value, T identity, Fold fold) {
  SHARED(T, of_warp, [SAMPLING_WARPS]);
  UNROLL for (int by = 16; by; by >>= 1) value = fold(value, __shfl_xor_sync(ALL_LANES, value, by));
  if (threadIdx.x % WARP == 0) of_warp[threadIdx.x / WARP] = value;
  __syncthreads();
  value = threadIdx.x % WARP < SAMPLING_WARPS ? of_warp[threadIdx.x % WARP] : identity;
  UNROLL for (int by = 16; by; by >>= 1) value = fold(value, __shfl_xor_sync(ALL_LANES, value, by));
  __syncthreads();
  return value;
}
__device__ __forceinline__ uint64_t block_sum(uint64_t v) {
  return block_fold<uint64_t>(v, 0, [](uint64_t a, uint64_t b) { return a + b; });
}
__device__ __forceinline__ double block_max(double v) {
  return block_fold<double>(v, -1e300, [](double a, double b) { return a > b ? a : b; });
}
__device__ __forceinline__ uint64_t block_min(uint64_t v) {
  return block_fold<uint64_t>(v, ~uint64_t(0), [](uint64_t a, uint64_t b) { return a < b ? a : b; });
}

// Sums of 64-bit numbers in shared memory, in any order. As 32-bit halves: GPUs add no 64 bits there, and would try until
// nobody came between.
template <int COUNT> struct SharedSums {
  uint32_t low[COUNT], high[COUNT];

  __device__ __forceinline__ void clear() {
    for (int i = threadIdx.x; i < COUNT; i += SAMPLING_THREADS) low[i] = high[i] = 0;
  }
  __device__ __forceinline__ uint64_t at(int i) const { return uint64_t(high[i]) << 32 | low[i]; }
  __device__ __forceinline__ void add(int i, uint64_t number) {
    const uint32_t part = uint32_t(number), before = atomicAdd(&low[i], part);
    const uint32_t rest = uint32_t(number >> 32) + (before + part < before);
    if (rest) atomicAdd(&high[i], rest);
  }
};

// The smallest rank at which the running sum of `weight(token)`, most probable tokens first, reaches `goal`;
// all ranks where the whole sum does not. rank(token) may be any order of unequal numbers.
// Eight bits of the rank are settled by each pass over the row.
template <class RankOf, class WeightOf>
__device__ __forceinline__ uint64_t rank_reaching(uint64_t goal, int vocab, RankOf rank, WeightOf weight) {
  constexpr int DIGITS = 256;
  SHARED(SharedSums<DIGITS>, sums);
  SHARED(uint64_t, found, [2]);  // the digit, and what is left of the goal in it
  uint64_t prefix = 0;
  for (int shift = 56; shift >= 0; shift -= 8) {
    sums.clear();
    if (threadIdx.x == 0) found[0] = DIGITS;
    __syncthreads();
    for (int token = threadIdx.x; token < vocab; token += SAMPLING_THREADS) {
      const uint64_t r = rank(token), w = weight(token);
      if (w && (shift == 56 || r >> (shift + 8) == prefix)) sums.add(r >> shift & (DIGITS - 1), w);
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      uint64_t reached = 0;
      for (int digit = 0; digit < DIGITS; digit++) {
        if (reached + sums.at(digit) >= goal) {
          found[0] = digit, found[1] = goal - reached;
          break;
        }
        reached += sums.at(digit);
      }
    }
    __syncthreads();
    const uint64_t digit = found[0];
    if (digit == DIGITS) return ~uint64_t(0);
    const bool whole = found[1] == sums.at(digit);
    prefix = prefix << 8 | digit;
    goal = found[1];
    __syncthreads();
    if (whole) return shift ? ((prefix + 1) << shift) - 1 : prefix;
  }
  return prefix;
}

// The running sum that a draw stops at: the fraction `uniform` of `total` > 0.
__device__ __forceinline__ uint64_t drawn_sum(double uniform, uint64_t total) {
  const uint64_t wanted = uint64_t(ceil(uniform * double(total)));
  return wanted < 1 ? 1 : wanted > total ? total : wanted;
}

// The token from `begin` on, before `end`, at which the running sum of `weight(token)`, lowest ids first, reaches `goal`, which is
// not more than the whole sum.
template <class WeightOf>
__device__ __forceinline__ uint32_t token_reaching(uint64_t goal, int begin, int end, WeightOf weight) {
  SHARED(uint64_t, of_warp, [SAMPLING_WARPS]);
  SHARED(uint32_t, picked);
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
  const int share = (end - begin + SAMPLING_THREADS - 1) / SAMPLING_THREADS * WARP;
  begin += warp * share;
  end = min(end, begin + share);
  uint64_t sum = 0;
  for (int token = begin + lane; token < end; token += WARP) sum += weight(token);
  sum = warp_sum(sum);
  if (lane == 0) of_warp[warp] = sum;
  __syncthreads();
  uint64_t before = 0;
  for (int w = 0; w < warp; w++) before += of_warp[w];
  if (before < goal && goal <= before + sum) {
    for (int first = begin;; first += WARP) {
      uint64_t reached = first + lane < end ? weight(first + lane) : 0;
      UNROLL for (int by = 1; by < WARP; by <<= 1) {
        const uint64_t lower = __shfl_up_sync(ALL_LANES, reached, by);
        if (lane >= by) reached += lower;
      }
      const unsigned there = __ballot_sync(ALL_LANES, before + reached >= goal);
      if (there) {
        if (lane == 0) picked = first + __ffs(there) - 1;
        break;
      }
      before += __shfl_sync(ALL_LANES, reached, WARP - 1);
    }
  }
  __syncthreads();
  const uint32_t token = picked;
  __syncthreads();
  return token;
}

// The same for the fraction `uniform` of `total` > 0, of all tokens.
template <class WeightOf>
__device__ __forceinline__ uint32_t pick(double uniform, uint64_t total, int vocab, WeightOf weight) {
  return token_reaching(drawn_sum(uniform, total), 0, vocab, weight);
}
