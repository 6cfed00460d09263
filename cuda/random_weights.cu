// Weights of a synthetic model, for benchmarks: no checkpoint is needed to time a geometry.
//
// out    target [elements]: element i = scale * x_i, where x_i is the sum of the four bytes of a Philox word,
//        shifted and scaled to mean 0 and variance 1: nearly normal, never past 3.46. The word is
//        i % 4 of block i / 4 of the seed's stream WEIGHTS, so that element i depends on seed and i alone.
//        elements is a multiple of 8
// grid   any, 256 threads: a thread takes every so many eighths of elements
// bytes  2 written per element
#include "common/memory.cuh"
#include "common/number.cuh"
#include "common/philox.cuh"

constexpr int RANDOM_THREADS = 256;

struct RandomWeightsArgs {
  uint4* target;
  uint64_t seed;
  uint64_t elements;
  float scale;
};

__device__ __forceinline__ float nearly_normal(uint32_t word) {
  constexpr float DEVIATION = 147.80054f;  // of four bytes' sum: sqrt(4 (256^2 - 1) / 12)
  const uint32_t pairs = (word & 0x00ff00ffu) + (word >> 8 & 0x00ff00ffu);
  return float(int((pairs & 0xffffu) + (pairs >> 16)) - 510) * (1.0f / DEVIATION);
}

template <class T> __device__ __forceinline__ void random_weights(const RandomWeightsArgs& args) {
  await_previous_kernel();
  const uint64_t step = uint64_t(gridDim.x) * RANDOM_THREADS;
  for (uint64_t unit = uint64_t(blockIdx.x) * RANDOM_THREADS + threadIdx.x; unit < args.elements / 8; unit += step) {
    uint32_t word[4];
    UNROLL for (int half = 0; half < 2; half++) {
      const uint64_t block = 2 * unit + half;
      const uint4 random = Philox(args.seed, 0, WEIGHTS, uint32_t(block >> 32)).block(uint32_t(block));
      word[2 * half] = pack<T>(args.scale * nearly_normal(random.x), args.scale * nearly_normal(random.y));
      word[2 * half + 1] = pack<T>(args.scale * nearly_normal(random.z), args.scale * nearly_normal(random.w));
    }
    args.target[unit] = make_uint4(word[0], word[1], word[2], word[3]);
  }
}

KERNEL(random_weights_bf16, RANDOM_THREADS, 1, RandomWeightsArgs, random_weights<bf16>(args))
KERNEL(random_weights_f16, RANDOM_THREADS, 1, RandomWeightsArgs, random_weights<f16>(args))
