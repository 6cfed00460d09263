// QK norm, rotation and rounding of one head, by one warp; and the append of a row to the cache.
#pragma once
#include "cached_rows.cuh"

// target [head_dim] = rotate(source * norm / rms(source)). Pair i is (i, i + head_dim / 2). Each element is stored by
// `store`.
template <class T, int HEAD_DIM, class Store>
__device__ __forceinline__ void rotate_head(T* target, const float* source, const float* norm, float epsilon,
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
  const float factor = norm ? rsqrtf(warp_sum(squares) / float(HEAD_DIM) + epsilon) : 1.0f;
  UNROLL for (int i = 0; i < PAIRS; i++) {
    const int pair = lane + i * WARP;
    if (pair >= HALF) continue;
    const float x = norm ? first[i] * factor * norm[pair] : first[i];
    const float y = norm ? second[i] * factor * norm[pair + HALF] : second[i];
    const float2 turn = rotary[pair];
    store(target[pair], x * turn.x - y * turn.y);
    store(target[pair + HALF], y * turn.x + x * turn.y);
  }
}

// K and V of one row and kv head into the cache, by one of four warps; notes the position if they are not finite.
template <class Cache, int HEAD_DIM>
__device__ __forceinline__ void append_row(const AttentionArgs& args, int sequence, int row, int position,
                                           int kv_head) {
  using Page = typename Cache::template Page<HEAD_DIM>;
  SHARED(float, rotated, [4][HEAD_DIM]);  // a warp's own
  float* key = rotated[threadIdx.x / WARP];
  const int width = (args.heads + 2 * args.kv_heads) * HEAD_DIM;
  const float* k = args.qkv + size_t(row) * width + (args.heads + kv_head) * HEAD_DIM;
  const float* v = k + args.kv_heads * HEAD_DIM;
  const float2* rotary = args.rotary + size_t(position) * (HEAD_DIM / 2);
  __syncwarp();  // the key before it has been read
  rotate_head<float, HEAD_DIM>(key, k, args.k_norm, args.epsilon, rotary, [](float& to, float x) { to = x; });
  __syncwarp();
  const auto page = [&](void* cache) {
    return page_of<Page>(cache, args.batch, sequence, position, args.kv_heads, kv_head);
  };
  bool finite = page(args.k_cache).store(position % PAGE_TOKENS, key);
  finite &= page(args.v_cache).store(position % PAGE_TOKENS, v);
  if (!finite) note_non_finite(args, sequence, position);
}
