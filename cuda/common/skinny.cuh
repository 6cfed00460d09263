// y = W x for 1 to 64 tokens: the heart of decoding, bound by reading W once, and from some 24 tokens on by reading x.
//
// W      packed by src/backend/cuda/pack.rs, [outputs/32][2 blocks of 16 rows][chunks of 64][4 steps][32 lanes]
//        16 bytes; x [tokens, stride] in the weights' format, zero past the last input.
// block  256 threads, 32 outputs, all of K. Warp w takes chunks w, w + 8, ...; two chunks are in flight:
//        sixteen 16-byte loads per lane. Up to 16 tokens leave room for two blocks on an SM.
// order  within a chunk by steps, chunks of a warp ascending, then the eight warps' sums ascending from
//        zero. It depends on K alone: neither the number of tokens nor the grid can change a bit.
// bytes  W once, and x once per 32 outputs (from L2).
#pragma once
#include "matrix.cuh"
#include "memory.cuh"

constexpr int CHUNK = 64;            // elements of K
constexpr int CLASSES = 8;           // chunks c with the same c % 8 are summed together first
constexpr int TILE_OUTPUTS = 32;
constexpr int PROJECTION_THREADS = 256;
constexpr int SKINNY_TOKENS = 64;     // at most

struct ProjectionArgs {
  const uint4* weights;
  const void* x;
  int outputs;  // not padded
  int chunks;   // of K
  int stride;   // of x, in elements
  int tokens;
};

// A thread's share of one chunk: two row blocks of four steps.
struct WeightChunk { uint4 tile[2][4]; };
struct TokenChunk { uint32_t word[8]; };

// 16-byte units of packed weights between the two row blocks of 32 outputs, and to the next 32.
__device__ __forceinline__ size_t block_units(int chunks) { return size_t(chunks) * 4 * WARP; }

template <class T>
__device__ __forceinline__ TokenChunk load_token(const void* x, int stride, int tokens, int token, int chunk) {
  TokenChunk v = {};
  if (token < tokens) {
    const T* from = static_cast<const T*>(x) + size_t(token) * stride + chunk * CHUNK + threadIdx.x % 4 * 16;
    const uint4 low = reinterpret_cast<const uint4*>(from)[0], high = reinterpret_cast<const uint4*>(from)[1];
    v = {{low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w}};
  }
  return v;
}

// TOKEN_TILES: groups of 8 tokens, 1 to 4, 6 or 8. Calls `epilogue(token, output, sum)` with whole warps: lane
// i has the i-th of 32 outputs, all of one token; outputs past the last one come too, as zeros.
template <class T, int TOKEN_TILES, class Epilogue>
__device__ __forceinline__ void project_skinny(const ProjectionArgs& args, Epilogue epilogue) {
  constexpr int WARPS = PROJECTION_THREADS / WARP;
  constexpr int PITCH = TILE_OUTPUTS + 4;  // keeps the store of fragments free of bank conflicts
  static_assert(WARPS == CLASSES, "a warp sums one class");
  constexpr int AT_ONCE = TOKEN_TILES <= 4 ? TOKEN_TILES : TOKEN_TILES / 2;  // token tiles whose sums fit in shared memory
  static_assert(TOKEN_TILES % AT_ONCE == 0, "sums are handed over in equal parts");
  SHARED(float, partial, [WARPS][AT_ONCE * 8][PITCH]);
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, group = lane / 4;
  const uint64_t policy = streaming_policy();
  const size_t units = block_units(args.chunks);
  const int tiles = (args.outputs + TILE_OUTPUTS - 1) / TILE_OUTPUTS;

  bool waited = false;
  for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    const uint4* weights = args.weights + tile * 2 * units + lane;
    const auto load_weights = [&](int chunk) {
      WeightChunk v = {};
      if (chunk < args.chunks)
        UNROLL for (int block = 0; block < 2; block++)
          UNROLL for (int step = 0; step < 4; step++)
            v.tile[block][step] = load_streaming(weights + block * units + (chunk * 4 + step) * WARP, policy);
      return v;
    };
    float sum[2][TOKEN_TILES][4] = {};
    const auto multiply = [&](const WeightChunk& w, int chunk) {
      UNROLL for (int t = 0; t < TOKEN_TILES; t++) {
        const TokenChunk x = load_token<T>(args.x, args.stride, args.tokens, t * 8 + group, chunk);
        UNROLL for (int block = 0; block < 2; block++)
          UNROLL for (int step = 0; step < 4; step++) mma_tile<T>(sum[block][t], w.tile[block][step], x.word, step);
      }
    };
    WeightChunk even = load_weights(warp), odd = load_weights(warp + CLASSES);
    if (!waited) await_previous_kernel(), epilogue.start(), waited = true;
    for (int chunk = warp; chunk < args.chunks; chunk += 2 * CLASSES) {
      multiply(even, chunk);
      even = load_weights(chunk + 2 * CLASSES);
      if (chunk + CLASSES < args.chunks) multiply(odd, chunk + CLASSES);
      odd = load_weights(chunk + 3 * CLASSES);
    }
    UNROLL for (int first = 0; first < TOKEN_TILES; first += AT_ONCE) {
      UNROLL for (int block = 0; block < 2; block++)
        UNROLL for (int t = 0; t < AT_ONCE; t++)
          UNROLL for (int i = 0; i < 4; i++)
            partial[warp][t * 8 + lane % 4 * 2 + i % 2][block * 16 + i / 2 * 8 + group] = sum[block][first + t][i];
      __syncthreads();
      UNROLL for (int t = 0; t < AT_ONCE; t++) {
        const int token = (first + t) * 8 + warp;
        float total = 0;
        UNROLL for (int from = 0; from < WARPS; from++) total += partial[from][t * 8 + warp][lane];
        if (token < args.tokens) epilogue(token, tile * TILE_OUTPUTS + lane, total);
      }
      __syncthreads();
    }
  }
}
