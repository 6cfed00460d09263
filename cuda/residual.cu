// Output projection + residual, and down projection + residual; or a projection that begins a residual stream. Prepares
// the next norm.
//
// in     projection: W of `o_proj` or `down_proj`, or an exit block's matrix, x [tokens, inputs]; from [tokens, hidden]
//        f32, residual itself or null, which is zeros
// out    residual [tokens, hidden] f32 = from + W x + bias; operand [tokens, stride] = residual * next_norm in the weights' format;
//        squares [tokens, hidden/32] (norm.cuh)
// bias   [hidden] or null
//
// Grid, order, bytes: common/skinny.cuh, common/gemm.cuh and common/finish.cuh; 10 bytes per output read and written.
#include "common/finish.cuh"

struct ResidualArgs {
  ProjectionArgs projection;
  const float* bias;
  const float* from;
  float* residual;
  const float* next_norm;
  void* operand;
  int stride;
  float* squares;
};

template <class T, Form> struct ResidualEpilogue {
  const ResidualArgs& args;
  __device__ __forceinline__ explicit ResidualEpilogue(const ResidualArgs& a) : args(a) {}
  __device__ __forceinline__ void start() const {}
  __device__ __forceinline__ void operator()(int token, int output, float sum) const {
    const int hidden = args.projection.outputs;
    float x = 0;  // columns past the last one add nothing to the squares
    if (output < hidden) {
      const size_t at = size_t(token) * hidden + output;
      x = args.bias ? sum + args.bias[output] : sum;
      if (args.from) x = args.from[at] + x;
      args.residual[at] = x;
      static_cast<T*>(args.operand)[size_t(token) * args.stride + output] = narrow<T>(x * args.next_norm[output]);
    }
    const int slots = (hidden + SQUARES_WIDTH - 1) / SQUARES_WIDTH;
    store_squares(args.squares + size_t(token) * slots, output / SQUARES_WIDTH, x);
  }
};

PROJECTION(residual, ResidualArgs, ResidualEpilogue)
FINISH_PROJECTION(residual, ResidualArgs, ResidualEpilogue)
