// Rotary position embedding of queries or keys in place, and its transpose: the gradient's way back, for training.
//
// in     x [rows, heads, head_dim] f32; positions [rows]; turns [positions, head_dim / 2] of (cos, sin)
// out    x: pair i of a head is elements i and i + head_dim / 2, turned by its angle, or back where `back` is set
// grid   (rows * heads * head_dim / 512), 256 threads: a thread takes a pair
// bytes  8 read and 8 written per pair, turns from L2
#include "common/device.cuh"

constexpr int ROTATE_THREADS = 256;

struct RotateArgs {
  float* x;
  const int* positions;
  const float2* turns;
  int rows;
  int heads;
  int head_dim;
  int back;
};

__device__ __forceinline__ void rotate_pair(const RotateArgs& args) {
  const int half = args.head_dim / 2;
  const size_t pair = size_t(blockIdx.x) * ROTATE_THREADS + threadIdx.x;
  const size_t row = pair / (size_t(args.heads) * half);
  if (row >= size_t(args.rows)) return;
  float* low = args.x + pair / half * args.head_dim + pair % half;
  float* high = low + half;
  const float2 turn = args.turns[size_t(args.positions[row]) * half + pair % half];
  const float sine = args.back ? -turn.y : turn.y, x = *low, y = *high;
  *low = x * turn.x - y * sine;
  *high = y * turn.x + x * sine;
}

KERNEL(rotate, ROTATE_THREADS, 1, RotateArgs, rotate_pair(args))
