// Penalties and logit bias, for rows whose request asks for them.
//
// in     logits [rows, vocab] f32; counts [slots, counts_stride]: how often a token occurs in the output, and
//        bit 31 where it occurs in the prompt; recent [rows, most_drafts]: this round's drafts before the
//        row, which the counts do not have yet; bias: the pairs bias_begin[s] .. bias_begin[s + 1] of
//        number s, the row's, as are its parameters; draft_ids [vocab]: the token of each logit, null where that is its column. Without
//        penalties (1, 0 and 0) no count changes a bit of a logit: counts may be anything
// out    adjusted [rows, vocab] f32, and its partials (common/head_partial.cuh)
// grid   (vocab / 256, rows), 256 threads: a warp takes 32 columns
// bytes  8 read (12 with draft_ids), 4.4 written per logit
#include "common/memory.cuh"
#include "common/sampling.cuh"

struct TokenBias {
  uint32_t token;
  float bias;
};

struct AdjustArgs {
  const float* logits;
  const SamplingParams* params;
  const SamplingRow* rows;
  const uint32_t* counts;
  const uint32_t* recent;
  const int* bias_begin;
  const TokenBias* bias;
  const uint32_t* draft_ids;
  float* adjusted;
  HeadPartial* partials;
  int vocab;
  int counts_stride;  // tokens of a row of counts: the model's, where a draft head has fewer
  int most_drafts;    // elements of a row of recent
};

__device__ __forceinline__ float adjusted_logit(const AdjustArgs& args, int row, uint32_t column) {
  const SamplingRow& about = args.rows[row];
  const SamplingParams& params = args.params[about.sequence];
  const uint32_t token = token_of(args.draft_ids, column);
  float logit = args.logits[size_t(row) * args.vocab + column];
  uint32_t count = args.counts[size_t(about.slot) * args.counts_stride + token];
  for (uint32_t i = 0; i < about.drafted; i++) count += args.recent[size_t(row) * args.most_drafts + i] == token;
  if (count) {
    const double output = count & 0x7fffffffu, by = params.repetition_penalty, wide = logit;
    const double repeated = wide > 0 ? wide / by : wide * by;
    logit = float(repeated - (output > 0 ? params.presence_penalty : 0.0) - output * params.frequency_penalty);
  }
  for (int i = args.bias_begin[about.sequence]; i < args.bias_begin[about.sequence + 1]; i++)
    if (args.bias[i].token == token) logit += args.bias[i].bias;
  return logit;
}

__device__ __forceinline__ void adjust(const AdjustArgs& args) {
  const int column = blockIdx.x * 256 + threadIdx.x, row = blockIdx.y;
  await_previous_kernel();
  float logit = NEGATIVE_INFINITY;
  if (column < args.vocab) {
    logit = adjusted_logit(args, row, column);
    args.adjusted[size_t(row) * args.vocab + column] = logit;
  }
  const HeadPartial partial = head_partial(logit, column);
  const int tiles = (args.vocab + WARP - 1) / WARP, tile = column / WARP;
  if (threadIdx.x % WARP == 0 && tile < tiles) args.partials[size_t(row) * tiles + tile] = partial;
}

KERNEL(adjust_logits, 256, 1, AdjustArgs, adjust(args))
