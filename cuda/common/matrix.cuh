// mma.m16n8k16 and how this project feeds it.
//
// Weights are the operand of 16 rows, tokens the one of 8 columns. Both sides agree on an order of K of
// their own: of 64 consecutive elements, thread t of a group of four holds 16t..16t+15, and step s
// (of four) multiplies elements 16t+4s..16t+4s+3. A thread's share of a token is so 32 consecutive
// bytes, and its share of a 16 x 16 tile of weights one 16-byte load (packed so by the loader):
//   word 0: row g, elements 0 and 1   word 1: row g + 8, elements 0 and 1
//   word 2: row g, elements 2 and 3   word 3: row g + 8, elements 2 and 3     (g = lane / 4)
#pragma once
#include "number.cuh"

#ifdef __CUDACC__
#define MMA_M16N8K16(type)                                                                        \
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." type "." type ".f32 "                     \
               "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"                            \
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                   \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))
template <class T> __device__ __forceinline__ void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
template <>
__device__ __forceinline__ void mma<bf16>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  MMA_M16N8K16("bf16");
}
template <>
__device__ __forceinline__ void mma<f16>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  MMA_M16N8K16("f16");
}
#undef MMA_M16N8K16
#else
template <class T> void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], EMU_HERE) {
  ::emu::Mma operands{a, b, d};
  const int type = std::is_same<T, bf16>::value ? ::emu::BF16 : ::emu::F16;
  ::emu::collective(ALL_LANES, ::emu::MMA, type, &operands, ::emu::mma_m16n8k16, here);
}
#endif

// One tile of packed weights times step `step` of a token's 16 elements (8 words).
template <class T>
__device__ __forceinline__ void mma_tile(float (&d)[4], uint4 weights, const uint32_t (&token)[8], int step) {
  const uint32_t a[4] = {weights.x, weights.y, weights.z, weights.w};
  const uint32_t b[2] = {token[2 * step], token[2 * step + 1]};
  mma<T>(d, a, b);
}
