// AdamW (arXiv 1711.05101) with clipping by the gradient's norm, on f32 master weights.
//
// gradient_squares   gradient [count] f32 -> partial [count / 16384] f64: sums of squares
// gradient_norm      partial -> about: the norm of gradient / positions, and what the gradient is to be scaled with
// adamw              values, mean, square [count] f32, moved along the scaled gradient unless the norm is not finite;
//                    copy [count] bf16, or null: the values that the next pass multiplies with
//
// grid   gradient_squares (count / 16384), gradient_norm (1), adamw (count / 256), 256 threads
// order  squares: a thread's elements ascending, threads as a tree, then chunks: a thread's ascending, and a tree.
//        adamw has no sums: each element is computed as on the processor, with its bits
// bytes  4 read per element for the norm; 16 read, 12 written (14 with a copy) for the update
#include "common/number.cuh"
#include "common/reduce.cuh"

constexpr int ADAM_THREADS = 256, NORM_CHUNK = 16384;

struct Sum {
  double value;
  __device__ __forceinline__ void merge(const Sum& other) { value += other.value; }
};

struct GradientSquaresArgs {
  const float* gradient;
  double* partial;
  uint64_t count;
};

__device__ __forceinline__ void square_chunk(const GradientSquaresArgs& args) {
  const uint64_t first = uint64_t(blockIdx.x) * NORM_CHUNK;
  Sum sum{0};
  for (uint64_t at = first + threadIdx.x; at < first + NORM_CHUNK && at < args.count; at += ADAM_THREADS) {
    const double x = args.gradient[at];
    sum.value += x * x;
  }
  sum = block_merge<ADAM_THREADS>(sum);
  if (threadIdx.x == 0) args.partial[blockIdx.x] = sum.value;
}

struct AboutGradient {
  double norm;  // of the mean gradient, before clipping
  float scale;  // of the sum of gradients: to the mean, clipped
  int finite;
};

struct GradientNormArgs {
  const double* partial;
  AboutGradient* about;
  int chunks;
  unsigned padding;
  double per_position;
  double clip;
};

__device__ __forceinline__ void find_norm(const GradientNormArgs& args) {
  Sum sum{0};
  for (int i = threadIdx.x; i < args.chunks; i += ADAM_THREADS) sum.value += args.partial[i];
  sum = block_merge<ADAM_THREADS>(sum);
  if (threadIdx.x != 0) return;
  const double norm = sqrt(sum.value) * args.per_position, most = 1.7976931348623157e308;
  const double clipped = norm > args.clip ? args.clip / norm : 1.0;
  *args.about = {norm, float(args.per_position * clipped), norm <= most};
}

struct AdamwArgs {
  const AboutGradient* about;
  const float* gradient;
  float* values;
  float* mean;
  float* square;
  bf16* copy;
  uint64_t count;
  float shrink;  // 1 - rate * decay, or 1 where nothing decays
  float rate, beta1, beta2, epsilon;
  float by_mean, by_square;  // of the bias correction
  unsigned padding;
};

__device__ __forceinline__ void move_value(const AdamwArgs& args) {
  const uint64_t at = uint64_t(blockIdx.x) * ADAM_THREADS + threadIdx.x;
  if (at >= args.count || !args.about->finite) return;
  const float gradient = args.gradient[at] * args.about->scale;
  const float mean = args.beta1 * args.mean[at] + (1.0f - args.beta1) * gradient;
  const float square = args.beta2 * args.square[at] + (1.0f - args.beta2) * gradient * gradient;
  float value = args.values[at] * args.shrink;
  value -= args.rate * (mean * args.by_mean) / (sqrtf(square * args.by_square) + args.epsilon);
  args.mean[at] = mean;
  args.square[at] = square;
  args.values[at] = value;
  if (args.copy) args.copy[at] = narrow<bf16>(value);
}

KERNEL(gradient_squares, ADAM_THREADS, 1, GradientSquaresArgs, square_chunk(args))
KERNEL(gradient_norm, ADAM_THREADS, 1, GradientNormArgs, find_norm(args))
KERNEL(adamw, ADAM_THREADS, 1, AdamwArgs, move_value(args))
