// y = W x for 1 to 64 tokens: the heart of decoding, bound by reading W once, and from some 24 tokens on by reading x.
//
// W      packed by src/backend/cuda/pack.rs, [outputs/32][2 blocks of 16 rows][chunks of 64][4 steps][32 lanes]
//        16 bytes, or codes (coded.cuh); x [tokens, stride] in 16 bits, zero past the last input.
// block  256 threads, 32 outputs, all of K. Warp w takes chunks w, w + 8, ...; two chunks are in flight:
//        sixteen 16-byte loads per lane. Up to 16 tokens leave room for two blocks on an SM.
// order  within a chunk by steps, chunks of a warp ascending, then the eight warps' sums ascending from
//        zero. It depends on K alone: neither the number of tokens nor the grid can change a bit.
// grid   (outputs / 32, groups of tokens): one group, but of codes, whose kernels have room for 32 tokens
// bytes  W once a group, and x once per 32 outputs (from L2).
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
  int coding;   // how weights are coded (coded.cuh); 0: they are numbers of 16 bits
};

struct TokenChunk { uint32_t word[8]; };

// 16-byte units of a row block's weights of 16 bits, one after the other.
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

// The first token of the block's group.
template <int TOKEN_TILES> __device__ __forceinline__ int first_token() { return blockIdx.y * TOKEN_TILES * 8; }

// Weights of 16 bits. What projections ask of weights: how many units of 16 bytes a row block has for a chunk, and at
// most; a thread's share of a chunk, two row blocks of four steps; how many of these are in flight; their products.
template <class T> struct PlainWeights {
  static constexpr int MOST_UNITS = 4 * WARP;
  struct Chunk { uint4 tile[2][4]; };
  template <int TOKEN_TILES> static constexpr int AHEAD = 2;

  __device__ __forceinline__ explicit PlainWeights(int) {}
  __device__ __forceinline__ int units() const { return MOST_UNITS; }
  // `from`: the first row block's units of the chunk, and where the next block's are.
  __device__ __forceinline__ Chunk load(const uint4* from, size_t next_block, uint64_t policy) const {
    Chunk v;
    UNROLL for (int block = 0; block < 2; block++)
      UNROLL for (int step = 0; step < 4; step++)
        v.tile[block][step] = load_streaming(from + block * next_block + step * WARP + threadIdx.x % WARP, policy);
    return v;
  }
  template <int TOKEN_TILES>
  __device__ __forceinline__ void multiply(float (&sum)[2][TOKEN_TILES][4], const Chunk& w, const ProjectionArgs& args,
                                           int chunk) const {
    UNROLL for (int t = 0; t < TOKEN_TILES; t++) {
      const TokenChunk x = load_token<T>(args.x, args.stride, args.tokens,
                                          first_token<TOKEN_TILES>() + t * 8 + threadIdx.x % WARP / 4, chunk);
      UNROLL for (int block = 0; block < 2; block++)
        UNROLL for (int step = 0; step < 4; step++) mma_tile<T>(sum[block][t], w.tile[block][step], x.word, step);
    }
  }

  // Of the GEMM form (gemm.cuh): where 16-byte unit `unit` of a token lies, and the products of eight groups of tokens.
  static __device__ __forceinline__ int place(int token, int unit) { return unit ^ token % 8; }
  template <class Stage>
  __device__ __forceinline__ void multiply_stage(float (&sum)[2][8][4], const Stage& now, int first_block,
                                                 int first_token) const {
    const int lane = threadIdx.x % WARP, group = lane / 4, in_group = lane % 4;
    UNROLL for (int t = 0; t < 8; t++) {
      const int token = first_token + t * 8 + group;
      const uint4 low = now.x[token][2 * in_group ^ group], high = now.x[token][(2 * in_group + 1) ^ group];
      const uint32_t x[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
      UNROLL for (int block = 0; block < 2; block++)
        UNROLL for (int step = 0; step < 4; step++)
          mma_tile<T>(sum[block][t], now.weights[first_block + block][step * WARP + lane], x, step);
    }
  }
};

// TOKEN_TILES: groups of 8 tokens, 1 to 4, 6 or 8. Calls `epilogue(token, output, sum)` with whole warps: lane
// i has the i-th of 32 outputs, all of one token; outputs past the last one come too, as zeros.
template <class Weights, int TOKEN_TILES, class Epilogue>
__device__ __forceinline__ void project_skinny(const ProjectionArgs& args, Epilogue epilogue) {
  constexpr int WARPS = PROJECTION_THREADS / WARP;
  constexpr int PITCH = TILE_OUTPUTS + 4;  // keeps the store of fragments free of bank conflicts
  static_assert(WARPS == CLASSES, "a warp sums one class");
  constexpr int AT_ONCE = TOKEN_TILES <= 4 ? TOKEN_TILES : TOKEN_TILES / 2;  // token tiles whose sums fit in shared memory
  static_assert(TOKEN_TILES % AT_ONCE == 0, "sums are handed over in equal parts");
  SHARED(float, partial, [WARPS][AT_ONCE * 8][PITCH]);
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, group = lane / 4;
  const uint64_t policy = streaming_policy();
  constexpr int AHEAD = Weights::template AHEAD<TOKEN_TILES>;
  const Weights weights(args.coding);
  const size_t units = size_t(args.chunks) * weights.units();  // of a row block
  const int tiles = (args.outputs + TILE_OUTPUTS - 1) / TILE_OUTPUTS;

  bool waited = false;
  for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    const uint4* first_block = args.weights + tile * 2 * units;
    const auto load = [&](int chunk) {
      typename Weights::Chunk v = {};
      if (chunk < args.chunks) v = weights.load(first_block + size_t(chunk) * weights.units(), units, policy);
      return v;
    };
    float sum[2][TOKEN_TILES][4] = {};
    typename Weights::Chunk ahead[AHEAD];
    UNROLL for (int i = 0; i < AHEAD; i++) ahead[i] = load(warp + i * CLASSES);
    if (!waited) await_previous_kernel(), epilogue.start(), waited = true;
    for (int chunk = warp; chunk < args.chunks; chunk += AHEAD * CLASSES)
      UNROLL for (int i = 0; i < AHEAD; i++) {
        const int now = chunk + i * CLASSES;
        if (i == 0 || now < args.chunks) weights.template multiply<TOKEN_TILES>(sum, ahead[i], args, now);
        ahead[i] = load(now + AHEAD * CLASSES);
      }
    UNROLL for (int first = 0; first < TOKEN_TILES; first += AT_ONCE) {
      UNROLL for (int block = 0; block < 2; block++)
        UNROLL for (int t = 0; t < AT_ONCE; t++)
          UNROLL for (int i = 0; i < 4; i++)
            partial[warp][t * 8 + lane % 4 * 2 + i % 2][block * 16 + i / 2 * 8 + group] = sum[block][first + t][i];
      __syncthreads();
      UNROLL for (int t = 0; t < AT_ONCE; t++) {
        const int token = first_token<TOKEN_TILES>() + (first + t) * 8 + warp;
        float total = 0;
        UNROLL for (int from = 0; from < WARPS; from++) total += partial[from][t * 8 + warp][lane];
        if (token < args.tokens) epilogue(token, tile * TILE_OUTPUTS + lane, total);
      }
      __syncthreads();
    }
  }
}
