// One small kernel per device wrapper of common/, so that emulator and GPU can be compared bit for bit
// before anything is built on them. None of them is used by an engine.
//
// grid (1) of one warp, except wrapper_last_block: (blocks), 64 threads.
#include "common/matrix.cuh"
#include "common/memory.cuh"
#include "common/philox.cuh"

struct WrapperMmaArgs {
  const uint16_t *a, *b;  // [16, 16] by rows, [16, 8] by rows
  float* d;               // [16, 8], read and written
};

// Fragments by the PTX ISA's tables, element by element.
template <class T> __device__ __forceinline__ void multiply(const WrapperMmaArgs& args) {
  const int group = threadIdx.x / 4, t = threadIdx.x % 4;
  const auto pair = [](uint16_t low, uint16_t high) { return uint32_t(low) | uint32_t(high) << 16; };
  uint32_t a[4], b[2];
  float d[4];
  for (int i = 0; i < 4; i++) {
    const uint16_t* row = args.a + (group + i % 2 * 8) * 16 + t * 2 + i / 2 * 8;
    a[i] = pair(row[0], row[1]);
    d[i] = args.d[(group + i / 2 * 8) * 8 + t * 2 + i % 2];
  }
  for (int i = 0; i < 2; i++) {
    const uint16_t* column = args.b + (t * 2 + i * 8) * 8 + group;
    b[i] = pair(column[0], column[8]);
  }
  mma<T>(d, a, b);
  for (int i = 0; i < 4; i++) args.d[(group + i / 2 * 8) * 8 + t * 2 + i % 2] = d[i];
}

KERNEL(wrapper_mma_bf16, 32, 1, WrapperMmaArgs, multiply<bf16>(args))
KERNEL(wrapper_mma_f16, 32, 1, WrapperMmaArgs, multiply<f16>(args))

struct WrapperNumbersArgs {
  const float* in;  // [n]
  uint32_t* out;    // [n, 5]: bf16 pair (x, -x), f16 pair (x, -x), bits of x as bf16 widened, those pairs times (3 or 3/4, -1/3)
  int n;
};

__device__ __forceinline__ void convert(const WrapperNumbersArgs& args) {
  for (int i = threadIdx.x; i < args.n; i += WARP) {
    const float x = args.in[i];
    uint32_t* out = args.out + 5 * i;
    out[0] = pack<bf16>(x, -x);
    out[1] = pack<f16>(x, -x);
    out[2] = __float_as_uint(widen(narrow<bf16>(x)));
    out[3] = mul_pair<bf16>(out[0], pack<bf16>(3, -1.0f / 3));
    out[4] = mul_pair<f16>(out[1], pack<f16>(0.75f, -1.0f / 3));
  }
}

KERNEL(wrapper_numbers, 32, 1, WrapperNumbersArgs, convert(args))

struct WrapperLanesArgs {
  const uint32_t* in;  // [32]
  uint32_t* out;       // [32, 8]
};

__device__ __forceinline__ void exchange(const WrapperLanesArgs& args) {
  const int lane = threadIdx.x;
  const uint32_t x = args.in[lane];
  uint32_t* out = args.out + lane * 8;
  out[0] = __shfl_xor_sync(ALL_LANES, x, 5);
  out[1] = __shfl_up_sync(ALL_LANES, x, 3);
  out[2] = __shfl_down_sync(ALL_LANES, x, 16);
  out[3] = __shfl_sync(ALL_LANES, x, 40);
  out[4] = __ballot_sync(ALL_LANES, x & 1);
  out[5] = __byte_perm(x, ~x, 0x7632);
  out[6] = __clz(int(x)) << 8 | __ffs(int(x));
  const uint4 words = Philox(uint64_t(x) << 32 | lane, 17, GUMBEL, 3).block(lane);
  out[7] = words.x ^ words.y ^ words.z ^ words.w;
}

KERNEL(wrapper_lanes, 32, 1, WrapperLanesArgs, exchange(args))

struct WrapperCopyArgs {
  const uint4* in;  // [64]
  uint4* out;       // [64]: every fourth unit zero
};

// Two groups of copies; the first is read while the second may still be on its way.
__device__ __forceinline__ void copy(const WrapperCopyArgs& args) {
  SHARED(uint4, stage, [2][WARP]);
  const int lane = threadIdx.x;
  for (int half = 0; half < 2; half++) {
    copy_async(&stage[half][lane], args.in + half * WARP + lane, lane % 4 != 3);
    commit_copies();
  }
  wait_copies<1>();
  __syncwarp();
  args.out[lane] = stage[0][lane ^ 1];
  wait_copies<0>();
  __syncwarp();
  args.out[WARP + lane] = stage[1][lane ^ 1];
}

KERNEL(wrapper_copy, 32, 1, WrapperCopyArgs, copy(args))

struct WrapperLastBlockArgs {
  uint32_t* values;   // [blocks]
  unsigned* arrived;  // 0
  uint32_t* out;      // the sum of all, from the last block
};

__device__ __forceinline__ void sum_in_last_block(const WrapperLastBlockArgs& args) {
  if (threadIdx.x == 40) args.values[blockIdx.x] = blockIdx.x * 3 + 1;
  if (!last_block(args.arrived, gridDim.x)) return;
  if (threadIdx.x != 0) return;
  uint32_t sum = 0;
  for (unsigned i = 0; i < gridDim.x; i++) sum += args.values[i];
  *args.out += sum;
}

KERNEL(wrapper_last_block, 64, 1, WrapperLastBlockArgs, sum_in_last_block(args))
