// Stores rows of the residual stream: drafting leaves h_N where verification takes it up (gather_rows.cu).
//
// in     residual [tokens, hidden] f32; index [tokens], the stored row of each token: all unequal
// out    stored [rows, hidden] f32, of which only the rows in `index` change
// grid   (tokens), 256 threads
// bytes  4 read, 4 written per element
#include "common/memory.cuh"

constexpr int KEEP_THREADS = 256;

struct KeepRowsArgs {
  const float* residual;
  const uint32_t* index;
  float* stored;
  int hidden;
};

__device__ __forceinline__ void keep_row(const KeepRowsArgs& args) {
  await_previous_kernel();
  const float* residual = args.residual + size_t(blockIdx.x) * args.hidden;
  float* stored = args.stored + size_t(args.index[blockIdx.x]) * args.hidden;
  for (int column = threadIdx.x; column < args.hidden; column += KEEP_THREADS) stored[column] = residual[column];
}

KERNEL(keep_rows, KEEP_THREADS, 1, KeepRowsArgs, keep_row(args))
