// y = W x for any number of tokens (prefill, large batches), with the bits of skinny.cuh.
//
// grid   (tokens / 128, outputs / 128), so that blocks which share weights run together; 256 threads: warps 4 (32 outputs each) x 2 (64 tokens each).
// W and x as in skinny.cuh; tiles of 128 x 64 of both are staged three deep by asynchronous copies.
// order  K is visited class by class: chunks 0, 8, 16, ... then 1, 9, ...; a class is summed in one
//        accumulator and added to the total when it ends, just as skinny.cuh adds its warps' sums.
// bytes  W once per 128 tokens, x once per 128 outputs (both mostly from L2).
#pragma once
#include "skinny.cuh"

constexpr int GEMM_OUTPUTS = 128, GEMM_TOKENS = 128, GEMM_STAGES = 3;

template <class Weights> struct GemmStage {
  uint4 weights[GEMM_OUTPUTS / 16][Weights::MOST_UNITS];
  uint4 x[GEMM_TOKENS][8];  // 16-byte unit u of a token lies at Weights::place
};
constexpr int GEMM_SHARED_BYTES = 96 << 10;
constexpr int GEMM_PITCH = GEMM_OUTPUTS + 4;
static_assert(GEMM_TOKENS * GEMM_PITCH * 4 <= GEMM_SHARED_BYTES, "results are handed over where the stages were");

// Walks the chunks class by class.
struct ClassOrder {
  int chunk, chunks;
  __device__ __forceinline__ bool done() const { return chunk >= chunks; }
  __device__ __forceinline__ bool ends_class() const { return chunk + CLASSES >= chunks; }
  __device__ __forceinline__ void advance() {
    if (!ends_class()) chunk += CLASSES;
    else chunk = chunk % CLASSES + 1 < CLASSES ? chunk % CLASSES + 1 : chunks;
  }
};

// A warp copies one of the eight row blocks.
template <class Weights>
__device__ __forceinline__ void copy_weights(GemmStage<Weights>& stage, const ProjectionArgs& args,
                                             const Weights& weights, int chunk) {
  static_assert(GEMM_OUTPUTS / 16 == PROJECTION_THREADS / WARP, "a warp a row block");
  const int row_blocks = (args.outputs + TILE_OUTPUTS - 1) / TILE_OUTPUTS * 2, block = threadIdx.x / WARP;
  const int row_block = blockIdx.y * (GEMM_OUTPUTS / 16) + block;
  const bool on = row_block < row_blocks;
  const uint4* from = args.weights + (size_t(on ? row_block : 0) * args.chunks + chunk) * weights.units();
  for (int unit = threadIdx.x % WARP; unit < weights.units(); unit += WARP)
    copy_async(&stage.weights[block][unit], from + unit, on);
}

template <class T, class Weights>
__device__ __forceinline__ void copy_tokens(GemmStage<Weights>& stage, const ProjectionArgs& args, int chunk) {
  const int first_token = blockIdx.x * GEMM_TOKENS;
  UNROLL for (int i = threadIdx.x; i < GEMM_TOKENS * 8; i += PROJECTION_THREADS) {
    const int token = i / 8, unit = i % 8;
    const bool on = first_token + token < args.tokens;
    const T* row = static_cast<const T*>(args.x) + size_t(on ? first_token + token : 0) * args.stride;
    copy_async(&stage.x[token][Weights::place(token, unit)], row + chunk * CHUNK + unit * 8, on);
  }
}

// Calls the epilogue as project_skinny does.
template <class T, class Weights, class Epilogue>
__device__ __forceinline__ void project_gemm(const ProjectionArgs& args, Epilogue epilogue) {
  DYNAMIC_SHARED(raw);
  using Stage = GemmStage<Weights>;
  static_assert(GEMM_STAGES * sizeof(Stage) <= GEMM_SHARED_BYTES, "all stages have room");
  Stage* stage = reinterpret_cast<Stage*>(raw);
  const Weights weights(args.coding);
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, group = lane / 4, in_group = lane % 4;
  const int warp_outputs = warp % 4 * 32, warp_tokens = warp / 4 * 64;

  // Weights may be on their way before the kernel ahead has ended; what else a stage has comes with its group.
  ClassOrder early{0, args.chunks}, ahead = early;
  UNROLL for (int i = 0; i < GEMM_STAGES - 1; i++)
    if (!early.done()) copy_weights(stage[i], args, weights, early.chunk), early.advance();
  await_previous_kernel();
  epilogue.start();
  const auto copy_next = [&](int slot, bool with_weights) {
    if (!ahead.done()) {
      if (with_weights) copy_weights(stage[slot], args, weights, ahead.chunk);
      copy_tokens<T>(stage[slot], args, ahead.chunk);
      ahead.advance();
    }
    commit_copies();  // empty groups too, so that the count of groups tells which one has landed
  };
  UNROLL for (int i = 0; i < GEMM_STAGES - 1; i++) copy_next(i, false);

  float total[2][8][4] = {}, sum[2][8][4] = {};
  int slot = 0;
  for (ClassOrder at{0, args.chunks}; !at.done(); at.advance()) {
    wait_copies<GEMM_STAGES - 2>();
    __syncthreads();
    copy_next((slot + GEMM_STAGES - 1) % GEMM_STAGES, true);
    weights.multiply_stage(sum, stage[slot], warp_outputs / 16, warp_tokens);
    if (at.ends_class())
      UNROLL for (int block = 0; block < 2; block++)
        UNROLL for (int t = 0; t < 8; t++)
          UNROLL for (int i = 0; i < 4; i++) total[block][t][i] += sum[block][t][i], sum[block][t][i] = 0;
    slot = (slot + 1) % GEMM_STAGES;
  }
  wait_copies<0>();
  __syncthreads();  // the stages are no longer read

  float* results = reinterpret_cast<float*>(raw);  // [tokens][GEMM_PITCH]
  UNROLL for (int block = 0; block < 2; block++)
    UNROLL for (int t = 0; t < 8; t++)
      UNROLL for (int i = 0; i < 4; i++)
        results[(warp_tokens + t * 8 + in_group * 2 + i % 2) * GEMM_PITCH + warp_outputs + block * 16 + i / 2 * 8 +
                group] = total[block][t][i];
  __syncthreads();
  for (int i = warp; i < GEMM_TOKENS * (GEMM_OUTPUTS / TILE_OUTPUTS); i += PROJECTION_THREADS / WARP) {
    const int token = i / (GEMM_OUTPUTS / TILE_OUTPUTS), tile = i % (GEMM_OUTPUTS / TILE_OUTPUTS);
    const int global_token = blockIdx.x * GEMM_TOKENS + token, output = blockIdx.y * GEMM_OUTPUTS + tile * TILE_OUTPUTS;
    if (global_token < args.tokens && output < args.outputs)
      epilogue(global_token, output + lane, results[token * GEMM_PITCH + tile * TILE_OUTPUTS + lane]);
  }
}
