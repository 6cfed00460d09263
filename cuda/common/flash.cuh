// Tiles of attention in training: causal, grouped heads, within the segments of a batch, forward and backward.
//
// Queries are those of chains of drafts, one step of all chains at a time: a query of step j, from 0, sees the keys of its
// segment up to the row where its chain starts, and those that steps 1 to j of its chain have made. Step 0 is causal
// attention of the rows where chains start.
//
// Everything is f32 on the ordinary cores: next to the products of a block attention is little work, and its
// gradients are differences. Probabilities are made from queries, keys and the rows' log-sum-exps in every pass, so
// that none are kept. A block has 128 threads, 8 along the rows of a tile and 16 along its columns; tiles of queries
// and of keys are 32 rows, 16 where heads are 256 wide, and lie in shared memory one element apart from a power of two,
// so that 16 rows are read from 16 banks.
#pragma once
#include "device.cuh"

constexpr int FLASH_THREADS = 128, FLASH_COLUMNS = 16;

// A tile of a segment's rows: keys, or chains by where they start.
struct RowTile {
  int segment;  // first row of the segment, in the text
  int length;   // rows of the segment
  int first;    // first row of the tile, in the segment
  int start;    // first row of the segment where a chain starts; one starts in every row from there on
  int chains;   // the chain that starts at row i of the segment is chains + i
};

struct FlashArgs {
  const RowTile* tiles;
  const float* q;      // [chains, heads, head_dim], rotated
  const float* k;      // [rows, kv_heads, head_dim], rotated
  const float* v;      // [rows, kv_heads, head_dim]
  const float* own_k;  // [step, own_rows, kv_heads, head_dim]: of each chain's steps 1 to this one, rotated
  const float* own_v;  // likewise
  float* out;          // [chains, heads, head_dim]
  float* lse;          // [chains, heads]: log2 of the sum of powers of two
  const float* dout;   // [chains, heads, head_dim]
  float* delta;        // [chains, heads]: dout · out
  float* dq;           // as q
  float* dk;           // as k
  float* dv;           // as v
  float* own_dk;       // as own_k
  float* own_dv;       // as own_v
  uint64_t own_rows;   // rows from a step's own keys to the next one's
  float scale;         // of scores
  int heads;
  int kv_heads;
  int window;  // a row sees as many positions, its own among them; 0: all before it
  int step;    // of the chains: how far after its start a query is
  int add;     // dk and dv grow
};

constexpr float FLASH_LOG2_E = 1.44269504088896340736f;

