// What follows y = W x where the sums were made elsewhere: the epilogue of a projection, with the bits that it gives
// to the same sums in its other forms.
//
// in     projection: x is the sums, [tokens, stride] f32; weights and chunks are not looked at
// grid   (tokens, outputs / 2048), 256 threads: a warp takes 8 times 32 outputs of one token
// bytes  4 read per sum, eight loads per lane on their way; the rest as the epilogue says
#pragma once
#include "epilogue.cuh"

constexpr int FINISH_TILES = 8;  // of 32 outputs

template <class Epilogue, class Arguments> __device__ __forceinline__ void finish(const Arguments& args) {
  const ProjectionArgs& projection = args.projection;
  const int token = blockIdx.x, lane = threadIdx.x % WARP;
  const int first = (blockIdx.y * (PROJECTION_THREADS / WARP) + threadIdx.x / WARP) * FINISH_TILES * TILE_OUTPUTS;
  await_previous_kernel();
  const float* sums = static_cast<const float*>(projection.x) + size_t(token) * projection.stride;
  float sum[FINISH_TILES];
  UNROLL for (int tile = 0; tile < FINISH_TILES; tile++) {
    const int output = first + tile * TILE_OUTPUTS + lane;
    sum[tile] = output < projection.outputs ? sums[output] : 0.0f;
  }
  const Epilogue epilogue(args);
  UNROLL for (int tile = 0; tile < FINISH_TILES; tile++) {
    const int output = first + tile * TILE_OUTPUTS;
    if (output < projection.outputs) epilogue(token, output + lane, sum[tile]);
  }
}

// The kernel of a projection's last form, beside those of PROJECTION.
#define FINISH_PROJECTION_OF(name, T, suffix, Arguments, Epilogue) \
  KERNEL(name##_##suffix##_finish, PROJECTION_THREADS, 1, Arguments, (finish<Epilogue<T, FINISH>>(args)))
#define FINISH_PROJECTION(name, Arguments, Epilogue)          \
  FINISH_PROJECTION_OF(name, bf16, bf16, Arguments, Epilogue) \
  FINISH_PROJECTION_OF(name, f16, f16, Arguments, Epilogue)
