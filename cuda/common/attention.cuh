// Attention of 16 queries over pages of 64 positions and chunks of 256, and how chunks are joined.
//
// Queries are (row, head of the group) pairs of one kv head, so that grouped heads share the reading of
// K and V. Where a block has one tile of queries (attend_chunk) it is four warps, and warp w takes the chunk's w-th page: K
// and V go from global memory straight into matrix fragments, since no two warps share a byte and shared memory would
// only add a stop. Where it has several (prefill_attention.cu) a warp takes all pages for a tile, and pages are shared.
// Both choose an order of dimensions that makes the loads 16 bytes wide (or what head_dim leaves).
//
// order  Scores are exact per (query, position). A chunk's maximum is over its 256 positions; its sums
//        are per page, then the four pages ascending; chunks are joined in ascending order. Positions
//        are absolute, so the bits do not depend on who else is in the pass, nor on where it started.
//        Masked positions have weight 0 and change nothing.
#pragma once
#include "matrix.cuh"
#include "rotary.cuh"

constexpr int QUERIES = 16, CHUNK_PAGES = 4, CHUNK_TOKENS = CHUNK_PAGES * PAGE_TOKENS;
constexpr int ATTENTION_THREADS = CHUNK_PAGES * WARP;
constexpr int KEY_TILES = PAGE_TOKENS / 8;

// Rows in shared memory are 16 bytes longer: fragment loads meet no bank conflict.
template <int HEAD_DIM> constexpr int ROW_PITCH = HEAD_DIM + 8;
template <class T, int HEAD_DIM> using QueryRows = T[QUERIES][ROW_PITCH<HEAD_DIM>];

// The queries of a block, and one chunk's result.
template <class T, int HEAD_DIM> struct AttentionShared {
  alignas(16) QueryRows<T, HEAD_DIM> query;
  float page_max[CHUNK_PAGES][QUERIES], page_sum[CHUNK_PAGES][QUERIES];
  float max[QUERIES], sum[QUERIES];
  float out[QUERIES][HEAD_DIM + 4];
};

// One query tile of one kv head of one sequence.
struct QueryTile {
  int sequence, kv_head, tile;
  int row_begin, rows, start, group;
  __device__ __forceinline__ QueryTile(const AttentionArgs& args, int sequence_, int kv_head_, int tile_)
      : sequence(sequence_), kv_head(kv_head_), tile(tile_) {
    row_begin = args.batch.row_begin[sequence];
    rows = args.batch.row_begin[sequence + 1] - row_begin;
    start = args.batch.start[sequence];
    group = args.heads / args.kv_heads;
  }
  __device__ __forceinline__ int queries() const { return min(QUERIES, rows * group - tile * QUERIES); }
  __device__ __forceinline__ int row(int query) const { return (tile * QUERIES + query) / group; }
  __device__ __forceinline__ int head(int query) const { return kv_head * group + (tile * QUERIES + query) % group; }
  __device__ __forceinline__ int position(int query) const { return start + row(query); }
  template <class T, int HEAD_DIM> __device__ __forceinline__ T* out_row(const AttentionArgs& args, int query) const {
    return static_cast<T*>(args.out) + size_t(row_begin + row(query)) * args.stride + head(query) * HEAD_DIM;
  }
  // Positions seen by any of the tile's queries: [first, end).
  __device__ __forceinline__ int end() const { return position(queries() - 1) + 1; }
  __device__ __forceinline__ int first(int window) const { return window ? max(0, position(0) - window + 1) : 0; }
  // Positions of a page that its queries may see, from the page's first one on; none where they see none.
  __device__ __forceinline__ int present(int page_start, int window) const {
    return queries() > 0 && page_start < end() && page_start + PAGE_TOKENS > first(window) ? min(PAGE_TOKENS, end() - page_start) : 0;
  }
};

