// Rounds f32 to what products multiply, for training.
//
// in     from [count] f32
// out    to [count] bf16, to nearest even; NaN stays
// grid   (count / 512), 256 threads: a thread takes two elements
// bytes  4 read, 2 written per element
#include "common/number.cuh"

constexpr int NARROW_THREADS = 256;

struct NarrowArgs {
  const float* from;
  bf16* to;
  uint64_t count;
};

__device__ __forceinline__ void narrow_pair(const NarrowArgs& args) {
  const uint64_t at = 2 * (uint64_t(blockIdx.x) * NARROW_THREADS + threadIdx.x);
  if (at + 1 < args.count) *reinterpret_cast<uint32_t*>(args.to + at) = pack<bf16>(args.from[at], args.from[at + 1]);
  else if (at < args.count) args.to[at] = narrow<bf16>(args.from[at]);
}

KERNEL(narrow_bf16, NARROW_THREADS, 1, NarrowArgs, narrow_pair(args))
