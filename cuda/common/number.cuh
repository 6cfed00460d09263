// The 16-bit number formats of weights, activations and cache: bf16 and f16, as one set of overloads.
#pragma once
#include "device.cuh"
#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

using bf16 = __nv_bfloat16;
using f16 = __half;

__device__ __forceinline__ float widen(bf16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float widen(f16 x) { return __half2float(x); }

// Round to nearest even. f16 saturates: an activation past 65504 must not become infinite. NaN stays.
template <class T> __device__ __forceinline__ T narrow(float x);
template <> __device__ __forceinline__ bf16 narrow<bf16>(float x) { return __float2bfloat16_rn(x); }
template <> __device__ __forceinline__ f16 narrow<f16>(float x) {
  constexpr float MOST = 65504.0f;
  return __float2half_rn(x > MOST ? MOST : x < -MOST ? -MOST : x);
}

// Two numbers in a register, the first one in the low half.
template <class T> __device__ __forceinline__ uint32_t pack(float first, float second) {
  const T low = narrow<T>(first), high = narrow<T>(second);
  uint16_t bits[2];
  memcpy(&bits[0], &low, 2);
  memcpy(&bits[1], &high, 2);
  return uint32_t(bits[0]) | uint32_t(bits[1]) << 16;
}

// The sums of two pairs of numbers, each rounded to the format.
#ifdef __CUDACC__
template <class T> __device__ __forceinline__ uint32_t add_pair(uint32_t a, uint32_t b);
template <> __device__ __forceinline__ uint32_t add_pair<bf16>(uint32_t a, uint32_t b) {
  uint32_t sum;  // bf16 has additions of its own from compute capability 9.0 on
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(sum) : "r"(a), "r"(0x3f803f80u), "r"(b));
  return sum;
}
template <> __device__ __forceinline__ uint32_t add_pair<f16>(uint32_t a, uint32_t b) {
  uint32_t sum;
  asm("add.rn.f16x2 %0, %1, %2;" : "=r"(sum) : "r"(a), "r"(b));
  return sum;
}
// Their products, likewise.
template <class T> __device__ __forceinline__ uint32_t mul_pair(uint32_t a, uint32_t b);
template <> __device__ __forceinline__ uint32_t mul_pair<bf16>(uint32_t a, uint32_t b) {
  uint32_t product;  // and multiplications: -0 changes no product, not even 0
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(product) : "r"(a), "r"(b), "r"(0x80008000u));
  return product;
}
template <> __device__ __forceinline__ uint32_t mul_pair<f16>(uint32_t a, uint32_t b) {
  uint32_t product;
  asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(product) : "r"(a), "r"(b));
  return product;
}
#else
template <class T> uint32_t add_pair(uint32_t a, uint32_t b) {
  T x[2], y[2];
  memcpy(x, &a, 4), memcpy(y, &b, 4);
  return pack<T>(widen(x[0]) + widen(y[0]), widen(x[1]) + widen(y[1]));
}
template <class T> uint32_t mul_pair(uint32_t a, uint32_t b) {
  T x[2], y[2];
  memcpy(x, &a, 4), memcpy(y, &b, 4);
  return pack<T>(widen(x[0]) * widen(y[0]), widen(x[1]) * widen(y[1]));
}
#endif