// The calling warp loads every `step`th query of a tile, from `first` on.
template <class T, int HEAD_DIM>
__device__ __forceinline__ void load_queries(QueryRows<T, HEAD_DIM>& queries, const AttentionArgs& args,
                                             const QueryTile& tile, int first, int step) {
  const int width = (args.heads + 2 * args.kv_heads) * HEAD_DIM;
  for (int query = first; query < QUERIES; query += step) {
    T* target = queries[query];
    if (query < tile.queries()) {
      const float* q = args.qkv + size_t(tile.row_begin + tile.row(query)) * width + tile.head(query) * HEAD_DIM;
      rotate_head<T, HEAD_DIM>(target, q, args.q_norm, args.epsilon,
                               args.rotary + size_t(tile.position(query)) * (HEAD_DIM / 2),
                               [](T& to, float x) { to = narrow<T>(x); });
    } else {
      for (int i = threadIdx.x % WARP; i < HEAD_DIM; i += WARP) target[i] = narrow<T>(0);
    }
  }
}

// A number that is known when compiling.
template <int VALUE> struct Constant { static constexpr int value = VALUE; };

// Scores of the 16 queries with 8 keys, of which row `key` is this lane's; on: it exists.
// Dimensions: of 32, thread t of a group has 8t..8t+7 (two steps); of a last 16, 4t..4t+3.
template <class T, int HEAD_DIM, class Rows>
__device__ __forceinline__ void score_keys(float (&score)[4], const QueryRows<T, HEAD_DIM>& queries, const Rows& keys,
                                           int key, bool on) {
  const int group = threadIdx.x % WARP / 4, t = threadIdx.x % 4;
  UNROLL for (int d = 0; d + 32 <= HEAD_DIM; d += 32) {
    const auto k = keys.template load<4>(key, d + 8 * t, on);
    const auto low = load_words<4>(&queries[group][d + 8 * t], true);
    const auto high = load_words<4>(&queries[group + 8][d + 8 * t], true);
    UNROLL for (int step = 0; step < 2; step++) {
      const uint32_t a[4] = {low.at[2 * step], high.at[2 * step], low.at[2 * step + 1], high.at[2 * step + 1]};
      const uint32_t b[2] = {k.at[2 * step], k.at[2 * step + 1]};
      mma<T>(score, a, b);
    }
  }
  if constexpr (HEAD_DIM % 32 != 0) {
    constexpr int D = HEAD_DIM / 32 * 32;
    static_assert(HEAD_DIM % 32 == 16, "head_dim is a multiple of 16");
    const auto k = keys.template load<2>(key, D + 4 * t, on);
    const auto low = load_words<2>(&queries[group][D + 4 * t], true);
    const auto high = load_words<2>(&queries[group + 8][D + 4 * t], true);
    const uint32_t a[4] = {low.at[0], high.at[0], low.at[1], high.at[1]};
    mma<T>(score, a, k.at);
  }
}

// out[i] += weights of 16 positions times V. Of 16 * WORDS dimensions from `from` on, lane group g has
// 2 * WORDS: fragment i is dimension 2 * WORDS * g + i. The positions are rows first + 2t, 2t + 1, 2t + 8, 2t + 9.
template <class T, int WORDS, class Rows>
__device__ __forceinline__ void add_values(float (*out)[4], const uint32_t (&weight)[4], const Rows& values, int first,
                                           int present, int from) {
  const int mine = from + threadIdx.x % WARP / 4 * 2 * WORDS;
  Words<WORDS> v[4];
  UNROLL for (int i = 0; i < 4; i++) {
    const int at = first + i / 2 * 8 + threadIdx.x % 4 * 2 + i % 2;
    v[i] = values.template load<WORDS>(at, mine, at < present);
  }
  UNROLL for (int i = 0; i < 2 * WORDS; i++) {
    const unsigned half = i % 2 ? 0x7632 : 0x5410;  // the same half of both words
    const uint32_t b[2] = {__byte_perm(v[0].at[i / 2], v[1].at[i / 2], half),
                           __byte_perm(v[2].at[i / 2], v[3].at[i / 2], half)};
    mma<T>(out[i], weight, b);
  }
}

