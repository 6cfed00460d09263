// Philox4x32-10 (Salmon et al., SC 2011) and the numbers made of its words, as src/sample/philox.rs has
// them: a draw depends on (seed, position, purpose, index) and on nothing else.
#pragma once
#include "device.cuh"

enum Purpose : uint32_t { DRAFT = 0, ACCEPT = 1, RESIDUAL = 2, BONUS = 3, GUMBEL = 4, WEIGHTS = 6 };

struct Philox {
  uint32_t key[2], index, position, purpose;

  __device__ __forceinline__ Philox(uint64_t seed, uint32_t position_, Purpose purpose_, uint32_t index_)
      : key{uint32_t(seed), uint32_t(seed >> 32)}, index(index_), position(position_), purpose(purpose_) {}

  // Words 4 block .. 4 block + 3 of the stream.
  __device__ __forceinline__ uint4 block(uint32_t block) const {
    uint4 c = make_uint4(block, index, position, purpose);
    uint32_t k0 = key[0], k1 = key[1];
    UNROLL for (int round = 0; round < 10; round++) {
      const uint32_t high0 = __umulhi(c.x, 0xD2511F53u), low0 = c.x * 0xD2511F53u;
      const uint32_t high1 = __umulhi(c.z, 0xCD9E8D57u), low1 = c.z * 0xCD9E8D57u;
      c = make_uint4(high1 ^ c.y ^ k0, low1, high0 ^ c.w ^ k1, low0);
      k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
    }
    return c;
  }
};

// Strictly between 0 and 1.
__device__ __forceinline__ double unit(uint32_t word) { return (double(word) + 0.5) * (1.0 / 4294967296.0); }

// Strictly between 0 and 1, in steps of 2^-52: the first two words of a stream.
__device__ __forceinline__ double fine_uniform(const Philox& random) {
  const uint4 words = random.block(0);
  const uint64_t bits = (uint64_t(words.x) << 32 | words.y) >> 12;
  return (double(bits) + 0.5) * (1.0 / 4503599627370496.0);
}

__device__ __forceinline__ double gumbel(uint32_t word) { return -log(-log(unit(word))); }

// At least gumbel(word): 1 - u is at least the power of two that the inverted word's leading zeros give.
__device__ __forceinline__ float gumbel_bound(uint32_t word) { return float(__clz(int(~word)) + 1) * 0.693148f; }
