// Split attention for few rows per sequence (drafting, verification): QK norm, rotation and append
// to the paged cache, then grouped-query attention with sliding window.
//
// in     qkv [tokens, (heads + 2 kv_heads) head_dim] f32; cache, block tables (common/paged_kv.cuh)
// out    [tokens, stride] in the weights' format; the cache with the new rows' K and V; which of those are not finite
// grid   (chunks of the longest context, kv_heads * row_tiles, batch), 128 threads. Chunks are absolute
//        positions 256c .. 256c + 255, so exactly one block per kv head and query tile reads a position,
//        and the one that reads a new row's position appends it (tiles of one kv head write the same bits).
// order  common/attention.cuh; the last block of a query tile joins the chunks in ascending order
// bytes  K and V of all positions seen, once per query tile; (head_dim + 2) * 128 bytes per chunk
//        written and read again where a context has several chunks
#include "common/attention.cuh"

template <class Cache, int HEAD_DIM> __device__ __forceinline__ void attend_split(const AttentionArgs& args) {
  using T = typename Cache::T;
  using Shared = AttentionShared<T, HEAD_DIM>;
  SHARED(Shared, shared);
  constexpr int RECORD = QUERIES * (HEAD_DIM + 2);
  const int chunk = blockIdx.x, chunk_start = chunk * CHUNK_TOKENS;
  await_previous_kernel();
  const QueryTile tile(args, blockIdx.z, blockIdx.y / args.row_tiles, blockIdx.y % args.row_tiles);
  if (tile.queries() <= 0) return;
  const int first_chunk = tile.first(args.window) / CHUNK_TOKENS, chunks = (tile.end() - 1) / CHUNK_TOKENS + 1;
  if (chunk < first_chunk || chunk >= chunks) return;

  const int warp = threadIdx.x / WARP;
  for (int row = warp; row < tile.rows; row += CHUNK_PAGES) {
    const int position = tile.start + row;
    if (position / CHUNK_TOKENS == chunk)
      append_row<Cache, HEAD_DIM>(args, tile.sequence, tile.row_begin + row, position, tile.kv_head);
  }
  load_queries<T, HEAD_DIM>(shared.query, args, tile, warp, CHUNK_PAGES);
  __syncthreads();
  attend_chunk<Cache, HEAD_DIM>(shared, args, tile, chunk_start);
  __syncthreads();

  JoinedChunks<HEAD_DIM> joined;
  const int query = joined.query();
  if (chunks - first_chunk == 1) {
    joined.join_row(shared.max[query], shared.sum[query], shared.out[query]);
    return joined.template store<T>(args, tile);
  }
  const size_t slot = (size_t(tile.sequence) * args.kv_heads + tile.kv_head) * args.row_tiles + tile.tile;
  float* records = args.partial + slot * gridDim.x * RECORD;
  float* mine = records + size_t(chunk) * RECORD;
  for (int i = threadIdx.x; i < QUERIES * HEAD_DIM; i += ATTENTION_THREADS)
    mine[2 * QUERIES + i] = shared.out[i / HEAD_DIM][i % HEAD_DIM];
  if (threadIdx.x < QUERIES) {
    mine[threadIdx.x] = shared.max[threadIdx.x];
    mine[QUERIES + threadIdx.x] = shared.sum[threadIdx.x];
  }
  if (!last_block(args.arrived + slot, chunks - first_chunk)) return;
  // Several records are on their way at a time; they are joined one by one, in order.
  constexpr int AHEAD = HEAD_DIM <= 128 ? 8 : 4, SHARE = JoinedChunks<HEAD_DIM>::SHARE;
  for (int first = first_chunk; first < chunks; first += AHEAD) {
    float max[AHEAD], sum[AHEAD], out[AHEAD][SHARE];
    UNROLL for (int i = 0; i < AHEAD; i++) {
      const float* record = records + size_t(min(first + i, chunks - 1)) * RECORD;
      max[i] = first + i < chunks ? record[query] : NEGATIVE_INFINITY;
      sum[i] = record[QUERIES + query];
      UNROLL for (int d = 0; d < SHARE; d++)
        out[i][d] = record[2 * QUERIES + query * HEAD_DIM + JoinedChunks<HEAD_DIM>::dimension(d)];
    }
    UNROLL for (int i = 0; i < AHEAD; i++) joined.join(max[i], sum[i], out[i]);
  }
  joined.template store<T>(args, tile);
}

FOR_CACHES(attention, attend_split)
