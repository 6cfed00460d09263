// The paged KV cache and the arguments of everything that touches it.
//
// K and V of one layer: [pages][kv_heads][64 rows of head_dim] each, zero where never written; how rows are kept says
// cached_rows.cuh. A block table per sequence names its pages in order of position. All numbers are finite: a masked position
// has weight 0, and 0 * NaN would be NaN. Where a row is not, zeros are written in its place, and its position is noted.
#pragma once
#include "number.cuh"

constexpr int PAGE_TOKENS = 64;

// A ragged batch: sequence b brings the rows row_begin[b] .. row_begin[b + 1], at consecutive positions
// from start[b] on. All on the device, so that a captured graph serves any lengths.
struct PagedBatch {
  const int* row_begin;        // [batch + 1]
  const int* start;            // [batch]
  const uint32_t* block_table; // [batch, max_pages]
  int max_pages;
};

struct AttentionArgs {
  PagedBatch batch;
  const float* qkv;      // [tokens, (heads + 2 kv_heads) head_dim], before norms and rotation
  void* k_cache;
  void* v_cache;
  const float2* rotary;  // [positions, head_dim / 2]: cos, sin
  const float* q_norm;   // [head_dim] or null
  const float* k_norm;   // [head_dim] or null
  float epsilon;         // of those norms
  float scale;           // of the scores, times log2(e): exponentials are powers of two
  int heads;
  int kv_heads;
  int window;            // position p attends to p - window + 1 ..= p; 0: to all up to p
  int row_tiles;         // most tiles of 16 (row, head of the group) pairs of one sequence
  void* out;             // [tokens, stride]: the operand of the output projection
  int stride;
  float* partial;        // [batch, kv_heads, row_tiles, chunks, 16, head_dim + 2]; split attention only
  unsigned* arrived;     // [batch, kv_heads, row_tiles], all 0 between launches; split attention only
  unsigned* non_finite;  // [pages, 2]: a bit for each position, set where it is noted; or null
  unsigned* any_non_finite;  // 1: some bit was set
};

// The rows of one kv head of the page that has a position: the row of a position is position % 64.
template <class Page>
__device__ __forceinline__ Page page_of(void* cache, const PagedBatch& batch, int sequence, int position, int kv_heads,
                                        int kv_head) {
  const size_t page = batch.block_table[size_t(sequence) * batch.max_pages + position / PAGE_TOKENS];
  return Page(static_cast<unsigned char*>(cache) + (page * kv_heads + kv_head) * Page::BYTES);
}

// A row that was given what is not finite.
__device__ __forceinline__ void note_non_finite(const AttentionArgs& args, int sequence, int position) {
  if (!args.non_finite) return;
  const size_t page = args.batch.block_table[size_t(sequence) * args.batch.max_pages + position / PAGE_TOKENS];
  atomicOr(args.non_finite + 2 * page + position % PAGE_TOKENS / 32, 1u << position % 32);
  atomicOr(args.any_non_finite, 1u);
}
