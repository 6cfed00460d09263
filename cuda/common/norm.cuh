// RMSNorm without a kernel of its own.
//
// Whoever writes a row x of the residual stream also writes what the next projection multiplies,
//   operand = x * norm weight     (rounded to the weights' format),
// and one partial sum of x^2 per 32 columns. The projection is linear, so the missing factor
// 1 / sqrt(mean(x^2) + epsilon) is applied to its results.
#pragma once
#include "number.cuh"
#include "reduce.cuh"

constexpr int SQUARES_WIDTH = 32;  // columns per partial sum

// Called by a whole warp with the 32 columns of one partial sum.
__device__ __forceinline__ void store_squares(float* squares, int slot, float x) {
  const float sum = warp_sum(x * x);
  if (threadIdx.x % WARP == 0) squares[slot] = sum;
}

// The factor of one row, the same in every lane of the warp. squares: [slots].
__device__ __forceinline__ float norm_factor(const float* squares, int slots, int width, float epsilon) {
  float sum = 0;
  for (int i = threadIdx.x % WARP; i < slots; i += WARP) sum += squares[i];
  return rsqrtf(warp_sum(sum) / float(width) + epsilon);
}
