// Attention for any number of rows per sequence (prefill), with the bits of attention.cu.
//
// in     qkv [tokens, (heads + 2 kv_heads) head_dim] f32; cache that already has the rows' K and V
//        (append.cu)
// out    [tokens, stride] in the weights' format
// block  Up to head_dim 128 four tiles of 16 queries, a warp each, which share the pages of K and V: one is read while the next is on
//        its way by an asynchronous copy. Of each chunk K comes twice: for the chunk's maxima, then, beside V, for its sums; scores
//        are made again, which costs less than keeping them. Wider heads have one tile a block, of four warps.
// grid   (row_tiles / 4, kv_heads, batch), of wider heads (row_tiles, kv_heads, batch); 128 threads
// order  common/attention.cuh
// bytes  K twice and V once of all positions seen, once per 64 queries (mostly from L2); K and V per 16 queries of wider heads
#include "common/attention.cuh"

constexpr int TILES = ATTENTION_THREADS / WARP, STAGES = 2;

// Pages in shared memory, one of which is looked at while others are on their way.
template <class Cache, int HEAD_DIM> struct PageStages;

template <class T, int HEAD_DIM> struct PageStages<FullCache<T>, HEAD_DIM> {
  T stage[STAGES][PAGE_TOKENS][ROW_PITCH<HEAD_DIM>];
  // Begins to copy a page's first `present` rows; zeros are behind them.
  __device__ __forceinline__ void copy(int slot, const typename FullCache<T>::template Page<HEAD_DIM>& page, int present) {
    constexpr int UNITS = HEAD_DIM * int(sizeof(T)) / 16;
    for (int i = threadIdx.x; i < PAGE_TOKENS * UNITS; i += ATTENTION_THREADS)
      copy_async(&stage[slot][i / UNITS][i % UNITS * 8], page.rows + i * 8, i / UNITS < present);
  }
  // The rows of a page that has landed.
  __device__ __forceinline__ PlainRows<T> rows(int slot, int) { return {stage[slot][0], ROW_PITCH<HEAD_DIM>}; }
};

// Codes are widened once, for all tiles.
template <class T, int HEAD_DIM> struct PageStages<CodedCache<T>, HEAD_DIM> {
  using Page = typename CodedCache<T>::template Page<HEAD_DIM>;
  alignas(16) unsigned char stage[STAGES][Page::BYTES];
  T wide[PAGE_TOKENS][ROW_PITCH<HEAD_DIM>];
  __device__ __forceinline__ void copy(int slot, const Page& page, int) {
    for (int i = threadIdx.x * 16; i < Page::BYTES; i += ATTENTION_THREADS * 16)
      copy_async(&stage[slot][i], page.codes + i, true);
  }
  __device__ __forceinline__ PlainRows<T> rows(int slot, int present) {
    const Page page(stage[slot]);
    for (int i = threadIdx.x * 8; i < PAGE_TOKENS * HEAD_DIM; i += ATTENTION_THREADS * 8) {
      const int row = i / HEAD_DIM, dim = i % HEAD_DIM;
      reinterpret_cast<Words<4>&>(wide[row][dim]) = page.template load<4>(row, dim, row < present);
    }
    __syncthreads();  // all of the page is wide
    return {wide[0], ROW_PITCH<HEAD_DIM>};
  }
};

template <class Cache, int HEAD_DIM> struct PrefillShared {
  QueryRows<typename Cache::T, HEAD_DIM> query[TILES];
  PageStages<Cache, HEAD_DIM> pages;
  // Sums over the chunks joined so far, each thread's own: with those of a chunk they would not fit in registers.
  float out[HEAD_DIM / 8][4][ATTENTION_THREADS];
};

