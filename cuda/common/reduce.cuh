// Reductions over a warp, in an order fixed by lanes.
#pragma once
#include "device.cuh"

template <class T> __device__ __forceinline__ T warp_sum(T v) {
  UNROLL for (int by = 16; by; by >>= 1) v += __shfl_xor_sync(ALL_LANES, v, by);
  return v;
}
__device__ __forceinline__ float warp_max(float v) {
  UNROLL for (int by = 16; by; by >>= 1) v = fmaxf(v, __shfl_xor_sync(ALL_LANES, v, by));
  return v;
}
