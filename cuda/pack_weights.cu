// Brings row-major weights into the order of matrix fragments (common/matrix.cuh), as
// src/backend/cuda/pack.rs does: a checkpoint's matrix is copied to the device as it is, and packed there.
//
// in     rows [row_count, columns] of 2-byte elements of any format, beginning at a multiple of 16 bytes
// out    target: block b of 16 rows becomes block first_block + b * block_step of the packed matrix, with
//        zeros past the last row and the last column. Steps of 2 interleave gate (first_block 0) and up (1).
//        Nothing else is written: a matrix of an odd number of blocks ends in one that must be zero before
// grid   (blocks * chunks / 8), 256 threads: a warp takes 16 rows and 64 columns, a thread 16 columns of two
//        rows, which are its units of all four steps
// bytes  2 read, 2 written per element; whole sectors where columns are a multiple of 16
#include "common/skinny.cuh"

constexpr int PACK_THREADS = 256, PACK_WARPS = PACK_THREADS / WARP, BLOCK_ROWS = 16;

struct PackWeightsArgs {
  const uint16_t* rows;
  uint4* target;
  int row_count;
  int columns;
  int first_block;
  int block_step;
};

// 16 elements of a row from `column` on, zeros where the matrix has none.
struct RowPart { uint32_t word[8]; };
__device__ __forceinline__ RowPart load_part(const PackWeightsArgs& args, int row, int column) {
  RowPart part = {};
  if (row >= args.row_count) return part;
  const uint16_t* from = args.rows + size_t(row) * args.columns + column;
  const int left = args.columns - column;
  // Where all rows are aligned, eight elements are all there or all missing.
  const bool aligned = args.columns % 8 == 0;
  UNROLL for (int half = 0; half < 2; half++) {
    if (aligned && left > 8 * half) {
      const uint4 v = reinterpret_cast<const uint4*>(from)[half];
      part.word[4 * half] = v.x, part.word[4 * half + 1] = v.y;
      part.word[4 * half + 2] = v.z, part.word[4 * half + 3] = v.w;
    }
  }
  if (!aligned)
    UNROLL for (int i = 0; i < 16; i++)
      if (i < left) part.word[i / 2] |= uint32_t(from[i]) << i % 2 * 16;
  return part;
}

__device__ __forceinline__ void pack_block(const PackWeightsArgs& args) {
  const int chunks = (args.columns + CHUNK - 1) / CHUNK, blocks = (args.row_count + BLOCK_ROWS - 1) / BLOCK_ROWS;
  const int lane = threadIdx.x % WARP, task = blockIdx.x * PACK_WARPS + threadIdx.x / WARP;
  const int block = task / chunks, chunk = task % chunks;
  await_previous_kernel();
  if (block < blocks) {
    const int row = block * BLOCK_ROWS + lane / 4, column = chunk * CHUNK + lane % 4 * 16;
    const RowPart low = load_part(args, row, column), high = load_part(args, row + 8, column);
    uint4* target = args.target + size_t(args.first_block + block * args.block_step) * block_units(chunks);
    UNROLL for (int step = 0; step < 4; step++) {
      const int first = 2 * step, second = first + 1;
      target[(chunk * 4 + step) * WARP + lane] =
          make_uint4(low.word[first], high.word[first], low.word[second], high.word[second]);
    }
  }
}

KERNEL(pack_weights, PACK_THREADS, 1, PackWeightsArgs, pack_block(args))
