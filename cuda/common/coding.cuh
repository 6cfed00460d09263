// Weights that stay codes in memory: how they are coded, and what a lane makes of them in registers.
//
// A weight is scale * code + minimum. src/backend/cuda/coding brings every format of files into this one, without loss:
// codes of 4 or of 8 bits, and scales and minima as the file has them, so that nothing is rounded before it is multiplied.
// Codes are integers, or those of 8 bits E4M3 numbers: every one of these is a number of bf16 and of f16 too.
//
// W      [outputs/16][chunks of 64] records: codes, then scales, in whole units of 16 bytes
// codes  4 bits: 32 units, lane l's is unit l: a word a step of 16 columns, whose nibbles k and k + 4 are the pair of
//        word k of its fragment. 8 bits: 64 units, those of steps 0 and 1 first: two words a step, a byte for each place
//        of the fragment, which is an integer and 128, or the bits of an E4M3 number. Of step s, lane l has rows l / 4
//        and l / 4 + 8, columns 16 s + 4 (l % 4) and the three after it
// scales for each l / 4 those of these two rows, 4, 8 or 32 bytes each, as Scaling says; the four lanes read the same
#pragma once
#include "number.cuh"

// What the scales of a row's 64 columns are. Little-endian, in this order; s a scale, m a minimum.
enum Scaling {
  HALVES,             // 4 bytes: s of 32 columns, s of the next 32, in f16
  FLOAT,              // 4: s of all
  FLOATS,             // 8: s, s of 32 columns each
  SIXTEENS,           // 8: f16, two bytes of 0, then four signed bytes: s is their product, for 16 columns each
  HALVES_MINIMA,      // 8: s, m, s, m in f16, of 32 columns each
  FLOAT_MINIMUM,      // 8: s, m of all
  BLOCKS,             // 8: f16 and f16, then bytes b, b, c, c: s is b times the first, m is c times the second, of 32 columns
  SIXTEENS_MINIMA,    // 8: f16 and f16, then four bytes: s is the low nibble times the first, m minus the high one times the second
  WIDE,               // 32: four s, four m, of 16 columns each
};
constexpr int FIRST_WITH_MINIMA = HALVES_MINIMA;

// How a matrix is coded, as a word: bits of a code, what is taken off a code of 4 bits or whether one of 8 is an E4M3 number,
// and the scaling.
struct Coding {
  int word;
  __device__ __forceinline__ int bits() const { return word >> 16; }
  __device__ __forceinline__ uint32_t centre() const { return uint32_t(word) >> 8 & 255; }
  __device__ __forceinline__ bool is_e4m3() const { return bits() == 8 && (word >> 8 & 255) != 0; }
  __device__ __forceinline__ int scaling() const { return word & 255; }
  __device__ __forceinline__ bool has_minima() const { return scaling() >= FIRST_WITH_MINIMA; }
  // Units of 16 bytes: of the codes of 16 rows and 64 columns, and of their scales.
  __device__ __forceinline__ int code_units() const { return bits() * 8; }
  __device__ __forceinline__ int scale_units() const {
    return scaling() <= FLOAT ? 4 : scaling() == WIDE ? 32 : 8;
  }
  __device__ __forceinline__ int units() const { return code_units() + scale_units(); }
};

// A row's scales and minima of one step or two. Those of all four would take too many registers.
template <int STEPS> struct StepScales { float scale[STEPS], minimum[STEPS]; };

__device__ __forceinline__ float half_of(uint32_t word, int which) {
  const uint16_t bits = uint16_t(word >> 16 * which);
  f16 x;
  memcpy(&x, &bits, 2);
  return widen(x);
}
__device__ __forceinline__ float signed_byte(uint32_t word, int which) { return float(int(int8_t(word >> 8 * which))); }

