// K norm, rotation and append to the paged cache, with no attention: before prefill_attention.cu, and
// to fill the exit layer's cache for rows that the exit block never drafted from (after qkv.cu on the
// key and value rows alone).
//
// in     qkv [tokens, (heads + 2 kv_heads) head_dim] f32, of which only k and v are read
// out    the cache rows of all tokens; which of them are not finite
// grid   (tokens / 4, kv_heads, batch), 128 threads: a warp takes one row
// bytes  8 read and 4 written per element of k; 2.1 written in 8 bits
#include "common/attention.cuh"

template <class Cache, int HEAD_DIM> __device__ __forceinline__ void append(const AttentionArgs& args) {
  await_previous_kernel();
  const int sequence = blockIdx.z, row_begin = args.batch.row_begin[sequence];
  const int row = blockIdx.x * CHUNK_PAGES + threadIdx.x / WARP;
  if (row < args.batch.row_begin[sequence + 1] - row_begin)
    append_row<Cache, HEAD_DIM>(args, sequence, row_begin + row, args.batch.start[sequence] + row, blockIdx.y);
}

FOR_CACHES(append, append)
