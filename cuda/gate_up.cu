// RMSNorm + gate and up projections + SiLU(gate) * up.
//
// in     projection: W with 16 rows of the gate, then the same 16 rows of up, and so on (pack.rs);
//        x [tokens, hidden] as norm.cuh leaves it
// out    [tokens, stride] in the weights' format, [intermediate] wide
// bias   [outputs] in the order of W's rows, or null
//
// Grid, order, bytes: common/skinny.cuh, common/gemm.cuh and common/finish.cuh; 2 bytes written per pair of outputs.
#include "common/finish.cuh"

struct GateUpArgs {
  ProjectionArgs projection;
  NormArgs norm;
  const float* bias;
  void* out;
  int stride;
  int intermediate;
};

template <class T, Form FORM> struct GateUpEpilogue {
  const GateUpArgs& args;
  NormFactor<FORM> factor;
  __device__ __forceinline__ explicit GateUpEpilogue(const GateUpArgs& a)
      : args(a), factor{a.norm, a.projection.tokens} {}
  __device__ __forceinline__ void start() const { factor.start(); }
  __device__ __forceinline__ void operator()(int token, int output, float sum) const {
    float y = sum * factor.of(token);
    if (args.bias && output < args.projection.outputs) y += args.bias[output];
    const float up = __shfl_down_sync(ALL_LANES, y, 16);
    const int column = output / 32 * 16 + output % 32;
    if (output % 32 < 16 && column < args.intermediate)
      static_cast<T*>(args.out)[size_t(token) * args.stride + column] = narrow<T>(y / (1.0f + expf(-y)) * up);
  }
};

PROJECTION(gate_up, GateUpArgs, GateUpEpilogue)
FINISH_PROJECTION(gate_up, GateUpArgs, GateUpEpilogue)
