// Rows by their numbers, and the way back of their gradients, for training.
//
// in     from; index [rows]
// out    take_rows: to [rows, width], of which row r is row index[r] of from
//        add_rows: row index[r] of to grows by row r of from [rows, width]; indices are unequal
// grid   (rows * width / 256), 256 threads: a thread takes an element
// bytes  take_rows: an element read and written; add_rows: 8 read, 4 written per element
#include "common/number.cuh"

constexpr int TAKE_THREADS = 256;

template <class T> struct TakeRowsArgs {
  const T* from;
  const unsigned* index;
  T* to;
  int rows;
  int width;
};

template <class T, bool ADD> __device__ __forceinline__ void take_element(const TakeRowsArgs<T>& args) {
  const size_t at = size_t(blockIdx.x) * TAKE_THREADS + threadIdx.x, row = at / args.width;
  if (row >= size_t(args.rows)) return;
  const size_t source = size_t(args.index[row]) * args.width + at % args.width;
  if constexpr (ADD) args.to[source] += args.from[at];
  else args.to[at] = args.from[source];
}

KERNEL(take_rows_bf16, TAKE_THREADS, 1, TakeRowsArgs<bf16>, (take_element<bf16, false>(args)))
KERNEL(take_rows_f32, TAKE_THREADS, 1, TakeRowsArgs<float>, (take_element<float, false>(args)))
KERNEL(add_rows, TAKE_THREADS, 1, TakeRowsArgs<float>, (take_element<float, true>(args)))