// The pages of K and V that a block reads, one after another: of each chunk four of K, then K and V of each again.
struct PageOrder {
  static constexpr int OF_CHUNK = 3 * CHUNK_PAGES;
  int chunk_start, end, step = 0;
  __device__ __forceinline__ bool done() const { return chunk_start >= end; }
  __device__ __forceinline__ bool is_value() const { return step >= CHUNK_PAGES && step % 2; }
  __device__ __forceinline__ int start() const {
    return chunk_start + (step < CHUNK_PAGES ? step : (step - CHUNK_PAGES) / 2) * PAGE_TOKENS;
  }
  __device__ __forceinline__ void advance() {
    if (++step == OF_CHUNK) step = 0, chunk_start += CHUNK_TOKENS;
  }
};
static_assert(CHUNK_PAGES % 2 == 0, "values are odd steps");

template <class Cache, int HEAD_DIM> __device__ __forceinline__ void attend_tiles(const AttentionArgs& args) {
  using T = typename Cache::T;
  using Page = typename Cache::template Page<HEAD_DIM>;
  DYNAMIC_SHARED(raw);
  auto& shared = *reinterpret_cast<PrefillShared<Cache, HEAD_DIM>*>(raw);
  constexpr int FRAGMENTS = HEAD_DIM / 8;
  const int warp = threadIdx.x / WARP, group = threadIdx.x % WARP / 4;
  await_previous_kernel();
  const QueryTile tile(args, blockIdx.z, blockIdx.y, blockIdx.x * TILES + warp);
  const QueryTile lowest(args, blockIdx.z, blockIdx.y, blockIdx.x * TILES);
  if (lowest.queries() <= 0) return;
  const int last_tile = (lowest.rows * lowest.group - 1) / QUERIES;
  const QueryTile highest(args, blockIdx.z, blockIdx.y, min(lowest.tile + TILES - 1, last_tile));
  const int first = lowest.first(args.window) / CHUNK_TOKENS * CHUNK_TOKENS, end = highest.end();
  load_queries<T, HEAD_DIM>(shared.query[warp], args, tile, 0, 1);

  PageOrder ahead{first, end};
  const auto copy_next = [&](int slot) {
    if (!ahead.done() && ahead.start() < end) {
      void* cache = ahead.is_value() ? args.v_cache : args.k_cache;
      const auto page = page_of<Page>(cache, args.batch, tile.sequence, ahead.start(), args.kv_heads, tile.kv_head);
      shared.pages.copy(slot, page, end - ahead.start());
    }
    if (!ahead.done()) ahead.advance();
    commit_copies();  // empty groups too, so that the count of groups tells which one has landed
  };
  UNROLL for (int i = 0; i < STAGES - 1; i++) copy_next(i);
  int slot = STAGES - 1;
  // The next page, which begins at that position, once it has landed; all are done with the one before it.
  const auto next_page = [&](int page_start) {
    wait_copies<STAGES - 2>();
    __syncthreads();
    copy_next(slot);
    slot = (slot + 1) % STAGES;
    return shared.pages.rows(slot, end - page_start);
  };

  float max[2] = {NEGATIVE_INFINITY, NEGATIVE_INFINITY}, sum[2] = {};
  UNROLL for (int f = 0; f < FRAGMENTS; f++)
    UNROLL for (int i = 0; i < 4; i++) shared.out[f][i][threadIdx.x] = 0;
  for (int chunk_start = first; chunk_start < end; chunk_start += CHUNK_TOKENS) {
    // Calls `use(j, score)` for the tiles of a page; returns whether any of it is seen. All rows of a page are there.
    const auto score_page = [&](int page, auto use) {
      const int page_start = chunk_start + page * PAGE_TOKENS;
      const auto keys = next_page(page_start);
      const bool seen = tile.present(page_start, args.window) > 0;
      UNROLL for (int j = 0; j < KEY_TILES; j++) {
        float score[4];
        const int present = seen ? PAGE_TOKENS : 0;
        score_tile<T, HEAD_DIM>(score, shared.query[warp], args, tile, keys, page_start, present, j);
        use(j, score);
      }
      return seen;
    };
    float chunk_max[2] = {NEGATIVE_INFINITY, NEGATIVE_INFINITY};
    _Pragma("unroll 1") for (int page = 0; page < CHUNK_PAGES; page++)
      score_page(page, [&](int, const float (&score)[4]) {
        UNROLL for (int i = 0; i < 4; i++) chunk_max[i / 2] = fmaxf(chunk_max[i / 2], score[i]);
      });
    fold_max(chunk_max);
    float chunk_sum[2] = {}, chunk_out[FRAGMENTS][4];
    _Pragma("unroll 1") for (int page = 0; page < CHUNK_PAGES; page++) {
      PageWeights<T> weights;
      const bool seen =
          score_page(page, [&](int j, const float (&score)[4]) { weights.weigh(j, score, chunk_max); });
      weights.finish();
      UNROLL for (int half = 0; half < 2; half++) chunk_sum[half] += weights.sum[half];
      const auto values = next_page(chunk_start + page * PAGE_TOKENS);
      for_dimensions<HEAD_DIM>([&](int fragment, auto words) {
        float of_page[2 * words.value][4];
        if (seen) sum_page<T, words.value>(of_page, weights, values, PAGE_TOKENS, fragment * 8);
        else sum_page<T, words.value>(of_page, weights, values, 0, fragment * 8);
        UNROLL for (int f = 0; f < 2 * words.value; f++)
          UNROLL for (int i = 0; i < 4; i++) {
            float& to = chunk_out[fragment + f][i];
            to = page == 0 ? of_page[f][i] : to + of_page[f][i];
          }
      });
    }
    UNROLL for (int half = 0; half < 2; half++) {
      if (chunk_max[half] == NEGATIVE_INFINITY) continue;
      const JoinFactors factors(max[half], chunk_max[half]);
      max[half] = factors.max;
      sum[half] = sum[half] * factors.keep + chunk_sum[half] * factors.take;
      UNROLL for (int f = 0; f < FRAGMENTS; f++)
        UNROLL for (int i = 2 * half; i < 2 * half + 2; i++) {
          float& out = shared.out[f][i][threadIdx.x];
          out = out * factors.keep + chunk_out[f][i] * factors.take;
        }
    }
  }
  UNROLL for (int i = 0; i < 4; i++) {
    const int query = group + i / 2 * 8;
    if (query >= tile.queries()) continue;
    T* row = tile.template out_row<T, HEAD_DIM>(args, query);
    UNROLL for (int f = 0; f < FRAGMENTS; f++)
      row[dimension_of<HEAD_DIM>(f, i)] = narrow<T>(shared.out[f][i][threadIdx.x] / sum[i / 2]);
  }
}

