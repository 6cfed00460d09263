// Grouped-query attention of a step of chains within segments, for training; keeps each row's log-sum-exp for the backward pass.
//
// in     q, k, v, own_k, own_v, tiles of queries (common/flash.cuh)
// out    out, lse
// grid   (tiles, heads), 128 threads: a block takes a tile of queries of one head over all tiles of keys that it sees
// shared two tiles of rows, one of weights
// order  a score: dimensions ascending. Tiles of keys ascending: a tile's maximum and sum per thread, then over the 16
//        threads of a row; an output: keys of a tile ascending; then the chain's own keys ascending. Nothing depends on what other segments there are
// bytes  K and V of all rows seen, once per tile of queries (mostly from L2); q once, own keys once per head, out and lse once
#include "common/flash.cuh"

template <int HEAD_DIM> __device__ __forceinline__ void flash_forward(const FlashArgs& args) {
  using F = Flash<HEAD_DIM>;
  DYNAMIC_SHARED(memory);
  float *q = reinterpret_cast<float*>(memory), *kv = q + F::ELEMENTS, *weights = kv + F::ELEMENTS;
  const RowTile tile = args.tiles[blockIdx.x];
  const int head = blockIdx.y, kv_head = head / (args.heads / args.kv_heads);
  const int queries = min(F::TILE, tile.length - tile.first), end = tile.first + queries;
  const size_t row = size_t(tile.chains + tile.first);
  F::load(q, args.q + (row * args.heads + head) * HEAD_DIM, queries, args.heads);

  float most[F::ROWS], sum[F::ROWS], out[F::ROWS][F::DIMS] = {};
  UNROLL for (int r = 0; r < F::ROWS; r++) most[r] = NEGATIVE_INFINITY, sum[r] = 0;
  for (int start = first_keys<F::TILE>(args, tile.first); start < end; start += F::TILE) {
    const int keys = min(F::TILE, end - start);
    const size_t from = ((size_t(tile.segment) + start) * args.kv_heads + kv_head) * HEAD_DIM;
    __syncthreads();  // the values before have been used
    F::load(kv, args.k + from, keys, args.kv_heads);
    __syncthreads();
    float score[F::ROWS][F::COLUMNS];
    F::multiply(score, q, kv);
    UNROLL for (int r = 0; r < F::ROWS; r++) {
      float tile_most = NEGATIVE_INFINITY, tile_sum = 0;
      UNROLL for (int c = 0; c < F::COLUMNS; c++) {
        const int key = start + F::column() + c * FLASH_COLUMNS;
        const bool on = seen(args, tile.length, tile.first + F::row() + r, key);
        score[r][c] = on ? score[r][c] * (args.scale * FLASH_LOG2_E) : NEGATIVE_INFINITY;
        tile_most = fmaxf(tile_most, score[r][c]);
      }
      const float both = fmaxf(most[r], row_max(tile_most)), keep = most[r] == both ? 1.0f : exp2f(most[r] - both);
      most[r] = both;
      UNROLL for (int c = 0; c < F::COLUMNS; c++) {
        const float weight = score[r][c] == NEGATIVE_INFINITY ? 0.0f : exp2f(score[r][c] - both);
        weights[(F::row() + r) * F::WEIGHT_PITCH + F::column() + c * FLASH_COLUMNS] = weight;
        tile_sum += weight;
      }
      sum[r] = sum[r] * keep + row_sum(tile_sum);
      UNROLL for (int i = 0; i < F::DIMS; i++) out[r][i] *= keep;
    }
    __syncthreads();  // the keys have been used, and the weights are there
    F::load(kv, args.v + from, keys, args.kv_heads);
    __syncthreads();
    F::template accumulate<false>(out, weights, kv);
  }
  __syncthreads();  // the queries are there, even where no text was seen
  for (int own = first_own(args); own < args.step; own++)
    UNROLL for (int r = 0; r < F::ROWS; r++) {
      const size_t chain = row + min(F::row() + r, queries - 1);
      const size_t from = own_key(args, own, chain, kv_head, HEAD_DIM) + F::column();
      float score = 0;
      UNROLL for (int i = 0; i < F::DIMS; i++) {
        const int d = i * FLASH_COLUMNS;
        score = fmaf(q[(F::row() + r) * F::PITCH + F::column() + d], args.own_k[from + d], score);
      }
      score = row_sum(score) * (args.scale * FLASH_LOG2_E);
      const float both = fmaxf(most[r], score), keep = most[r] == both ? 1.0f : exp2f(most[r] - both);
      const float weight = exp2f(score - both);
      most[r] = both;
      sum[r] = sum[r] * keep + weight;
      UNROLL for (int i = 0; i < F::DIMS; i++)
        out[r][i] = fmaf(weight, args.own_v[from + i * FLASH_COLUMNS], out[r][i] * keep);
    }
  UNROLL for (int r = 0; r < F::ROWS; r++) {
    if (F::row() + r >= queries) continue;
    if (F::column() == 0) args.lse[(row + F::row() + r) * args.heads + head] = most[r] + log2f(sum[r]);
    UNROLL for (int i = 0; i < F::DIMS; i++) out[r][i] /= sum[r];
  }
  F::store(args.out + (row * args.heads + head) * HEAD_DIM, out, queries, args.heads, 1.0f);
}

FLASH_KERNELS(flash_attention, flash_forward)
