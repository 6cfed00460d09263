// The embedding of each token, and the first layer's norm prepared.
//
// in     ids [tokens]; table [vocab, hidden], by rows or packed (common/embedding.cuh)
// out    residual [tokens, hidden] f32; operand [tokens, stride] = residual * norm; squares (norm.cuh)
// grid   (tokens), 256 threads: a warp takes 32 columns at a time
// bytes  2 read, 6 written per element
#include "common/embedding.cuh"
#include "common/memory.cuh"
#include "common/norm.cuh"

struct EmbeddingArgs {
  const uint32_t* ids;
  const void* table;
  int form;  // of the table
  int hidden;
  float* residual;
  const float* norm;
  void* operand;
  int stride;
  float* squares;
};

template <class T> __device__ __forceinline__ void embed(const EmbeddingArgs& args) {
  const int token = blockIdx.x, lane = threadIdx.x % WARP;
  const int slots = (args.hidden + SQUARES_WIDTH - 1) / SQUARES_WIDTH;
  const EmbeddingTable<T> table(args.table, args.form, args.hidden);
  await_previous_kernel();
  const int row = int(args.ids[token]);
  for (int slot = threadIdx.x / WARP; slot < slots; slot += blockDim.x / WARP) {
    const int column = slot * SQUARES_WIDTH + lane;
    float x = 0;
    if (column < args.hidden) {
      x = table.at(row, column);
      args.residual[size_t(token) * args.hidden + column] = x;
      static_cast<T*>(args.operand)[size_t(token) * args.stride + column] = narrow<T>(x * args.norm[column]);
    }
    store_squares(args.squares + size_t(token) * slots, slot, x);
  }
}

KERNEL(embedding_bf16, 256, 1, EmbeddingArgs, embed<bf16>(args))
KERNEL(embedding_f16, 256, 1, EmbeddingArgs, embed<f16>(args))
