// RMSNorm + query, key and value projections + bias of a layer; the key and value part alone fills the
// exit layer's cache.
//
// in     projection: W = rows of Wq, Wk, Wv one after another, x [tokens, hidden] as norm.cuh leaves it
// out    [tokens, stride] f32: q [heads, head_dim], k and v [kv_heads, head_dim]
// bias   [outputs] or null
//
// Norms of q and k, the rotation and the cache are left to the attention kernel, which needs whole heads
// anyway: a head is wider than a block's 32 outputs.
// Grid, order, bytes: common/skinny.cuh, common/gemm.cuh and common/finish.cuh; 4 bytes written per output.
#include "common/finish.cuh"

struct QkvArgs {
  ProjectionArgs projection;
  NormArgs norm;
  const float* bias;
  float* out;
  int stride;
};

template <class T, Form FORM> struct QkvEpilogue {
  const QkvArgs& args;
  NormFactor<FORM> factor;
  __device__ __forceinline__ explicit QkvEpilogue(const QkvArgs& a) : args(a), factor{a.norm, a.projection.tokens} {}
  __device__ __forceinline__ void start() const { factor.start(); }
  __device__ __forceinline__ void operator()(int token, int output, float sum) const {
    const float y = sum * factor.of(token);
    if (output < args.projection.outputs)
      args.out[size_t(token) * args.stride + output] = args.bias ? y + args.bias[output] : y;
  }
};

PROJECTION(qkv, QkvArgs, QkvEpilogue)
FINISH_PROJECTION(qkv, QkvArgs, QkvEpilogue)
