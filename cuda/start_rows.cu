// What a product is added to, for training: a residual stream, a bias in every row, or both.
//
// in     residual [rows, width] f32 or null; bias [width] f32 or null
// out    y [rows, width] = residual + bias; may be residual
// grid   (rows * width / 256), 256 threads: a thread takes an element
// bytes  4 read where there is a residual, 4 written per element; the bias from L2
#include "common/device.cuh"

constexpr int START_THREADS = 256;

struct StartRowsArgs {
  const float* residual;
  const float* bias;
  float* y;
  int rows;
  int width;
};

__device__ __forceinline__ void start_row(const StartRowsArgs& args) {
  const size_t at = size_t(blockIdx.x) * START_THREADS + threadIdx.x;
  if (at >= size_t(args.rows) * args.width) return;
  const float x = args.residual ? args.residual[at] : 0.0f;
  args.y[at] = args.bias ? x + args.bias[at % args.width] : x;
}

KERNEL(start_rows, START_THREADS, 1, StartRowsArgs, start_row(args))
