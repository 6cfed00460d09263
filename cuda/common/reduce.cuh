// Reductions over a warp or a block, in an order fixed by lanes and threads.
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

// Over a block of THREADS threads (a power of two), as a tree: thread i takes in thread i + by, by falling. The same
// result in every thread. T has merge(const T&).
template <int THREADS, class T> __device__ __forceinline__ T block_merge(T v) {
  SHARED(T, all, [THREADS]);
  __syncthreads();  // what an earlier call left has been read
  all[threadIdx.x] = v;
  __syncthreads();
  for (int by = THREADS / 2; by; by >>= 1) {
    if (int(threadIdx.x) < by) all[threadIdx.x].merge(all[threadIdx.x + by]);
    __syncthreads();
  }
  return all[0];
}
