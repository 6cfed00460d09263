// RMSNorm of rows and its gradient in them, for training. (That in the norm's weight is column_sums.cu.)
//
// in     x [.., width] f32, of which row r is index[r], or r without an index; weight [width]
//        backward: factors [rows], as forward left them; dy [rows, width]
// out    forward: y [rows, width] = x f weight, factors [rows] = f = 1 / sqrt(mean(x^2) + epsilon)
//        backward: with g = dy weight, row index[r] of dx is, or where `add` grows by, f g - x f^3 (g x) / width;
//        indices are unequal, and without an index dx may be dy
// grid   (rows / 8), 256 threads: a warp takes a row
// order  a lane's columns ascending, then lanes (common/reduce.cuh)
// bytes  forward 8 read (4 from L1 or L2), 4 written; backward 16 read (8), 4 written, 4 more read where it adds
#include "common/reduce.cuh"

constexpr int NORM_THREADS = 256, NORM_ROWS = NORM_THREADS / WARP;

struct RmsNormArgs {
  const float* x;
  const unsigned* index;
  const float* weight;
  float* y;
  float* factors;
  int rows;
  int width;
  float epsilon;
};

__device__ __forceinline__ int norm_row() { return blockIdx.x * NORM_ROWS + threadIdx.x / WARP; }
__device__ __forceinline__ size_t norm_source(const unsigned* index, int row) { return index ? index[row] : row; }

__device__ __forceinline__ void normalise(const RmsNormArgs& args) {
  const int row = norm_row(), lane = threadIdx.x % WARP;
  if (row >= args.rows) return;
  const float* x = args.x + norm_source(args.index, row) * args.width;
  float squares = 0;
  for (int i = lane; i < args.width; i += WARP) squares += x[i] * x[i];
  const float factor = 1.0f / sqrtf(warp_sum(squares) / float(args.width) + args.epsilon);
  if (lane == 0) args.factors[row] = factor;
  float* y = args.y + size_t(row) * args.width;
  for (int i = lane; i < args.width; i += WARP) y[i] = x[i] * factor * args.weight[i];
}

struct RmsNormBackwardArgs {
  const float* x;
  const unsigned* index;
  const float* weight;
  const float* factors;
  const float* dy;
  float* dx;
  int rows;
  int width;
  int add;
};

__device__ __forceinline__ void normalise_backward(const RmsNormBackwardArgs& args) {
  const int row = norm_row(), lane = threadIdx.x % WARP;
  if (row >= args.rows) return;
  const size_t at = norm_source(args.index, row) * args.width;
  const float *x = args.x + at, *dy = args.dy + size_t(row) * args.width;
  float* dx = args.dx + at;
  float dot = 0;
  for (int i = lane; i < args.width; i += WARP) dot += x[i] * dy[i] * args.weight[i];
  const float factor = args.factors[row];
  const float pull = warp_sum(dot) * factor * factor * factor / float(args.width);
  for (int i = lane; i < args.width; i += WARP) {
    const float gradient = factor * dy[i] * args.weight[i] - x[i] * pull;
    dx[i] = args.add ? dx[i] + gradient : gradient;
  }
}

KERNEL(rms_norm, NORM_THREADS, 1, RmsNormArgs, normalise(args))
KERNEL(rms_norm_backward, NORM_THREADS, 1, RmsNormBackwardArgs, normalise_backward(args))