// Those of ROWS rows, of steps from `first` on, from the 8 bytes of each (or 4, in the first word); `wide`: the rows' 32 bytes, looked at if that is
// what there are. MINIMA: whether these scales come with minima; where they do not, minima are left alone.
template <bool MINIMA, int ROWS, int STEPS>
__device__ __forceinline__ void scales_of(int scaling, int first, const uint2 (&of)[ROWS],
                                          const float* const (&wide)[ROWS], StepScales<STEPS> (&out)[ROWS]) {
  const auto scale = [&](auto make) {
    UNROLL for (int row = 0; row < ROWS; row++)
      UNROLL for (int i = 0; i < STEPS; i++) out[row].scale[i] = make(of[row].x, of[row].y, first + i, wide[row]);
  };
  const auto minimum = [&](auto make) {
    UNROLL for (int row = 0; row < ROWS; row++)
      UNROLL for (int i = 0; i < STEPS; i++) out[row].minimum[i] = make(of[row].x, of[row].y, first + i, wide[row]);
  };
  using Word = uint32_t;
  using Wide = const float*;
  if constexpr (!MINIMA) {
    switch (scaling) {
      case HALVES: return scale([](Word a, Word, int step, Wide) { return half_of(a, step / 2); });
      case FLOAT: return scale([](Word a, Word, int, Wide) { return __uint_as_float(a); });
      case FLOATS: return scale([](Word a, Word b, int step, Wide) { return __uint_as_float(step < 2 ? a : b); });
      default: return scale([](Word a, Word b, int step, Wide) { return half_of(a, 0) * signed_byte(b, step); });
    }
  } else {
    switch (scaling) {
      case HALVES_MINIMA:
        scale([](Word a, Word b, int step, Wide) { return half_of(step < 2 ? a : b, 0); });
        return minimum([](Word a, Word b, int step, Wide) { return half_of(step < 2 ? a : b, 1); });
      case FLOAT_MINIMUM:
        scale([](Word a, Word, int, Wide) { return __uint_as_float(a); });
        return minimum([](Word, Word b, int, Wide) { return __uint_as_float(b); });
      case BLOCKS:
        scale([](Word a, Word b, int step, Wide) { return half_of(a, 0) * signed_byte(b, step / 2); });
        return minimum([](Word a, Word b, int step, Wide) { return half_of(a, 1) * signed_byte(b, 2 + step / 2); });
      case SIXTEENS_MINIMA:
        scale([](Word a, Word b, int step, Wide) { return half_of(a, 0) * float(b >> 8 * step & 15); });
        return minimum([](Word a, Word b, int step, Wide) { return half_of(a, 1) * float(-int(b >> (8 * step + 4) & 15)); });
      default:
        scale([](Word, Word, int step, Wide w) { return w[step]; });
        return minimum([](Word, Word, int step, Wide w) { return w[4 + step]; });
    }
  }
}

// Codes as numbers of 16 bits, exactly. Where a format has eleven bits of its own (f16: 1024 and more, bf16: eight, 128 and
// more), a code set into the last ones adds itself to the number; that number is then taken off again.
template <class T> struct Magic;
template <> struct Magic<bf16> { static constexpr uint32_t FOUR = 0x43004300u; };
template <> struct Magic<f16> { static constexpr uint32_t FOUR = 0x64006400u; };

// A step's eight nibbles, `centre` taken off each.
template <class T> __device__ __forceinline__ void fragment_of(uint32_t codes, uint32_t centre, uint32_t (&a)[4]) {
  const uint32_t off = (Magic<T>::FOUR | centre | centre << 16) ^ 0x80008000u;
  UNROLL for (int k = 0; k < 4; k++) a[k] = add_pair<T>((codes >> 4 * k & 0x000f000fu) | Magic<T>::FOUR, off);
}

// Two bytes of a word that are codes and 128.
template <class T> __device__ __forceinline__ uint32_t pair_of(uint32_t codes, int first);
template <> __device__ __forceinline__ uint32_t pair_of<f16>(uint32_t codes, int first) {
  return add_pair<f16>(__byte_perm(codes, 0x64646464u, first ? 0x4342 : 0x4140), 0xe480e480u);
}
// bf16 has seven bits after the first: by way of f32, of which the upper half is exact.
template <> __device__ __forceinline__ uint32_t pair_of<bf16>(uint32_t codes, int first) {
  const float low = __uint_as_float(__byte_perm(codes, 0x4b000000u, 0x7440 + first)) - 8388736.0f;
  const float high = __uint_as_float(__byte_perm(codes, 0x4b000000u, 0x7441 + first)) - 8388736.0f;
  return __byte_perm(__float_as_uint(low), __float_as_uint(high), 0x7632);
}

