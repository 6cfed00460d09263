// Stored hidden states h_N as input of the next pass: verification takes up the rows that drafting
// left, under the norm of the layer that follows.
//
// in     stored [rows, hidden] f32; index [tokens], the stored row of each token. It may be the residual itself,
//        with index[i] = i: that puts the rows under another norm
// out    residual [tokens, hidden] f32; operand [tokens, stride] = residual * norm; squares (norm.cuh)
// grid   (tokens), 256 threads: a warp takes 32 columns at a time
// bytes  4 read, 6 written per element
#include "common/memory.cuh"
#include "common/norm.cuh"

struct GatherRowsArgs {
  const float* stored;
  const uint32_t* index;
  int hidden;
  float* residual;
  const float* norm;
  void* operand;
  int stride;
  float* squares;
};

template <class T> __device__ __forceinline__ void gather_rows(const GatherRowsArgs& args) {
  const int token = blockIdx.x, lane = threadIdx.x % WARP;
  const int slots = (args.hidden + SQUARES_WIDTH - 1) / SQUARES_WIDTH;
  await_previous_kernel();
  const float* stored = args.stored + size_t(args.index[token]) * args.hidden;
  for (int slot = threadIdx.x / WARP; slot < slots; slot += blockDim.x / WARP) {
    const int column = slot * SQUARES_WIDTH + lane;
    const float x = column < args.hidden ? stored[column] : 0;
    if (column < args.hidden) {
      args.residual[size_t(token) * args.hidden + column] = x;
      static_cast<T*>(args.operand)[size_t(token) * args.stride + column] = narrow<T>(x * args.norm[column]);
    }
    store_squares(args.squares + size_t(token) * slots, slot, x);
  }
}

KERNEL(gather_rows_bf16, 256, 1, GatherRowsArgs, gather_rows<bf16>(args))
KERNEL(gather_rows_f16, 256, 1, GatherRowsArgs, gather_rows<f16>(args))
