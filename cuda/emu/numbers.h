// Vector types, bfloat16 and half of the CUDA device language, for the host.
#pragma once
#include <cstdint>
#include <cstring>

struct uint3 { unsigned x, y, z; };
struct dim3 { unsigned x = 1, y = 1, z = 1; };
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
inline float2 make_float2(float x, float y) { return {x, y}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

inline float __uint_as_float(unsigned u) {
  float f;
  std::memcpy(&f, &u, 4);
  return f;
}
inline unsigned __float_as_uint(float f) {
  unsigned u;
  std::memcpy(&u, &f, 4);
  return u;
}

struct alignas(2) __nv_bfloat16 { uint16_t bits; };
struct alignas(2) __half { uint16_t bits; };

inline float __bfloat162float(__nv_bfloat16 b) { return __uint_as_float(uint32_t(b.bits) << 16); }

// Round to nearest even; NaN becomes 0x7fff, as in cuda_bf16.h.
inline __nv_bfloat16 __float2bfloat16_rn(float f) {
  const uint32_t u = __float_as_uint(f);
  if ((u & 0x7fffffffu) > 0x7f800000u) return {0x7fff};
  return {uint16_t((u + 0x7fffu + ((u >> 16) & 1)) >> 16)};
}

inline float __half2float(__half h) {
  const uint32_t sign = uint32_t(h.bits & 0x8000) << 16, magnitude = uint32_t(h.bits & 0x7fff) << 13;
  if (magnitude >= 0x0f800000u) return __uint_as_float(sign | 0x7f800000u | magnitude);
  // The exponent is 112 too small: exact, for subnormal numbers too.
  return __uint_as_float(sign | __float_as_uint(__uint_as_float(magnitude) * 0x1p112f));
}

// Round to nearest even; NaN becomes 0x7fff, as in cuda_fp16.h.
inline __half __float2half_rn(float f) {
  const uint32_t u = __float_as_uint(f), sign = u >> 16 & 0x8000, magnitude = u & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return {0x7fff};
  if (magnitude >= 0x477ff000u) return {uint16_t(sign | 0x7c00)};  // 65520 and above round to infinity
  if (magnitude >= 0x38800000u) {                                  // normal numbers: drop 13 bits
    const uint32_t rounded = magnitude + 0xfffu + (magnitude >> 13 & 1);
    return {uint16_t(sign | ((rounded - 0x38000000u) >> 13))};
  }
  // Subnormal: adding 0.5 aligns the last kept bit with the last bit of a float.
  const float aligned = __uint_as_float(magnitude) + 0.5f;
  return {uint16_t(sign | (__float_as_uint(aligned) - 0x3f000000u))};
}
