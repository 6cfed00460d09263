// QK norm, rotation and rounding of one head, by one warp; and the append of a row to the cache.
#pragma once
#include "paged_kv.cuh"
#include "reduce.cuh"

// target [head_dim] = rotate(source * norm / rms(source)). Pair i is (i, i + head_dim / 2). Each element is stored by
// `store`, which says whether it is finite; returns whether all of this thread's are.
template <class T, int HEAD_DIM, class Store>
__device__ __forceinline__ bool rotate_head(T* target, const float* source, const float* norm, float epsilon,
                                            const float2* rotary, Store store) {
  constexpr int HALF = HEAD_DIM / 2, PAIRS = (HALF + WARP - 1) / WARP;
  const int lane = threadIdx.x % WARP;
  float first[PAIRS], second[PAIRS], squares = 0;
  UNROLL for (int i = 0; i < PAIRS; i++) {
    const int pair = lane + i * WARP;
    first[i] = pair < HALF ? source[pair] : 0;
    second[i] = pair < HALF ? source[pair + HALF] : 0;
    squares += first[i] * first[i] + second[i] * second[i];
  }
  bool finite = true;
  const float factor = norm ? rsqrtf(warp_sum(squares) / float(HEAD_DIM) + epsilon) : 1.0f;
  UNROLL for (int i = 0; i < PAIRS; i++) {
    const int pair = lane + i * WARP;
    if (pair >= HALF) continue;
    const float x = norm ? first[i] * factor * norm[pair] : first[i];
    const float y = norm ? second[i] * factor * norm[pair + HALF] : second[i];
    const float2 turn = rotary[pair];
    finite &= store(target[pair], x * turn.x - y * turn.y);
    finite &= store(target[pair + HALF], y * turn.x + x * turn.y);
  }
  return finite;
}

// K and V of one row and kv head into the cache; notes the position if they are not finite.
template <class T, int HEAD_DIM>
__device__ __forceinline__ void append_row(const AttentionArgs& args, int sequence, int row, int position,
                                           int kv_head) {
  const int width = (args.heads + 2 * args.kv_heads) * HEAD_DIM;
  const float* k = args.qkv + size_t(row) * width + (args.heads + kv_head) * HEAD_DIM;
  const float* v = k + args.kv_heads * HEAD_DIM;
  const float2* rotary = args.rotary + size_t(position) * (HEAD_DIM / 2);
  T* k_row = cache_row<T>(args.k_cache, args.batch, sequence, position, args.kv_heads, kv_head, HEAD_DIM);
  T* v_row = cache_row<T>(args.v_cache, args.batch, sequence, position, args.kv_heads, kv_head, HEAD_DIM);
  bool finite = rotate_head<T, HEAD_DIM>(k_row, k, args.k_norm, args.epsilon, rotary,
                                         [](T& to, float x) { return store_finite(to, x); });
  for (int i = threadIdx.x % WARP; i < HEAD_DIM; i += WARP) finite &= store_finite(v_row[i], v[i]);
  if (!finite) note_non_finite(args, sequence, position);
}
