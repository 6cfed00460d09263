// Products of weights that stay codes (coding.cuh), in the skinny form and the GEMM form, with the same bits.
//
// order  a step of 16 columns is one product of fragments, codes times x, from zero; then sum = fma(scale, product, sum).
//        Where there are minima, sum = fma(minimum, sum of the step's x, sum), and these sums are a product of ones.
//        Steps ascending within a chunk; what follows is as of weights that are numbers (skinny.cuh, gemm.cuh).
// bytes  4.25 to 5 bits a weight of 4 bits, 8.25 to 9 of 8 (12 more bytes a row and 16 columns if WIDE); x as ever, in
//        8-byte loads
#pragma once
#include "coding.cuh"
#include "skinny.cuh"

// Adds a step of both row blocks to the sums of group `t` of 8 tokens; it is the `step`-th that `scales` have.
template <class T, bool MINIMA, int TILES, int STEPS>
__device__ __forceinline__ void add_step(float (&sum)[2][TILES][4], const uint32_t (&codes)[2][4],
                                         const StepScales<STEPS> (&scales)[4], int step, const uint2& x, int t) {
  const uint32_t b[2] = {x.x, x.y};
  float of_x[4] = {};
  if constexpr (MINIMA) {
    const uint32_t one = pack<T>(1, 1), ones[4] = {one, one, one, one};
    mma<T>(of_x, ones, b);
  }
  UNROLL for (int block = 0; block < 2; block++) {
    float product[4] = {};
    mma<T>(product, codes[block], b);
    UNROLL for (int i = 0; i < 4; i++) {
      float& y = sum[block][t][i];
      const StepScales<STEPS>& of_row = scales[block * 2 + i / 2];
      y = fmaf(of_row.scale[step], product[i], y);
      if constexpr (MINIMA) y = fmaf(of_row.minimum[step], of_x[i], y);
    }
  }
}

