// What a recurrent exit block's matrix multiplies: the block's residual stream at the last draft, and that draft's embedding
// under an RMSNorm without a weight.
//
// in     ids [tokens]; table [vocab, hidden], by rows or packed (common/embedding.cuh); states [rows, hidden] f32;
//        index [tokens], the row of states of each token
// out    operand [tokens, stride] = state, then embedding / sqrt(mean(embedding^2) + epsilon), in the weights' format
// grid   (tokens), 256 threads
// order  a thread's columns ascending, then threads as a tree (common/reduce.cuh)
// bytes  6 read, 4 written per element of a row
#include "common/embedding.cuh"
#include "common/memory.cuh"
#include "common/reduce.cuh"

constexpr int RECURRENT_THREADS = 256;

struct RecurrentInputArgs {
  const uint32_t* ids;
  const void* table;
  int form;  // of the table
  int hidden;
  const float* states;
  const uint32_t* index;
  void* operand;
  int stride;
  float epsilon;
};

struct SumOfSquares {
  float sum;
  __device__ __forceinline__ void merge(const SumOfSquares& other) { sum += other.sum; }
};

template <class T> __device__ __forceinline__ void join_inputs(const RecurrentInputArgs& args) {
  const int token = blockIdx.x, hidden = args.hidden;
  const EmbeddingTable<T> table(args.table, args.form, hidden);
  await_previous_kernel();
  const int row = int(args.ids[token]);
  const float* state = args.states + size_t(args.index[token]) * hidden;
  T* operand = static_cast<T*>(args.operand) + size_t(token) * args.stride;
  SumOfSquares squares = {0};
  for (int column = threadIdx.x; column < hidden; column += RECURRENT_THREADS) {
    const float x = table.at(row, column);
    squares.sum += x * x;
    operand[column] = narrow<T>(state[column]);
  }
  const float mean = block_merge<RECURRENT_THREADS>(squares).sum / float(hidden);
  const float factor = 1.0f / sqrtf(mean + args.epsilon);
  for (int column = threadIdx.x; column < hidden; column += RECURRENT_THREADS)
    operand[hidden + column] = narrow<T>(table.at(row, column) * factor);
}

KERNEL(recurrent_input_bf16, RECURRENT_THREADS, 1, RecurrentInputArgs, join_inputs<bf16>(args))
KERNEL(recurrent_input_f16, RECURRENT_THREADS, 1, RecurrentInputArgs, join_inputs<f16>(args))