template <class Cache, int HEAD_DIM> __device__ __forceinline__ void attend_tile(const AttentionArgs& args) {
  using T = typename Cache::T;
  using Shared = AttentionShared<T, HEAD_DIM>;
  SHARED(Shared, shared);
  await_previous_kernel();
  const QueryTile tile(args, blockIdx.z, blockIdx.y, blockIdx.x);
  if (tile.queries() <= 0) return;
  load_queries<T, HEAD_DIM>(shared.query, args, tile, threadIdx.x / WARP, CHUNK_PAGES);
  JoinedChunks<HEAD_DIM> joined;
  const int query = joined.query();
  for (int start = tile.first(args.window) / CHUNK_TOKENS * CHUNK_TOKENS; start < tile.end(); start += CHUNK_TOKENS) {
    __syncthreads();  // the queries are there, and the last chunk has been joined by all
    attend_chunk<Cache, HEAD_DIM>(shared, args, tile, start);
    __syncthreads();
    joined.join_row(shared.max[query], shared.sum[query], shared.out[query]);
  }
  joined.template store<T>(args, tile);
}

template <class Cache, int HEAD_DIM> __device__ __forceinline__ void attend_prefill(const AttentionArgs& args) {
  if constexpr (HEAD_DIM <= 128) attend_tiles<Cache, HEAD_DIM>(args);
  else attend_tile<Cache, HEAD_DIM>(args);
}

FOR_CACHES(prefill_attention, attend_prefill)
