// Gradients of flash_attention.cu in queries, keys and values, of the text and of the chains' own steps.
//
// With P the probabilities and dP = dout v^T:  delta = dout · out, dS = P (dP - delta),
//   dq = scale dS k,  dk = scale dS^T q,  dv = P^T dout.
//
// in     q, k, v, own_k, own_v, out, lse, dout, tiles (common/flash.cuh): of keys for flash_attention_dkv, of queries for the
//        others; these two: delta, as flash_attention_dq left it
// out    flash_attention_dq: dq, delta; flash_attention_dkv: dk, dv; flash_attention_own: own_dk, own_dv, which grow
// grid   flash_attention_dq (tiles, heads): a block takes a tile of queries of one head over its tiles of keys, and over the
//        chains' own keys; flash_attention_dkv (tiles, kv_heads): a tile of keys over the tiles of queries that see it, of
//        every head of the group; flash_attention_own (tiles, kv_heads): the own keys of a tile of chains. 128 threads
// shared dq: three tiles of rows, one of weights; dkv: four and two; own: none
// order  products: dimensions ascending; with own keys, a thread's ascending, then the 16 threads of a row. dq: tiles of keys
//        ascending, keys of a tile ascending, own keys ascending. dk, dv: heads of the group ascending, tiles of queries
//        ascending, queries of a tile ascending; own ones: heads of the group ascending
// bytes  dq: K twice and V once per tile of queries; dkv: q and dout once per tile of keys; mostly from L2; own: q and dout
//        once per own key
#include "common/flash.cuh"

// A query's probability of seeing one of its chain's own keys, and the gradient in their score.
struct OwnScore { float weight, dscore; };

// Over the 16 threads of a row. `q` and `dout` are one head of the query, `own` is where that of the key begins.
template <int HEAD_DIM>
__device__ __forceinline__ OwnScore own_score(const FlashArgs& args, const float* q, const float* dout, size_t own,
                                              float lse, float delta) {
  float score = 0, dweight = 0;
  UNROLL for (int i = 0; i < Flash<HEAD_DIM>::DIMS; i++) {
    const int d = Flash<HEAD_DIM>::column() + i * FLASH_COLUMNS;
    score = fmaf(q[d], args.own_k[own + d], score);
    dweight = fmaf(dout[d], args.own_v[own + d], dweight);
  }
  const float weight = exp2f(row_sum(score) * (args.scale * FLASH_LOG2_E) - lse);
  return {weight, weight * (row_sum(dweight) - delta)};
}

template <int HEAD_DIM> __device__ __forceinline__ void flash_queries(const FlashArgs& args) {
  using F = Flash<HEAD_DIM>;
  DYNAMIC_SHARED(memory);
  float *q = reinterpret_cast<float*>(memory), *dout = q + F::ELEMENTS, *kv = dout + F::ELEMENTS;
  float* weights = kv + F::ELEMENTS;
  const RowTile tile = args.tiles[blockIdx.x];
  const int head = blockIdx.y, kv_head = head / (args.heads / args.kv_heads);
  const int queries = min(F::TILE, tile.length - tile.first), end = tile.first + queries;
  const size_t row = size_t(tile.chains + tile.first), at = (row * args.heads + head) * HEAD_DIM;
  F::load(q, args.q + at, queries, args.heads);
  F::load(dout, args.dout + at, queries, args.heads);
  __syncthreads();

  float lse[F::ROWS], delta[F::ROWS], dq[F::ROWS][F::DIMS] = {};
  UNROLL for (int r = 0; r < F::ROWS; r++) {
    const bool on = F::row() + r < queries;
    const float* out = args.out + at + size_t(F::row() + r) * args.heads * HEAD_DIM;
    float sum = 0;
    UNROLL for (int i = 0; i < F::DIMS; i++) {
      const int d = F::column() + i * FLASH_COLUMNS;
      if (on) sum += dout[(F::row() + r) * F::PITCH + d] * out[d];
    }
    delta[r] = row_sum(sum);
    const size_t about = (row + F::row() + r) * args.heads + head;
    lse[r] = on ? args.lse[about] : 0.0f;
    if (on && F::column() == 0) args.delta[about] = delta[r];
  }
  for (int start = first_keys<F::TILE>(args, tile.first); start < end; start += F::TILE) {
    const int keys = min(F::TILE, end - start);
    const size_t from = ((size_t(tile.segment) + start) * args.kv_heads + kv_head) * HEAD_DIM;
    float dweight[F::ROWS][F::COLUMNS], score[F::ROWS][F::COLUMNS];
    __syncthreads();  // the keys before have been used
    F::load(kv, args.v + from, keys, args.kv_heads);
    __syncthreads();
    F::multiply(dweight, dout, kv);
    __syncthreads();  // the values have been used
    F::load(kv, args.k + from, keys, args.kv_heads);
    __syncthreads();
    F::multiply(score, q, kv);
    UNROLL for (int r = 0; r < F::ROWS; r++)
      UNROLL for (int c = 0; c < F::COLUMNS; c++) {
        const int column = F::column() + c * FLASH_COLUMNS;
        const bool on = seen(args, tile.length, tile.first + F::row() + r, start + column);
        const float weight = on ? exp2f(score[r][c] * (args.scale * FLASH_LOG2_E) - lse[r]) : 0.0f;
        weights[(F::row() + r) * F::WEIGHT_PITCH + column] = on ? weight * (dweight[r][c] - delta[r]) : 0.0f;
      }
    __syncthreads();
    F::template accumulate<false>(dq, weights, kv);
  }
  for (int own = first_own(args); own < args.step; own++)
    UNROLL for (int r = 0; r < F::ROWS; r++) {
      const size_t chain = row + min(F::row() + r, queries - 1);
      const size_t from = own_key(args, own, chain, kv_head, HEAD_DIM);
      const int place = (F::row() + r) * F::PITCH;
      const float dscore = own_score<HEAD_DIM>(args, q + place, dout + place, from, lse[r], delta[r]).dscore;
      UNROLL for (int i = 0; i < F::DIMS; i++)
        dq[r][i] = fmaf(dscore, args.own_k[from + F::column() + i * FLASH_COLUMNS], dq[r][i]);
    }
  F::store(args.dq + at, dq, queries, args.heads, args.scale);
}

