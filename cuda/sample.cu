// From logits to a distribution and a token, per row: temperature, top-k, top-p, min-p in this order, then
// the request's rule. Each filter sees what the one before it kept.
//
// in     logits [rows, vocab] f32 after penalties, partials of them; raw_partials before penalties
// out    for a row's destination d: weights [d] u64 (common/sampling.cuh), `stride` apart, 0 where filtered
//        out (untouched by GREEDY, and where a draft head does not know a token: zero from the beginning);
//        choices [d]. draws = 0: target rows, whose token REJECTION leaves to accept.cu
//        Both are by token. Until then a logit goes by its column, which ranks as its token does: draft_ids
//        [vocab] ascend; null where column and token are one
// grid   (rows), 512 threads
// order  sums are of integers, in any order; ties go to the lowest id
// bytes  partials twice; unless greedy, the row of logits and of weights 2 to 4 times, and up to 8 times
//        more for each of top-k and top-p (from L2); with draft_ids 4 more wherever a weight is touched
#include "common/memory.cuh"
#include "common/sampling.cuh"

struct SampleArgs {
  const float* logits;
  const HeadPartial* partials;
  const HeadPartial* raw_partials;
  const SamplingParams* params;
  const SamplingRow* rows;
  uint64_t* weights;
  RowChoice* choices;
  const uint32_t* draft_ids;
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

// The smallest rank of a row, from its partials: that of its column.
__device__ __forceinline__ uint64_t best_rank(const HeadPartial* partials, int tiles) {
  uint64_t best = ~uint64_t(0);
  for (int i = threadIdx.x; i < tiles; i += SAMPLING_THREADS) {
    const uint64_t rank = rank_of(partials[i].max, partials[i].column);
    best = rank < best ? rank : best;
  }
  return block_min(best);
}

__device__ __forceinline__ float confidence_of(const HeadPartial* partials, int tiles, float max) {
  double sum = 0;
  for (int i = threadIdx.x; i < tiles; i += SAMPLING_THREADS)
    if (partials[i].sum > 0) sum += double(partials[i].sum) * double(expf(fminf(partials[i].max, max) - max));
  sum = block_fold<double>(sum, 0, [](double a, double b) { return a + b; });
  return sum > 0 ? float(1.0 / sum) : 1.0f;  // all forbidden: the choice is certain
}

// argmax of score + Gumbel noise over the columns of positive weight. Noise is the token's own; it costs two
// logarithms, spent only where a bound on it leaves a chance, and its words come four tokens at a time.
__device__ __forceinline__ uint32_t noisy_argmax(const float* logits, const WeightRow& weights, int vocab, float max,
                                                 double temperature, uint32_t most_probable, const Philox& noise) {
  const auto word = [](const uint4& words, int i) {
    return i == 0 ? words.x : i == 1 ? words.y : i == 2 ? words.z : words.w;
  };
  const uint32_t first = token_of(weights.draft_ids, most_probable);
  double best = gumbel(word(noise.block(first / 4), first % 4));
  uint32_t winner = most_probable;
  for (int four = threadIdx.x; four * 4 < vocab; four += SAMPLING_THREADS) {
    uint32_t block = token_of(weights.draft_ids, four * 4) / 4;
    uint4 words = noise.block(block);
    for (uint32_t column = four * 4; column < uint32_t(min(vocab, four * 4 + 4)); column++) {
      if (weights[column] == 0) continue;
      const uint32_t token = token_of(weights.draft_ids, column);
      if (token / 4 != block) block = token / 4, words = noise.block(block);
      const double score = score_of(logits[column], max, temperature);
      if (score + double(gumbel_bound(word(words, token % 4))) < best) continue;
      const double value = score + gumbel(word(words, token % 4));
      if (value > best || (value == best && column < winner)) best = value, winner = column;
    }
  }
  const double most = block_max(best);
  return uint32_t(block_min(best == most ? winner : ~0u));
}

// Fills `weights` with the row's distribution and returns its total.
__device__ __forceinline__ uint64_t distribute(const float* logits, const WeightRow& weights, int vocab, float max,
                                               const SamplingParams& params) {
  const auto rank = [=](int token) { return rank_of(logits[token], token); };
  // Sets the weights of a row to `weight_of(token)`; returns their sum.
  const auto fill = [=](auto weight_of) {
    uint64_t sum = 0;
    for (int token = threadIdx.x; token < vocab; token += SAMPLING_THREADS) sum += weights[token] = weight_of(token);
    return block_sum(sum);
  };
  const auto keep_up_to = [=](uint64_t last) {
    return fill([=](int token) { return rank(token) <= last ? weights[token] : 0; });
  };
  uint64_t total = fill([=](int token) {
    const float logit = logits[token];
    if (!(logit > NEGATIVE_INFINITY)) return uint64_t(0);
    return uint64_t(exp_of_negative(score_of(logit, max, params.temperature)) * WEIGHT_ONE + 0.5);
  });
  if (params.top_k > 0 && params.top_k < uint32_t(vocab)) {
    const auto possible = [=](int token) { return uint64_t(logits[token] > NEGATIVE_INFINITY); };
    total = keep_up_to(rank_reaching(params.top_k, vocab, rank, possible));
  }
  if (params.top_p < 1) {
    const uint64_t goal = uint64_t(ceil(params.top_p * double(total)));
    total = keep_up_to(rank_reaching(goal < 1 ? 1 : goal, vocab, rank, [=](int token) { return weights[token]; }));
  }
  if (params.min_p > 0) {
    const uint64_t least = uint64_t(ceil(params.min_p * WEIGHT_ONE));  // the most probable token has WEIGHT_ONE
    total = fill([=](int token) { return weights[token] >= least ? weights[token] : 0; });
  }
  return total;
}

__device__ __forceinline__ void sample(const SampleArgs& args) {
  const int row = blockIdx.x, vocab = args.vocab, tiles = (vocab + WARP - 1) / WARP;
  const float* logits = args.logits + size_t(row) * vocab;
  await_previous_kernel();
  const SamplingRow about = args.rows[row];
  const WeightRow weights{args.weights + size_t(about.destination) * args.stride, args.draft_ids};
  const SamplingParams params = args.params[about.sequence];

  const HeadPartial* raw = args.raw_partials + size_t(row) * tiles;
  const uint64_t raw_best = best_rank(raw, tiles);
  const uint64_t best = best_rank(args.partials + size_t(row) * tiles, tiles);
  const auto logit_of = [](uint64_t rank) {
    const uint32_t ascending = ~uint32_t(rank >> 32);
    return __uint_as_float(ascending >> 31 ? ascending & 0x7fffffffu : ~ascending);
  };
  const float confidence = confidence_of(raw, tiles, logit_of(raw_best));
  uint32_t chosen = uint32_t(best);
  uint64_t total = 0;
  const float max = logit_of(best);
  const bool forbidden = max == NEGATIVE_INFINITY;  // all tokens: the first one is certain
  if (forbidden) chosen = 0;
  if (params.rule != GREEDY) {
    if (forbidden) {
      for (int column = threadIdx.x; column < vocab; column += SAMPLING_THREADS) weights[column] = column == 0;
      total = 1;
      __syncthreads();
    } else {
      total = distribute(logits, weights, vocab, max, params);
    }
    if (params.rule == COUPLED && !forbidden) {
      const Philox noise(params.seed, about.position, GUMBEL, 0);
      chosen = noisy_argmax(logits, weights, vocab, max, params.temperature, chosen, noise);
    } else if (params.rule == REJECTION && args.draws) {
      const Philox random(params.seed, about.position, DRAFT, about.drafted);
      chosen = pick(fine_uniform(random), total, vocab, [=](int column) { return weights[column]; });
    }
  }
  if (threadIdx.x == 0) args.choices[about.destination] = {token_of(args.draft_ids, chosen), confidence, total};
}

KERNEL(sample_rows, SAMPLING_THREADS, 1, SampleArgs, sample(args))