// E4M3 numbers: sign, exponent and fraction go where the format has them, its exponent is then too small by the difference of
// what exponents count from (7 in E4M3), and a product mends that, of subnormal numbers too. No code is NaN here: where a
// file has one, its scale is NaN instead.
template <class T> struct Widening;
template <> struct Widening<bf16> { static constexpr uint32_t DOWN = 4, FACTORS = 0x7b807b80u; };  // 2^(127 - 7)
template <> struct Widening<f16> { static constexpr uint32_t DOWN = 1, FACTORS = 0x5c005c00u; };   // 2^(15 - 7)

// Two bytes of a word that are E4M3 numbers.
template <class T> __device__ __forceinline__ uint32_t e4m3_pair_of(uint32_t codes, int first) {
  const uint32_t upper = __byte_perm(codes, 0, first ? 0x3424 : 0x1404);  // each in the upper half of its 16 bits
  const uint32_t magnitudes = (upper & 0x7f007f00u) >> Widening<T>::DOWN;
  return mul_pair<T>((upper & 0x80008000u) | magnitudes, Widening<T>::FACTORS);
}
__device__ __forceinline__ float e4m3_number(uint32_t code) {
  return __uint_as_float((code & 0x80) << 24 | (code & 0x7f) << 20) * 0x1p120f;
}

// A step's eight bytes, in two words.
template <class T>
__device__ __forceinline__ void fragment_of(Coding coding, uint32_t first, uint32_t second, uint32_t (&a)[4]) {
  const uint32_t words[2] = {first, second};
  if (coding.is_e4m3()) {
    UNROLL for (int k = 0; k < 4; k++) a[k] = e4m3_pair_of<T>(words[k / 2], k % 2 * 2);
  } else {
    UNROLL for (int k = 0; k < 4; k++) a[k] = pair_of<T>(words[k / 2], k % 2 * 2);
  }
}

// One weight of a packed matrix: the code times its scale, then the minimum or 0, each rounded. To an E4M3 number nothing is
// added: it may be minus zero.
__device__ __forceinline__ float coded_weight(const uint4* weights, Coding coding, int row, int column, int chunks) {
  const uint4* record = weights + (size_t(row / 16) * chunks + column / 64) * coding.units();
  const int step = column % 64 / 16, lane = row % 8 * 4 + column % 16 / 4, half = row % 16 / 8;
  const int word = column % 4 / 2, second = column % 2;
  const uint32_t* codes = reinterpret_cast<const uint32_t*>(record);
  float code;
  if (coding.bits() == 4) {
    code = float(int(codes[lane * 4 + step] >> (4 * (word * 2 + half) + 16 * second) & 15) - int(coding.centre()));
  } else {
    const uint32_t byte = codes[(step / 2 * 32 + lane) * 4 + step % 2 * 2 + word] >> (16 * half + 8 * second) & 255;
    code = coding.is_e4m3() ? e4m3_number(byte) : float(int(byte) - 128);
  }
  const int row_words = coding.scale_units() / 4;
  const uint32_t* of_row = reinterpret_cast<const uint32_t*>(record + coding.code_units()) + (row % 8 * 2 + half) * row_words;
  const uint2 of[1] = {{of_row[0], row_words > 1 ? of_row[1] : 0}};
  const float* const wide[1] = {reinterpret_cast<const float*>(of_row)};
  StepScales<1> scales[1];
  if (!coding.has_minima()) {
    scales_of<false>(coding.scaling(), step, of, wide, scales);
    const float weight = scales[0].scale[0] * code;
    return coding.is_e4m3() ? weight : weight + 0.0f;
  }
  scales_of<true>(coding.scaling(), step, of, wide, scales);
  const float product = scales[0].scale[0] * code;
  return product + scales[0].minimum[0];
}