// Of a page of 64 keys, the first `present` of which exist: scores of queries `group` (elements 0, 1)
// and `group + 8` (2, 3) with positions 8j + 2t and 8j + 2t + 1, times the scale, minus infinity where they are not seen.
// A page that no query of the tile sees is not read.
template <class T, int HEAD_DIM, class Rows>
__device__ __forceinline__ void score_tile(float (&score)[4], const QueryRows<T, HEAD_DIM>& queries,
                                           const AttentionArgs& args, const QueryTile& tile, const Rows& keys,
                                           int page_start, int present, int j) {
  const int lane = threadIdx.x % WARP, group = lane / 4, t = lane % 4;
  UNROLL for (int i = 0; i < 4; i++) score[i] = 0;
  if (present > 0)
    score_keys<T, HEAD_DIM>(score, queries, keys, 8 * j + group, 8 * j + group < present);
  UNROLL for (int i = 0; i < 4; i++) {
    const int query = group + i / 2 * 8, at = page_start + 8 * j + 2 * t + i % 2, own = tile.position(query);
    const bool in_window = args.window == 0 || at > own - args.window;
    const bool seen = present > 0 && query < tile.queries() && at <= own && in_window;
    score[i] = seen ? score[i] * args.scale : NEGATIVE_INFINITY;
  }
}

// The largest of a query's values, which four lanes have.
__device__ __forceinline__ void fold_max(float (&max)[2]) {
  UNROLL for (int half = 0; half < 2; half++)
    UNROLL for (int by = 1; by < 4; by <<= 1) max[half] = fmaxf(max[half], __shfl_xor_sync(ALL_LANES, max[half], by));
}

// The weights of a page's positions, for each 16 of them as a matrix fragment has them, and their sums by query. Tiles of
// scores are given one after the other.
template <class T> struct PageWeights {
  uint32_t word[PAGE_TOKENS / 16][4];
  float sum[2] = {};

  __device__ __forceinline__ void weigh(int j, const float (&score)[4], const float (&max)[2]) {
    float weight[4];
    UNROLL for (int i = 0; i < 4; i++) {
      weight[i] = score[i] == NEGATIVE_INFINITY ? 0.0f : exp2f(score[i] - max[i / 2]);
      sum[i / 2] += weight[i];
    }
    UNROLL for (int half = 0; half < 2; half++)
      word[j / 2][j % 2 * 2 + half] = pack<T>(weight[2 * half], weight[2 * half + 1]);
  }
  // Of all tiles, and of the four lanes that have a query.
  __device__ __forceinline__ void finish() {
    UNROLL for (int half = 0; half < 2; half++)
      UNROLL for (int by = 1; by < 4; by <<= 1) sum[half] += __shfl_xor_sync(ALL_LANES, sum[half], by);
  }
};

// out = weights of a page times its values; of 16 * WORDS dimensions from `from` on.
template <class T, int WORDS, class Rows>
__device__ __forceinline__ void sum_page(float (*out)[4], const PageWeights<T>& weights, const Rows& values, int present,
                                         int from) {
  UNROLL for (int i = 0; i < 2 * WORDS; i++)
    UNROLL for (int j = 0; j < 4; j++) out[i][j] = 0;
  if (present <= 0) return;
  UNROLL for (int step = 0; step < PAGE_TOKENS / 16; step++)
    add_values<T, WORDS>(out, weights.word[step], values, step * 16, present, from);
}

// The dimension of element `i` of fragment `fragment` of sums over pages, of which each 64 dimensions have eight and a last
// TAIL of them fewer. Fragment f of a group of 64 (or the tail) holds every (2 words)th dimension from f on.
template <int HEAD_DIM> __device__ __forceinline__ int dimension_of(int fragment, int i) {
  constexpr int WIDE = HEAD_DIM / 64 * 64, TAIL_WORDS = (HEAD_DIM - WIDE) / 16;
  const int first = fragment / 8 * 64, words = first < WIDE ? 4 : TAIL_WORDS, t = threadIdx.x % 4;
  return first + 2 * words * (2 * t + i % 2) + fragment % 8;
}

