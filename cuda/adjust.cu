// Masks, penalties and logit bias, for rows whose request asks for them.
//
// in     logits [rows, vocab] f32; counts [slots, counts_stride]: how often a token occurs in the output, and
//        bit 31 where it occurs in the prompt; recent [rows, most_drafts]: this round's drafts before the
//        row, which the counts do not have yet; bias: the pairs bias_begin[s] .. bias_begin[s + 1] of
//        number s, the row's, as are its parameters; draft_ids [vocab]: the token of each logit, null where that is its column. Without
//        penalties (1, 0 and 0) no count changes a bit of a logit: counts may be anything
//        masks [numbers, mask_words] u32: which tokens number s allows, token t by bit t % 32 of word t / 32; null where
//        all are allowed to all rows. Bits past the model's vocabulary are not looked at
// out    adjusted [rows, vocab] f32, and its partials (common/head_partial.cuh). What a mask takes away is minus infinity before all
//        else; with masks raw_partials, which are then those of the logits that are left, before penalties and biases: a draft's
//        confidence is among the tokens it could be
// grid   (vocab / 256, rows), 256 threads: a warp takes 32 columns
// bytes  8 read (12 with draft_ids), 4.4 written per logit; with masks 0.1 and 0.4 more
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
  const uint32_t* masks;
  float* adjusted;
  HeadPartial* partials;
  HeadPartial* raw_partials;
  int vocab;
  int counts_stride;  // tokens of a row of counts: the model's, where a draft head has fewer
  int most_drafts;    // elements of a row of recent
  int mask_words;     // elements of a mask
};

__device__ __forceinline__ bool allowed(const AdjustArgs& args, uint32_t number, uint32_t token) {
  return !args.masks || args.masks[size_t(number) * args.mask_words + token / 32] >> token % 32 & 1;
}

__device__ __forceinline__ float adjusted_logit(const AdjustArgs& args, int row, uint32_t token, float logit) {
  const SamplingRow& about = args.rows[row];
  const SamplingParams& params = args.params[about.sequence];
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
  float raw = NEGATIVE_INFINITY, logit = NEGATIVE_INFINITY;
  if (column < args.vocab) {
    const size_t at = size_t(row) * args.vocab + column;
    const uint32_t token = token_of(args.draft_ids, column);
    if (allowed(args, args.rows[row].sequence, token)) raw = args.logits[at];
    logit = adjusted_logit(args, row, token, raw);
    args.adjusted[at] = logit;
  }
  const int tiles = (args.vocab + WARP - 1) / WARP, tile = column / WARP;
  const bool writes = threadIdx.x % WARP == 0 && tile < tiles;
  const HeadPartial partial = head_partial(logit, column);
  if (writes) args.partials[size_t(row) * tiles + tile] = partial;
  if (!args.masks) return;
  const HeadPartial raw_partial = head_partial(raw, column);
  if (writes) args.raw_partials[size_t(row) * tiles + tile] = raw_partial;
}

KERNEL(adjust_logits, 256, 1, AdjustArgs, adjust(args))
