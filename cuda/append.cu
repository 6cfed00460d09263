// K norm, rotation and append to the paged cache, with no attention: before prefill_attention.cu, and
// to fill the exit layer's cache for rows that the exit block never drafted from (after qkv.cu on the
// key and value rows alone).
//
// in     qkv [tokens, (heads + 2 kv_heads) head_dim] f32, of which only k and v are read
// out    the cache rows of all tokens; which of them are not finite
// grid   (tokens / 4, kv_heads, batch), 128 threads: a warp takes one row
// bytes  8 read and 4 written per element of k
#include "common/attention.cuh"

template <class T, int HEAD_DIM> __device__ __forceinline__ void append(const AttentionArgs& args) {
  await_previous_kernel();
  const int sequence = blockIdx.z, row_begin = args.batch.row_begin[sequence];
  const int row = blockIdx.x * CHUNK_PAGES + threadIdx.x / WARP;
  if (row < args.batch.row_begin[sequence + 1] - row_begin)
    append_row<T, HEAD_DIM>(args, sequence, row_begin + row, args.batch.start[sequence] + row, blockIdx.y);
}

FOR_HEAD_DIMS(append, bf16, bf16, ATTENTION_THREADS, AttentionArgs, append)
FOR_HEAD_DIMS(append, f16, f16, ATTENTION_THREADS, AttentionArgs, append)
