// Gradients of biases and of the weights of norms: sums over rows, for training.
//
// in     dy [rows, width] f32; for a norm x [.., width], of which row r is index[r] or r, and factors [rows]
// out    column_sums: partial [slices, width], the sums of dy (or dy x factor) over slices of `slice` rows
//        add_partials: sum [width] grows by those of all slices
// grid   column_sums (width / 256, slices), add_partials (width / 256), 256 threads: a thread takes a column
// order  rows of a slice ascending, then slices ascending, then what was there before
// bytes  4 read per element of dy, 8 for a norm; 8 per partial
#include "common/device.cuh"

constexpr int COLUMNS_THREADS = 256;

struct ColumnSumsArgs {
  const float* dy;
  const float* x;
  const unsigned* index;
  const float* factors;
  float* partial;
  int rows;
  int width;
  int slice;
};

__device__ __forceinline__ void sum_columns(const ColumnSumsArgs& args) {
  const int column = blockIdx.x * COLUMNS_THREADS + threadIdx.x;
  if (column >= args.width) return;
  const int first = blockIdx.y * args.slice, end = min(args.rows, first + args.slice);
  float sum = 0;
  for (int row = first; row < end; row++) {
    const float dy = args.dy[size_t(row) * args.width + column];
    if (args.x) {
      const size_t source = args.index ? args.index[row] : row;
      sum += dy * args.x[source * args.width + column] * args.factors[row];
    } else {
      sum += dy;
    }
  }
  args.partial[size_t(blockIdx.y) * args.width + column] = sum;
}

struct AddPartialsArgs {
  const float* partial;
  float* sum;
  int width;
  int slices;
};

__device__ __forceinline__ void add_slices(const AddPartialsArgs& args) {
  const int column = blockIdx.x * COLUMNS_THREADS + threadIdx.x;
  if (column >= args.width) return;
  float sum = 0;
  for (int slice = 0; slice < args.slices; slice++) sum += args.partial[size_t(slice) * args.width + column];
  args.sum[column] += sum;
}

KERNEL(column_sums, COLUMNS_THREADS, 1, ColumnSumsArgs, sum_columns(args))
KERNEL(add_partials, COLUMNS_THREADS, 1, AddPartialsArgs, add_slices(args))