template <int HEAD_DIM> __device__ __forceinline__ void flash_keys(const FlashArgs& args) {
  using F = Flash<HEAD_DIM>;
  DYNAMIC_SHARED(memory);
  float *k = reinterpret_cast<float*>(memory), *v = k + F::ELEMENTS, *q = v + F::ELEMENTS, *dout = q + F::ELEMENTS;
  float *weights = dout + F::ELEMENTS, *dscores = weights + F::WEIGHTS;
  const RowTile tile = args.tiles[blockIdx.x];
  const int kv_head = blockIdx.y, group = args.heads / args.kv_heads;
  const int keys = min(F::TILE, tile.length - tile.first);
  // Queries past the last one that sees a key of the tile have nothing to add.
  const int end = args.window ? min(tile.length, tile.first + keys - 1 + args.window - args.step) : tile.length;
  const size_t at = ((size_t(tile.segment) + tile.first) * args.kv_heads + kv_head) * HEAD_DIM;
  F::load(k, args.k + at, keys, args.kv_heads);
  F::load(v, args.v + at, keys, args.kv_heads);

  float dk[F::ROWS][F::DIMS] = {}, dv[F::ROWS][F::DIMS] = {};
  for (int head = kv_head * group; head < (kv_head + 1) * group; head++)
    for (int start = max(tile.first, tile.start); start < end; start += F::TILE) {
      const int queries = min(F::TILE, end - start);
      const size_t row = size_t(tile.chains + start), from = (row * args.heads + head) * HEAD_DIM;
      __syncthreads();  // the queries before have been used
      F::load(q, args.q + from, queries, args.heads);
      F::load(dout, args.dout + from, queries, args.heads);
      __syncthreads();
      float score[F::ROWS][F::COLUMNS], dweight[F::ROWS][F::COLUMNS];
      F::multiply(score, q, k);
      F::multiply(dweight, dout, v);
      UNROLL for (int r = 0; r < F::ROWS; r++) {
        const size_t about = (row + F::row() + r) * args.heads + head;
        const bool there = F::row() + r < queries;
        const float lse = there ? args.lse[about] : 0.0f, delta = there ? args.delta[about] : 0.0f;
        UNROLL for (int c = 0; c < F::COLUMNS; c++) {
          const int column = F::column() + c * FLASH_COLUMNS, place = (F::row() + r) * F::WEIGHT_PITCH + column;
          const bool on = there && column < keys && seen(args, tile.length, start + F::row() + r, tile.first + column);
          const float weight = on ? exp2f(score[r][c] * (args.scale * FLASH_LOG2_E) - lse) : 0.0f;
          weights[place] = weight;
          dscores[place] = on ? weight * (dweight[r][c] - delta) : 0.0f;
        }
      }
      __syncthreads();
      F::template accumulate<true>(dv, weights, dout);
      F::template accumulate<true>(dk, dscores, q);
    }
  F::store(args.dk + at, dk, keys, args.kv_heads, args.scale, args.add);
  F::store(args.dv + at, dv, keys, args.kv_heads, 1.0f, args.add);
}

template <int HEAD_DIM> __device__ __forceinline__ void flash_own(const FlashArgs& args) {
  using F = Flash<HEAD_DIM>;
  const RowTile tile = args.tiles[blockIdx.x];
  const int kv_head = blockIdx.y, group = args.heads / args.kv_heads;
  const int queries = min(F::TILE, tile.length - tile.first);
  const size_t row = size_t(tile.chains + tile.first);
  for (int own = first_own(args); own < args.step; own++)
    for (int r = 0; r < F::ROWS; r++) {
      const size_t chain = row + min(F::row() + r, queries - 1);
      const size_t from = own_key(args, own, chain, kv_head, HEAD_DIM);
      float dk[F::DIMS] = {}, dv[F::DIMS] = {};
      for (int head = kv_head * group; head < (kv_head + 1) * group; head++) {
        const size_t about = chain * args.heads + head;
        const float *q = args.q + about * HEAD_DIM, *dout = args.dout + about * HEAD_DIM;
        const OwnScore by = own_score<HEAD_DIM>(args, q, dout, from, args.lse[about], args.delta[about]);
        UNROLL for (int i = 0; i < F::DIMS; i++) {
          const int d = F::column() + i * FLASH_COLUMNS;
          dk[i] = fmaf(by.dscore, q[d], dk[i]);
          dv[i] = fmaf(by.weight, dout[d], dv[i]);
        }
      }
      UNROLL for (int i = 0; i < F::DIMS; i++) {
        const size_t d = from + F::column() + i * FLASH_COLUMNS;
        if (F::row() + r < queries) args.own_dk[d] += dk[i] * args.scale, args.own_dv[d] += dv[i];
      }
    }
}

FLASH_KERNELS(flash_attention_dq, flash_queries)
FLASH_KERNELS(flash_attention_dkv, flash_keys)
FLASH_KERNELS(flash_attention_own, flash_own)
