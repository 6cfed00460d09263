// Attention for any number of rows per sequence (prefill), with the bits of attention.cu.
//
// in     qkv [tokens, (heads + 2 kv_heads) head_dim] f32; cache that already has the rows' K and V
//        (append.cu)
// out    [tokens, stride] in the weights' format
// grid   (row_tiles, kv_heads, batch), 128 threads: a block takes 16 queries over all their chunks
// order  common/attention.cuh
// bytes  K and V of all positions seen, once per query tile (mostly from L2)
#include "common/attention.cuh"

template <class T, int HEAD_DIM> __device__ __forceinline__ void attend_prefill(const AttentionArgs& args) {
  using Shared = AttentionShared<T, HEAD_DIM>;
  SHARED(Shared, shared);
  await_previous_kernel();
  const QueryTile tile(args, blockIdx.z, blockIdx.y, blockIdx.x);
  if (tile.queries() <= 0) return;
  load_queries<T, HEAD_DIM>(shared, args, tile);
  JoinedChunks<HEAD_DIM> joined;
  const int query = joined.query();
  for (int start = tile.first(args.window) / CHUNK_TOKENS * CHUNK_TOKENS; start < tile.end(); start += CHUNK_TOKENS) {
    __syncthreads();  // the queries are there, and the last chunk has been joined by all
    attend_chunk<T, HEAD_DIM>(shared, args, tile, start);
    __syncthreads();
    joined.join_row(shared.max[query], shared.sum[query], shared.out[query]);
  }
  joined.template store<T>(args, tile);
}

FOR_HEAD_DIMS(prefill_attention, bf16, bf16, ATTENTION_THREADS, AttentionArgs, attend_prefill)
FOR_HEAD_DIMS(prefill_attention, f16, f16, ATTENTION_THREADS, AttentionArgs, attend_prefill)
