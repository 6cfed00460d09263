// Final RMSNorm + LM head; per 32 logits what samplers need of them, so that most never read the logits.
//
// in     projection: W of the head, x [tokens, hidden] as norm.cuh leaves it
// out    logits [tokens, vocab] f32; partials [tokens, vocab/32]
//
// A NaN logit counts as minus infinity in the partials, as in samplers.
// Grid, order, bytes: common/skinny.cuh and common/gemm.cuh; 4.5 bytes written per logit.
#include "common/epilogue.cuh"
#include "common/head_partial.cuh"

struct LmHeadArgs {
  ProjectionArgs projection;
  NormArgs norm;
  float* logits;
  HeadPartial* partials;
};

template <class T, Form FORM> struct LmHeadEpilogue {
  const LmHeadArgs& args;
  NormFactor<FORM> factor;
  __device__ __forceinline__ explicit LmHeadEpilogue(const LmHeadArgs& a)
      : args(a), factor{a.norm, a.projection.tokens} {}
  __device__ __forceinline__ void start() const { factor.start(); }
  __device__ __forceinline__ void operator()(int token, int output, float sum) const {
    const int vocab = args.projection.outputs;
    const float logit = sum * factor.of(token);
    if (output < vocab) args.logits[size_t(token) * vocab + output] = logit;
    const HeadPartial partial = head_partial(output < vocab ? logit : NEGATIVE_INFINITY, output);
    const int tiles = (vocab + TILE_OUTPUTS - 1) / TILE_OUTPUTS;
    if (threadIdx.x % WARP == 0) args.partials[size_t(token) * tiles + output / TILE_OUTPUTS] = partial;
  }
};

PROJECTION(lm_head, LmHeadArgs, LmHeadEpilogue)