// Calls `group(fragment, words)` for each 64 dimensions and the rest, with their first fragment; `words` is a constant.
template <int HEAD_DIM, class Group> __device__ __forceinline__ void for_dimensions(Group group) {
  constexpr int WIDE = HEAD_DIM / 64 * 64, TAIL_WORDS = (HEAD_DIM - WIDE) / 16;
  static_assert(HEAD_DIM % 16 == 0, "head_dim is a multiple of 16");
  UNROLL for (int d = 0; d < WIDE; d += 64) group(d / 8, Constant<4>());
  if constexpr (TAIL_WORDS != 0) group(WIDE / 8, Constant<TAIL_WORDS>());
}

// The chunk that begins at position `chunk_start`: leaves max, sum and out (not divided by sum) in shared memory,
// visible after the next barrier. `max` is minus infinity for a query that sees none of it.
template <class Cache, int HEAD_DIM>
__device__ __forceinline__ void attend_chunk(AttentionShared<typename Cache::T, HEAD_DIM>& shared, const AttentionArgs& args,
                                             const QueryTile& tile, int chunk_start) {
  using T = typename Cache::T;
  using Page = typename Cache::template Page<HEAD_DIM>;
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, group = lane / 4, t = lane % 4;
  const int page_start = chunk_start + warp * PAGE_TOKENS, end = tile.end(), present = tile.present(page_start, args.window);
  // A page that nobody sees may not exist: then nothing is read, at any address.
  const int safe = present > 0 ? page_start : (end - 1) / PAGE_TOKENS * PAGE_TOKENS;
  const auto page = [&](void* cache) {
    return page_of<Page>(cache, args.batch, tile.sequence, safe, args.kv_heads, tile.kv_head);
  };
  const Page keys = page(args.k_cache), values = page(args.v_cache);
  values.prefetch(present);

  float score[KEY_TILES][4], max[2] = {NEGATIVE_INFINITY, NEGATIVE_INFINITY};
  UNROLL for (int j = 0; j < KEY_TILES; j++) {
    score_tile<T, HEAD_DIM>(score[j], shared.query, args, tile, keys, page_start, present, j);
    UNROLL for (int i = 0; i < 4; i++) max[i / 2] = fmaxf(max[i / 2], score[j][i]);
  }
  fold_max(max);
  UNROLL for (int half = 0; half < 2; half++)
    if (t == 0) shared.page_max[warp][group + half * 8] = max[half];
  __syncthreads();
  UNROLL for (int half = 0; half < 2; half++) {
    UNROLL for (int page = 0; page < CHUNK_PAGES; page++)
      max[half] = fmaxf(max[half], shared.page_max[page][group + half * 8]);
    if (warp == 0 && t == 0) shared.max[group + half * 8] = max[half];
  }
  PageWeights<T> weights;
  UNROLL for (int j = 0; j < KEY_TILES; j++) weights.weigh(j, score[j], max);
  weights.finish();
  UNROLL for (int half = 0; half < 2; half++)
    if (t == 0) shared.page_sum[warp][group + half * 8] = weights.sum[half];

  // Past 128 dimensions 64 at a time: more accumulators would not fit in registers.
  constexpr int PART = HEAD_DIM <= 128 ? HEAD_DIM : 64;
  static_assert(HEAD_DIM % PART == 0, "head_dim is a multiple of 64 past 128");
  _Pragma("unroll 1") for (int from = 0; from < HEAD_DIM; from += PART) {
    float out[PART / 8][4];
    for_dimensions<PART>([&](int fragment, auto words) {
      sum_page<T, words.value>(&out[fragment], weights, values, present, from + fragment * 8);
    });
    // The four pages' sums, ascending.
    UNROLL for (int page = 0; page < CHUNK_PAGES; page++) {
      if (page == warp)
        UNROLL for (int f = 0; f < PART / 8; f++)
          UNROLL for (int i = 0; i < 4; i++) {
            float& to = shared.out[group + i / 2 * 8][from + dimension_of<PART>(f, i)];
            to = page == 0 ? out[f][i] : to + out[f][i];
          }
      __syncthreads();
    }
  }
  if (threadIdx.x < QUERIES) {
    float total = 0;
    UNROLL for (int page = 0; page < CHUNK_PAGES; page++) total += shared.page_sum[page][threadIdx.x];
    shared.sum[threadIdx.x] = total;
  }
}

