// Counts occurrences of tokens for penalties, as adjust.cu reads them: a request's prompt when it is taken in,
// and output that it brings with it.
//
// in     tokens [count] u32, of which the first `prompt` are of the prompt
// out    counts [vocab] u32, one row: bit 31 set where a token occurs in the prompt, one added for each
//        occurrence past it. The row is zero or has counts already
// grid   1 block, 512 threads
// order  any: neither setting a bit nor adding below it depends on what came before
// bytes  4 per token, and an atomic operation each
#include "common/memory.cuh"

constexpr int COUNT_THREADS = 512;

struct CountTokensArgs {
  const uint32_t* tokens;
  uint32_t* counts;
  int count;
  int prompt;
};

__device__ __forceinline__ void count_all(const CountTokensArgs& args) {
  await_previous_kernel();
  for (int i = threadIdx.x; i < args.count; i += COUNT_THREADS) {
    uint32_t* count = args.counts + args.tokens[i];
    if (i < args.prompt) atomicOr(count, 0x80000000u);
    else atomicAdd(count, 1u);
  }
}

KERNEL(count_tokens, COUNT_THREADS, 1, CountTokensArgs, count_all(args))