// What projections ask of weights: see PlainWeights.
template <class T, int BITS> struct CodedWeights {
  static constexpr int LOADS = BITS / 4;  // of 16 bytes, of a row block's codes
  static constexpr int MOST_UNITS = BITS * 8 + 32;
  struct Chunk {
    uint4 code[2][LOADS];
    uint4 scales[2];
    const uint4* at;
    size_t next_block;
  };
  template <int TOKEN_TILES> static constexpr int AHEAD = 2;

  Coding coding;
  __device__ __forceinline__ explicit CodedWeights(int word) : coding{word} {}
  __device__ __forceinline__ int units() const { return BITS * 8 + coding.scale_units(); }

  __device__ __forceinline__ Chunk load(const uint4* from, size_t next_block, uint64_t policy) const {
    Chunk v = {};
    v.at = from, v.next_block = next_block;
    const int lane = threadIdx.x % WARP;
    UNROLL for (int block = 0; block < 2; block++) {
      const uint4* record = from + block * next_block;
      UNROLL for (int i = 0; i < LOADS; i++) v.code[block][i] = load_streaming(record + i * WARP + lane, policy);
      const uint4* scales = record + BITS * 8;
      if (coding.scaling() <= FLOAT) {
        const uint2 narrow = load_streaming(reinterpret_cast<const uint2*>(scales) + lane / 4, policy);
        v.scales[block].x = narrow.x, v.scales[block].z = narrow.y;
      } else if (coding.scaling() != WIDE) {
        v.scales[block] = load_streaming(scales + lane / 4, policy);
      }
    }
    return v;
  }

  // Of the lane's rows: two of each row block.
  template <bool MINIMA, int STEPS>
  __device__ __forceinline__ void decode_scales(const uint4 (&scales)[2], const uint4* const (&record)[2], int first,
                                                StepScales<STEPS> (&out)[4]) const {
    const uint2 of[4] = {{scales[0].x, scales[0].y}, {scales[0].z, scales[0].w},
                         {scales[1].x, scales[1].y}, {scales[1].z, scales[1].w}};
    const float* low = reinterpret_cast<const float*>(record[0] + BITS * 8) + threadIdx.x % WARP / 4 * 16;
    const float* high = reinterpret_cast<const float*>(record[1] + BITS * 8) + threadIdx.x % WARP / 4 * 16;
    const float* const wide[4] = {low, low + 8, high, high + 8};
    scales_of<MINIMA>(coding.scaling(), first, of, wide, out);
  }
  __device__ __forceinline__ void decode_codes(const uint4& code, int step, uint32_t (&a)[4]) const {
    const uint32_t word[4] = {code.x, code.y, code.z, code.w};
    if constexpr (BITS == 4) fragment_of<T>(word[step], coding.centre(), a);
    else fragment_of<T>(coding, word[step % 2 * 2], word[step % 2 * 2 + 1], a);
  }

  template <int TOKEN_TILES>
  __device__ __forceinline__ void multiply(float (&sum)[2][TOKEN_TILES][4], const Chunk& w, const ProjectionArgs& args,
                                           int chunk) const {
    if (coding.has_minima()) multiply_all<true, TOKEN_TILES>(sum, w, args, chunk);
    else multiply_all<false, TOKEN_TILES>(sum, w, args, chunk);
  }
  template <bool MINIMA, int TOKEN_TILES>
  __device__ __forceinline__ void multiply_all(float (&sum)[2][TOKEN_TILES][4], const Chunk& w, const ProjectionArgs& args,
                                               int chunk) const {
    // Loads of x on their way together: as many as there are registers for.
    constexpr int STEPS = TOKEN_TILES <= 2 ? 4 : 2;
    const int lane = threadIdx.x % WARP;
    const uint4* const record[2] = {w.at, w.at + w.next_block};
    StepScales<2> scales[4];
    UNROLL for (int first = 0; first < 4; first += STEPS) {
      uint2 x[STEPS][TOKEN_TILES] = {};
      UNROLL for (int t = 0; t < TOKEN_TILES; t++) {
        const int token = first_token<TOKEN_TILES>() + t * 8 + lane / 4;
        const T* from = static_cast<const T*>(args.x) + size_t(token) * args.stride + chunk * CHUNK + lane % 4 * 4;
        if (token < args.tokens)
          UNROLL for (int i = 0; i < STEPS; i++) x[i][t] = *reinterpret_cast<const uint2*>(from + (first + i) * 16);
      }
      UNROLL for (int i = 0; i < STEPS; i++) {
        const int step = first + i;
        if (step % 2 == 0) decode_scales<MINIMA>(w.scales, record, step, scales);
        uint32_t a[2][4];
        UNROLL for (int block = 0; block < 2; block++) decode_codes(w.code[block][step * LOADS / 4], step, a[block]);
        UNROLL for (int t = 0; t < TOKEN_TILES; t++) add_step<T, MINIMA>(sum, a, scales, step % 2, x[i][t], t);
      }
    }
  }

  // Four tokens' halves of two units are 32 banks.
  static __device__ __forceinline__ int place(int token, int unit) { return unit ^ token % 4 * 2; }
  template <class Stage>
  __device__ __forceinline__ void multiply_stage(float (&sum)[2][8][4], const Stage& now, int first_block,
                                                 int first_token) const {
    if (coding.has_minima()) multiply_stage_all<true>(sum, now, first_block, first_token);
    else multiply_stage_all<false>(sum, now, first_block, first_token);
  }
  template <bool MINIMA, class Stage>
  __device__ __forceinline__ void multiply_stage_all(float (&sum)[2][8][4], const Stage& now, int first_block,
                                                     int first_token) const {
    const int lane = threadIdx.x % WARP;
    const uint4* const record[2] = {now.weights[first_block], now.weights[first_block + 1]};
    // A step at a time, and no more: sums take half of the registers.
    ROLLED for (int step = 0; step < 4; step++) {
      uint4 packed[2] = {};
      uint32_t a[2][4];
      UNROLL for (int block = 0; block < 2; block++) {
        const uint4* from = record[block] + BITS * 8;
        if (coding.scaling() <= FLOAT) {
          const uint2 narrow = reinterpret_cast<const uint2*>(from)[lane / 4];
          packed[block].x = narrow.x, packed[block].z = narrow.y;
        } else if (coding.scaling() != WIDE) {
          packed[block] = from[lane / 4];
        }
        if constexpr (BITS == 4) {
          fragment_of<T>(reinterpret_cast<const uint32_t*>(record[block] + lane)[step], coding.centre(), a[block]);
        } else {
          const uint2 words = reinterpret_cast<const uint2*>(record[block] + step / 2 * WARP + lane)[step % 2];
          fragment_of<T>(coding, words.x, words.y, a[block]);
        }
      }
      StepScales<1> scales[4];
      decode_scales<MINIMA>(packed, record, step, scales);
      UNROLL for (int t = 0; t < 8; t++) {
        const int token = first_token + t * 8 + lane / 4;
        const uint2* x = reinterpret_cast<const uint2*>(&now.x[token][place(token, step * 2 + lane % 4 / 2)]);
        add_step<T, MINIMA>(sum, a, scales, 0, x[lane % 2], t);
      }
    }
  }
};