template <int HEAD_DIM> struct Flash {
  static constexpr int TILE = HEAD_DIM <= 128 ? 32 : 16;
  static constexpr int ROWS = TILE / (FLASH_THREADS / FLASH_COLUMNS);  // of a thread: row() + 0, 1, ..
  static constexpr int COLUMNS = TILE / FLASH_COLUMNS;                 // of a thread: column() + 0, 16, ..
  static constexpr int DIMS = HEAD_DIM / FLASH_COLUMNS;                // likewise
  static constexpr int PITCH = HEAD_DIM + 1, WEIGHT_PITCH = TILE + 1;
  static constexpr int ELEMENTS = TILE * PITCH, WEIGHTS = TILE * WEIGHT_PITCH;

  static __device__ __forceinline__ int row() { return threadIdx.x / FLASH_COLUMNS * ROWS; }
  static __device__ __forceinline__ int column() { return threadIdx.x % FLASH_COLUMNS; }

  // Up to TILE rows of one head; zeros past the last one.
  static __device__ __forceinline__ void load(float* tile, const float* rows, int count, int heads) {
    for (int i = threadIdx.x; i < TILE * HEAD_DIM; i += FLASH_THREADS) {
      const int row = i / HEAD_DIM, d = i % HEAD_DIM;
      tile[row * PITCH + d] = row < count ? rows[size_t(row) * heads * HEAD_DIM + d] : 0.0f;
    }
  }

  // Products of rows of a with rows of b.
  static __device__ __forceinline__ void multiply(float (&product)[ROWS][COLUMNS], const float* a, const float* b) {
    UNROLL for (int r = 0; r < ROWS; r++)
      UNROLL for (int c = 0; c < COLUMNS; c++) product[r][c] = 0;
    _Pragma("unroll 8") for (int d = 0; d < HEAD_DIM; d++) {
      float right[COLUMNS];
      UNROLL for (int c = 0; c < COLUMNS; c++) right[c] = b[(column() + c * FLASH_COLUMNS) * PITCH + d];
      UNROLL for (int r = 0; r < ROWS; r++) {
        const float left = a[(row() + r) * PITCH + d];
        UNROLL for (int c = 0; c < COLUMNS; c++) product[r][c] = fmaf(left, right[c], product[r][c]);
      }
    }
  }

  // sum += weights rows, or, transposed, weights^T rows.
  template <bool TRANSPOSED>
  static __device__ __forceinline__ void accumulate(float (&sum)[ROWS][DIMS], const float* weights, const float* rows) {
    _Pragma("unroll 4") for (int j = 0; j < TILE; j++) {
      float weight[ROWS];
      UNROLL for (int r = 0; r < ROWS; r++)
        weight[r] = TRANSPOSED ? weights[j * WEIGHT_PITCH + row() + r] : weights[(row() + r) * WEIGHT_PITCH + j];
      UNROLL for (int i = 0; i < DIMS; i++) {
        const float x = rows[j * PITCH + column() + i * FLASH_COLUMNS];
        UNROLL for (int r = 0; r < ROWS; r++) sum[r][i] = fmaf(weight[r], x, sum[r][i]);
      }
    }
  }

  // A thread's rows of a tile of one head, times a factor; where `add`, the rows grow by that.
  static __device__ __forceinline__ void store(float* rows, const float (&sum)[ROWS][DIMS], int count, int heads,
                                               float factor, bool add = false) {
    UNROLL for (int r = 0; r < ROWS; r++)
      UNROLL for (int i = 0; i < DIMS; i++)
        if (row() + r < count) {
          float& x = rows[size_t(row() + r) * heads * HEAD_DIM + column() + i * FLASH_COLUMNS];
          x = add ? x + sum[r][i] * factor : sum[r][i] * factor;
        }
  }
};

// Over the 16 threads of a row.
__device__ __forceinline__ float row_sum(float x) {
  UNROLL for (int by = FLASH_COLUMNS / 2; by; by >>= 1) x += __shfl_xor_sync(ALL_LANES, x, by);
  return x;
}
__device__ __forceinline__ float row_max(float x) {
  UNROLL for (int by = FLASH_COLUMNS / 2; by; by >>= 1) x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, by));
  return x;
}

// Whether the chain that starts at row `query` of a segment sees its row `key`.
__device__ __forceinline__ bool seen(const FlashArgs& args, int length, int query, int key) {
  return query < length && key <= query && (args.window == 0 || key > query + args.step - args.window);
}

// The first row of the first tile of keys that a tile of queries sees.
template <int TILE> __device__ __forceinline__ int first_keys(const FlashArgs& args, int first_query) {
  return args.window ? max(0, first_query + args.step - args.window + 1) / TILE * TILE : 0;
}

// The first of its chain's own keys that a query sees, and where one head of such a key is.
__device__ __forceinline__ int first_own(const FlashArgs& args) {
  return args.window ? max(0, args.step - args.window) : 0;
}
__device__ __forceinline__ size_t own_key(const FlashArgs& args, int own, size_t chain, int kv_head, int head_dim) {
  return ((size_t(own) * args.own_rows + chain) * args.kv_heads + kv_head) * head_dim;
}

// An instance for each head_dim.
#define FLASH_KERNELS(name, body)                                  \
  KERNEL(name##_32, FLASH_THREADS, 1, FlashArgs, (body<32>(args)))   \
  KERNEL(name##_64, FLASH_THREADS, 1, FlashArgs, (body<64>(args)))   \
  KERNEL(name##_80, FLASH_THREADS, 1, FlashArgs, (body<80>(args)))   \
  KERNEL(name##_96, FLASH_THREADS, 1, FlashArgs, (body<96>(args)))   \
  KERNEL(name##_128, FLASH_THREADS, 1, FlashArgs, (body<128>(args))) \
  KERNEL(name##_256, FLASH_THREADS, 1, FlashArgs, (body<256>(args)))
