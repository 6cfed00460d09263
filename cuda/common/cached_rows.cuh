// How the cache keeps the rows of a page and kv head, how a warp writes one and how lanes read them.
//
// FullCache   [64][head_dim] numbers of the weights' format
// CodedCache  [64][head_dim] bytes, each a code and 128, then [64][groups] scales in the weights' format: one for each 32
//             dimensions of a position. The number is scale * code, rounded to the format once, in registers: attention goes on
//             as if the cache held that number in 16 bits, in the same order, and has the bits it would have then.
//
// A row's codes and scales come from its own numbers alone, once, when it is appended: so they are the same by whichever pass
// it comes. (A scale for a page would have to follow the page as it fills, and positions before would change.) Everyone
// reads a row where it was appended, those of its own pass too.
//
// Why codes of 8 bits per 32 dimensions and not fp8 (e4m3): that has three bits after the first whatever its scale, an error of
// 2.6 % of each number (root of the mean square); these have one of 0.5 % of normal numbers' spread, for 8.5 bits a number in
// place of 8.1. They are the processor's `--kv q8`, whose scales are f32. A pair is decoded in three instructions (f16) or
// six (bf16) on every GPU; e4m3 has one from compute capability 8.9 on, to f16 alone, and bf16 takes three or four more.
#pragma once
#include "coding.cuh"
#include "memory.cuh"
#include "paged_kv.cuh"
#include "reduce.cuh"

// 16, 8 or 4 bytes as words; zeros where `on` is false.
template <int WORDS> struct alignas(4 * WORDS) Words { uint32_t at[WORDS]; };
template <int WORDS, class T> __device__ __forceinline__ Words<WORDS> load_words(const T* p, bool on) {
  if (!on) return {};
  Words<WORDS> v;
  if constexpr (WORDS == 4) reinterpret_cast<uint4&>(v) = *reinterpret_cast<const uint4*>(p);
  else if constexpr (WORDS == 2) reinterpret_cast<uint2&>(v) = *reinterpret_cast<const uint2*>(p);
  else v.at[0] = *reinterpret_cast<const uint32_t*>(p);
  return v;
}

// Rows of numbers, `pitch` elements apart.
template <class T> struct PlainRows {
  const T* at;
  int pitch;
  // 2 * WORDS numbers of a row from dimension `dim` on, in pairs.
  template <int WORDS> __device__ __forceinline__ Words<WORDS> load(int row, int dim, bool on) const {
    return load_words<WORDS>(at + size_t(row) * pitch + dim, on);
  }
};

// x if it is finite; else 0, and `finite` is false.
__device__ __forceinline__ float finite_or_zero(float x, bool& finite) {
  constexpr float MOST = 3.402823466e38f;
  if (fabsf(x) <= MOST) return x;
  finite = false;
  return 0;
}

template <class Number> struct FullCache {
  using T = Number;
  template <int HEAD_DIM> struct Page {
    static constexpr int BYTES = PAGE_TOKENS * HEAD_DIM * int(sizeof(T));
    T* rows;
    __device__ __forceinline__ explicit Page(void* at) : rows(static_cast<T*>(at)) {}

    template <int WORDS> __device__ __forceinline__ Words<WORDS> load(int row, int dim, bool on) const {
      return PlainRows<T>{rows, HEAD_DIM}.template load<WORDS>(row, dim, on);
    }
    // A warp brings the first `present` rows to L2.
    __device__ __forceinline__ void prefetch(int present) const {
      constexpr int LINE = 128 / int(sizeof(T));
      for (int i = threadIdx.x % WARP * LINE; i < present * HEAD_DIM; i += WARP * LINE) prefetch_l2(rows + i);
    }
    // A warp stores a row [HEAD_DIM]; false where what this lane had was not finite.
    __device__ __forceinline__ bool store(int row, const float* source) const {
      bool finite = true;
      for (int i = threadIdx.x % WARP; i < HEAD_DIM; i += WARP) {
        const T rounded = narrow<T>(finite_or_zero(source[i], finite));
        rows[row * HEAD_DIM + i] = narrow<T>(finite_or_zero(widen(rounded), finite));
      }
      return finite;
    }
  };
};

// The largest scale whose product with every code is finite.
template <class T> constexpr float MOST_SCALE = 0x1p121f;
template <> constexpr float MOST_SCALE<f16> = 515.5f;

template <class Number> struct CodedCache {
  using T = Number;
  static constexpr int GROUP = 32;     // dimensions of a scale
  static constexpr float MOST_CODE = 127;
  template <int HEAD_DIM> struct Page {
    static constexpr int GROUPS = (HEAD_DIM + GROUP - 1) / GROUP;
    static constexpr int BYTES = PAGE_TOKENS * (HEAD_DIM + GROUPS * int(sizeof(T)));
    static_assert(BYTES % 16 == 0, "pages are copied in units of 16 bytes");
    uint8_t* codes;
    __device__ __forceinline__ explicit Page(void* at) : codes(static_cast<uint8_t*>(at)) {}
    __device__ __forceinline__ T* scales(int row) const {
      return reinterpret_cast<T*>(codes + PAGE_TOKENS * HEAD_DIM) + row * GROUPS;
    }

    // They lie within one group.
    template <int WORDS> __device__ __forceinline__ Words<WORDS> load(int row, int dim, bool on) const {
      if (!on) return {};
      const uint32_t bits = *reinterpret_cast<const uint16_t*>(scales(row) + dim / GROUP), scale = bits | bits << 16;
      const uint8_t* from = codes + row * HEAD_DIM + dim;
      Words<(WORDS + 1) / 2> code;
      if constexpr (WORDS == 1) code.at[0] = *reinterpret_cast<const uint16_t*>(from);
      else code = load_words<WORDS / 2>(from, true);
      Words<WORDS> v;
      UNROLL for (int i = 0; i < WORDS; i++) v.at[i] = mul_pair<T>(pair_of<T>(code.at[i / 2], i % 2 * 2), scale);
      return v;
    }
    __device__ __forceinline__ void prefetch(int present) const {
      const int first = threadIdx.x % WARP * 128, scale_bytes = present * GROUPS * int(sizeof(T));
      for (int i = first; i < present * HEAD_DIM; i += WARP * 128) prefetch_l2(codes + i);
      if (first < scale_bytes) prefetch_l2(codes + PAGE_TOKENS * HEAD_DIM + first);
    }
    __device__ __forceinline__ bool store(int row, const float* source) const {
      bool finite = true;
      UNROLL for (int group = 0; group < GROUPS; group++) {
        const int lane = threadIdx.x % WARP, dim = group * GROUP + lane;
        const float x = dim < HEAD_DIM ? finite_or_zero(source[dim], finite) : 0;
        const T scale = narrow<T>(fminf(warp_max(fabsf(x)) / MOST_CODE, MOST_SCALE<T>));
        const float step = widen(scale);
        const float code = step > 0 ? rintf(fminf(fmaxf(x / step, -MOST_CODE), MOST_CODE)) : 0;
        if (dim < HEAD_DIM) codes[row * HEAD_DIM + dim] = uint8_t(int(code) + 128);
        if (lane == 0) scales(row)[group] = scale;
      }
      return finite;
    }
  };
};
