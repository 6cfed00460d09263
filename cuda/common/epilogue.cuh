// What projections share around their sums: the norm factor of their input, and the launch forms.
#pragma once
#include "coded.cuh"
#include "gemm.cuh"
#include "norm.cuh"

// The squares that the producer of the input left (norm.cuh); null: the input was not normalised.
struct NormArgs {
  const float* squares;  // [tokens, slots]
  int slots;
  int width;
  float epsilon;
};

// How a kernel is launched, as a type for its epilogue.
enum Form { SKINNY, GEMM, FINISH };

__device__ __forceinline__ float token_factor(const NormArgs& norm, int token) {
  if (!norm.squares) return 1;
  return norm_factor(norm.squares + size_t(token) * norm.slots, norm.slots, norm.width, norm.epsilon);
}

// The factor of the token that the calling warp works on. In skinny form a warp only ever sees tokens
// `warp`, `warp + 8` and so on (projection ends are latency-bound: their factors are computed at the start).
template <Form FORM> struct NormFactor {
  const NormArgs& norm;
  int tokens;

  // In shared memory, so that they take no registers while the sums are made.
  static __device__ __forceinline__ float* kept() {
    SHARED(float, factors, [SKINNY_TOKENS]);
    return factors;
  }
  __device__ __forceinline__ void start() const {
    if constexpr (FORM == SKINNY)
      for (int token = threadIdx.x / WARP; token < tokens; token += CLASSES) {
        const float factor = token_factor(norm, token);
        if (threadIdx.x % WARP == 0) kept()[token] = factor;
      }
  }
  __device__ __forceinline__ float of(int token) const {
    if constexpr (FORM == SKINNY) return kept()[token];
    else return token_factor(norm, token);
  }
};

// In the form FINISH a block has one token (finish.cuh), whose factor is made with the epilogue.
template <> struct NormFactor<FINISH> {
  float factor;
  __device__ __forceinline__ NormFactor(const NormArgs& norm, int) : factor(token_factor(norm, blockIdx.x)) {}
  __device__ __forceinline__ void start() const {}
  __device__ __forceinline__ float of(int) const { return factor; }
};

// The kernels of a projection: up to so many tokens, and any number, of weights of 16 bits and of codes.
// Epilogue<T, FORM> is built from the kernel's arguments, whose `projection` is a ProjectionArgs.
#define WRAP(...) __VA_ARGS__
#define SKINNY_PROJECTION(name, T, suffix, Weights, Arguments, Epilogue, tokens, blocks) \
  KERNEL(name##_##suffix##_##tokens, PROJECTION_THREADS, blocks, Arguments,              \
         (project_skinny<Weights, tokens / 8>(args.projection, Epilogue<T, SKINNY>(args))))
#define GEMM_PROJECTION(name, T, suffix, Weights, Arguments, Epilogue) \
  KERNEL(name##_##suffix##_gemm, PROJECTION_THREADS, 1, Arguments,     \
         (project_gemm<T, Weights>(args.projection, Epilogue<T, GEMM>(args))))
#define PLAIN_PROJECTION(name, T, suffix, Arguments, Epilogue)                              \
  SKINNY_PROJECTION(name, T, suffix, PlainWeights<T>, Arguments, Epilogue, 8, 2)            \
  SKINNY_PROJECTION(name, T, suffix, PlainWeights<T>, Arguments, Epilogue, 16, 2)           \
  SKINNY_PROJECTION(name, T, suffix, PlainWeights<T>, Arguments, Epilogue, 24, 1)           \
  SKINNY_PROJECTION(name, T, suffix, PlainWeights<T>, Arguments, Epilogue, 32, 1)           \
  SKINNY_PROJECTION(name, T, suffix, PlainWeights<T>, Arguments, Epilogue, 48, 1)           \
  SKINNY_PROJECTION(name, T, suffix, PlainWeights<T>, Arguments, Epilogue, 64, 1)           \
  GEMM_PROJECTION(name, T, suffix, PlainWeights<T>, Arguments, Epilogue)
#define CODED_PROJECTION(name, T, suffix, BITS, Arguments, Epilogue)                              \
  SKINNY_PROJECTION(name, T, suffix, WRAP(CodedWeights<T, BITS>), Arguments, Epilogue, 8, 2)      \
  SKINNY_PROJECTION(name, T, suffix, WRAP(CodedWeights<T, BITS>), Arguments, Epilogue, 16, 1)     \
  SKINNY_PROJECTION(name, T, suffix, WRAP(CodedWeights<T, BITS>), Arguments, Epilogue, 32, 1)     \
  GEMM_PROJECTION(name, T, suffix, WRAP(CodedWeights<T, BITS>), Arguments, Epilogue)

#define PROJECTION(name, Arguments, Epilogue)                        \
  PLAIN_PROJECTION(name, bf16, bf16, Arguments, Epilogue)            \
  PLAIN_PROJECTION(name, f16, f16, Arguments, Epilogue)              \
  CODED_PROJECTION(name, bf16, bf16_four, 4, Arguments, Epilogue)    \
  CODED_PROJECTION(name, f16, f16_four, 4, Arguments, Epilogue)      \
  CODED_PROJECTION(name, bf16, bf16_eight, 8, Arguments, Epilogue)   \
  CODED_PROJECTION(name, f16, f16_eight, 8, Arguments, Epilogue)
