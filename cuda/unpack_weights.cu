// Brings packed weights (common/matrix.cuh) back into rows, for libraries that multiply row-major matrices: the
// inverse of pack_weights.cu.
//
// in     source: the packed matrix, of which blocks first_block + b * block_step of 16 rows are taken. Steps of 2
//        take the gate (first_block 0) or up (1) out of both
// out    rows [row_count, 64 * chunks] of 2-byte elements of any format, as many zeros past the last column as packed
// grid   (blocks * chunks / 8), 256 threads: a warp takes 16 rows and 64 columns, a thread 16 columns of two
//        rows, which are its units of all four steps
// bytes  2 read, 2 written per element; whole sectors
#include "common/skinny.cuh"

constexpr int UNPACK_THREADS = 256, UNPACK_WARPS = UNPACK_THREADS / WARP, BLOCK_ROWS = 16;

struct UnpackWeightsArgs {
  const uint4* source;
  uint4* rows;
  int row_count;
  int chunks;
  int first_block;
  int block_step;
};

__device__ __forceinline__ void unpack_block(const UnpackWeightsArgs& args) {
  constexpr int UNITS = CHUNK / 8;  // of 16 bytes, in a row of a chunk
  const int blocks = (args.row_count + BLOCK_ROWS - 1) / BLOCK_ROWS;
  const int lane = threadIdx.x % WARP, task = blockIdx.x * UNPACK_WARPS + threadIdx.x / WARP;
  const int block = task / args.chunks, chunk = task % args.chunks;
  const uint4* source = args.source + size_t(args.first_block + block * args.block_step) * block_units(args.chunks);
  uint4 unit[4] = {};
  const uint64_t policy = streaming_policy();
  if (block < blocks)
    UNROLL for (int step = 0; step < 4; step++)
      unit[step] = load_streaming(source + (chunk * 4 + step) * WARP + lane, policy);
  await_previous_kernel();
  const int row = block * BLOCK_ROWS + lane / 4;
  uint4* low = args.rows + (size_t(row) * args.chunks + chunk) * UNITS + lane % 4 * 2;
  uint4* high = low + size_t(8) * args.chunks * UNITS;
  UNROLL for (int half = 0; half < 2; half++) {
    const uint4 first = unit[2 * half], second = unit[2 * half + 1];
    if (row < args.row_count) low[half] = make_uint4(first.x, first.z, second.x, second.z);
    if (row + 8 < args.row_count) high[half] = make_uint4(first.y, first.w, second.y, second.w);
  }
}

KERNEL(unpack_weights, UNPACK_THREADS, 1, UnpackWeightsArgs, unpack_block(args))