// What a query's sums so far, and those of its next chunk, are multiplied with when they are joined.
struct JoinFactors {
  float max, keep, take;
  __device__ __forceinline__ JoinFactors(float before, float chunk)
      : max(fmaxf(before, chunk)), keep(exp2f(before - max)), take(exp2f(chunk - max)) {}
};

// A query's attention over the chunks joined so far; each thread has every eighth dimension of one query.
template <int HEAD_DIM> struct JoinedChunks {
  static constexpr int SHARE = HEAD_DIM / (ATTENTION_THREADS / QUERIES);
  float max = NEGATIVE_INFINITY, sum = 0, out[SHARE] = {};

  static __device__ __forceinline__ int query() { return threadIdx.x / (ATTENTION_THREADS / QUERIES); }
  static __device__ __forceinline__ int dimension(int i) {
    return threadIdx.x % (ATTENTION_THREADS / QUERIES) + i * (ATTENTION_THREADS / QUERIES);
  }
  // A chunk's maximum and sum, and of its output this thread's share.
  __device__ __forceinline__ void join(float chunk_max, float chunk_sum, const float (&chunk_out)[SHARE]) {
    if (chunk_max == NEGATIVE_INFINITY) return;
    const JoinFactors factors(max, chunk_max);
    const float keep = factors.keep, take = factors.take;
    max = factors.max;
    sum = sum * keep + chunk_sum * take;
    UNROLL for (int i = 0; i < SHARE; i++) out[i] = out[i] * keep + chunk_out[i] * take;
  }
  // The same of a row [HEAD_DIM] of outputs.
  __device__ __forceinline__ void join_row(float chunk_max, float chunk_sum, const float* row) {
    float share[SHARE];
    UNROLL for (int i = 0; i < SHARE; i++) share[i] = row[dimension(i)];
    join(chunk_max, chunk_sum, share);
  }
  template <class T> __device__ __forceinline__ void store(const AttentionArgs& args, const QueryTile& tile) const {
    if (query() >= tile.queries()) return;
    T* row = tile.template out_row<T, HEAD_DIM>(args, query());
    UNROLL for (int i = 0; i < SHARE; i++) row[dimension(i)] = narrow<T>(out[i] / sum);
  }
};

// An instance for each format, way of keeping the cache, and head_dim; src/backend/cuda/kernels/attention.rs has their names.
#define FOR_HEAD_DIMS(name, Cache, suffix, body)                                                \
  KERNEL(name##_##suffix##_32, ATTENTION_THREADS, 1, AttentionArgs, (body<Cache, 32>(args)))    \
  KERNEL(name##_##suffix##_64, ATTENTION_THREADS, 1, AttentionArgs, (body<Cache, 64>(args)))    \
  KERNEL(name##_##suffix##_80, ATTENTION_THREADS, 1, AttentionArgs, (body<Cache, 80>(args)))    \
  KERNEL(name##_##suffix##_96, ATTENTION_THREADS, 1, AttentionArgs, (body<Cache, 96>(args)))    \
  KERNEL(name##_##suffix##_128, ATTENTION_THREADS, 1, AttentionArgs, (body<Cache, 128>(args)))  \
  KERNEL(name##_##suffix##_256, ATTENTION_THREADS, 1, AttentionArgs, (body<Cache, 256>(args)))
#define FOR_CACHES(name, body)                              \
  FOR_HEAD_DIMS(name, FullCache<bf16>, bf16, body)          \
  FOR_HEAD_DIMS(name, FullCache<f16>, f16, body)            \
  FOR_HEAD_DIMS(name, CodedCache<bf16>, bf16_q8, body)      \
  FOR_HEAD_DIMS(name, CodedCache<f16>, f16_q8, body)
